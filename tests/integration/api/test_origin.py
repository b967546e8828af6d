"""To whom the server answers, and for which pages: Host, Origin, and every spelling of a path, byte for byte."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.websockets import WebSocket

from serai.api.guard import Guard
from serai.clock import SystemClock
from serai.ids import new_id
from serai.settings import Settings
from serai.telemetry.metrics import Metrics
from support.api import Running, running
from support.process import Answer, ServerProcess, exchange, head
from support.scrub import check_error

FOREIGN_HOSTS = [
    "evil.test",
    "localhost.evil.test",
    "evil-localhost",
    "127.0.0.1.evil.test",
    "evil.test:{port}",
    "evil.test@127.0.0.1",
    "127.0.0.1@evil.test",
    "127.0.0.1/admin?",
    "x/admin?",
    "127.0.0.1#",
    "127.0.0.1\\evil.test",
    "127.0.0.1:99999",
    "127.0.0.1:-1",
    "127.0.0.1:port",
    "localhost.",
    "LOCALHOST.evil.test",
    "[::1",
    "[::1]evil.test",
    "[fe80::1%25eth0]x",
    "0x7f.1",
    "2130706433",
    "127.1",
    ",",
    "127.0.0.1,evil.test",
    "127.0.0.1 evil.test",
    "loc\u00e1lhost",
    "a" * 5000,
]
OWN_HOSTS = ["127.0.0.1", "127.0.0.1:{port}", "localhost", "localhost:{port}", "LocalHost", "[::1]", "[::1]:{port}"]

FOREIGN_ORIGINS = [
    "null",
    "",
    "http://evil.test",
    "https://evil.test",
    "http://localhost.evil.test",
    "http://evil-localhost",
    "http://localhost",
    "http://127.0.0.1",
    "http://127.0.0.1:{other}",
    "http://127.0.0.1:{port}.evil.test",
    "http://127.0.0.1:{port}@evil.test",
    "http://evil.test#http://127.0.0.1:{port}",
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port} ",
    "HTTP://127.0.0.1:{port}x",
    "file://",
    "chrome-extension://abcdef",
    "moz-extension://127.0.0.1:{port}",
    "data:",
    "javascript:alert(1)",
    "*",
    "127.0.0.1:{port}",
    "//127.0.0.1:{port}",
    "http://127.0.0.1:{port}, http://evil.test",
]

SPELLINGS = [
    "//users",
    "///users",
    "/users/",
    "/users//",
    "/users/.",
    "/./users",
    "/live/../users",
    "/live/..;/users",
    "/live/%2e%2e/users",
    "/live/%2E%2E/users",
    "/live/..%2fusers",
    "/live/%2e%2e%2fusers",
    "/live%2f..%2fusers",
    "/live/%252e%252e/users",
    "/%75sers",
    "/%55sers",
    "/%2575sers",
    "/users;x=1",
    "/users;/live",
    "/;/users",
    "/users%3b",
    "/USERS",
    "/Users",
    "/users.",
    "/users%20",
    "/users%09",
    "/users%0a",
    "/users%0d%0aX:%20y",
    "/users%00",
    "/users%23",
    "/users%3f",
    "/users#/live",
    "/users?x=/live",
    "/%2fusers",
    "/\\users",
    "/%5cusers",
    "/live/..\\users",
    "/users\\",
    "users",
    "*",
    "/u\u200bsers",
    "/\uff55sers",
    "/%ef%bd%95sers",
    "/%c0%afusers",
    "http://127.0.0.1:{port}/users",
    "HTTP://127.0.0.1/users",
    "http://evil.test/users",
    "http://127.0.0.1/live/../users",
    "http://127.0.0.1//users",
    "http://x@evil.test/users",
    "https://127.0.0.1/users",
    "//evil.test/users",
    "javascript:/users",
    "/users?",
    "/users??",
    "/users?/../live",
    "/docs/../users",
    "/docs/..%2fusers",
    "/docs/%2e%2e/users",
    "/ready/users",
]


def judged(answer: Answer) -> Answer:
    """Return the answer; an error among them must have the one form."""
    assert answer.status < 500, answer
    if answer.status >= 400:
        check_error(answer.status, answer.headers.get("content-type", ""), answer.body)
    return answer


def filled(text: str, server: ServerProcess) -> str:
    return text.format(port=server.port, other=server.port % 65535 + 1)


def wire(text: str) -> str:
    """Return what httptools and the test's `head` can carry: the UTF-8 bytes of `text`, one character each."""
    return text.encode().decode("latin-1")


def key_of(server: ServerProcess) -> str:
    return f"Authorization: Bearer {server.admin_key}"


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_a_name_that_is_not_ours_is_not_answered(spawned: ServerProcess, host: str) -> None:
    """A foreign, crooked or invented Host gets 4xx on every kind of route, even with a good key."""
    host = wire(filled(host, spawned))
    for path in ("/live", "/users", "/"):
        answer = judged(exchange(spawned.port, head("GET", path, key_of(spawned), host=host)))
        assert 400 <= answer.status < 500, (host, path, answer)


def test_a_request_without_one_host_is_not_answered(spawned: ServerProcess) -> None:
    """None, an empty one, two, two alike, or two spellings of the header: 4xx."""
    for request in (
        head("GET", "/live", host=""),
        b"GET /live HTTP/1.1\r\nHost:\r\n\r\n",
        b"GET /live HTTP/1.1\r\nHost: \r\n\r\n",
        head("GET", "/live", "Host: evil.test"),
        head("GET", "/live", "Host: 127.0.0.1"),
        head("GET", "/live", "hOsT: 127.0.0.1"),
        b"GET /live HTTP/1.0\r\n\r\n",
    ):
        answer = judged(exchange(spawned.port, request))
        assert 400 <= answer.status < 500, (request, answer)


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_our_own_names_are_answered(spawned: ServerProcess, host: str) -> None:
    """Loopback by name and by address, with a port and without, in any case."""
    assert exchange(spawned.port, head("GET", "/live", host=filled(host, spawned))).status == 200


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_a_foreign_page_changes_nothing(spawned: ServerProcess, origin: str) -> None:
    """A change from another origin is 403 whatever credential comes along; none of it happens."""
    body = json.dumps({"name": "csrf"}).encode()
    about = [f"Content-Length: {len(body)}", "Content-Type: application/json"]
    given = f"Origin: {filled(origin, spawned)}"
    host = f"127.0.0.1:{spawned.port}"
    for method, path in (("POST", "/users"), ("PUT", "/secrets/a"), ("PATCH", "/users/x"), ("DELETE", "/users/x")):
        answer = judged(exchange(spawned.port, head(method, path, key_of(spawned), given, *about, host=host), body))
        assert answer.status == 403, (method, answer)
    with spawned.client() as client:
        assert "csrf" not in client.get("/users").text


def test_our_own_page_may_change_things(spawned: ServerProcess) -> None:
    """The origin that is the Host is ours."""
    with spawned.client() as client:
        made = client.post("/users", json={"name": "fromhere"}, headers={"origin": spawned.url})
        assert made.status_code == 201


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/json"]
)
def test_json_is_taken_only_as_json(spawned: ServerProcess, kind: str) -> None:
    """What a page may send without asking first (a form, text/plain) is 415, and so is no type at all."""
    body = json.dumps({"name": "simple"}).encode()
    about = [f"Content-Length: {len(body)}", *([f"Content-Type: {kind}"] if kind else [])]
    for path in ("/users", "/keys", "/login", "/audit/verify"):
        answer = judged(exchange(spawned.port, head("POST", path, key_of(spawned), *about), body))
        assert answer.status == 415, (path, answer)


@pytest.fixture
def session(spawned: ServerProcess) -> Iterator[dict[str, str]]:
    """The cookie and the token of a browser that is signed in as the admin."""
    with httpx.Client(base_url=spawned.url, trust_env=False) as browser:
        login = browser.post("/login", json={"api_key": spawned.admin_key})
        assert login.status_code == 200, login.text
        cookie = login.headers["set-cookie"]
        assert all(word in cookie for word in ("HttpOnly", "SameSite=strict", "Path=/")), cookie
        yield {"cookie": cookie.partition(";")[0], "csrf": login.json()["csrf_token"]}


def test_a_cookie_counts_for_our_own_pages_only(spawned: ServerProcess, session: dict[str, str]) -> None:
    """A GET with the cookie from a foreign origin, or from another site, is a GET of nobody."""
    cookie = f"Cookie: {session['cookie']}"
    host = f"127.0.0.1:{spawned.port}"
    assert exchange(spawned.port, head("GET", "/users", cookie, host=host)).status == 200
    assert exchange(spawned.port, head("GET", "/users", cookie, f"Origin: {spawned.url}", host=host)).status == 200
    for origin in FOREIGN_ORIGINS:
        answer = judged(
            exchange(spawned.port, head("GET", "/users", cookie, f"Origin: {filled(origin, spawned)}", host=host))
        )
        assert answer.status == 401, (origin, answer)
    for site in ("cross-site", "same-site"):
        answer = judged(exchange(spawned.port, head("GET", "/users", cookie, f"Sec-Fetch-Site: {site}", host=host)))
        assert answer.status == 401, site


def test_a_change_with_a_cookie_needs_its_token(spawned: ServerProcess, session: dict[str, str]) -> None:
    """Without the CSRF token, or with another, 403; with it the change is made."""
    body = json.dumps({"name": "withtoken"}).encode()
    about = [f"Content-Length: {len(body)}", "Content-Type: application/json", f"Cookie: {session['cookie']}"]
    for token in ("", "X-CSRF-Token: ", "X-CSRF-Token: x", f"X-CSRF-Token: {session['csrf'].lower()}x"):
        given = [token] if token else []
        assert judged(exchange(spawned.port, head("POST", "/users", *about, *given), body)).status == 403, token
    right = f"X-CSRF-Token: {session['csrf']}"
    assert exchange(spawned.port, head("POST", "/users", *about, right), body).status == 201


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_path_is_judged_as_what_it_is_taken_for(spawned: ServerProcess, spelling: str) -> None:
    """Each spelling of a path for admins is refused, or decided exactly as the plain one is, for everybody."""
    target = wire(filled(spelling, spawned))
    plain = {None: 401, "viewer": 403, "admin": 200}
    for who, decision in plain.items():
        key = {None: [], "viewer": [f"Authorization: Bearer {viewer_key(spawned)}"], "admin": [key_of(spawned)]}[who]
        answer = judged(exchange(spawned.port, head("GET", target, *key)))
        assert answer.status in (400, 404, 405, 422, decision), (target, who, answer)
        if who != "admin":
            assert b'"items"' not in answer.body, (target, who, answer)


_VIEWERS: dict[int, str] = {}


def viewer_key(server: ServerProcess) -> str:
    """Return the key of a viewer on that server, made once."""
    if server.pid not in _VIEWERS:
        with server.client() as client:
            user = client.post("/users", json={"name": "a-viewer", "role": "viewer"}).json()
            made: Any = client.post("/keys", json={"name": "k", "user_id": user["id"]}).json()
        _VIEWERS[server.pid] = made["key"]
    return _VIEWERS[server.pid]


@pytest.mark.parametrize(
    "origin", [None, "http://evil.test", "null", "http://127.0.0.1.evil.test", "https://127.0.0.1"]
)
def test_a_websocket_is_not_opened_for_a_foreign_page(spawned: ServerProcess, origin: str | None) -> None:
    """No route speaks websocket yet: whatever asks for one gets a plain answer, never 101."""
    asked = [
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        *([f"Origin: {origin}"] if origin else []),
    ]
    for path, status in (("/users", 401), ("/nothing", 404)):
        assert judged(exchange(spawned.port, head("GET", path, *asked))).status == status


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("origin", "host", "opened"),
    [
        (None, "127.0.0.1", True),
        ("http://127.0.0.1", "127.0.0.1", True),
        ("http://127.0.0.1:8713", "127.0.0.1:8713", True),
        ("https://app.test", "127.0.0.1", True),
        ("http://evil.test", "127.0.0.1", False),
        ("null", "127.0.0.1", False),
        ("", "127.0.0.1", False),
        ("http://127.0.0.1:8713", "127.0.0.1:9999", False),
        ("http://evil.test", "evil.test", False),
        (None, "evil.test", False),
        ("http://localhost.evil.test", "localhost", False),
    ],
)
async def test_the_guard_judges_websockets_too(tmp_path: Path, origin: str | None, host: str, opened: bool) -> None:
    """Host and Origin are checked before any application sees a websocket: there is no preflight for those."""
    inner = FastAPI(openapi_url=None)

    @inner.websocket("/talk")
    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.close(3000)

    settings = Settings(home=tmp_path, cors_origins=("https://app.test",))
    guarded = Guard(inner, settings=settings, metrics=Metrics(), clock=SystemClock(), new_id=new_id)
    given = [(b"host", host.encode()), *([(b"origin", origin.encode())] if origin is not None else [])]
    scope = {
        "type": "websocket",
        "path": "/talk",
        "raw_path": b"/talk",
        "query_string": b"",
        "headers": given,
        "scheme": "ws",
        "root_path": "",
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8713),
        "subprotocols": [],
        "state": {},
    }
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        said.append((message["type"], message.get("code")))

    await guarded(scope, receive, send)
    accepted = [("websocket.accept", None), ("websocket.close", 3000)]
    assert said == (accepted if opened else [("websocket.close", 1008)])


@pytest.mark.anyio
async def test_cors_lets_in_who_is_named_and_nobody_else(tmp_path: Path, anyio_backend: str) -> None:
    """A named origin gets its own name back, never a star and never credentials; others get nothing."""
    async with running(tmp_path / "home", cors_origins=("https://app.test",)) as server:
        await _check_cors(server)


async def _check_cors(server: Running) -> None:
    asking = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
    for origin, let_in in (("https://app.test", True), ("https://evil.test", False), ("null", False)):
        asked = await server.anonymous.options("/users", headers={"origin": origin, **asking})
        read = await server.admin.get("/users", headers={"origin": origin})
        for answer in (asked, read):
            allowed = answer.headers.get("access-control-allow-origin")
            assert allowed == (origin if let_in else None), (origin, answer.headers)
            assert "access-control-allow-credentials" not in answer.headers
        made = await server.admin.post("/users", json={"name": "cors"}, headers={"origin": origin})
        assert made.status_code == (201 if let_in else 403), origin
