"""What surrounds every request, whatever its path: its id, its bounds, its log line, its headers."""

import asyncio
import logging
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

import structlog
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, HTTPConnection
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serai.api.dialects import respond
from serai.api.origin import host_is_ours, may_change
from serai.auth.limits import Allowance
from serai.clock import Clock
from serai.errors import (
    Forbidden,
    InternalError,
    MalformedRequest,
    SeraiError,
    TooLarge,
    Unavailable,
    UnsupportedMedia,
)
from serai.ids import NewId
from serai.settings import Settings
from serai.telemetry.context import accept_request_id, bind_request
from serai.telemetry.metrics import Metrics

log = structlog.get_logger("serai.access")
_lines = logging.getLogger("serai.access")
"""Where `log` leads; a line for every request goes there without the way through structlog."""

MAX_HEADERS = 200
CLIENT_GONE = 499
"""What the log and the metrics say of a client that left before its request was read; nobody receives it."""
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_AT_MOST_ONCE = (b"authorization", b"content-encoding", b"content-type", b"origin", b"x-csrf-token")
"""Two of them would mean one thing to us and another to a proxy before us."""
_QUIET = frozenset({"/live", "/ready", "/metrics"})
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)
"""Of every answer that does not say otherwise."""


class Guard:
    """The outermost layer. Refuses what is out of bounds, and turns a defect into an error of status 500."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, clock: Clock, new_id: NewId) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._seconds = clock.monotonic
        self._new_id = new_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        started, status = self._seconds(), 0
        request_id = accept_request_id(Headers(scope=scope).get("x-request-id"), self._new_id)
        self._metrics.requests_in_flight.inc()
        with bind_request(request_id):

            async def send_guarded(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                    _add_headers(message, request_id, scope)
                await send(message)

            try:
                self._check(scope)
                await self._app(scope, self._bounded(receive), send_guarded)
            except SeraiError as error:
                await respond(error, scope)(scope, receive, send_guarded)
            except ClientDisconnect:
                status = status or CLIENT_GONE
            except asyncio.CancelledError:
                if status:
                    raise
                stopping = Unavailable("The server is stopping.", retry_after=1)
                await respond(stopping, scope)(scope, receive, send_guarded)
            except Exception:
                log.exception("request failed", method=scope["method"], route=_template(scope))
                if status:  # the answer has begun: cutting the connection is the only way left to say so
                    raise
                defect = InternalError("The server failed on this request.")
                await respond(defect, scope)(scope, receive, send_guarded)
            finally:
                self._metrics.requests_in_flight.dec()
                self._tell(scope, status, self._seconds() - started)

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A browser sends no preflight for a websocket: its origin is checked here, on loopback too."""
        connection = HTTPConnection(scope)
        host = connection.headers.get("host", "")
        if not host_is_ours(host, self._settings) or not may_change(connection, self._settings):
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        with bind_request(accept_request_id(connection.headers.get("x-request-id"), self._new_id)):
            await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        raw = scope["headers"]
        if len(raw) > MAX_HEADERS or sum([len(k) + len(v) for k, v in raw]) > self._settings.max_header_bytes:
            raise TooLarge("The request's headers are too large.")
        names = [name for name, _ in raw]
        if names.count(b"host") != 1:
            raise MalformedRequest("A request has one Host header.")
        if len(set(names)) != len(names) and any(names.count(name) > 1 for name in _AT_MOST_ONCE):
            raise MalformedRequest("A header is given twice that counts once.")
        connection = HTTPConnection(scope)
        if not host_is_ours(connection.headers["host"], self._settings):
            raise Forbidden(
                "This server does not answer to that Host.", hint="Add the name to the setting allowed_hosts."
            )
        if scope["method"] not in _SAFE and not may_change(connection, self._settings):
            raise Forbidden(
                "A page of that origin may not change anything here.", hint="Add it to the setting cors_origins."
            )
        length = connection.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._settings.max_body_bytes:
            raise _too_large(self._settings.max_body_bytes)
        if connection.headers.get("content-encoding", "identity") != "identity":
            raise UnsupportedMedia("A request body must not be compressed.", hint="Leave Content-Encoding out.")
        _check_utf8(scope)

    def _bounded(self, receive: Receive) -> Receive:
        """Return a `receive` that raises TooLarge for a body over the bound, if its length was not said before."""
        received = 0

        async def receive_bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._settings.max_body_bytes:
                raise _too_large(self._settings.max_body_bytes)
            return message

        return receive_bounded

    def _tell(self, scope: Scope, status: int, seconds: float) -> None:
        route = _template(scope)
        self._metrics.observe_request(method=scope["method"], route=route, status=status, seconds=seconds)
        quiet = route in _QUIET and status < HTTPStatus.BAD_REQUEST
        line = {
            "event": "request",
            "method": scope["method"],
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 2),
            "address": scope["client"][0] if scope.get("client") else None,
            "caller": getattr(scope.get("state", {}).get("caller"), "user_id", None),
        }
        _lines.log(logging.DEBUG if quiet else logging.INFO, line)


def _too_large(most: int) -> TooLarge:
    return TooLarge(f"A body has at most {most} bytes here.", hint="GET /settings shows max_body_bytes.")


def _template(scope: Scope) -> str | None:
    """Return the path as the route spells it, so that logs and metrics hold no ids; None where nothing matched."""
    return getattr(scope.get("route"), "path", None)


def _add_headers(message: Message, request_id: str, scope: Scope) -> None:
    told = {"x-request-id": request_id}
    allowance: Allowance | None = scope.get("state", {}).get("allowance")
    if allowance is not None:
        told |= allowance.headers()
    ours = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in told.items()]
    names = {name for name, _ in ours}
    kept = [header for header in message["headers"] if header[0].lower() not in names]
    names = {name.lower() for name, _ in kept}
    message["headers"] = [*kept, *ours, *(header for header in _HEADERS if header[0] not in names)]


def _check_utf8(scope: Scope) -> None:
    for part in (scope.get("raw_path") or b"", scope.get("query_string") or b""):
        decoded = unquote_to_bytes(part.replace(b"+", b" ")) if b"%" in part else part
        try:
            decoded.decode("utf-8")
        except UnicodeDecodeError:
            raise MalformedRequest("The path and its parameters must be UTF-8.") from None
        if b"\x00" in decoded:
            raise MalformedRequest("The path and its parameters must not hold NUL.")
