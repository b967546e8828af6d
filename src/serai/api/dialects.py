"""Which dialect a request speaks, by its path, and errors in the words of that dialect.

This decides how an error is told, and nothing else: who may do what is decided at the route.
"""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from serai.api import errors
from serai.api.ollama import errors as ollama
from serai.api.openai import errors as openai
from serai.errors import MalformedRequest, MethodNotAllowed, NotFound, SeraiError


def respond(error: SeraiError, scope: Scope, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response that tells `error`, in the dialect of the request."""
    if _is_openai(scope):
        return openai.respond(error, headers, allowance=scope.get("state", {}).get("allowance"))
    if _is_ollama(scope):
        return ollama.respond(error, headers)
    return errors.respond(error, headers)


def _is_openai(scope: Scope) -> bool:
    path = str(scope.get("path", ""))
    return path == "/v1" or path.startswith("/v1/")


def _is_ollama(scope: Scope) -> bool:
    return str(scope.get("path", "")).startswith("/api/")


def _is_native(scope: Scope) -> bool:
    return not (_is_openai(scope) or _is_ollama(scope))


async def on_serai_error(request: Request, error: Any) -> Response:
    """Answer an error of ours."""
    return respond(error, request.scope)


async def on_http_exception(request: Request, error: HTTPException) -> Response:
    """Answer what the framework itself refuses: unknown paths and methods."""
    native = await errors.on_http_exception(request, error)
    if _is_native(request.scope):
        return native
    if (request.method, request.url.path) in _NOT_SERVED:
        return respond(_REFUSALS[HTTPStatus.NOT_FOUND], request.scope)
    headers = {"allow": native.headers["allow"]} if "allow" in native.headers else None
    return respond(_REFUSALS.get(error.status_code, _UNREADABLE), request.scope, headers)


_REFUSALS: Mapping[int, SeraiError] = {
    HTTPStatus.NOT_FOUND: NotFound("There is nothing at this path.", hint="GET /openapi.json lists the paths."),
    HTTPStatus.METHOD_NOT_ALLOWED: MethodNotAllowed(
        "This path does not know this method.", hint="See the header Allow."
    ),
}
_NOT_SERVED = frozenset({("POST", "/v1/responses/input_tokens"), ("POST", "/v1/responses/compact")})
"""Calls of OpenAI's that are not served, at paths that to the router are those of a response."""
_UNREADABLE = MalformedRequest("The request could not be read.")


async def on_validation_error(request: Request, error: Any) -> Response:
    """Answer what the wire types refuse."""
    return respond(errors.of_validation(error.errors()), request.scope)
