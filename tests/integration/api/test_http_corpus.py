"""HTTP as nobody should speak it, on a socket to a real server: refused in one form, and the server lives on."""

import base64
import contextlib
import hashlib
import hmac
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image
from starlette.responses import PlainTextResponse

from serai.api import protocol
from serai.api.protocol import BoundedProtocol
from support.api import running
from support.process import Answer, ServerProcess, connect, exchange, head, parse, receive, send
from support.scrub import check_error
from support.waiting import wait_until

SECRET = b"a secret for signing that the tests know"
KIB, MIB = 2**10, 2**20
CHUNKED = "Transfer-Encoding: chunked"
JSON = "Content-Type: application/json"


@pytest.fixture(autouse=True)
def _lives_on(spawned: ServerProcess) -> Iterator[None]:
    """Whatever was sent: the server answers afterwards, and its log has no defect."""
    yield
    assert spawned.alive()
    errors = (spawned.home / "logs" / "errors.log").read_text("utf-8")
    assert errors == ""


def judged(answer: Answer, *allowed: int) -> Answer:
    """Return the answer, which is no 5xx, is one of `allowed` if given, and if an error has the one form."""
    assert answer.status < 500, answer
    assert not allowed or answer.status in allowed, answer
    if answer.status >= 400:
        check_error(answer.status, answer.headers.get("content-type", ""), answer.body)
    return answer


def key(server: ServerProcess) -> str:
    return f"Authorization: Bearer {server.admin_key}"


def post(server: ServerProcess, *headers: str, path: str = "/users") -> bytes:
    return head("POST", path, key(server), JSON, *headers)


MALFORMED = {
    "nothing but an end": b"\r\n\r\n\r\n",
    "http 0.9": b"GET /\r\n\r\n",
    "http 2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "http 9": b"GET /live HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
    "no version": b"GET /live\r\nHost: 127.0.0.1\r\n\r\n",
    "not http": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 600,
    "ssh": b"SSH-2.0-OpenSSH_9.6\r\n",
    "method unknown": b"BREW /live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "method with NUL": b"GE\0T /live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "method in lower case": b"get /live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "no path": b"GET  HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "space in the path": b"GET /li ve HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "bytes in the path": b"GET /\xff\xfe HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "half a uri": b"GET http:// HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "port in the uri": b"GET http://127.0.0.1:99999/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "connect": b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "carriage return in a value": head("GET", "/live", "X: a\rY: b"),
    "line feed in a value": head("GET", "/live", "X: a\nY b"),
    "NUL in a value": head("GET", "/live", "X: a\0b"),
    "NUL in a name": head("GET", "/live", "X\0: a"),
    "space in a name": head("GET", "/live", "X Y: a"),
    "space before the colon": head("GET", "/live", "Content-Length : 0"),
    "no colon": head("GET", "/live", "just words"),
    "folded": head("GET", "/live", "X: a\r\n b: c", " Content-Length: 5"),
    "no name": head("GET", "/live", ": a"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_not_http_is_refused(spawned: ServerProcess, name: str) -> None:
    """400 in the one form of errors, or the connection closed; at worst what is said is taken for what it is."""
    answer = judged(
        exchange(spawned.port, MALFORMED[name], seconds=5) if name != "nothing but an end" else Answer(0, {}, b"", b"")
    )
    assert answer.status in (0, 400, 401, 404, 405, 403) or name in ("folded", "no version"), answer


FRAMING = {
    "two lengths": (["Content-Length: 2", "Content-Length: 3"], b"{}"),
    "two equal lengths": (["Content-Length: 2", "Content-Length: 2"], b"{}"),
    "list of lengths": (["Content-Length: 2, 2"], b"{}"),
    "negative length": (["Content-Length: -1"], b"{}"),
    "length with a sign": (["Content-Length: +2"], b"{}"),
    "length in hex": (["Content-Length: 0x2"], b"{}"),
    "length without end": (["Content-Length: " + "9" * 40], b"{}"),
    "length 2^64": ([f"Content-Length: {2**64}"], b"{}"),
    "length of words": (["Content-Length: two"], b"{}"),
    "length and chunked": (["Content-Length: 2", CHUNKED], b"0\r\n\r\n"),
    "chunked and length": ([CHUNKED, "Content-Length: 2"], b"0\r\n\r\n"),
    "chunked twice": ([CHUNKED, CHUNKED], b"0\r\n\r\n"),
    "chunked not last": (["Transfer-Encoding: chunked, identity"], b"0\r\n\r\n"),
    "nearly chunked": (["Transfer-Encoding: xchunked"], b"0\r\n\r\n"),
    "chunked after a tab": (["Transfer-Encoding:\tchunked", "Content-Length: 5"], b"0\r\n\r\n"),
    "chunked, spelled": (["Transfer-Encoding: chun\\ked"], b"0\r\n\r\n"),
    "chunk too long": ([CHUNKED], b"FFFFFFFFFFFFFFFFF\r\n\r\n"),
    "chunk negative": ([CHUNKED], b"-2\r\n{}\r\n0\r\n\r\n"),
    "chunk of words": ([CHUNKED], b"two\r\n{}\r\n0\r\n\r\n"),
    "chunk in 0x": ([CHUNKED], b"0x2\r\n{}\r\n0\r\n\r\n"),
    "chunk longer than it says": ([CHUNKED], b"2\r\n{}{}\r\n0\r\n\r\n"),
    "chunk with line feeds": ([CHUNKED], b"2\n{}\n0\n\n"),
}


@pytest.mark.parametrize("name", FRAMING)
def test_where_a_body_ends_is_never_in_doubt(spawned: ServerProcess, name: str) -> None:
    """Two readers must not find two ends: 400, and nothing behind is taken for a request of its own."""
    headers, body = FRAMING[name]
    smuggled = head("POST", "/users", key(spawned), JSON, "Content-Length: 19") + b'{"name":"smuggled"}'
    answer = judged(exchange(spawned.port, post(spawned, *headers), body, smuggled), 400, 413)
    assert answer.headers.get("connection") == "close" or answer.status == 413
    with spawned.client() as client:
        assert "smuggled" not in client.get("/users").text


LARGE = {
    "100 kB header": head("GET", "/live", "X: " + "a" * 100 * KIB),
    "1 MB header": head("GET", "/live", "X: " + "a" * MIB),
    "1 MB header name": head("GET", "/live", "a" * MIB + ": x"),
    "10 k headers": head("GET", "/live", *(f"X-{n}: a" for n in range(10_000))),
    "100 k headers": head("GET", "/live", *(f"X-{n}: a" for n in range(100_000))),
    "1 MB path": head("GET", "/" + "a" * MIB),
    "60 kB path": head("GET", "/" + "a" * 60 * KIB),
    "60 kB query": head("GET", "/live?" + "a=" + "b" * 60 * KIB),
    "1 MB method": b"A" * MIB,
    "1 MB Authorization": head("GET", "/users", "Authorization: Bearer " + "a" * MIB),
    "30 kB Authorization": head("GET", "/users", "Authorization: Bearer " + "a" * 30_000),
    "30 kB cookie": head("GET", "/users", "Cookie: serai_session=" + "a" * 30_000),
    "10 kB boundary": head("POST", "/files", "Content-Type: multipart/form-data; boundary=" + "b" * 10_000),
}


@pytest.mark.parametrize("name", LARGE)
def test_a_head_without_end_is_cut(spawned: ServerProcess, name: str) -> None:
    """A head over the bounds is 413 or 431 in the one form; one within them is 4xx for what it says."""
    answer = judged(exchange(spawned.port, LARGE[name]))
    if "30 kB" in name or "boundary" in name:
        assert answer.status == 401, answer
    elif name not in ("60 kB path", "60 kB query", "1 MB method"):
        assert answer.status in (413, 431), answer
    else:
        assert 400 <= answer.status < 500, answer


def test_trailers_and_chunk_extensions_cost_nothing(spawned: ServerProcess) -> None:
    """What surrounds a body is bounded as a head is: the connection ends, and memory does not grow with it."""
    before = memory_of(spawned)
    line = b"X-Trailer: " + b"a" * KIB + b"\r\n"
    for opening, piece in (
        (b"0\r\n", line * 100),
        (b"0\r\nX: ", b"a" * 100 * KIB),
        (b"1;", b"a" * 100 * KIB),
        (b"1;a=" + b"b" * 100 + b"\r\nx\r\n", (b"1;" + b"a" * 1000 + b"\r\nx\r\n") * 100),
    ):
        with connect(spawned.port) as connection:
            send(connection, head("POST", "/users", CHUNKED), opening)
            for _ in range(200):  # 20 MB in all, if it were taken
                send(connection, piece)
            judged(receive(connection))
            assert is_closed(connection)
    assert memory_of(spawned) - before < 10 * MIB


def test_trailers_never_become_headers(spawned: ServerProcess) -> None:
    """A key, a host or a length that comes after the body is dropped."""
    late = f"0\r\n{key(spawned)}\r\nHost: evil.test\r\nX-HTTP-Method-Override: GET\r\n\r\n".encode()
    judged(exchange(spawned.port, head("POST", "/audit/verify", CHUNKED), late), 401)


def memory_of(server: ServerProcess) -> int:
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * KIB


def is_closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(65536):
            pass
    except ConnectionError:
        return True
    return True


def test_pipelined_requests_are_answered_in_order(spawned: ServerProcess) -> None:
    """Five at once on one connection give five answers; the last, which closes, closes."""
    paths = ["/live", "/nothing", "/users", "/live", "/ready"]
    requests = b"".join(head("GET", path) for path in paths[:-1]) + head("GET", paths[-1], "Connection: close")
    with connect(spawned.port) as connection:
        send(connection, requests)
        raw = b""
        while piece := connection.recv(65536):
            raw += piece
    assert [int(part.split()[1]) for part in raw.split(b"HTTP/1.1 ")[1:] for part in [b"x " + part]] == [
        200,
        404,
        401,
        200,
        200,
    ]


def test_rubbish_behind_an_answer_is_not_answered(spawned: ServerProcess) -> None:
    """What follows a request that has its answer cannot put words into that answer."""
    with connect(spawned.port) as connection:
        send(connection, head("GET", "/live"))
        assert receive(connection).status == 200
        send(connection, b"\x00\x01 not http at all\r\n\r\n")
        rest = b""
        with contextlib.suppress(ConnectionError):
            while piece := connection.recv(65536):
                rest += piece
        assert rest == b"" or rest.startswith(b"HTTP/1.1 400 ")


def test_a_body_over_the_bound_is_refused_in_one_form(spawned: ServerProcess) -> None:
    """413, whether its length is said or not, with a key or without, before more of it is read."""
    for headers in ([key(spawned)], []):
        said = exchange(spawned.port, head("POST", "/files", *headers, f"Content-Length: {2 * MIB}"))
        judged(said, 413)
    piece = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    judged(exchange(spawned.port, head("POST", "/files", key(spawned), CHUNKED), piece * 20, b"0\r\n\r\n"), 413)
    judged(exchange(spawned.port, post(spawned, CHUNKED), piece * 20, b"0\r\n\r\n"), 413)


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd", "deflate", "gzip, gzip", "identity, gzip", "GZIP", "x"])
def test_compressed_bodies_are_not_taken(spawned: ServerProcess, coding: str) -> None:
    """415 for every coding but identity, upload or JSON, whoever asks."""
    for path in ("/users", "/files"):
        about = [key(spawned), JSON, f"Content-Encoding: {coding}", "Content-Length: 2"]
        judged(exchange(spawned.port, head("POST", path, *about), b"{}"), 415)


def test_a_client_that_leaves_is_no_error(spawned: ServerProcess) -> None:
    """Half a body and gone, half a head and gone, an answer never read: nothing in the error log, nothing kept."""
    picture = png(300)
    for path, kind in (("/files", "image/png"), ("/users", "application/json")):
        about = [key(spawned), f"Content-Type: {kind}", f"Content-Length: {len(picture)}"]
        with connect(spawned.port) as connection:
            send(connection, head("POST", path, *about), picture[:100])
    with connect(spawned.port) as connection:
        send(connection, b"GET /li")
    with connect(spawned.port) as connection:
        send(connection, head("GET", "/openapi.json", key(spawned)))
    assert spawned.alive()
    wait_until(lambda: not list((spawned.home / "blobs" / "incoming").iterdir()))


def test_a_client_that_closes_its_side_is_served_or_let_go(spawned: ServerProcess) -> None:
    """After a half-close the answer comes or the connection ends; it never hangs."""
    for request in (head("GET", "/live"), head("GET", "/li")[:-2], post(spawned, "Content-Length: 100") + b"{}"):
        with connect(spawned.port, seconds=5) as connection:
            send(connection, request)
            connection.shutdown(socket.SHUT_WR)
            judged(receive(connection), 0, 200)


def png(side: int) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((side, side), 50).save(out, "PNG")
    return out.getvalue()


RANGES = [
    "bytes=-",
    "bytes=--1",
    "bytes=0-",
    "bytes=-1",
    "bytes=-99999999999999999999",
    "bytes=99999999999999999999-",
    "bytes=5-2",
    "bytes=0-0",
    "bytes=0-99999999999999999999",
    "bytes=a-b",
    "bytes=0-0,-1,5-6",
    "bytes=" + "0-0," * 5000 + "1-1",
    "bytes",
    "items=0-1",
    "=",
    "bytes=\u0661-\u0662",
]


@pytest.mark.parametrize("asked", RANGES)
def test_odd_ranges_get_the_file_or_a_refusal(spawned: ServerProcess, asked: str) -> None:
    """200 with all, 206 with less, or 4xx; a range of many parts is no work without end."""
    with spawned.client() as client:
        stored = client.post("/files", content=png(40)).json()
    wanted = f"Range: {asked.encode().decode('latin-1')}"
    answer = judged(
        exchange(spawned.port, head("GET", stored["content_url"], key(spawned), wanted)), 200, 206, 400, 416, 413
    )
    if answer.status == 200:
        assert hashlib.sha256(answer.body).hexdigest() == stored["sha256"]
    elif answer.status == 206:
        assert len(answer.body) <= stored["size"]


def token(header: dict[str, Any], claims: dict[str, Any], secret: bytes = SECRET) -> str:
    def part(value: bytes) -> str:
        return base64.urlsafe_b64encode(value).rstrip(b"=").decode()

    signed = f"{part(json.dumps(header).encode())}.{part(json.dumps(claims).encode())}"
    return f"{signed}.{part(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


def claims_of(server: ServerProcess, **changed: Any) -> dict[str, Any]:
    """Return the claims of a good token of the admin, with those changed; None takes one away."""
    with server.client() as client:
        given = client.post("/tokens").json()["token"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(given + "=" * (-len(given) % 4)))
    return {name: value for name, value in {**claims, **changed}.items() if value is not None}


GOOD = {"alg": "HS256", "typ": "JWT"}
FORGED: dict[str, tuple[dict[str, Any], dict[str, Any], bytes]] = {
    "alg none": ({"alg": "none"}, {}, b""),
    "alg None": ({"alg": "None"}, {}, SECRET),
    "alg empty": ({"alg": ""}, {}, SECRET),
    "alg a list": ({"alg": ["HS256"]}, {}, SECRET),
    "alg missing": ({"typ": "JWT"}, {}, SECRET),
    "alg HS512": ({"alg": "HS512"}, {}, SECRET),
    "alg RS256": ({"alg": "RS256"}, {}, SECRET),
    "signed by another": (GOOD, {}, b"x" * 40),
    "signed by nothing": (GOOD, {}, b""),
    "kid traversal": ({**GOOD, "kid": "../../../../dev/null"}, {}, b""),
    "kid sql": ({**GOOD, "kid": "' UNION SELECT 'x"}, {}, b"x"),
    "kid a number": ({**GOOD, "kid": 5}, {}, SECRET),
    "jku": ({**GOOD, "jku": "http://127.0.0.1:1/keys"}, {}, b"x"),
    "jwk inside": ({**GOOD, "jwk": {"kty": "oct", "k": "eHg"}}, {}, b"xx"),
    "crit": ({**GOOD, "crit": ["exp"]}, {}, SECRET),
    "b64 false": ({**GOOD, "b64": False, "crit": ["b64"]}, {}, SECRET),
    "expired": (GOOD, {"exp": 1}, SECRET),
    "expires in the year 10^9": (GOOD, {"exp": 10**16}, SECRET),
    "expires never": (GOOD, {"exp": None}, SECRET),
    "expires in words": (GOOD, {"exp": "tomorrow"}, SECRET),
    "expires at infinity": (GOOD, {"exp": float("inf")}, SECRET),
    "expires NaN": (GOOD, {"exp": float("nan")}, SECRET),
    "another audience": (GOOD, {"aud": "another"}, SECRET),
    "no audience": (GOOD, {"aud": None}, SECRET),
    "nobody": (GOOD, {"sub": None}, SECRET),
    "somebody who is not": (GOOD, {"sub": "user_00000000000000000000000000", "key": None}, SECRET),
    "a number for a user": (GOOD, {"sub": 1}, SECRET),
    "sql for a user": (GOOD, {"sub": "' OR 1=1--", "key": None}, SECRET),
    "NUL for a user": (GOOD, {"sub": "\0", "key": None}, SECRET),
    "epoch of before": (GOOD, {"epoch": -1}, SECRET),
    "epoch 2^70": (GOOD, {"epoch": 2**70}, SECRET),
    "no epoch": (GOOD, {"epoch": None}, SECRET),
    "a key that is not": (GOOD, {"key": "key_00000000000000000000000000"}, SECRET),
    "scopes in a word": (GOOD, {"scopes": "all"}, SECRET),
    "role unknown": (GOOD, {"role": "root", "key": None}, SECRET),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_token_that_we_would_not_have_made_is_refused(spawned: ServerProcess, name: str) -> None:
    """401 as a bearer and as a session's cookie, whatever is wrong with it."""
    header, changed, secret = FORGED[name]
    made = token(header, claims_of(spawned, **changed), secret)
    made = made.rpartition(".")[0] + "." if not secret and header.get("alg") == "none" else made
    for given in (f"Authorization: Bearer {made}", f"Cookie: serai_session={made}"):
        judged(exchange(spawned.port, head("GET", "/users", given)), 401)


def test_a_token_that_we_would_have_made_is_taken(spawned: ServerProcess) -> None:
    """The check of the checks above: the same way of making one gives a good one."""
    assert (
        exchange(spawned.port, head("GET", "/users", f"Authorization: Bearer {token(GOOD, claims_of(spawned))}")).status
        == 200
    )


CREDENTIALS = [
    "Bearer",
    "Bearer ",
    "Bearer  ",
    "bearer '",
    "Bearer ' OR pg_sleep(5)--",
    "Bearer \u00e9\u00fc",
    "Bearer sk-serai-",
    "Bearer sk-serai-" + "A" * 43,
    "Bearer sk-serai-" + "A" * 44,
    "Bearer " + "." * 1000,
    "Bearer a.b.c",
    "Bearer ..",
    "Bearer eyJhbGciOiJIUzI1NiJ9.e30.",
    "Bearer " + base64.urlsafe_b64encode(b'{"alg":"HS256","x":' + b"[" * 20_000).decode() + ".e30.AA",
    "Bearer " + base64.urlsafe_b64encode(b'{"alg":1' + b"0" * 6000 + b"}").decode() + ".e30.AA",
    "Basic YWRtaW46YWRtaW4=",
    "Digest username=admin",
    "Negotiate x",
    "\t",
    "sk-serai-" + "A" * 43,
]


@pytest.mark.parametrize("given", CREDENTIALS)
def test_odd_credentials_are_refused(spawned: ServerProcess, given: str) -> None:
    """401 in the one form, soon."""
    started = time.monotonic()
    given = given.encode().decode("latin-1")
    judged(exchange(spawned.port, head("GET", "/users", f"Authorization: {given}")), 401)
    assert time.monotonic() - started < 4


def test_two_credentials_are_one_too_many(spawned: ServerProcess) -> None:
    """A good key behind or before a bad one: which of them counts must not depend on who reads."""
    bad = "Authorization: Bearer sk-serai-" + "A" * 43
    for headers in ([key(spawned), bad], [bad, key(spawned)]):
        judged(exchange(spawned.port, head("GET", "/users", *headers)), 400, 401)


def test_a_method_is_the_one_of_the_request_line(spawned: ServerProcess) -> None:
    """No header turns a GET into a DELETE, or a POST into a GET."""
    with spawned.client() as client:
        user = client.post("/users", json={"name": "to-be-kept"}).json()["id"]
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "_method"):
        assert exchange(spawned.port, head("GET", f"/users/{user}", key(spawned), f"{name}: DELETE")).status == 200
        judged(exchange(spawned.port, head("POST", f"/users/{user}", key(spawned), f"{name}: DELETE")), 405)
    with spawned.client() as client:
        assert client.get(f"/users/{user}").status_code == 200


def test_no_header_rewrites_where_a_request_goes(spawned: ServerProcess) -> None:
    """X-Original-URL, X-Rewrite-URL, X-Forwarded-Host and -Prefix change nothing."""
    for name in ("X-Original-URL", "X-Rewrite-URL", "X-Forwarded-Prefix", "X-Forwarded-Host", "X-Forwarded-Proto"):
        assert exchange(spawned.port, head("GET", "/live", f"{name}: /users")).body == b'{"status":"live"}'
        judged(exchange(spawned.port, head("GET", "/users", f"{name}: /live")), 401)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("trusted", "forwarded", "believed"),
    [
        (None, "203.0.113.9", False),
        ("127.0.0.1", "203.0.113.9", True),
        ("127.0.0.0/8", "198.51.100.1, 203.0.113.9", True),
        ("10.0.0.0/8", "203.0.113.9", False),
    ],
)
async def test_a_forwarded_address_is_believed_from_trusted_proxies_only(
    tmp_path: Path, anyio_backend: str, trusted: str | None, forwarded: str, believed: bool
) -> None:
    """The audit log names the address that the nearest trusted proxy saw, or else the connection's own."""
    async with running(tmp_path / "home", trusted_proxies=(trusted,) if trusted else ()) as server:
        made = await server.admin.post("/users", json={"name": "ada"}, headers={"x-forwarded-for": forwarded})
        assert made.status_code == 201
        told = (await server.admin.get(f"/audit?object_id={made.json()['id']}")).json()["items"]
        assert [entry["address"] for entry in told] == ["203.0.113.9" if believed else "127.0.0.1"]


class Quick(uvicorn.Server):
    """A server in this process that speaks the bounded protocol and answers everything alike."""

    def __init__(self) -> None:
        answer = PlainTextResponse("hello")
        super().__init__(uvicorn.Config(answer, http=BoundedProtocol, ws="none", lifespan="off", log_config=None))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """The port of a server on which a head may take half a second."""
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.5)
    listener = socket.create_server(("127.0.0.1", 0))
    server = Quick()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(20)


def test_a_head_that_drips_in_is_cut_off(quick: int) -> None:
    """408 in the one form after the time for a head, however steadily bytes come; a silent connection just ends."""
    with connect(quick) as dripping, connect(quick) as silent:
        dripping.settimeout(0.05)
        raw = b""
        for byte in head("GET", "/", *(f"X-{n}: a" for n in range(100))):
            send(dripping, bytes([byte]))
            with contextlib.suppress(TimeoutError):
                raw += dripping.recv(65536)
            if raw:
                break
        answer = judged(receive_more(dripping, raw), 408)
        assert (answer.headers["connection"], answer.headers["x-should-retry"]) == ("close", "false")
        assert receive(silent).raw == b""


def receive_more(connection: socket.socket, raw: bytes) -> Answer:
    connection.settimeout(5)
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            raw += piece
    return parse(raw)


def test_the_time_for_a_head_begins_anew_with_each_request(quick: int) -> None:
    """On a kept connection the second head has its own time, and dripping it is cut off too."""
    with connect(quick) as connection:
        for _ in range(3):
            send(connection, head("GET", "/"))
            assert receive(connection).body == b"hello"
        send(connection, b"GET / HTTP/1.1\r\nHost: 127")
        judged(receive(connection), 408)


def test_a_slow_body_is_not_a_slow_head(quick: int) -> None:
    """The time is for the head alone: whoever takes longer over a body is not cut off by it."""
    with connect(quick) as connection:
        send(connection, head("POST", "/", "Content-Length: 2", "Expect: 100-continue"))
        first = receive(connection)
        assert first.status == 200
