"""Errors in OpenAI's words: status, type and code of each kind, and the headers that its client reads."""

import json
from typing import Any

import pytest

from serai.api.openai.errors import respond
from serai.auth.limits import Allowance
from serai.errors import (
    Conflict,
    DeadlineExceeded,
    EngineFailed,
    Forbidden,
    InternalError,
    InvalidInput,
    NotFound,
    QuotaExceeded,
    RateLimited,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from serai.registry.errors import ModelNotFound, ModelNotPulled
from serai.runtime.errors import DoesNotFit

KINDS: list[tuple[Any, int, str, str]] = [
    (InvalidInput.at("top_p", "is wrong"), 400, "invalid_request_error", "invalid_input"),
    (TooLarge("x"), 413, "invalid_request_error", "request_too_large"),
    (Unauthenticated("x"), 401, "invalid_request_error", "invalid_api_key"),
    (Forbidden("x"), 403, "invalid_request_error", "permission_denied"),
    (ModelNotFound("x"), 404, "invalid_request_error", "model_not_found"),
    (ModelNotPulled("x"), 404, "invalid_request_error", "model_not_found"),
    (NotFound("x"), 404, "invalid_request_error", "not_found"),
    (Conflict("x"), 409, "invalid_request_error", "conflict"),
    (RateLimited("x"), 429, "rate_limit_exceeded", "rate_limit_exceeded"),
    (QuotaExceeded("x"), 429, "insufficient_quota", "insufficient_quota"),
    (DeadlineExceeded("x"), 408, "timeout", "timeout"),
    (Unavailable("x"), 503, "server_error", "overloaded"),
    (DoesNotFit("x"), 503, "server_error", "model_does_not_fit"),
    (EngineFailed("x"), 503, "server_error", "model_failed"),
    (InternalError("x"), 500, "server_error", "internal_error"),
]


@pytest.mark.parametrize(("error", "status", "kind", "code"), KINDS, ids=[type(entry[0]).__name__ for entry in KINDS])
def test_an_error_has_the_form_of_this_dialect(error: Any, status: int, kind: str, code: str) -> None:
    """Message with hint, type, param and code, and nothing else."""
    answer = respond(error)
    body = json.loads(bytes(answer.body))["error"]
    assert (answer.status_code, body["type"], body["code"]) == (status, kind, code)
    assert set(body) == {"message", "type", "param", "code"}
    assert body["param"] == ("top_p" if isinstance(error, InvalidInput) and error.details else None)
    if error.hint:
        assert error.hint in body["message"]


def test_a_client_learns_when_to_come_back() -> None:
    """In seconds, in milliseconds, and by the counters of what ran out."""
    allowance = Allowance(limit=10, remaining=0, reset_s=2.4)
    for of, what in (("key", "requests"), ("tokens", "tokens")):
        error = RateLimited("x", retry_after=2.4, details={"of": of})
        headers = respond(error, allowance=allowance).headers
        assert (headers["retry-after"], headers["retry-after-ms"]) == ("3", "2400")
        assert headers[f"x-ratelimit-remaining-{what}"] == "0"
        assert headers[f"x-ratelimit-limit-{what}"] == "10"


def test_a_client_does_not_try_again_what_cannot_pass() -> None:
    """OpenAI's clients repeat every 5xx by themselves, unless this header says otherwise."""
    assert respond(DoesNotFit("x")).headers["x-should-retry"] == "false"
    assert "x-should-retry" not in respond(Unavailable("x")).headers


def test_what_was_generated_goes_with_a_timeout() -> None:
    """And it is not to be tried again."""
    answer = respond(DeadlineExceeded("Late."), partial=["so far"])
    assert answer.headers["x-should-retry"] == "false"
    assert json.loads(bytes(answer.body))["error"]["partial"] == ["so far"]
