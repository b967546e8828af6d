"""Connections that are kept for the next call to the same origin.

A pool that looks at every connection, and asks the system about it, for every call makes a call among 64 open
connections cost ten times what it costs with one (httpcore's own does). Here a call looks at one.
"""

import asyncio
import ssl

from serai.outbound.connection import HttpConnection
from serai.outbound.hops import Hop
from serai.outbound.pinning import PinnedBackend

_Origin = tuple[str, str, int]


class ConnectionPool:
    """Opens HTTP/1.1 connections, one for each call at a time, and keeps those that a call left clean.

    There is no bound on connections in use: a call that waits for a slot can lose it for good when it is
    cancelled, and every call is bounded in time anyway.
    """

    def __init__(
        self, *, ssl_context: ssl.SSLContext, backend: PinnedBackend, keepalive_expiry: float, max_idle: int
    ) -> None:
        """`max_idle`: idle connections that are kept, of all origins together; the longest unused goes first."""
        self._ssl_context = ssl_context
        self._backend = backend
        self._keepalive_expiry = keepalive_expiry
        self._max_idle = max_idle
        # In the order in which they became idle; a call takes the newest of its origin.
        self._idle: dict[HttpConnection, _Origin] = {}
        self._by_origin: dict[_Origin, dict[HttpConnection, None]] = {}
        self._is_closed = False

    async def ask(self, hop: Hop, connect_s: float) -> "Exchange":
        """Send a request and return its answer; closing that gives the connection back, or closes it.

        Raises as `HttpConnection.ask`.
        """
        target = hop.target
        origin = (target.scheme, target.host, target.port)
        connection = self._idle_connection(origin) or HttpConnection(
            ssl_context=self._ssl_context, keepalive_expiry=self._keepalive_expiry, backend=self._backend
        )
        try:
            await connection.ask(hop, connect_s)
        except BaseException:
            connection.close()
            raise
        return Exchange(self, origin, connection)

    def release(self, origin: _Origin, connection: HttpConnection) -> None:
        """Take a connection back from a call that is over."""
        if self._is_closed or not connection.is_idle:
            connection.close()
            return
        self._idle[connection] = origin
        self._by_origin.setdefault(origin, {})[connection] = None
        # The oldest have expired first: what nobody calls any more goes when anything else is called.
        while self._idle and (len(self._idle) > self._max_idle or next(iter(self._idle)).has_expired):
            oldest = next(iter(self._idle))
            self._forget(oldest)
            oldest.close()

    async def aclose(self) -> None:
        """Close the idle connections; those in use are closed when their call is over."""
        self._is_closed = True
        for connection in tuple(self._idle):
            self._forget(connection)
            connection.close()
        await asyncio.sleep(0)  # the loop lets go of a socket in its next turn

    def _idle_connection(self, origin: _Origin) -> HttpConnection | None:
        """Return a connection that the other side has not closed, or None."""
        while waiting := self._by_origin.get(origin):
            connection = next(reversed(waiting))
            self._forget(connection)
            if not (connection.has_expired or connection.was_ended):
                return connection
            connection.close()
        return None

    def _forget(self, connection: HttpConnection) -> None:
        origin = self._idle.pop(connection)
        waiting = self._by_origin[origin]
        del waiting[connection]
        if not waiting:
            del self._by_origin[origin]


class Exchange:
    """An answer whose head is here, on a connection that it has for itself until `close`."""

    def __init__(self, pool: ConnectionPool, origin: _Origin, connection: HttpConnection) -> None:
        self.status = connection.status
        self.headers = connection.headers
        self.ready = connection.ready
        self.next_piece = connection.next_piece
        self._pool = pool
        self._origin = origin
        self._connection = connection
        self._is_closed = False

    @property
    def is_whole(self) -> bool:
        """Whether the end of the answer is here, and reading waits for nothing any more."""
        return self._connection.is_whole

    def close(self) -> None:
        """Give the connection back; what was not read of the answer costs it. May be called more than once."""
        if not self._is_closed:
            self._is_closed = True
            self._pool.release(self._origin, self._connection)
