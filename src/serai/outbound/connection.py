"""One connection to another server: requests one after the other, each with its answer."""

import asyncio
import ssl
from collections.abc import AsyncIterable, AsyncIterator
from typing import cast

import httpcore

from serai.outbound.http1 import AnswerParser, NotHttp, request_head

_READ_BYTES = 64 * 1024


class HttpConnection:
    """Speaks HTTP/1.1; it is connected by its first request. Whoever opened it closes it.

    While it is idle nothing may come: something that does is the end of the connection, or nobody's answer.
    """

    def __init__(
        self,
        origin: httpcore.Origin,
        *,
        ssl_context: ssl.SSLContext,
        network_backend: httpcore.AsyncNetworkBackend,
        keepalive_expiry: float,
    ) -> None:
        self._origin = origin
        self._ssl_context = ssl_context
        self._network_backend = network_backend
        self._keepalive_expiry = keepalive_expiry
        self._stream: httpcore.AsyncNetworkStream | None = None
        self._parser = AnswerParser()
        self._expires_at = 0.0
        self._is_closed = False

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request and return the answer with its body still to come.

        Raises httpcore's errors, and what the network backend raises.
        """
        stream = self._stream or await self._connect(request)
        self._expires_at = 0.0  # who does not read the body to its end does not leave the connection to others
        self._parser.expect(has_no_body=request.method == b"HEAD")
        try:
            await self._send(stream, request)
            while not self._parser.has_head:
                await self._read(stream)
        except NotHttp as error:
            raise httpcore.RemoteProtocolError(str(error)) from error
        return httpcore.Response(self._parser.status, headers=self._parser.headers, content=self._body(stream))

    @property
    def is_idle(self) -> bool:
        """Whether the last answer was read to its end and another request may follow."""
        return self._parser.is_over and self._parser.is_followed and not self._is_closed

    @property
    def has_expired(self) -> bool:
        """Whether it was idle for too long."""
        return asyncio.get_running_loop().time() > self._expires_at

    @property
    def was_ended(self) -> bool:
        """Whether the other side has closed it while it was idle, or said something that nobody asked for."""
        return self._stream is None or bool(self._stream.get_extra_info("is_readable"))

    async def aclose(self) -> None:
        """Close it, whatever goes on; the socket is closed before the first wait in here."""
        self._is_closed = True
        if self._stream is not None:
            await self._stream.aclose()

    async def _connect(self, request: httpcore.Request) -> httpcore.AsyncNetworkStream:
        timeout_s = request.extensions["timeout"]["connect"]
        host = self._origin.host.decode("ascii")
        stream = await self._network_backend.connect_tcp(host, self._origin.port, timeout_s)
        if self._origin.scheme == b"https":
            self._ssl_context.set_alpn_protocols(["http/1.1"])
            stream = await stream.start_tls(self._ssl_context, host, timeout_s)
        self._stream = stream
        return stream

    async def _send(self, stream: httpcore.AsyncNetworkStream, request: httpcore.Request) -> None:
        content = b"".join([piece async for piece in cast("AsyncIterable[bytes]", request.stream)])
        head = request_head(request.method, request.url.target, request.headers)
        try:
            await stream.write(head + content)
        except httpcore.WriteError:  # an answer may be there all the same
            return

    async def _body(self, stream: httpcore.AsyncNetworkStream) -> AsyncIterator[bytes]:
        try:
            while True:
                if piece := self._parser.take():
                    yield piece
                if self._parser.is_over:
                    break
                await self._read(stream)
        except NotHttp as error:
            raise httpcore.RemoteProtocolError(str(error)) from error
        self._expires_at = asyncio.get_running_loop().time() + self._keepalive_expiry

    async def _read(self, stream: httpcore.AsyncNetworkStream) -> None:
        data = await stream.read(_READ_BYTES)
        if data:
            self._parser.feed(data)
        else:
            self._parser.end()
