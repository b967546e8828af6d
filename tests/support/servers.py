"""Real PostgreSQL and Redis servers for tests: each in a folder of its own, on a free port of loopback."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """Return a port of loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def find_postgresql() -> Path | None:
    """Return the folder of PostgreSQL's server binaries, the newest version's."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if folders:
        return folders[-1]
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


def find_redis() -> str | None:
    """Return the path of the Redis server binary."""
    return shutil.which("redis-server")


class PostgresServer:
    """One PostgreSQL server; `url(name)` names a database in it. PostgreSQL refuses to run as root."""

    def __init__(self, folder: Path, *, options: Sequence[str] = ("fsync=off", "max_connections=200")) -> None:
        binaries = find_postgresql()
        if binaries is None:
            raise RuntimeError("PostgreSQL's binaries are not installed")
        self.binaries = binaries
        self.data = folder / "data"
        self.port = free_port()
        self._options = options
        self._prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if self._prefix:
            shutil.chown(folder, "postgres")
        self._log = folder / "log"
        self._run("initdb", "-D", str(self.data), "-U", "serai", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")

    def start(self) -> None:
        """Start and wait until it answers."""
        arguments = [f"-c{option}" for option in self._options]
        server = [str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port), "-h", LOOPBACK, "-k", ""]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._prefix, *server, *arguments], stdout=log, stderr=log, cwd="/", start_new_session=True
            )
        ready = [str(self.binaries / "pg_isready"), "-q", "-h", LOOPBACK, "-p", str(self.port)]
        _wait_until(lambda: subprocess.run(ready, check=False).returncode == 0, self._process, self._log)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop: SIGINT cuts connections and ends cleanly; SIGQUIT is a crash."""
        if self._process is None:
            return
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        os.kill(pid, how)
        self._process.wait(30)
        self._process = None

    def create(self, name: str, template: str = "template0") -> str:
        """Create the database `name` and return its URL."""
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return self.url(name)

    def drop(self, name: str) -> None:
        """Remove the database `name`, whoever is connected to it."""
        import psycopg

        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def url(self, name: str) -> str:
        """Return the URL of the database `name`."""
        return f"postgresql://serai@{LOOPBACK}:{self.port}/{name}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [*self._prefix, str(self.binaries / program), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, cwd="/", text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {done.stderr}")


class RedisServer:
    """One Redis server that keeps nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"redis://{LOOPBACK}:{self.port}/0"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        binary = find_redis()
        if binary is None:
            raise RuntimeError("the Redis server is not installed")
        self._folder.mkdir(parents=True, exist_ok=True)
        options = ["--port", str(self.port), "--bind", LOOPBACK, "--save", "", "--appendonly", "no"]
        log = self._folder / "log"
        with log.open("ab") as output:
            self._process = subprocess.Popen([binary, *options], cwd=self._folder, stdout=output, stderr=output)
        _wait_until(self._answers, self._process, log)

    def pause(self) -> None:
        """Make it hang: connections are accepted, nothing is answered."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stop it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection((LOOPBACK, self.port), 1) as probe:
                probe.sendall(b"PING\r\n")
                return probe.recv(5) == b"+PONG"
        except OSError:
            return False


def _wait_until(ready: Callable[[], bool], process: "subprocess.Popen[bytes]", log: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start: {log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.02)
