"""A hub on loopback for the demo: one repository, which holds the weights that ship with the package."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

REPOSITORY = "serai/starter-chat"


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """Serve the files of `folder` as the repository; yields the hub's URL."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    handler = type("Handler", (_Handler,), {"files": files, "commit": _commit(files)})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """What the hub's client asks for: the description of a repository, and its files."""

    protocol_version = "HTTP/1.1"
    files: Mapping[str, bytes]
    commit: str

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class's parameter
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.split("/")[1:]]
        match parts:
            case ["api", "models", owner, name, *_] if f"{owner}/{name}" == REPOSITORY:
                self._reply(200, {"content-type": "application/json"}, json.dumps(self._description()).encode())
            case [owner, name, "resolve", _, path] if f"{owner}/{name}" == REPOSITORY and path in self.files:
                data = self.files[path]
                self._reply(200, {"etag": f'"{hashlib.sha256(data).hexdigest()}"'}, data)
            case _:
                self._reply(404, {"x-error-code": "RepoNotFound"}, b"{}")

    def _description(self) -> dict[str, Any]:
        siblings = [
            {
                "rfilename": name,
                "size": len(data),
                "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134},
            }
            for name, data in self.files.items()
        ]
        return {"id": REPOSITORY, "modelId": REPOSITORY, "sha": self.commit, "tags": [], "siblings": siblings}

    def _reply(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in {**headers, "x-repo-commit": self.commit, "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


def _commit(files: Mapping[str, bytes]) -> str:
    """Return the repository's commit: it changes with any byte of it."""
    return hashlib.sha1(b"".join(files.values()), usedforsecurity=False).hexdigest()
