"""Connections that are kept for the next call to the same origin.

httpcore's own pool looks at every connection, and asks the system about it, for every call: with 64 open
connections a call costs ten times what it costs with one. Here a call looks at one.
"""

import ssl
from collections.abc import AsyncIterable, AsyncIterator
from contextlib import AsyncExitStack
from typing import cast

import anyio
import httpcore

from serai.outbound.connection import HttpConnection

_Origin = tuple[bytes, bytes, int | None]


class ConnectionPool:
    """Opens HTTP/1.1 connections, one for each call at a time, and keeps those that a call left clean.

    There is no bound on connections in use: a call that waits for a slot can lose it for good when it is
    cancelled, and every call is bounded in time anyway.
    """

    def __init__(
        self,
        *,
        ssl_context: ssl.SSLContext,
        network_backend: httpcore.AsyncNetworkBackend,
        keepalive_expiry: float,
        max_idle: int,
    ) -> None:
        """`max_idle`: idle connections that are kept, of all origins together; the longest unused goes first."""
        self._ssl_context = ssl_context
        self._network_backend = network_backend
        self._keepalive_expiry = keepalive_expiry
        self._max_idle = max_idle
        # In the order in which they became idle; a call takes the newest of its origin.
        self._idle: dict[HttpConnection, _Origin] = {}
        self._by_origin: dict[_Origin, dict[HttpConnection, None]] = {}
        self._is_closed = False

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request and return the answer; `aclose` of it gives the connection back, or closes it."""
        connection = await self._idle_connection(_origin(request)) or self._new_connection(request)
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            await _close(connection)
            raise
        body = _Body(cast("AsyncIterable[bytes]", response.stream), self, _origin(request), connection)
        return httpcore.Response(
            status=response.status, headers=response.headers, content=body, extensions=response.extensions
        )

    async def release(self, origin: _Origin, connection: HttpConnection) -> None:
        """Take a connection back from a call that is over."""
        if self._is_closed or not connection.is_idle:
            await _close(connection)
            return
        self._idle[connection] = origin
        self._by_origin.setdefault(origin, {})[connection] = None
        # The oldest have expired first: what nobody calls any more goes when anything else is called.
        while self._idle and (len(self._idle) > self._max_idle or next(iter(self._idle)).has_expired):
            oldest = next(iter(self._idle))
            self._forget(oldest)
            await _close(oldest)

    async def aclose(self) -> None:
        """Close the idle connections; those in use are closed when their call is over."""
        self._is_closed = True
        async with AsyncExitStack() as closing:  # goes on with the others where one is interrupted
            for connection in tuple(self._idle):
                self._forget(connection)
                closing.push_async_callback(_close, connection)

    async def _idle_connection(self, origin: _Origin) -> HttpConnection | None:
        """Return a connection that the other side has not closed, or None."""
        while waiting := self._by_origin.get(origin):
            connection = next(reversed(waiting))
            self._forget(connection)
            if not (connection.has_expired or connection.was_ended):
                return connection
            await _close(connection)
        return None

    def _new_connection(self, request: httpcore.Request) -> HttpConnection:
        return HttpConnection(
            request.url.origin,
            ssl_context=self._ssl_context,
            keepalive_expiry=self._keepalive_expiry,
            network_backend=self._network_backend,
        )

    def _forget(self, connection: HttpConnection) -> None:
        origin = self._idle.pop(connection)
        waiting = self._by_origin[origin]
        del waiting[connection]
        if not waiting:
            del self._by_origin[origin]


class _Body:
    """The body of an answer, with what happens to its connection at the end."""

    def __init__(
        self,
        stream: AsyncIterable[bytes],
        pool: ConnectionPool,
        origin: _Origin,
        connection: HttpConnection,
    ) -> None:
        self._stream = stream
        self._pool = pool
        self._origin = origin
        self._connection = connection
        self._is_closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._stream)

    async def aclose(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        try:
            with anyio.CancelScope(shield=True):
                await self._stream.aclose()  # type: ignore[attr-defined]
        except BaseException:  # a shield holds off a cancelled scope, but not `Task.cancel`
            await _close(self._connection)
            raise
        await self._pool.release(self._origin, self._connection)


async def _close(connection: HttpConnection) -> None:
    """Close the socket, which happens before the first wait in here: no cancel can come between."""
    with anyio.CancelScope(shield=True):
        await connection.aclose()


def _origin(request: httpcore.Request) -> _Origin:
    url = request.url
    return url.scheme, url.host, url.port
