"""What no database can hold and no JSON can mean is refused, in every place that takes a value, on both databases."""

import itertools
import json
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest

from corpus.identifiers import HOSTILE_IDS
from corpus.texts import BAD_JSON_BODIES, HOSTILE_HEADERS, HOSTILE_STRINGS
from serai.auth.limits import Limiter
from support.api import Running
from support.picture_api import PAINTER
from support.positions import MARK, Position, operations, positions
from support.raw import RawAnswer, ask

pytestmark = pytest.mark.anyio

DEEP = 100_000
NEVER_JSON = {
    "NUL": rb'"a\u0000b"',
    "raw NUL": b'"a\0b"',
    "lone surrogate": rb'"\ud800"',
    "surrogate in UTF-8": b'"\xed\xa0\x80"',
    "not UTF-8": b'"\xff"',
    "NaN": b"NaN",
    "Infinity": b"Infinity",
    "-Infinity": b"-Infinity",
    "1e999": b"1e999",
    "2^63": b"9223372036854775808",
    "-2^63-1": b"-9223372036854775809",
    "10^5000": b"1" + b"0" * 5000,
    "deep array": b"[" * DEEP + b"]" * DEEP,
    "deep object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "member twice": b'{"a": 1, "a": 2}',
    "key with NUL": rb'{"a\u0000": 1}',
}
"""Values that are refused wherever they stand, whatever is expected there."""

NEVER_TEXT = {"NUL": "%00", "surrogate": "%ED%A0%80", "not UTF-8": "%FF", "cut off": "a%E2%82", "overlong": "%C0%AE"}
NOT_NUMBERS = ["NaN", "Infinity", "1e999", "-1", str(2**63), "1" + "0" * 5000, "0x10", "", "1.5", "true", "1;2"]
LONG = 100_000
QUICK_S = 4.0
"""Less than the sleep that the SQL among the hostile strings asks for."""

SAID = [{"role": "user", "content": "hello"}]

EXAMPLES: dict[tuple[str, str], Callable[[int], dict[str, Any]]] = {
    ("POST", "/users"): lambda n: {"name": f"user{n}"},
    ("PATCH", "/users/{user_id}"): lambda _: {},
    ("POST", "/keys"): lambda _: {"name": "key"},
    ("POST", "/login"): lambda _: {"name": "admin", "password": "not the password"},
    ("POST", "/jobs"): lambda _: {"kind": "digest", "payload": {"text": "x"}},
    ("POST", "/models"): lambda n: {"id": f"model{n}", "task": "chat", "version": "1.0.0"},
    ("PATCH", "/models/{model_id}"): lambda _: {"version": "1.0.0"},
    ("POST", "/models/{model_id}/versions"): lambda n: {"version": f"1.1.{n}"},
    ("PATCH", "/models/{model_id}/versions/{version}"): lambda _: {},
    ("PATCH", "/models/{model_id}/versions/{version}/deprecate"): lambda _: {},
    ("PUT", "/models/{model_id}/aliases/{alias}"): lambda _: {"to": "1.0.0"},
    ("POST", "/models/{reference}/load"): lambda _: {},
    ("POST", "/models/{reference}/unload"): lambda _: {},
    ("POST", "/pull"): lambda _: {"model": "folder:nowhere/some"},
    ("POST", "/chat"): lambda _: {"model": "talker", "messages": SAID},
    ("POST", "/sessions"): lambda _: {"model": "talker"},
    ("POST", "/sessions/{session_id}/messages"): lambda _: {"content": "hello"},
    ("POST", "/v1/chat/completions"): lambda _: {"model": "talker", "messages": SAID},
    ("POST", "/v1/completions"): lambda _: {"model": "talker", "prompt": "hello"},
    ("POST", "/v1/embeddings"): lambda _: {"model": "some-vectors", "input": "hello"},
    ("POST", "/v1/images/generations"): lambda _: {
        "model": "v1-painter",
        "prompt": "hello",
        "size": "64x64",
        "steps": 1,
    },
    ("POST", "/v1/responses"): lambda _: {"model": "talker", "input": "hello"},
    ("POST", "/api/chat"): lambda _: {"model": "talker", "messages": SAID, "stream": False},
    ("POST", "/api/generate"): lambda _: {"model": "talker", "prompt": "hello", "stream": False},
    ("POST", "/api/embed"): lambda _: {"model": "some-vectors", "input": "hello"},
    ("POST", "/api/embeddings"): lambda _: {"model": "some-vectors", "prompt": "hello"},
    ("POST", "/api/show"): lambda _: {"model": "talker"},
    ("POST", "/api/copy"): lambda n: {"source": "some", "destination": f"copy{n}"},
    ("DELETE", "/api/delete"): lambda n: {"model": f"copy{n}"},
    ("POST", "/api/pull"): lambda _: {"model": "folder:nowhere/some", "stream": False},
    ("POST", "/images/generations"): lambda _: {"model": "painter", "prompt": "a red fox"},
    ("POST", "/images/archive"): lambda _: {"filter": {"search": "fox"}},
    ("PATCH", "/images/{image_id}"): lambda _: {"tags": ["a"]},
    ("POST", "/prompts/enrich"): lambda _: {"prompt": "a red fox", "style": "anime", "model": "talker"},
    ("POST", "/services"): lambda n: {"id": f"service{n}", "task": "chat"},
    ("PATCH", "/services/{service_id}"): lambda _: {},
    ("PATCH", "/services/{service_id}/version"): lambda _: {"version": "1.0.0"},
    ("POST", "/services/{service_id}/rollback"): lambda _: {},
    ("POST", "/services/admin/create/model/{model_id}/version"): lambda n: {"version": f"1.2.{n}"},
    ("PATCH", "/services/admin/deprecate/model/version"): lambda _: {"model_id": "some", "version": "1.0.0"},
    ("PATCH", "/services/admin/publish/model/version"): lambda _: {"model_id": "some", "version": "1.0.0"},
    ("PATCH", "/services/admin/unpublish/model/version"): lambda _: {"model_id": "some", "version": "1.0.0"},
    ("PATCH", "/services/admin/update/service/version"): lambda _: {
        "service_id": "some-service",
        "model_version": "1.0.0",
    },
    ("POST", "/audit/verify"): lambda _: {"seq": 0, "hash": "0" * 64},
    ("PUT", "/secrets/{name}"): lambda _: {"value": "secret", "origins": ["https://example.test"]},
}
"""A body that is taken, for each route that has one; different each time where something is made."""


SOME_MODEL = {
    "id": "some",
    "task": "chat",
    "version": "1.0.0",
    "engine": "fake",
    "source": {"kind": "package", "name": "fake"},
}
"""A model that can be loaded."""


class Prober:
    """Asks as an admin, with something that exists in each path."""

    def __init__(self, server: Running) -> None:
        self.app = server.app
        self.document = server.app.openapi()
        self.positions = positions(self.document)
        self.key = ("authorization", server.admin.headers["authorization"])
        self.numbers = itertools.count()
        self.ids = {"name": "a_secret", "version": "1.0.0", "other": "1.0.0", "alias": "prod", "reference": "some"}

    async def prepare(self) -> None:
        """Make one of everything that a path may name."""
        bound = {"model_id": "some", "model_version": "1.0.0"}
        made = {
            "user_id": await self.send("POST", "/users", {"name": "somebody"}),
            "key_id": await self.send("POST", "/keys", {"name": "some"}),
            "job_id": await self.send("POST", "/jobs", {"kind": "digest", "payload": {"text": "x"}}),
            "model_id": await self.send("POST", "/models", SOME_MODEL),
            "service_id": await self.send("POST", "/services", {"id": "some-service", "task": "chat", **bound}),
            "talker": await self.send("POST", "/models", {**SOME_MODEL, "id": "talker"}),
            "vectors": await self.send("POST", "/models", {**SOME_MODEL, "id": "some-vectors", "task": "embedding"}),
            "v1-painter": await self.send(
                "POST", "/models", {**SOME_MODEL, "id": "v1-painter", "task": "image-generation"}
            ),
            "painter": await self.send("POST", "/models", PAINTER),
            "session_id": await self.send("POST", "/sessions", {"model": "talker"}),
            "response_id": await self.send("POST", "/v1/responses", {"model": "talker", "input": "hello"}),
        }
        for name, answer in made.items():
            assert answer.status in (200, 201, 202), (name, answer)
            told = json.loads(answer.body)
            self.ids[name] = told.get("job_id") or told["id"]
        answer = await self.send("PUT", "/secrets/a_secret", {"value": "v", "origins": ["https://example.test"]})
        assert answer.status == 200, answer
        self.ids["file_id"] = "file_0"
        self.ids["image_id"] = await self._picture()
        self.ids["picture_id"] = "img_0"
        self.ids["decision_id"] = "dec_0"

    async def _picture(self) -> str:
        """Have a picture made, and return its id."""
        accepted = await self.send("POST", "/images/generations", {"model": "painter", "prompt": "x"})
        job = f"/jobs/{json.loads(accepted.body)['job_id']}"
        await self.send("GET", f"{job}/events")
        return str(json.loads((await self.send("GET", job)).body)["result"]["images"][0]["id"])

    async def send(self, method: str, target: str, body: Any = None) -> RawAnswer:
        return await self.raw(method, target, b"" if body is None else json.dumps(body).encode())

    async def raw(self, method: str, target: str, body: bytes = b"", *headers: tuple[str, str]) -> RawAnswer:
        kind = [("content-type", "application/json")] if body else []
        return await ask(self.app, method, target, self.key, *kind, *headers, body=body)

    def target(self, path: str, **instead: str) -> str:
        """Return the path with ids of what exists in it, or what is given `instead`, as on the wire."""
        for name, value in {**{k: quote(v, safe="") for k, v in self.ids.items()}, **instead}.items():
            path = path.replace(f"{{{name}}}", value)
        assert "{" not in path, path
        return path

    def body(self, position: Position, value: bytes) -> bytes:
        """Return a body that would be taken, but for `value` in the place."""
        if not isinstance(position.body, dict):
            return position.with_value(value)
        example = EXAMPLES[position.method, position.path](next(self.numbers))
        whole = {**example, **position.body}
        return json.dumps(whole).encode().replace(json.dumps(MARK).encode(), value)


@pytest.fixture
async def prober(server_on_both: Running, monkeypatch: pytest.MonkeyPatch) -> Prober:
    """One for each database; nothing here is about how often one may ask."""
    monkeypatch.setattr(Limiter, "_count", _uncounted)
    prober = Prober(server_on_both)
    await prober.prepare()
    return prober


async def _uncounted(*_: object) -> None:
    return None


async def test_every_body_has_an_example(prober: Prober) -> None:
    """A route with a new body must say here what it takes, so that what follows reaches its inside; and it is taken."""
    bodies = {(m, p): operation.get("requestBody", {}) for m, p, operation in operations(prober.document)}
    with_body = {route for route, body in bodies.items() if "application/json" in body.get("content", ())}
    assert with_body == set(EXAMPLES)
    for (method, path), example in EXAMPLES.items():
        answer = await prober.send(method, prober.target(path), example(next(prober.numbers)))
        taken = answer.status < 400 or answer.status == 409
        assert taken or path in ("/login", "/api/delete", "/api/pull"), (method, path, answer)


async def test_no_body_place_takes_what_nothing_can_hold(prober: Prober) -> None:
    """NUL, lone surrogates, NaN, 2^63, 10^5000, depth 10^5, members twice: 4xx in every place of every body."""
    places = [position for position in prober.positions if position.kind == "body"]
    assert len(places) > 100
    deep = {"deep array", "deep object"}
    seen: set[tuple[str, str]] = set()
    for place in places:
        first = (place.method, place.path) not in seen
        seen.add((place.method, place.path))
        for name, value in NEVER_JSON.items():
            if name in deep and not first:
                continue  # refused before anybody looks where it stands: once for each route
            answer = await prober.raw(place.method, prober.target(place.path), prober.body(place, value))
            assert 400 <= answer.status < 500, (str(place), name, answer)

    await _no_member_twice(prober)


async def _no_member_twice(prober: Prober) -> None:
    """Check every member of every body, the second spelled as the first or with escapes: two readers might differ."""
    for place in prober.positions:
        if place.kind == "body" and isinstance(place.body, dict) and place.name.count(".") == 1:
            name = next(iter(place.body))
            once = prober.body(place, b"null")
            escaped = "".join(f"\\u{ord(character):04x}" for character in name)
            for again in (name, escaped):
                twice = once[:-1] + f', "{again}": null}}'.encode()
                answer = await prober.raw(place.method, prober.target(place.path), twice)
                assert 400 <= answer.status < 500, (str(place), again, answer)
                assert b"twice" in answer.body, (str(place), answer)


async def test_bodies_that_are_no_json_are_refused_by_every_route(prober: Prober) -> None:
    """The corpus of bad bodies: none is a 5xx anywhere, and what is not JSON in UTF-8 is 4xx."""
    for number, (method, path) in enumerate(EXAMPLES):
        for name, body in BAD_JSON_BODIES:
            if number > 0 and len(body) > LONG:
                continue  # one route is enough for what is refused before anybody looks inside
            answer = await prober.raw(method, prober.target(path), body)
            assert answer.status < 500, (method, path, name, answer)
            if name not in ("empty", "empty-object", "null"):
                assert answer.status >= 400, (method, path, name, answer)


async def test_texts_are_kept_as_they_are_or_refused(prober: Prober) -> None:
    """Markup, SQL, templates, marks of prompts: never obeyed, never a 5xx, never slow, in every place for a text."""
    strings = itertools.cycle(HOSTILE_STRINGS)
    for place in prober.positions:
        if place.kind != "body" or "string" not in place.types:
            continue
        for text in itertools.islice(strings, 2):
            started = time.monotonic()
            body = prober.body(place, json.dumps(text).encode())
            answer = await prober.raw(place.method, prober.target(place.path), body)
            assert answer.status < 500, (str(place), text[:50], answer)
            assert time.monotonic() - started < QUICK_S, (str(place), text[:50])


async def test_a_text_comes_back_as_it_went_in(prober: Prober) -> None:
    """Every hostile text that is taken as a key's name or a model's description is stored unchanged."""
    kept = 0
    for number, text in enumerate(HOSTILE_STRINGS):
        key = await prober.send("POST", "/keys", {"name": text})
        model = await prober.send(
            "POST", "/models", {"id": f"kept{number}", "task": "chat", "version": "1.0.0", "description": text}
        )
        for answer, path, member in ((key, "/keys/", "name"), (model, "/models/", "description")):
            if answer.status == 201:
                again = await prober.send("GET", path + json.loads(answer.body)["id"])
                assert json.loads(again.body)[member] == text
                kept += 1
            else:
                assert answer.status == 422 or "\0" in text or "\ud800" in text, (text[:50], answer)
    assert kept > len(HOSTILE_STRINGS)


async def test_no_query_place_takes_what_nothing_can_hold(prober: Prober) -> None:
    """NUL, surrogates, bytes that are not UTF-8, numbers out of range, a parameter twice or unknown: 4xx."""
    for method, path, operation in operations(prober.document):
        target = prober.target(path)
        names = [given["name"] for given in operation.get("parameters", ()) if given["in"] == "query"]
        for name in [*names, "unknown"]:
            for what, value in NEVER_TEXT.items():
                answer = await prober.raw(method, f"{target}?{name}={value}")
                assert 400 <= answer.status < 500, (method, path, name, what, answer)
                answer = await prober.raw(method, f"{target}?{value}={name}")
                assert 400 <= answer.status < 500, (method, path, name, what, answer)
            answer = await prober.raw(method, f"{target}?{name}=1&{name}=1")
            assert 400 <= answer.status < 500, (method, path, name, answer)
            answer = await prober.raw(method, f"{target}?{name}={'a' * 30_000}")
            assert 400 <= answer.status < 500, (method, path, name, answer)
    for place in prober.positions:
        if place.kind == "query":
            for value in NOT_NUMBERS:
                answer = await prober.raw(place.method, f"{prober.target(place.path)}?{place.name}={value}")
                assert answer.status < 500, (str(place), value[:50], answer)
                if "integer" in place.types:
                    assert answer.status >= 400, (str(place), value[:50], answer)


async def test_no_path_place_takes_what_nothing_can_hold(prober: Prober) -> None:
    """NUL, surrogates, bytes that are not UTF-8, ids without end, and the corpus of ids: 4xx, and never a 5xx."""
    for place in prober.positions:
        if place.kind != "path":
            continue
        for what, value in NEVER_TEXT.items():
            answer = await prober.raw(place.method, prober.target(place.path, **{place.name: value}))
            assert 400 <= answer.status < 500, (str(place), what, answer)
        for value in ("a" * 1000, "1" + "0" * 5000, "%2e" * 100, str(2**63)):
            answer = await prober.raw(place.method, prober.target(place.path, **{place.name: value}))
            assert 400 <= answer.status < 500, (str(place), value[:50], answer)
        for value in HOSTILE_IDS:
            spelled = quote(value, safe="", errors="surrogatepass")
            answer = await prober.raw(place.method, prober.target(place.path, **{place.name: spelled}))
            assert answer.status < 500, (str(place), value[:50], answer)


async def test_no_header_makes_a_server_error(server: Running) -> None:
    """The corpus of headers on every route that is read, with a key and without."""
    key = ("authorization", server.admin.headers["authorization"])
    paths = {path for method, path, _ in operations(server.app.openapi()) if method == "GET"}
    for path in [*paths, "/", "/metrics", "/docs", "/docs/start.js", "/openapi.json"]:
        target = path.replace("{", "").replace("}", "")
        for name, value in HOSTILE_HEADERS:
            given = (name, value)
            host = name.lower() != "host"
            answer = await ask(server.app, "GET", target, given, host=host)
            assert answer.status < 500, (path, given, answer)
            if name.lower() != "authorization":
                answer = await ask(server.app, "GET", target, key, given, host=host)
                assert answer.status < 500, (path, given, answer)


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=abc",
        "application/openmetrics-text;version=1.0.0.0.0;escaping=x",
        "application/openmetrics-text;version=" + "9" * 5000,
        "text/plain;version=",
        "text/plain;version=1.0.0;q=nan",
        "*/*;q=1e999",
    ],
)
async def test_metrics_answer_whatever_is_accepted(server: Running, accept: str) -> None:
    """A version that nobody has heard of gets the plain format."""
    answer = await server.admin.get("/metrics", headers={"accept": accept})
    assert answer.status_code == 200
    assert "serai_http_requests" in answer.text
