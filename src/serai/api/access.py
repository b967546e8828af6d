"""Routes that know who may use them. A route without an access cannot be made: denied by default.

    routes = Routes("users")

    @routes.get("/users", access=Role.ADMIN)
    async def list_users(request: Request) -> UserPage: ...

The check stands in the route itself, behind the match: no spelling of a path can lead around it.
Order: host and origin (guard), address limit, credential, rate, role and scope, parameters, body.
"""

import asyncio
import inspect
from collections.abc import Callable, Coroutine, Mapping
from functools import cached_property
from typing import Any, TypeVar, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.params import Body
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from serai.api.body import check_text, parse_json
from serai.api.origin import comes_from_here
from serai.api.parts import Parts
from serai.api.wire import OllamaErrorOut, OpenaiErrorOut
from serai.audit import Actor
from serai.auth.callers import NOBODY_ASKED
from serai.auth.limits import Allowance
from serai.auth.policy import PUBLIC, SCOPES, Access, Caller, Role, check_access
from serai.errors import Forbidden, InvalidInput, RateLimited, TooLarge, Unauthenticated, Unavailable, UnsupportedMedia
from serai.telemetry.context import bind_caller, current_request_id

COOKIE = "serai_session"
_PUBLIC_BYTES = 16 * 1024
"""The largest body that is taken from whom nobody knows."""
_PARSED_AT_ONCE = 64 * 1024
CSRF_HEADER = "x-csrf-token"
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_ACCESS, _SCOPE = "x-serai-access", "x-serai-scope"
_DRY_RUN = {
    "name": "dry_run",
    "in": "query",
    "required": False,
    "description": "1: answer with what the change would do, and change nothing.",
    "schema": {"type": "string", "enum": ["0", "1"], "default": "0"},
}

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class SecuredRoute(APIRoute):
    """A route that admits its caller before it reads anything of the request but its headers."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if self._is_plain:
            self.app = _answering(self.get_route_handler())

    @property
    def _is_plain(self) -> bool:
        """Whether the endpoint takes the request and at most a body of JSON, and gives the response itself.

        Then nothing of the framework is needed between the two: no dependencies, files to close or serialisation.
        """
        taken, call = self.dependant, self.dependant.call
        others = (taken.dependencies, taken.path_params, taken.query_params, taken.header_params, taken.cookie_params)
        named = (taken.response_param_name, taken.background_tasks_param_name, taken.http_connection_param_name)
        bodies = taken.body_params
        return (
            self.response_class is Response
            and self.response_field is None
            and inspect.iscoroutinefunction(call)
            and taken.request_param_name is not None
            and not any(others)
            and not any(named)
            and not taken.security_scopes_param_name
            and len(bodies) <= 1
            and not self._embed_body_fields
            and all(type(body.field_info) is Body and body.field_info.is_required() for body in bodies)
        )

    @property
    def access(self) -> Access:
        label = (self.openapi_extra or {})[_ACCESS]
        return PUBLIC if label == "public" else Role.of(label)

    @property
    def scope(self) -> str:
        return str((self.openapi_extra or {})[_SCOPE])

    @cached_property
    def _beginning(self) -> str:
        return self.path.partition("{")[0]

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Say whether a request is for this route: nearly every other is ruled out by how its path begins."""
        if scope["type"] == "http" and not scope.get("root_path") and not scope["path"].startswith(self._beginning):
            return Match.NONE, {}
        return super().matches(scope)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        access, scope = self.access, self.scope
        handle = self._handle_plainly() if self._is_plain else super().get_route_handler()
        known = _query_names(self)
        has_body = self.body_field is not None

        async def admit_then_handle(request: Request) -> Response:
            parts = parts_of(request)
            caller = await _identify(request, parts, access)
            if caller is not None:
                request.state.caller = caller
                bind_caller(caller.user_id)
                request.state.allowance = await _count(request, parts, caller)
            check_access(caller, access, scope)
            _check_parameters(request, known)
            if has_body:
                most = parts.settings.max_json_bytes
                await _read_json(request, min(most, _PUBLIC_BYTES) if access is PUBLIC else most)
            return await handle(request)

        return admit_then_handle

    def _handle_plainly(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what the framework's own handler does for a plain route, with the same errors."""
        call = cast("Callable[..., Coroutine[Any, Any, Response]]", self.dependant.call)
        name = cast(str, self.dependant.request_param_name)
        field = self.dependant.body_params[0] if self.dependant.body_params else None

        async def handle(request: Request) -> Response:
            if field is None:
                return await call(**{name: request})
            if not await request.body():
                raise RequestValidationError(
                    [{"type": "missing", "loc": ("body",), "msg": "Field required", "input": None}]
                )
            parsed = await request.json()
            value, errors = field.validate(parsed, loc=("body",))
            if errors:
                raise RequestValidationError(errors, body=parsed)
            return await call(**{name: request, field.name: value})

        return handle


def _answering(handle: Callable[[Request], Coroutine[Any, Any, Response]]) -> ASGIApp:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await handle(Request(scope, receive, send))
        await response(scope, receive, send)

    return app


class Routes:
    """The routes of one scope, collected until `install`."""

    def __init__(self, scope: str) -> None:
        if scope not in SCOPES:
            raise ValueError(f"{scope} is not a scope")
        self._scope = scope
        self._routes: list[tuple[str, str, Callable[..., Any], dict[str, Any]]] = []

    def get(self, path: str, *, access: Access, **options: Any) -> Callable[[Endpoint], Endpoint]:
        return self._collect("GET", path, access, options)

    def head(self, path: str, *, access: Access, **options: Any) -> Callable[[Endpoint], Endpoint]:
        """As `get` of the same path, whose description tells of both."""
        return self._collect("HEAD", path, access, {**options, "include_in_schema": False})

    def post(self, path: str, *, access: Access, **options: Any) -> Callable[[Endpoint], Endpoint]:
        return self._collect("POST", path, access, options)

    def put(self, path: str, *, access: Access, **options: Any) -> Callable[[Endpoint], Endpoint]:
        return self._collect("PUT", path, access, options)

    def patch(self, path: str, *, access: Access, **options: Any) -> Callable[[Endpoint], Endpoint]:
        return self._collect("PATCH", path, access, options)

    def delete(self, path: str, *, access: Access, **options: Any) -> Callable[[Endpoint], Endpoint]:
        return self._collect("DELETE", path, access, options)

    def install(self, app: FastAPI) -> None:
        """Add the routes to `app`."""
        for method, path, endpoint, options in self._routes:
            module = endpoint.__module__.rpartition(".")[2]
            summary = (endpoint.__doc__ or "").partition("\n")[0]
            said = {"summary": summary, "operation_id": f"{module}_{endpoint.__name__}"}
            described = {"methods": [method], "tags": [self._scope], **said, **options}
            described["responses"] = {**_errors_at(path), **options.get("responses", {})}
            app.router.add_api_route(path, endpoint, route_class_override=SecuredRoute, **described)

    def _collect(
        self, method: str, path: str, access: Access, options: dict[str, Any]
    ) -> Callable[[Endpoint], Endpoint]:
        label = "public" if access is PUBLIC else access.label
        extra: dict[str, Any] = {_ACCESS: label, _SCOPE: options.pop("scope", self._scope)}
        if method not in ("GET", "HEAD") and options.pop("rehearsable", True):
            extra["parameters"] = [_DRY_RUN]
        if "request_body" in options:  # of a body that the endpoint reads itself, for the description of the API
            extra["requestBody"] = options.pop("request_body")

        def collect(endpoint: Endpoint) -> Endpoint:
            self._routes.append((method, path, endpoint, {**options, "openapi_extra": extra}))
            return endpoint

        return collect


def _errors_at(path: str) -> dict[int | str, Any]:
    """Return the form of errors at a path of another dialect, for the description of the API."""
    for prefix, model in (("/v1/", OpenaiErrorOut), ("/api/", OllamaErrorOut)):
        if path.startswith(prefix):
            return {"4XX": {"model": model}, "5XX": {"model": model}}
    return {}


def unclassified(routes: list[BaseRoute]) -> list[str]:
    """Return the paths of routes (mounts and websockets too) that do not carry their access."""
    return [getattr(route, "path", repr(route)) for route in routes if not isinstance(route, SecuredRoute)]


def parts_of(request: Request) -> Parts:
    """Return what the application works with."""
    parts: Parts = request.app.state.parts
    return parts


def is_rehearsal(request: Request) -> bool:
    """Say whether a change is to be told and not made. Raises InvalidInput."""
    value = request.query_params.get("dry_run", "0")
    if value not in ("0", "1"):
        raise InvalidInput.at("dry_run", "must be 0 or 1")
    return value == "1"


def caller_of(request: Request) -> Caller:
    """Return the caller of a route that is not public."""
    caller: Caller = request.state.caller
    return caller


def caller_or_none(request: Request) -> Caller | None:
    """Return the caller of a public route, if there is one."""
    return getattr(request.state, "caller", None)


def actor_of(request: Request) -> Actor:
    """Return who the audit log names for what this request changes."""
    caller = caller_or_none(request)
    return Actor(
        id=caller.user_id if caller else "anonymous", address=address_of(request), request_id=current_request_id()
    )


def address_of(request: Request) -> str:
    """Return the client's address: the connection's, or what a trusted proxy said."""
    return request.client.host if request.client else "unknown"


async def _identify(request: Request, parts: Parts, access: Access) -> Caller | None:
    """Return the caller. A credential that is wrong, or cannot be checked now, is nobody's on a public route."""
    if parts.settings.auth == "off":
        return NOBODY_ASKED
    try:
        return await _authenticate(request, parts)
    except (Unauthenticated, Forbidden, Unavailable):  # Forbidden: an old session, without its token, of who signs in
        if access is PUBLIC:
            return None
        raise


async def _authenticate(request: Request, parts: Parts) -> Caller | None:
    scheme, _, credential = request.headers.get("authorization", "").partition(" ")
    cookie = request.cookies.get(COOKIE)
    if not scheme and not (cookie and comes_from_here(request, parts.settings)):
        return None
    address = address_of(request)
    await parts.limiter.check_address(address)
    try:
        if not scheme and cookie:
            caller = await parts.callers.by_session(cookie)
            _check_csrf(request, caller)
            return caller
        if scheme.lower() != "bearer" or not credential:
            raise Unauthenticated("The header Authorization must read 'Bearer' and a key or token.")
        return await parts.callers.by_bearer(credential.strip())
    except Unauthenticated as error:
        parts.metrics.auth_failures.labels(reason=scheme.lower() if scheme.lower() == "bearer" else "cookie").inc()
        await parts.limiter.admit_address(address)
        raise error from None


async def _count(request: Request, parts: Parts, caller: Caller) -> Allowance | None:
    try:
        return await parts.limiter.admit(caller)
    except RateLimited as refused:
        parts.metrics.rate_limited.labels(scope="key").inc()
        limit = refused.details["limit"] if isinstance(refused.details, Mapping) else 0
        request.state.allowance = Allowance(limit=limit, remaining=0, reset_s=refused.retry_after or 0)
        raise


def _check_csrf(request: Request, caller: Caller) -> None:
    if request.method not in _SAFE and request.headers.get(CSRF_HEADER) != caller.csrf:
        raise Forbidden(
            f"A change made with the session cookie needs the header {CSRF_HEADER}.",
            hint="GET /whoami gives its value.",
        )


def _check_parameters(request: Request, known: frozenset[str]) -> None:
    """Refuse what no database can hold, and parameters that the route does not know."""
    for name, value in (*request.path_params.items(), *request.query_params.multi_items()):
        check_text(str(name), "a parameter's name")
        check_text(str(value), str(name))
    names = [name for name, _ in request.query_params.multi_items()]
    if len(set(names)) != len(names):
        raise InvalidInput("A parameter is given twice.")
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        allowed = ", ".join(sorted(known)) or "none"
        raise InvalidInput.at(unknown[0][:100], f"is not a parameter of this call; known: {allowed}")


async def _read_json(request: Request, max_bytes: int) -> None:
    """Parse the body here, where errors of ours pass; the framework then finds it parsed."""
    is_json = request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"
    body = bytearray()
    async for piece in request.stream():
        if piece and not is_json:
            raise UnsupportedMedia("The body must be JSON.", hint="Send 'Content-Type: application/json'.")
        body += piece
        if len(body) > max_bytes:
            raise TooLarge(f"The JSON body of this call has at most {max_bytes} bytes.")
    whole = bytes(body)
    request._body = whole  # noqa: SLF001 - where the framework looks for what was read
    if not whole:
        return
    if len(whole) <= _PARSED_AT_ONCE:
        value = parse_json(whole, max_bytes)
    else:  # long enough to keep others waiting
        value = await asyncio.to_thread(parse_json, whole, max_bytes)
    request._json = value  # noqa: SLF001 - where the framework looks for a parsed body


def _query_names(route: APIRoute) -> frozenset[str]:
    names: set[str] = set()
    for field in route.dependant.query_params:
        annotation = field.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            names.update(info.alias or name for name, info in annotation.model_fields.items())
        else:
            names.add(field.alias)
    return frozenset(names | {entry["name"] for entry in (route.openapi_extra or {}).get("parameters", ())})
