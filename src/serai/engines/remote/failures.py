"""What a refusal of the server behind a remote model means for the one who called. Pure.

Its words are told only where the request itself was wrong, shortened, and without anything that looks
like an address or a key.
"""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from serai.engines.errors import RemoteFailed
from serai.errors import InvalidInput, RateLimited, SeraiError, TooLarge

MAX_WORDS = 300
_LONGEST_WAIT_S = 3600.0
_FIELD = re.compile(r"[A-Za-z0-9_.\[\]]{1,100}")
_PRIVATE = re.compile(
    r"\b[a-z][a-z0-9+.-]*://\S+"  # an address
    r"|\b(?:\d{1,3}\.){3}\d{1,3}(?::\d+)?\b"
    r"|\[?(?:[0-9a-f]{0,4}:){2,}[0-9a-f.:]*\]?(?::\d+)?"  # IPv6
    r"|\b[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}:\d+\b"  # a host with a port
    r"|\b(?:bearer|basic)\s+\S+"
    r"|\b(?:sk|pk|rk|hf|gsk|key|org|proj|api)[-_][\w*-]{6,}"
    r"|/(?:[\w.-]+/)+[\w.-]*"  # a path
    r"|\b[\w-]{32,}\b",  # too long for a word
    re.IGNORECASE,
)


class _Error(msgspec.Struct):
    message: Any = None
    type: Any = None
    param: Any = None
    code: Any = None


class _Body(msgspec.Struct):
    error: Any = None
    message: Any = None
    detail: Any = None


def failure_of(
    status: int, headers: Mapping[str, str], body: bytes, *, secret: str | None, now: datetime
) -> SeraiError:
    """Return the error for an answer that is none; `secret` is the value that was sent."""
    told = _error_in(body)
    wait = retry_after(headers, now)
    if status == 429:
        return RateLimited("The server behind this model takes no more calls now.", retry_after=wait)
    if status in (400, 415, 422):
        return _refused(told, secret)
    if status == 413:
        return TooLarge("The request is larger than the server behind this model accepts.")
    if status in (401, 403):
        return RemoteFailed(
            "The server behind this model did not accept our credentials.",
            hint="An admin checks the secret that the version's source names.",
        )
    if status == 404:
        return RemoteFailed(
            "The server behind this model does not know the model or the path.",
            hint="An admin checks endpoint and model of the version's source.",
        )
    return RemoteFailed(f"The server behind this model failed with status {status}.", retry_after=wait)


def failure_in_band(error: object, *, secret: str | None) -> SeraiError:
    """Return the error for an error object in the midst of a stream."""
    told = _error_of(error)
    kinds = {str(told.code), str(told.type)}
    if kinds & {"429", "rate_limit_error", "rate_limit_exceeded"}:
        return RateLimited("The server behind this model takes no more calls now.")
    if kinds & {"400", "422", "invalid_request_error", "BadRequestError", "image_generation_user_error"}:
        return _refused(told, secret)
    return RemoteFailed("The server behind this model failed in the midst of its answer.")


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds that `Retry-After` asks for, as a number or a date; None where it says nothing usable."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        try:
            seconds = float(text) * scale
        except ValueError:
            seconds = _until(text, now)
        if math.isfinite(seconds) and seconds >= 0:
            return min(seconds, _LONGEST_WAIT_S)
    return None


def plain_words(text: str, *, secret: str | None) -> str:
    """Return the words of another server for a person here: one line, short, without addresses and keys."""
    if secret:
        text = text.replace(secret, "…")
    text = " ".join("".join(character if character.isprintable() else " " for character in text[:4096]).split())
    text = _PRIVATE.sub("…", text)
    return text if len(text) <= MAX_WORDS else text[: MAX_WORDS - 1] + "…"


def _refused(told: _Error, secret: str | None) -> InvalidInput:
    words = plain_words(told.message, secret=secret) if isinstance(told.message, str) else ""
    message = (
        f"The server behind this model refuses the request: {words}"
        if words
        else ("The server behind this model refuses the request and does not say why.")
    )
    if isinstance(told.param, str) and _FIELD.fullmatch(told.param):
        return InvalidInput(message, details=[{"field": told.param, "problem": words or "was refused"}])
    return InvalidInput(message)


def _error_in(body: bytes) -> _Error:
    """Return what is said in OpenAI's form, or in those of others: a text, `message`, `detail`, a list of details."""
    try:
        parsed = msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Error()
    told = next((one for one in (parsed.error, parsed.message, parsed.detail) if isinstance(one, str | dict)), None)
    return _error_of(_first_detail(parsed.detail) if told is None else told)


def _first_detail(detail: object) -> object:
    """Return the first of several errors, each {loc: ["body", a member, …], msg}, as FastAPI and fal.ai tell them."""
    first = detail[0] if isinstance(detail, list) and detail else None
    if not isinstance(first, dict):
        return None
    where = first.get("loc")
    names = [str(name) for name in where if name != "body"] if isinstance(where, list) else []
    return {"message": first.get("msg"), "param": ".".join(names) or None}


def _error_of(told: object) -> _Error:
    if isinstance(told, dict):
        return _Error(**{name: told.get(name) for name in _Error.__struct_fields__})
    return _Error(message=told)


def _until(text: str, now: datetime) -> float:
    try:
        return max((parsedate_to_datetime(text) - now).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return math.nan
