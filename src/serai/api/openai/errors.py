"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`, and the headers that its clients read."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from serai import errors
from serai.api.answers import json_response
from serai.api.errors import headers_of, status_of
from serai.auth.limits import Allowance
from serai.errors import SeraiError
from serai.registry.errors import ModelNotFound
from serai.runtime.errors import DoesNotFit

_WORDS: tuple[tuple[type[SeraiError], int, str, str | None], ...] = (
    (errors.TooLarge, 413, "invalid_request_error", "request_too_large"),
    (errors.InvalidInput, 400, "invalid_request_error", None),
    (errors.OutboundRefused, 400, "invalid_request_error", None),
    (errors.Unauthenticated, 401, "invalid_request_error", "invalid_api_key"),
    (errors.Forbidden, 403, "invalid_request_error", "permission_denied"),
    (ModelNotFound, 404, "invalid_request_error", "model_not_found"),
    (errors.NotFound, 404, "invalid_request_error", "not_found"),
    (errors.RateLimited, 429, "rate_limit_exceeded", "rate_limit_exceeded"),
    (errors.QuotaExceeded, 429, "insufficient_quota", "insufficient_quota"),
    (errors.DeadlineExceeded, 408, "timeout", "timeout"),
    (errors.EngineFailed, 503, "server_error", "model_failed"),
    (DoesNotFit, 503, "server_error", "model_does_not_fit"),
    (errors.Unavailable, 503, "server_error", "overloaded"),
)
"""Class → status, type, code; the first that fits. What is not here is a `server_error` of its own status."""

_MODEL_CODES = frozenset({"MODEL_NOT_PULLED", "VERSION_NOT_FOUND", "ALIAS_NOT_FOUND", "SERVICE_NOT_FOUND"})


def openai_error(error: SeraiError, partial: Any = None) -> tuple[int, dict[str, Any]]:
    """Return status and envelope. `partial`: what was generated before the error."""
    words = next((entry for entry in _WORDS if isinstance(error, entry[0])), None)
    status, kind, code = words[1:] if words else (status_of(error), _kind_of(status_of(error)), None)
    if error.code in _MODEL_CODES:
        code = "model_not_found"
    told: dict[str, Any] = {
        "message": error.message if error.hint is None else f"{error.message.rstrip('.')}. {error.hint}",
        "type": kind,
        "param": _param(error),
        "code": code or error.code.lower(),
    }
    if partial is not None:
        told["partial"] = partial
    return status, {"error": told}


def respond(
    error: SeraiError,
    headers: Mapping[str, str] | None = None,
    *,
    allowance: Allowance | None = None,
    partial: Any = None,
) -> Response:
    """Return the response that tells `error` in this dialect."""
    status, body = openai_error(error, partial)
    told = headers_of(error, headers)
    if error.retry_after is not None:
        told["retry-after-ms"] = str(max(1, round(error.retry_after * 1000)))
    if isinstance(error, errors.RateLimited) and allowance is not None:
        what = "tokens" if isinstance(error.details, Mapping) and error.details.get("of") == "tokens" else "requests"
        shown = {"limit": allowance.limit, "remaining": allowance.remaining, "reset": f"{allowance.reset_s:.0f}s"}
        told |= {f"x-ratelimit-{name}-{what}": str(value) for name, value in shown.items()}
    return json_response(body, status, told)


def _kind_of(status: int) -> str:
    return "invalid_request_error" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "server_error"


def _param(error: SeraiError) -> str | None:
    """Return the field that is wrong, where the error names one."""
    details = error.details
    if isinstance(error, errors.InvalidInput) and isinstance(details, list | tuple) and details:
        first = details[0]
        return str(first["field"]) if isinstance(first, Mapping) and "field" in first else None
    return None
