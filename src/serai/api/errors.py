"""From errors to HTTP: one table of statuses, one envelope for every error of every kind."""

import math
import re
from collections.abc import Mapping, Sequence
from copy import copy
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse
from starlette.requests import Request
from starlette.routing import Match

from serai import errors
from serai.errors import SeraiError
from serai.serving.headers import DECISION
from serai.telemetry.context import current_request_id


class RangeNotSatisfiable(errors.InvalidInput):
    """Nothing lies in the range of bytes that was asked for."""

    code = "RANGE_NOT_SATISFIABLE"
    default_hint = "Ask for a range that begins before the end."
    size = 0

    @classmethod
    def of(cls, size: int) -> "RangeNotSatisfiable":
        """Return the error for content of `size` bytes."""
        error = cls(f"There are {size} bytes.", details={"size": size})
        error.size = size
        return error


STATUS: Mapping[type[SeraiError], int] = {
    errors.InvalidInput: 422,
    errors.MalformedRequest: 400,
    errors.TooLarge: 413,
    errors.UnsupportedMedia: 415,
    RangeNotSatisfiable: 416,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.Conflict: 409,
    errors.Gone: 410,
    errors.RateLimited: 429,
    errors.QuotaExceeded: 413,
    errors.DeadlineExceeded: 408,
    errors.Cancelled: 409,
    errors.Unavailable: 503,
    errors.EngineFailed: 503,
    errors.UpstreamFailed: 502,
    errors.OutboundRefused: 422,
    errors.ConfigurationError: 503,
    errors.InternalError: 500,
}
"""The status of each family; a leaf has its nearest ancestor's."""

MAX_REPORTED = 20
_SOURCES = ("body", "query", "path", "header", "cookie")
_BRANCH = re.compile(r"(?:constrained-)?(?:int|float|str|bool)|(?:list|dict|tuple|set|literal|nullable)\[.*\]")
"""How pydantic names, within a place, which type of a union it has tried."""
_INTEGER, _NUMBER = "input should be a valid integer", "input should be a valid number"
NO_RETRY: Mapping[str, str] = {"x-should-retry": "false"}
"""Tells clients not to try again: what took its whole time would, and what does not fit never will."""


def status_of(error: SeraiError) -> int:
    """Return the HTTP status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def envelope(error: SeraiError) -> dict[str, Any]:
    """Return the one form in which the native API tells an error."""
    return {
        "error": {
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "request_id": current_request_id(),
            "details": error.details,
        }
    }


def headers_of(error: SeraiError, headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the headers that tell of an error in every dialect, with those that are given besides."""
    told = dict(headers or {})
    if error.retry_after is not None:
        told["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if error.decision is not None:
        told[DECISION] = error.decision
    if isinstance(error, errors.Unauthenticated):
        told["www-authenticate"] = 'Bearer realm="serai"'
    if isinstance(error, errors.DeadlineExceeded) or (isinstance(error, errors.Unavailable) and not error.may_pass):
        told |= NO_RETRY
    if isinstance(error, RangeNotSatisfiable):
        told["content-range"] = f"bytes */{error.size}"
    return told


def respond(error: SeraiError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the response that tells `error`."""
    return JSONResponse(envelope(error), status_of(error), headers_of(error, headers))


async def on_serai_error(request: Request, error: Any) -> JSONResponse:
    """Answer an error of ours."""
    return respond(_hinted(error, request))


async def on_http_exception(request: Request, error: Any) -> JSONResponse:
    """Answer what the framework itself refuses: unknown paths and methods."""
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["allow"] = ", ".join(_methods_of(request))
    return respond(_of_status(error.status_code), headers)


async def on_validation_error(request: Request, error: Any) -> JSONResponse:
    """Answer what the wire types refuse."""
    return respond(_hinted(of_validation(error.errors()), request))


def _hinted(error: SeraiError, request: Request) -> SeraiError:
    """Return the error; of wrong input that names no next step, with where the fields of the call are described."""
    path = getattr(request.scope.get("route"), "path", None)
    if path is None or error.hint is not None or not isinstance(error, errors.InvalidInput):
        return error
    told = copy(error)
    told.hint = f"GET /openapi.json describes the fields of {request.method} {path}, and their bounds."
    return told


def of_validation(problems: Sequence[Any]) -> errors.InvalidInput:
    """Return the error for what pydantic found; it names each field and never repeats the input."""
    groups = _by_value(problems)
    details = [_of_value(group) for group in groups[:MAX_REPORTED]]
    first = details[0]
    more = f" (and {len(groups) - 1} more)" if len(groups) > 1 else ""
    return errors.InvalidInput(f"{first['field']}: {first['problem']}{more}", details=details)


def _by_value(problems: Sequence[Any]) -> list[list[Any]]:
    """Return what was found, with all that is said of one value of several types together."""
    groups: list[list[Any]] = []
    known: dict[tuple[Any, ...], list[Any]] = {}
    for entry in problems:
        at = next((at for at, part in enumerate(entry["loc"]) if at > 0 and _is_branch(part)), None)
        group = None if at is None else known.get(entry["loc"][:at])
        if group is not None:
            group.append(entry)
            continue
        groups.append([entry])
        if at is not None:
            known[entry["loc"][:at]] = groups[-1]
    return groups


def _of_value(entries: Sequence[Any]) -> dict[str, str]:
    """Return the field and the problem: of a value of several types that of the one that it comes nearest to."""
    deepest = max(len(entry["loc"]) for entry in entries)
    near = [entry for entry in entries if len(entry["loc"]) == deepest]
    near = [entry for entry in near if not str(entry.get("type")).endswith(("_type", "_from_float"))] or near
    told = list(dict.fromkeys(_problem(entry) for entry in near))
    if _NUMBER in told:
        told = [problem for problem in told if problem != _INTEGER]
    problem = " or ".join((told[0], *(one.removeprefix("input should be ") for one in told[1:])))
    return {"field": _field(near[0]["loc"]), "problem": problem}


def _is_branch(part: Any) -> bool:
    return isinstance(part, str) and _BRANCH.fullmatch(part) is not None


def _field(location: Sequence[Any]) -> str:
    """Return a place as `messages[0].content`, without the types that a value might have had."""
    field = ""
    for at, part in enumerate(location):
        if (at == 0 and part in _SOURCES) or (at > 0 and _is_branch(part)):
            continue
        field += f"[{part}]" if isinstance(part, int) else f".{part[:100]}" if field else str(part)[:100]
    return field or str(location[0] if location else "body")


def _problem(entry: Mapping[str, Any]) -> str:
    message = str(entry["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:300]


def _methods_of(request: Request) -> list[str]:
    """Return the methods of every route of the path; the framework knows those of the first one only."""
    matching = (route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE)
    return sorted({method for route in matching for method in getattr(route, "methods", None) or ()})


def _of_status(status: int) -> SeraiError:
    if status == HTTPStatus.NOT_FOUND:
        return errors.NotFound("There is nothing at this path.", hint="GET /openapi.json lists the paths.")
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        return errors.MethodNotAllowed("This path does not know this method.", hint="See the header Allow.")
    if status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return errors.MalformedRequest("The request could not be read.")
    return errors.InternalError("The server failed.")
