"""What another server's refusal means here, and what of its words is told."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.engines.errors import RemoteFailed
from serai.engines.remote.failures import MAX_WORDS, failure_of, plain_words, retry_after
from serai.errors import InvalidInput, RateLimited, SeraiError, TooLarge
from serai.registry.failure import Failure
from serai.registry.failure import failure_of as registry_failure_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "planted-canary"


def failure(status: int, body: Any = None, **headers: str) -> SeraiError:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    return failure_of(status, told, content, secret=SECRET, now=NOW)


@pytest.mark.parametrize(
    ("status", "kind", "effect"),
    [
        (400, InvalidInput, Failure.CLIENT_ERROR), (422, InvalidInput, Failure.CLIENT_ERROR),
        (413, TooLarge, Failure.CLIENT_ERROR), (429, RateLimited, Failure.REMOTE_429),
        (401, RemoteFailed, Failure.REMOTE_5XX), (403, RemoteFailed, Failure.REMOTE_5XX),
        (404, RemoteFailed, Failure.REMOTE_5XX), (408, RemoteFailed, Failure.REMOTE_5XX),
        (301, RemoteFailed, Failure.REMOTE_5XX), (500, RemoteFailed, Failure.REMOTE_5XX),
        (503, RemoteFailed, Failure.REMOTE_5XX), (204, RemoteFailed, Failure.REMOTE_5XX),
    ],
)  # fmt: skip
def test_statuses(status: int, kind: type[SeraiError], effect: Failure) -> None:
    """The caller's mistakes are the caller's; all else leads to the next candidate."""
    for body in ({"error": {"message": "m"}}, b"<html>", {"error": None}, [], {"detail": [{"loc": ["x"]}]}):
        error = failure(status, body)
        assert type(error) is kind
        assert registry_failure_of(error) is effect


def test_the_words_for_a_wrong_request_are_told() -> None:
    """In any of the usual forms, with the field where it is named."""
    error = failure(400, {"error": {"message": "too many stops", "param": "stop", "type": "invalid_request_error"}})
    assert "too many stops" in error.message
    assert error.details == [{"field": "stop", "problem": "too many stops"}]
    for body in ({"error": "too many stops"}, {"message": "too many stops"}, {"detail": "too many stops"}):
        assert "too many stops" in failure(422, body).message


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422, 429, 500])
def test_no_secret_and_no_address_is_told(status: int) -> None:
    """Not the value that was sent, nor keys, addresses, hosts and paths that the server mentions."""
    words = (
        f"bad {SECRET} Bearer abcdef sk-proj-0123456789 hf_AbCdEf123456 see https://10.0.0.7:8000/x at 10.0.0.7:8000 "
        "or gpu-1.internal.lan:9000 or [fe80::1]:80 in /srv/models/secret.py " + "a1" * 20
    )
    error = failure(status, {"error": {"message": words, "param": "../../etc"}})
    shown = f"{error} {error.hint} {error.details}"
    for private in (SECRET, "abcdef", "0123456789", "AbCdEf", "10.0.0.7", "gpu-1", "fe80", "/srv", "a1a1", "etc"):
        assert private not in shown


@given(st.text(max_size=600))
def test_words_are_one_short_line(text: str) -> None:
    """However long and odd, they fit on a line of text."""
    words = plain_words(text * 20, secret=None)
    assert len(words) <= MAX_WORDS
    assert words.isprintable() or not words


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0), ({"retry-after": "0.5"}, 0.5), ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 2026 00:01:00 GMT"}, 60.0),
        ({"retry-after": "Thu, 01 Jan 2020 00:00:00 GMT"}, 0.0),
        ({"retry-after": "99999999"}, 3600.0), ({"retry-after": "-1"}, None), ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None), ({"retry-after": "inf"}, None), ({}, None), ({"retry-after": ""}, None),
        ({"retry-after": "Thu, 01 Jan 2026 00:01:00"}, None),
    ],
)  # fmt: skip
def test_the_wait_that_is_asked_for(headers: dict[str, str], seconds: float | None) -> None:
    """Seconds or a date; nonsense counts as nothing said; an hour is the most."""
    assert retry_after(headers, NOW) == seconds
    assert failure_of(429, headers, b"", secret=None, now=NOW).retry_after == seconds
