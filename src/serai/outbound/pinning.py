"""Connections that go to the very address that was checked."""

# ruff: noqa: ASYNC109 the signatures with `timeout` are httpcore's

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import Any

import anyio
import httpcore

from serai.errors import OutboundRefused
from serai.outbound.targets import AddressPolicy, IPAddress

Resolver = Callable[[str], Awaitable[Sequence[str]]]
"""From a host name to its addresses as text, best first; OSError where there are none."""

SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]

_MAX_ATTEMPTS = 4
_MOST_UNSENT = 64 * 1024


async def resolve_host(host: str) -> Sequence[str]:
    """Ask the machine's own resolver, in a thread of the event loop's pool."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class PinnedBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name once per connection, checks every address that it has, connects to a checked one.

    TLS runs above this: the certificate is still checked against the name. A name with one address that
    is refused is refused as a whole, because which of them is used would be up to the name's owner.
    """

    def __init__(self, policy: AddressPolicy, resolve: Resolver) -> None:
        self._policy = policy
        self._resolve = resolve
        self._sockets = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect within `timeout` seconds. Raises OutboundRefused, httpcore.ConnectError or OSError."""
        addresses = (await self._checked_addresses(host))[:_MAX_ATTEMPTS]
        share = None if timeout is None else timeout / len(addresses)
        failure: httpcore.ConnectError | httpcore.ConnectTimeout = httpcore.ConnectError("no address")
        for address in addresses:
            try:
                stream = await self._sockets.connect_tcp(str(address), port, share, local_address, socket_options)
                return _Connected(stream)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise OutboundRefused("local sockets are not reached over HTTP")

    async def sleep(self, seconds: float) -> None:
        await self._sockets.sleep(seconds)

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


class _Connected(httpcore.AsyncNetworkStream):
    """A connection that is closed when its TLS handshake is cancelled; httpcore 1.0 closes it on errors only.

    What is written goes out when the answer is asked for, so that head and body of a request are one packet.
    """

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._unsent = b""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self._unsent:
            with contextlib.suppress(httpcore.WriteError):  # an answer may be there all the same
                await self._send(timeout)
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._unsent += buffer
        if len(self._unsent) > _MOST_UNSENT:
            await self._send(timeout)

    async def _send(self, timeout: float | None) -> None:
        unsent, self._unsent = self._unsent, b""
        await self._stream.write(unsent, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            return _Connected(await self._stream.start_tls(ssl_context, server_hostname, timeout))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
