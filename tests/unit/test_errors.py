"""The error tree: stable codes, a status for each, one envelope."""

import json
import re
from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from serai.api import errors as api
from serai.api.wire import Wire
from serai.errors import (
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    RateLimited,
    SeraiError,
    Unauthenticated,
    UpstreamFailed,
)
from support.tree import all_errors

FAMILIES = {
    "CANCELLED": 409,
    "CONFIGURATION_ERROR": 503,
    "CONFLICT": 409,
    "DATABASE_UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 408,
    "DISK_FULL": 503,
    "ENGINE_FAILED": 503,
    "FORBIDDEN": 403,
    "GONE": 410,
    "INTERNAL_ERROR": 500,
    "INVALID_INPUT": 422,
    "LOAD_FAILED": 503,
    "MALFORMED_REQUEST": 400,
    "METHOD_NOT_ALLOWED": 405,
    "NOT_FOUND": 404,
    "OUTBOUND_REFUSED": 422,
    "OUT_OF_MEMORY": 503,
    "QUOTA_EXCEEDED": 413,
    "RATE_LIMITED": 429,
    "TOO_LARGE": 413,
    "UNAUTHENTICATED": 401,
    "UNAVAILABLE": 503,
    "UNSUPPORTED_MEDIA_TYPE": 415,
    "UPSTREAM_FAILED": 502,
    "WORKER_CRASHED": 503,
    "WORKER_HUNG": 503,
}
"""What clients rely on: taking one away or giving it another status breaks them."""


def of_command_line(kind: type[SeraiError]) -> bool:
    """Say whether the error never becomes an answer of the server."""
    return kind.__module__.startswith("serai.cli")


def test_the_families_keep_their_codes_and_statuses() -> None:
    """Every family of the tree has the code and the status that were once published."""
    found = {kind.code: api.status_of(kind("x")) for kind in all_errors() if kind.__module__ == "serai.errors"}
    assert found == FAMILIES


def test_every_code_is_its_own_and_unique() -> None:
    """Each class states a code, in UPPER_SNAKE, that no other has."""
    seen: dict[str, type[SeraiError]] = {}
    for kind in all_errors():
        assert "code" in vars(kind), f"{kind.__qualname__} has no code of its own"
        assert re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", kind.code), kind.code
        assert kind.code not in seen, f"{kind.code} is {seen[kind.code]} and {kind}"
        seen[kind.code] = kind


def test_every_error_of_the_server_has_a_status() -> None:
    """No leaf falls out of the table: an answer for it can always be made."""
    for kind in all_errors():
        if not of_command_line(kind):
            assert 400 <= api.status_of(kind("x")) <= 599, kind


def test_every_error_is_under_a_family() -> None:
    """Leaves hang under a family, never under the root: the root has no status."""
    for kind in all_errors():
        if kind.__module__ != "serai.errors" and not of_command_line(kind):
            families = [parent for parent in kind.__mro__[1:] if parent.__module__ == "serai.errors"]
            assert families[0] is not SeraiError, kind


def test_hints_are_sentences() -> None:
    """A hint that comes with the class ends like a sentence and holds no path of a server."""
    for kind in all_errors():
        if kind.default_hint is not None:
            assert kind.default_hint.endswith((".", ")")), kind
            assert "/home" not in kind.default_hint


def test_a_hint_that_is_given_replaces_the_default() -> None:
    """The class's hint is for where the raiser knows no better."""
    assert Unauthenticated("x").hint == Unauthenticated.default_hint
    assert Unauthenticated("x", hint="y").hint == "y"
    assert Unauthenticated("x", hint="").hint == ""
    assert NotFound("x").hint is None


def test_an_error_of_a_field_names_it() -> None:
    """`at` puts field and problem into the message and, for programs, into the details."""
    error = InvalidInput.at("name", "is taken", hint="Choose another.")
    assert (error.message, error.hint) == ("name: is taken", "Choose another.")
    assert error.details == [{"field": "name", "problem": "is taken"}]
    assert str(error) == error.message


def test_the_envelope_is_one_for_all() -> None:
    """Code, message, hint, request_id and details, whatever the error."""
    for kind in all_errors():
        told = api.envelope(kind("What happened.", hint="What to do.", details={"a": 1}))
        assert told == {
            "error": {
                "code": kind.code,
                "message": "What happened.",
                "hint": "What to do.",
                "request_id": None,
                "details": {"a": 1},
            }
        }


@pytest.mark.parametrize(("seconds", "header"), [(0.0, "1"), (0.2, "1"), (29.4, "30"), (30.0, "30")])
def test_retry_after_is_never_too_early(seconds: float, header: str) -> None:
    """The header is whole seconds, rounded up: a client that obeys it is not refused again."""
    response = api.respond(RateLimited("Too much.", retry_after=seconds))
    assert (response.status_code, response.headers["retry-after"]) == (429, header)
    assert "retry-after" not in api.respond(RateLimited("Too much.")).headers


def test_who_is_not_known_is_told_how_to_be() -> None:
    """401 carries WWW-Authenticate, as RFC 9110 asks."""
    assert api.respond(Unauthenticated("x")).headers["www-authenticate"] == 'Bearer realm="serai"'
    assert "www-authenticate" not in api.respond(UpstreamFailed("x")).headers


def test_what_took_its_whole_time_is_not_to_be_tried_again() -> None:
    """408 tells clients that would by themselves."""
    assert api.respond(DeadlineExceeded("x")).headers["x-should-retry"] == "false"
    assert "x-should-retry" not in api.respond(RateLimited("x")).headers


def test_what_pydantic_found_is_told_without_the_input() -> None:
    """Each field is named with its problem; what was sent is not repeated; the list is bounded."""
    problems = [{"loc": ("body", "a", 0), "msg": "Value error, Is bad", "input": "secret"}] * 50
    error = api.of_validation(problems)
    assert error.message == "a[0]: is bad (and 49 more)"
    assert error.details == [{"field": "a[0]", "problem": "is bad"}] * api.MAX_REPORTED
    assert "secret" not in json.dumps(error.details) + error.message


class Thing(Wire):
    temperature: Annotated[int, Field(le=2)] | Annotated[float, Field(le=2)] | None = None
    stop: str | list[str] | None = None
    biases: dict[str, int | float] | None = None


class Things(Thing):
    many: list[Thing] | None = None


@pytest.mark.parametrize(
    ("value", "field", "problem"),
    [
        ({"temperature": "0.5"}, "temperature", "input should be a valid number"),
        ({"temperature": 3.5}, "temperature", "input should be less than or equal to 2"),
        ({"stop": 5}, "stop", "input should be a valid string or a valid list"),
        ({"stop": ["a", 5]}, "stop[1]", "input should be a valid string"),
        ({"biases": {"a": "x"}}, "biases.a", "input should be a valid number"),
        ({"many": [{"stop": 5}]}, "many[0].stop", "input should be a valid string or a valid list"),
    ],
)
def test_a_field_of_several_types_is_named_without_them(value: dict[str, Any], field: str, problem: str) -> None:
    """Once, as the caller wrote it, with what is wrong for the type that it comes nearest to."""
    with pytest.raises(ValidationError) as caught:
        Things.model_validate(value)
    entries = [{**entry, "loc": ("body", *entry["loc"])} for entry in caught.value.errors()]
    assert api.of_validation(entries).details == [{"field": field, "problem": problem}]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, "NOT_FOUND"),
        (400, "MALFORMED_REQUEST"),
        (500, "INTERNAL_ERROR"),
    ],
)
async def test_what_the_framework_refuses_has_the_envelope(status: int, code: str) -> None:
    """The framework's own exceptions come out as errors of ours."""
    request = Request({"type": "http", "headers": []})
    response = await api.on_http_exception(request, HTTPException(status, "secret detail"))
    assert json.loads(response.body)["error"]["code"] == code
    assert b"secret detail" not in response.body
