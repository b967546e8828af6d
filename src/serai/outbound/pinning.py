"""Connections that go to the very address that was checked."""

import asyncio
import select
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import cast

import httpcore

from serai.outbound.targets import AddressPolicy, IPAddress

Resolver = Callable[[str], Awaitable[Sequence[str]]]
"""From a host name to its addresses as text, best first; OSError where there are none."""

_MAX_ATTEMPTS = 4
_MOST_WAITING = 256 * 1024
"""Bytes that came and that nobody has read: beyond them the other side has to wait."""


async def resolve_host(host: str) -> Sequence[str]:
    """Ask the machine's own resolver, in a thread of the event loop's pool."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class PinnedBackend:
    """Resolves a name once per connection, checks every address that it has, connects to a checked one.

    TLS runs above this: the certificate is still checked against the name. A name with one address that
    is refused is refused as a whole, because which of them is used would be up to the name's owner.
    """

    def __init__(self, policy: AddressPolicy, resolve: Resolver) -> None:
        self._policy = policy
        self._resolve = resolve

    async def connect(self, host: str, port: int, timeout_s: float) -> "Connected":
        """Connect within `timeout_s` seconds. Raises OutboundRefused, httpcore.ConnectError or OSError."""
        addresses = (await self._checked_addresses(host))[:_MAX_ATTEMPTS]
        loop, failure = asyncio.get_running_loop(), OSError("no address")
        for address in addresses:
            try:
                async with asyncio.timeout(timeout_s / len(addresses)):
                    _, connected = await loop.create_connection(Connected, str(address), port)
                    return connected
            except OSError as error:
                failure = error
        raise failure

    async def _checked_addresses(self, host: str) -> list[IPAddress]:
        try:
            addresses = [ip_address(host)]
        except ValueError:
            addresses = [ip_address(text) for text in await self._resolve(host)]
        if not addresses:
            raise httpcore.ConnectError("the name has no address")
        for address in addresses:
            self._policy.check_address(host, address)
        return addresses


class Connected(asyncio.BaseProtocol):
    """A TCP connection: bytes to write, bytes to read in their order. One reader and one writer at a time.

    What comes is taken from the socket as it comes: stopping and going on for each answer would cost
    more than most answers do.
    """

    _transport: asyncio.Transport
    _poll: select.poll

    def __init__(self) -> None:
        self._came: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._has_ended = False
        self._failure: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    async def start_tls(self, context: ssl.SSLContext, host: str, timeout_s: float) -> None:
        """Speak TLS from now on. Raises OSError, for a certificate that is not accepted too; it is closed then."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                transport = await loop.start_tls(self._transport, self, context, server_hostname=host)
        except BaseException:
            self.close()
            raise
        if transport is None:  # it was closed in between
            raise ConnectionResetError("the connection was closed during its handshake")
        self._transport = transport

    @property
    def is_readable(self) -> bool:
        """Whether something has come, or the end; the system is asked as well, which may know more than the loop."""
        return bool(self._came) or self._has_ended or self._transport.is_closing() or bool(self._poll.poll(0))

    async def read(self, max_bytes: int) -> bytes:
        """Return what has come, waiting for it; empty at the end. Raises OSError where the connection failed."""
        if self._came:
            await asyncio.sleep(0)  # who reads what is here already lets others run, too
        elif not self._has_ended:
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if not self._came:
            if self._failure is not None:
                raise self._failure
            return b""
        data = self._came.popleft()
        if len(data) > max_bytes:
            self._came.appendleft(data[max_bytes:])
            data = data[:max_bytes]
        if self._waiting_bytes > _MOST_WAITING >= self._waiting_bytes - len(data):
            self._transport.resume_reading()
        self._waiting_bytes -= len(data)
        return data

    async def write(self, data: bytes) -> None:
        """Send bytes; return when most of them are on their way. Raises OSError for a connection that has ended."""
        if self._has_ended or self._transport.is_closing():
            raise ConnectionResetError("the connection was closed")
        self._transport.write(data)
        if self._writer is not None:
            await self._writer

    def close(self) -> None:
        """Close the socket now: what was not sent is not sent any more."""
        self._transport.abort()

    # What the loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._poll = select.poll()
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        self._came.append(bytes(data))
        before = self._waiting_bytes
        self._waiting_bytes += len(data)
        if before <= _MOST_WAITING < self._waiting_bytes:
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        self._has_ended = True
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._has_ended, self._failure = True, error
        self._wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        self._writer = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None and not writer.done():
            writer.set_result(None)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
