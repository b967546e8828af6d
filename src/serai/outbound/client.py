"""Calls to other servers under one guard: targets, addresses, redirects, credentials, time and size.

httpcore speaks HTTP/1.1. The layers that usually lie above it are left out on purpose: they follow
redirects, keep cookies and read proxies and passwords from the environment, and undo compression
without a bound.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Self, TypedDict, TypeVar, Unpack

import httpcore

from serai.clock import Clock
from serai.errors import DeadlineExceeded, UpstreamFailed
from serai.outbound.bodies import ACCEPT_ENCODING, BodyDecoder
from serai.outbound.hops import MAX_REDIRECTS, Hop, OutboundSecret
from serai.outbound.pinning import PinnedBackend, Resolver, resolve_host
from serai.outbound.pool import ConnectionPool, Exchange
from serai.outbound.targets import AddressPolicy, Target, parse_target

MIB = 1024 * 1024

Step = TypeVar("Step")

_NETWORK_ERRORS = (TimeoutError, httpcore.TimeoutException, httpcore.NetworkError, httpcore.ProtocolError, OSError)


class CallOptions(TypedDict, total=False):
    """What a call may say besides method and URL."""

    headers: Mapping[str, str] | None
    content: bytes | None
    json: object
    """Sent as JSON where it is not None; not together with `content`."""
    secret: OutboundSecret | None
    timeout_s: float | None
    """Seconds for the whole call with redirects and body; None is the client's own."""
    max_bytes: int | None
    """Bytes of the decoded body; None is the client's own."""
    follow_redirects: bool
    """True unless said otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer. `headers` are by lower-case name; `url` is where the last redirect led."""

    status: int
    headers: Mapping[str, str]
    url: str
    body: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """The bounds that all hops of one call share."""

    host: str
    clock: Clock
    deadline: float
    max_bytes: int

    @property
    def remaining_s(self) -> float:
        return self.deadline - self.clock.monotonic()

    async def within(self, step: Callable[[], Awaitable[Step]]) -> Step:
        """Take a step before the deadline, and raise what the network raises as errors of ours."""
        remaining_s = self.remaining_s
        try:
            if remaining_s <= 0:
                raise TimeoutError
            # Not anyio's scope, which takes three times as long: this runs for each piece of a streamed answer.
            async with asyncio.timeout(remaining_s):
                return await step()
        except _NETWORK_ERRORS as error:
            raise self.failure(error) from error

    def failure(self, error: BaseException) -> DeadlineExceeded | UpstreamFailed:
        """Return the error of ours for one of `_NETWORK_ERRORS`."""
        if isinstance(error, TimeoutError | httpcore.TimeoutException):
            return DeadlineExceeded(f"{self.host} did not answer in time")
        if isinstance(error, httpcore.ProtocolError):
            return UpstreamFailed(f"{self.host} answered something that is not HTTP")
        untrusted = "CERTIFICATE_VERIFY_FAILED" in str(error)
        reason = "its certificate was not accepted" if untrusted else "the connection failed"
        return UpstreamFailed(f"{self.host}: {reason}")


class StreamedReply:
    """An answer whose body is still to come; valid inside the `async with` that gave it."""

    def __init__(self, exchange: Exchange, headers: Mapping[str, str], url: str, call: _Call) -> None:
        self.status = exchange.status
        self.headers = headers
        self.url = url
        self._exchange = exchange
        self._call = call
        self._read = False

    @property
    def is_whole(self) -> bool:
        """Whether the end of the body is here, and reading it waits for nothing any more."""
        return self._exchange.is_whole

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        """Yield the decoded body once, in pieces of at most 64 KiB.

        Raises DeadlineExceeded, UpstreamTooLarge, or UpstreamFailed for a body that is damaged or cut off.
        The deadline is looked at when a piece is asked for; it never interrupts the caller's own work.
        """
        if self._read:
            raise RuntimeError("the body was read before")
        self._read = True
        decoder = BodyDecoder(self.headers.get("content-encoding", ""), self._call.max_bytes)
        while chunk := await self._chunk():
            for number, piece in enumerate(decoder.feed(chunk)):
                if number:
                    # One chunk can hold a thousand pieces: others run, and the deadline counts, between them.
                    await self._call.within(_others_run)
                if piece:
                    yield piece
        if rest := decoder.finish():
            yield rest

    async def _chunk(self) -> bytes:
        """Return what comes next of the body as it is sent, empty at its end."""
        if self._exchange.is_whole and self._call.remaining_s > 0:  # often all of it came with the head
            return self._exchange.ready() or b""
        return await self._call.within(self._exchange.next_piece)


async def _others_run() -> None:
    await asyncio.sleep(0)


class Outbound:
    """The server's HTTP client. Nothing is opened before the first call; `aclose` ends idle connections.

    Only public addresses are reached, and what `allow` names: host names, addresses, networks. Nothing is
    taken from the environment: no proxy, no password file. No cookie is kept. Credentials (`secret`,
    Authorization, Cookie, any header of the caller's own) stay behind when a redirect changes the origin.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        allow: Sequence[str] = (),
        timeout_s: float = 30.0,
        max_bytes: int = 64 * MIB,
        user_agent: str = "serai",
        resolve: Resolver = resolve_host,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Raises ConfigurationError for an entry of `allow` that is neither a host name nor a network."""
        self._clock = clock
        self._policy = AddressPolicy.allowing(allow)
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._defaults = {"accept": "*/*", "accept-encoding": ACCEPT_ENCODING, "user-agent": user_agent}
        self._pool = ConnectionPool(
            ssl_context=ssl_context or httpcore.default_ssl_context(),
            backend=PinnedBackend(self._policy, resolve),
            keepalive_expiry=15,
            max_idle=64,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    def check_url(self, url: str) -> Target:
        """Return `url` normalised. Raises OutboundRefused where it is refused without asking DNS."""
        target = parse_target(url)
        self._policy.check(target)
        return target

    async def request(self, method: str, url: str, **options: Unpack[CallOptions]) -> Reply:
        """Make a call and return the whole answer, whatever its status. Raises as `stream` does."""
        async with self.stream(method, url, **options) as reply:
            body = b"".join([piece async for piece in reply.aiter_bytes()])
            return Reply(status=reply.status, headers=reply.headers, url=reply.url, body=body)

    def stream(
        self, method: str, url: str, **options: Unpack[CallOptions]
    ) -> AbstractAsyncContextManager[StreamedReply]:
        """Make a call and give its answer (`async with`) once the headers are there, whatever its status.

        Raises OutboundRefused (nothing was sent to what is refused), DeadlineExceeded, UpstreamFailed.
        """
        return _Streaming(partial(self._begin, method, url, options))

    async def _begin(self, method: str, url: str, options: CallOptions) -> tuple[StreamedReply, Exchange]:
        target = self.check_url(url)
        hop = Hop.first(
            method,
            target,
            defaults=self._defaults,
            headers=options.get("headers"),
            content=options.get("content"),
            json=options.get("json"),
            secret=options.get("secret"),
        )
        call = self._call(target, options.get("timeout_s"), options.get("max_bytes"))
        follows = options.get("follow_redirects", True)
        while True:
            exchange = await call.within(partial(self._pool.ask, hop, max(call.remaining_s, 0)))
            try:
                headers = _headers(exchange.headers)
                following = self._next_hop(hop, exchange.status, headers, call) if follows else None
            except BaseException:
                exchange.close()
                raise
            if following is None:
                return StreamedReply(exchange, headers, hop.target.url, call), exchange
            exchange.close()
            hop = following

    def _call(self, target: Target, timeout_s: float | None, max_bytes: int | None) -> _Call:
        return _Call(
            host=target.host,
            clock=self._clock,
            deadline=self._clock.monotonic() + (self._timeout_s if timeout_s is None else timeout_s),
            max_bytes=self._max_bytes if max_bytes is None else max_bytes,
        )

    def _next_hop(self, hop: Hop, status: int, headers: Mapping[str, str], call: _Call) -> Hop | None:
        following = hop.redirected(status, headers.get("location"))
        if following is None:
            return None
        if following.redirects > MAX_REDIRECTS:
            raise UpstreamFailed(f"{call.host} redirected more than {MAX_REDIRECTS} times")
        self._policy.check(following.target)
        return following


class _Streaming(AbstractAsyncContextManager[StreamedReply]):
    """A call that is made when its block is entered. A class, because `asynccontextmanager` costs each call more."""

    def __init__(self, begin: Callable[[], Awaitable[tuple[StreamedReply, Exchange]]]) -> None:
        self._begin = begin

    async def __aenter__(self) -> StreamedReply:
        reply, self._exchange = await self._begin()
        return reply

    async def __aexit__(self, *_: object) -> None:
        self._exchange.close()


def _headers(raw: Sequence[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return the headers by lower-case name; one that comes several times is joined by commas (RFC 9110, 5.3)."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in raw:
        name, value = raw_name.decode("ascii").lower(), _header_text(raw_value)
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _header_text(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value.decode("latin-1")
