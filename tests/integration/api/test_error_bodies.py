"""What an error tells. Every client of these tests checks every error of the whole run; this checks the check."""

import json

import pytest

from corpus.texts import HOSTILE_STRINGS
from serai.api.guard import Guard
from serai.errors import SeraiError
from serai.files import store
from support.api import Running
from support.raw import ask
from support.scrub import check_error, leaks
from support.tree import all_errors

pytestmark = pytest.mark.anyio

TELLING = [
    "<PIL.PngImagePlugin.PngImageFile image mode=RGB at 0x7f3c2a>",
    "cannot identify image file <_io.BytesIO object at 0x7f12>",
    "No such file: /home/serai/.serai/blobs/ab/cd",
    "[Errno 2] in /tmp/serai-decode-x",
    'Traceback (most recent call last):\n  File "app.py", line 3, in run',
    "(sqlite3.IntegrityError) UNIQUE constraint failed: users.name",
    "SELECT users.id FROM users WHERE users.id = 1",
    'relation "users" does not exist',
    "psycopg.errors.SyntaxError: syntax error at or near",
    "For further information visit https://errors.pydantic.dev/2.12/v/missing",
    "httptools.parser.errors.HttpParserInvalidURLError",
    "'NoneType' object has no attribute: AttributeError",
    "ffmpeg: moov atom not found",
    "opening serai.db",
]
HARMLESS = [
    "The body is not valid JSON in UTF-8.",
    "limit: input should be greater than or equal to 1",
    "GET /settings shows max_body_bytes.",
    "pip install 'serai[postgres]'",
    "Send 'Authorization: Bearer sk-serai-…'; an admin makes keys with 'serai keys create'.",
    "This would take your files to 30 of 20 bytes.",
    "There is a user ada already.",
    '{"error":{"code":"NOT_FOUND","request_id":"req_01m7xzn69nprawqw4cqpyav12a"}}',
]


@pytest.mark.parametrize("text", TELLING)
def test_what_tells_too_much_is_found(text: str) -> None:
    """Each kind of what an error must not hold is noticed, unless the client said it first."""
    assert leaks(text)
    assert not leaks(text, said=text)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_errors_say_is_left_alone(text: str) -> None:
    """Words of ours, settings, extras and ids are no finding."""
    assert leaks(text) == []


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_no_hint_of_ours_tells_too_much(kind: type[SeraiError]) -> None:
    """The hints that errors have by themselves."""
    assert leaks(kind.default_hint or "") == []


@pytest.mark.parametrize("said", TELLING)
async def test_a_defect_tells_nothing_of_itself(server: Running, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    """Whatever an unexpected exception says, the answer is the same sentence with a request id."""

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(store, "get", broken)
    answer = await server.admin.get("/files/file_0", headers={"x-request-id": "this-one"})
    assert answer.status_code == 500
    error = answer.json()["error"]
    assert (error["code"], error["message"]) == ("INTERNAL_ERROR", "The server failed on this request.")
    assert error["request_id"] == answer.headers["x-request-id"] == "this-one"


async def test_errors_of_every_kind_have_the_one_form(server: Running) -> None:
    """Routing, method, validation, type, size, credential, host, encoding: one form, one content type."""
    admin = ("authorization", server.admin.headers["authorization"])
    json_type = ("content-type", "application/json")
    asked = [
        (404, "GET", "/nothing", (), b""),
        (405, "PUT", "/users", (admin,), b""),
        (401, "GET", "/users", (), b""),
        (400, "POST", "/users", (admin, json_type), b"{"),
        (415, "POST", "/users", (admin,), b"{}"),
        (422, "POST", "/users", (admin, json_type), b"{}"),
        (422, "GET", "/users?limit=0", (admin,), b""),
        (400, "GET", "/users?limit=%00", (admin,), b""),
        (413, "POST", "/users", (admin, ("content-length", str(2**40))), b"x"),
        (415, "POST", "/users", (admin, ("content-encoding", "gzip")), b"x"),
        (403, "POST", "/users", (admin, ("origin", "http://evil.test")), b"{}"),
        (413, "GET", "/live", (("x", "a" * 40_000),), b""),
    ]
    for status, method, target, headers, body in asked:
        answer = await ask(server.app, method, target, *headers, body=body)
        assert answer.status == status, (method, target, answer)
    answer = await ask(server.app, "GET", "/live", ("host", "evil.test"), host=False)
    assert answer.status == 403


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/nothing", "/api/chat", "/api/nothing"])
async def test_what_is_refused_before_any_route_has_the_form_of_its_dialect(server: Running, path: str) -> None:
    """Host, origin, size, encoding, headers: a client of OpenAI or Ollama can read why; `ask` holds the form."""
    asked = [
        (413, "POST", (("content-length", str(2**40)),)),
        (400, "POST", (("content-encoding", "gzip"),)),
        (403, "POST", (("origin", "http://evil.test"),)),
        (413, "POST", (("x", "a" * 40_000),)),
        (400, "GET", (("content-type", "a/b"), ("content-type", "c/d"))),
    ]
    for status, method, headers in asked:
        answer = await ask(server.app, method, path, *headers, body=b"x")
        assert answer.status == (400 if path.startswith("/api/") and status == 413 else status), answer
    answer = await ask(server.app, "GET", path, ("host", "evil.test"), host=False)
    assert answer.status == 403


@pytest.mark.parametrize("path", ["/live", "/v1/models", "/api/tags"])
async def test_a_defect_before_any_route_has_the_form_too(
    server: Running, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Even where the outermost layer itself fails."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("at 0x7fffdeadbeef in /usr/lib/python3")

    monkeypatch.setattr(Guard, "_check", broken)
    answer = await ask(server.app, "GET", path)
    assert answer.status == 500
    check_error(answer.status, answer.headers["content-type"], answer.body, path=path)


async def test_what_a_client_sends_is_not_repeated_at_length(server: Running) -> None:
    """No error is longer than a few kilobytes, however long what was wrong."""
    for text in HOSTILE_STRINGS:
        for body in ({"name": text}, {text or "x": 1}, {"name": "a", "role": text}):
            content = json.dumps(body).encode()
            answer = await server.admin.post("/users", content=content, headers={"content-type": "application/json"})
            assert len(answer.content) < 4096, (text[:50], len(answer.content))
