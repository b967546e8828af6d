"""One connection to another server: requests one after the other, each with its answer."""

import asyncio
import ssl

import httpcore

from serai.outbound.hops import Hop
from serai.outbound.http1 import AnswerParser, NotHttp, request_head
from serai.outbound.pinning import Connected, PinnedBackend
from serai.outbound.targets import Target

_READ_BYTES = 64 * 1024


class HttpConnection:
    """Speaks HTTP/1.1; it is connected by its first request. Whoever opened it closes it.

    While it is idle nothing may come: something that does is the end of the connection, or nobody's answer.
    """

    def __init__(self, *, ssl_context: ssl.SSLContext, backend: PinnedBackend, keepalive_expiry: float) -> None:
        self._ssl_context = ssl_context
        self._backend = backend
        self._keepalive_expiry = keepalive_expiry
        self._connected: Connected | None = None
        self._answer = AnswerParser()
        self._expires_at = 0.0
        self._is_closed = False

    async def ask(self, hop: Hop, connect_s: float) -> None:
        """Send a request and return when the head of its answer is here; `connect_s`: for connecting, if it must.

        Raises httpcore's errors, OSError, and what the backend raises.
        """
        connected = self._connected or await self._connect(hop.target, connect_s)
        self._expires_at = 0.0  # who does not read the body to its end does not leave the connection to others
        self._answer.expect(has_no_body=hop.method == "HEAD")
        try:
            await self._send(connected, hop)
            while not self._answer.has_head:
                await self._read(connected)
        except NotHttp as error:
            raise httpcore.RemoteProtocolError(str(error)) from error

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return self._answer.headers

    def ready(self) -> bytes | None:
        """Return what is here of the body, as `next_piece` would; None where that would wait."""
        piece = self._answer.take()
        if piece:
            return piece
        if not self._answer.is_over:
            return None
        self._expires_at = asyncio.get_running_loop().time() + self._keepalive_expiry
        return b""

    async def next_piece(self) -> bytes:
        """Return what comes next of the body, empty at its end. Raises httpcore's errors and OSError."""
        if self._connected is None:
            raise RuntimeError("there is a body only where an answer began")
        try:
            while (piece := self.ready()) is None:
                await self._read(self._connected)
        except NotHttp as error:
            raise httpcore.RemoteProtocolError(str(error)) from error
        return piece

    @property
    def is_whole(self) -> bool:
        """Whether the end of the answer is here, and reading waits for nothing any more."""
        return self._answer.is_over

    @property
    def is_idle(self) -> bool:
        """Whether the last answer was read to its end and another request may follow."""
        return self._answer.is_over and self._answer.is_followed and not self._is_closed

    @property
    def has_expired(self) -> bool:
        """Whether it was idle for too long."""
        return asyncio.get_running_loop().time() > self._expires_at

    @property
    def was_ended(self) -> bool:
        """Whether the other side has closed it while it was idle, or said something that nobody asked for."""
        return self._connected is None or self._connected.is_readable

    def close(self) -> None:
        """Close it, whatever goes on."""
        self._is_closed = True
        if self._connected is not None:
            self._connected.close()

    async def _connect(self, target: Target, timeout_s: float) -> Connected:
        connected = await self._backend.connect(target.host, target.port, timeout_s)
        if target.scheme == "https":
            self._ssl_context.set_alpn_protocols(["http/1.1"])
            await connected.start_tls(self._ssl_context, target.host, timeout_s)
        self._connected = connected
        return connected

    async def _send(self, connected: Connected, hop: Hop) -> None:
        head = request_head(hop.method.encode("ascii"), hop.target.path.encode("ascii"), hop.wire_headers())
        try:
            await connected.write(head + (hop.content or b""))  # head and body are one packet
        except ConnectionError:  # an answer may be there all the same
            return

    async def _read(self, connected: Connected) -> None:
        data = await connected.read(_READ_BYTES)
        if data:
            self._answer.feed(data)
        else:
            self._answer.end()
