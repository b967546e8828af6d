"""A model hub on loopback that the real client library talks to, with every trouble that a test asks for.

    with HubServer({"acme/tiny": {"config.json": b"{}", "model.safetensors": weights}}) as hub:
        ... hub.url ...                        the address to give as the hub's
        hub.cut("model.safetensors", at=1000)  the next answer with this file ends there
        hub.served["model.safetensors"]        bytes of it that were sent

Large kinds of file are "LFS": they have a SHA-256, and are sent by a redirect to `/cdn/…`, as on the real
hub. It runs in threads of its own, so tests of any kind, and other processes, can use it.
"""

import hashlib
import json
import threading
from collections import Counter, defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit

LFS = (".safetensors", ".bin", ".onnx", ".gguf", ".pt", ".xml", ".model")
PIECE = 16 * 1024
Files = Mapping[str, bytes]


@dataclass
class Repo:
    """One repository: its commits, oldest first, and what the hub tells of it besides."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    token: str | None = None
    """Asked for where it is not None."""
    info: dict[str, Any] = field(default_factory=dict)
    """Further members of the model's document: tags, pipeline_tag, config, safetensors."""

    @property
    def head(self) -> str:
        return list(self.commits)[-1]


@dataclass
class Trouble:
    """What happens to the next `times` answers with a file: each ends in its own way."""

    times: int = 1
    at: int = 0
    """After so many bytes of the answer."""
    kind: str = "cut"
    release: threading.Event = field(default_factory=threading.Event)
    reached: threading.Event = field(default_factory=threading.Event)


class HubServer:
    """The hub. `repos`: files by path, by repository; each is at its first commit."""

    def __init__(self, repos: Mapping[str, Files]) -> None:
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}
        self.served: Counter[str] = Counter()
        """Bytes of each file's path that were handed to the network."""
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        """Method, path with query, and headers by lower-case name."""
        self.cdn: str | None = None
        """Where redirects of large files lead; this server itself if None."""
        self.ranges = True
        self.tell_sizes = True
        self._troubles: defaultdict[str, list[Trouble]] = defaultdict(list)
        self._answers: list[tuple[int, dict[str, str], bytes]] = []
        self._changed: dict[str, bytes] = {}
        self._lock = threading.Lock()
        for name, files in repos.items():
            self.push(name, files)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for troubles in self._troubles.values():
            for trouble in troubles:
                trouble.release.set()
        self._server.shutdown()
        self._thread.join(30)
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def push(self, name: str, files: Files, **info: Any) -> str:
        """Add a commit that holds exactly `files`; returns its hash. `info`: see `Repo.info`."""
        repo = self.repos.setdefault(name, Repo())
        said = repr((name, len(repo.commits), sorted((path, git_id(data)) for path, data in files.items())))
        commit = hashlib.sha1(said.encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.info |= info
        return commit

    def commit(self, name: str) -> str:
        """Return the newest commit."""
        return self.repos[name].head

    def gate(self, name: str, token: str) -> None:
        """Show the repository to those alone who send the token."""
        self.repos[name].token = token

    def rename(self, old: str, new: str) -> None:
        """Answer calls for the old name with a redirect to the new one, as the hub does."""
        self.repos[new] = self.repos.pop(old)
        self.renamed[old] = new

    def cut(self, path: str, *, at: int, times: int = 1) -> None:
        """End the next answers with this file after `at` bytes, without a word."""
        self._troubles[path].append(Trouble(times=times, at=at))

    def hold(self, path: str, *, at: int) -> Trouble:
        """Stop the next answer with this file after `at` bytes until `release` is set; `reached` says it is there."""
        trouble = Trouble(at=at, kind="hold")
        self._troubles[path].append(trouble)
        return trouble

    def change(self, path: str, data: bytes) -> None:
        """Send other bytes of this file than were announced, under an entity tag of their own."""
        self._changed[path] = data

    def answer_next(self, status: int, *, times: int = 1, body: bytes = b"", **headers: str) -> None:
        """Answer the next calls, whatever they are, with a status: 429, 500, 507 …; `retry_after="1"`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self._answers += [(status, named, body)] * times

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        return Handler


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass

    def handle_one_request(self) -> None:
        with suppress(ConnectionError, TimeoutError):
            super().handle_one_request()
            return
        self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append((self.command, self.path, headers))
        with self.hub._lock:
            canned = self.hub._answers.pop(0) if self.hub._answers else None
        if canned is not None:
            self._reply(canned[0], canned[1], canned[2])
            return
        parts = urlsplit(self.path)
        segments = [unquote(part) for part in parts.path.split("/")[1:]]
        match segments:
            case ["api", "models", owner, name, *rest]:
                revision = rest[1] if rest[:1] == ["revision"] else None
                self._model(f"{owner}/{name}", revision, parse_qs(parts.query))
            case ["cdn", owner, name, commit, *path]:
                self._file(f"{owner}/{name}", commit, "/".join(path))
            case [owner, name, "resolve", revision, *path]:
                self._resolve(f"{owner}/{name}", revision, "/".join(path))
            case _:
                self._reply(404, {}, b"no such page")

    def _model(self, name: str, revision: str | None, query: Mapping[str, list[str]]) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        repo, commit = found
        siblings = [
            sibling(path, data, sizes="blobs" in query and self.hub.tell_sizes)
            for path, data in repo.commits[commit].items()
        ]
        document = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}
        self._reply(200, {"content-type": "application/json"}, json.dumps({**document, **repo.info}).encode())

    def _resolve(self, name: str, revision: str, path: str) -> None:
        found = self._find(name, revision)
        if found is None:
            return
        repo, commit = found
        data = repo.commits[commit].get(path)
        if data is None:
            self._reply(404, {"x-error-code": "EntryNotFound", "x-repo-commit": commit}, b"")
        elif path.endswith(LFS):
            headers = {
                "x-repo-commit": commit,
                "x-linked-etag": f'"{hashlib.sha256(data).hexdigest()}"',
                "x-linked-size": str(len(data)),
                "location": f"{self.hub.cdn or ''}/cdn/{name}/{commit}/{path}",
            }
            self._reply(302, headers, b"")
        else:
            self._file(name, commit, path)

    def _find(self, name: str, revision: str | None) -> tuple[Repo, str] | None:
        """Return repository and commit, or send the answer that says why there is none."""
        if name in self.hub.renamed:
            new = self.path.replace(name, self.hub.renamed[name], 1)
            self._reply(307, {"location": new}, b"")
            return None
        repo = self.hub.repos.get(name)
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if repo is None:
            self._reply(404 if token else 401, {"x-error-code": "RepoNotFound"}, b'{"error":"Repository not found"}')
        elif repo.token is not None and token != repo.token:
            self._reply(403 if token else 401, {"x-error-code": "GatedRepo"}, b'{"error":"gated"}')
        else:
            commit = revision if revision in repo.commits else repo.head if revision in (None, "main") else None
            if commit is not None:
                return repo, commit
            self._reply(404, {"x-error-code": "RevisionNotFound"}, b'{"error":"Invalid rev id"}')
        return None

    def _file(self, name: str, commit: str, path: str) -> None:
        data = self.hub._changed.get(path, self.hub.repos[name].commits[commit][path])
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        start, status = 0, 200
        wanted = self.headers.get("range", "")
        same = self.headers.get("if-range") in (None, etag)
        headers = {"etag": etag, "x-repo-commit": commit}
        if wanted and same and self.hub.ranges:
            start, status = int(wanted.removeprefix("bytes=").partition("-")[0]), 206
            if start >= len(data):
                self._reply(416, {"content-range": f"bytes */{len(data)}"}, b"")
                return
            headers["content-range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._head(status, {**headers, "content-length": str(len(data) - start)})
        if self.command == "GET":
            self._send(path, data[start:])

    def _send(self, path: str, data: bytes) -> None:
        trouble = self._trouble(path)
        sent = 0
        while sent < len(data):
            stop = len(data) if trouble is None or sent > trouble.at else trouble.at
            if trouble is not None and sent == trouble.at:
                trouble.reached.set()
                if trouble.kind == "cut":
                    self.close_connection = True
                    return
                trouble.release.wait(120)
                trouble, stop = None, len(data)
            piece = data[sent : min(stop, sent + PIECE)]
            self.wfile.write(piece)
            with self.hub._lock:
                self.hub.served[path] += len(piece)
            sent += len(piece)

    def _trouble(self, path: str) -> Trouble | None:
        with self.hub._lock:
            waiting = self.hub._troubles[path]
            if not waiting:
                return None
            waiting[0].times -= 1
            return waiting.pop(0) if waiting[0].times <= 0 else waiting[0]

    def _reply(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self._head(status, {**headers, "content-length": str(len(body))})
        if self.command == "GET":
            self.wfile.write(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def git_id(data: bytes) -> str:
    """Return the id that git gives a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sibling(path: str, data: bytes, *, sizes: bool) -> dict[str, Any]:
    """Return the entry of one file in a model's document."""
    if not sizes:
        return {"rfilename": path}
    entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_id(data)}
    if path.endswith(LFS):
        entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return entry


def safetensors(count: int, *, seed: int = 0, dtype: str = "F16") -> bytes:
    """Return a sound safetensors file with one tensor of `count` 16-bit numbers."""
    header = json.dumps({"weight": {"dtype": dtype, "shape": [count], "data_offsets": [0, 2 * count]}}).encode()
    block = hashlib.shake_128(str(seed).encode()).digest(4096)
    return len(header).to_bytes(8, "little") + header + (block * (2 * count // 4096 + 1))[: 2 * count]
