"""`serai serve` as a real process, and raw bytes on a socket to it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from support.servers import LOOPBACK

START_S = 60.0


@dataclass
class ServerProcess:
    """A server that answers at `url`; `lines` is what it has written to stderr."""

    process: subprocess.Popen[str]
    home: Path
    url: str = ""
    lines: list[str] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def admin_key(self) -> str:
        return (self.home / "admin.key").read_text("utf-8").strip()

    def client(self, key: str | None = None, timeout: float = 30) -> httpx.Client:
        """Return a client with that key; with the first admin's if none is given."""
        headers = {"authorization": f"Bearer {key or self.admin_key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    def alive(self) -> bool:
        """Say whether the process runs and answers."""
        if self.process.poll() is not None:
            return False
        return httpx.get(f"{self.url}/live", timeout=30, trust_env=False).status_code == 200

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 30) -> int:
        """Return the exit code."""
        return self.process.wait(seconds)


def environment(**settings: str) -> dict[str, str]:
    """Return this process's environment with no other setting of Serai than those."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SERAI_")}
    return {**kept, **{f"SERAI_{name.upper()}": value for name, value in settings.items()}}


@contextmanager
def serving(
    home: Path,
    *arguments: str,
    command: Sequence[str] = (sys.executable, "-m", "serai"),
    **settings: Any,
) -> Iterator[ServerProcess]:
    """Run `serai serve` in `home` on a free port until the block ends; settings go by the environment."""
    given = environment(**{name: str(value) for name, value in {"min_free_disk_bytes": 0, **settings}.items()})
    process = subprocess.Popen(
        [*command, "serve", "--home", str(home), "--port", "0", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        errors="replace",
        env=given,
    )
    server, said = ServerProcess(process, home), threading.Event()
    reader = threading.Thread(target=_read_lines, args=(server, said), daemon=True)
    reader.start()
    try:
        said.wait(START_S)
        if not server.url:
            raise RuntimeError("the server did not start: " + "".join(server.lines)[-2000:])
        yield server
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        reader.join(30)
        if process.stderr is not None:
            process.stderr.close()


def hears_ctrl_c() -> None:
    """Make a child hear SIGINT, which whatever runs in a shell's background is started without."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def run_serve(*arguments: str, seconds: float = 60, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `serai serve` where it is to end by itself."""
    command = [sys.executable, "-m", "serai", "serve", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=seconds, env=environment(**settings)
    )


def _read_lines(server: ServerProcess, said: threading.Event) -> None:
    """Read stderr for as long as it is open; set `said` when the server has said where it is, or has ended."""
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.lines.append(line)
        if line.startswith("Serai is ready at "):
            server.url = line.split()[4]
            said.set()
    said.set()


@dataclass(frozen=True)
class Answer:
    """What came back on a socket. `status` 0: the connection was closed without an answer."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def connect(port: int, seconds: float = 20) -> socket.socket:
    """Return a connection to the server; reading it waits at most `seconds`."""
    connection = socket.create_connection((LOOPBACK, port), seconds)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def send(connection: socket.socket, *parts: bytes) -> None:
    """Send what the server takes of `parts`; it may close before it has read all."""
    with suppress(ConnectionError, TimeoutError):
        for part in parts:
            connection.sendall(part)


def receive(connection: socket.socket) -> Answer:
    """Read one answer: as long as its Content-Length says, or until the server closes."""
    raw = b""
    while not _complete(raw):
        try:
            piece = connection.recv(65536)
        except ConnectionError:
            break
        if not piece:
            break
        raw += piece
    return parse(raw)


def exchange(port: int, *parts: bytes, seconds: float = 20) -> Answer:
    """Send `parts` on a connection of their own and return the (last) answer."""
    with connect(port, seconds) as connection:
        send(connection, *parts)
        return receive(connection)


def head(method: str, path: str, *headers: str, host: str = "127.0.0.1") -> bytes:
    """Return the head of a request, whatever is in it, with a Host header unless `host` is empty."""
    lines = [f"{method} {path} HTTP/1.1", *([f"Host: {host}"] if host else []), *headers]
    return "\r\n".join(lines).encode("latin-1", "surrogateescape") + b"\r\n\r\n"


def parse(raw: bytes) -> Answer:
    """Return the answer in `raw`, past an interim `100 Continue`."""
    top, _, rest = raw.partition(b"\r\n\r\n")
    if top.startswith(b"HTTP/1.1 100"):
        return parse(rest)
    if not top.startswith(b"HTTP/1."):
        return Answer(0, {}, b"", raw)
    line, *fields = top.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (entry.partition(":") for entry in fields)}
    body = _dechunked(rest) if headers.get("transfer-encoding") == "chunked" else rest
    return Answer(int(line.split()[1]), headers, body, raw)


def _complete(raw: bytes) -> bool:
    top, separator, body = raw.partition(b"\r\n\r\n")
    if not separator:
        return False
    if top.startswith(b"HTTP/1.1 100"):
        return _complete(body)
    answer = parse(raw)
    if "content-length" in answer.headers:
        return len(body) >= int(answer.headers["content-length"])
    return answer.status in (204, 304) or body.endswith(b"0\r\n\r\n")


def _dechunked(data: bytes) -> bytes:
    parts = []
    while data:
        size, _, data = data.partition(b"\r\n")
        length = int(size or b"0", 16)
        if length == 0:
            break
        parts.append(data[:length])
        data = data[length + 2 :]
    return b"".join(parts)
