"""The same way out for a library that makes blocking calls with a client of its own (httpx2).

The library's thread hands each request to the `Outbound` of the event loop and waits: targets,
addresses, redirects, credentials, time and size are judged there, and nowhere twice. A client from
`guarded_client` reaches nothing except inside `way_out`.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import httpx2

from serai.errors import OutboundRefused
from serai.outbound.client import Outbound
from serai.outbound.hops import OutboundSecret

_KEPT = frozenset({"accept", "content-type"})
"""What a library may say of itself; the rest (client name, tokens it found) stays here."""
_UNDONE = frozenset({"connection", "content-encoding", "content-length", "set-cookie", "transfer-encoding"})
"""Headers of an answer that do not hold for its decoded body, or that a client would keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    outbound: Outbound
    loop: asyncio.AbstractEventLoop
    secret: OutboundSecret | None


_WAY: ContextVar[_Way] = ContextVar("way_out")


class _Transport(httpx2.BaseTransport):
    """Sends what the library asks for through the way of its thread; redirects are followed before it sees them."""

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        way = _WAY.get(None)
        if way is None:
            raise OutboundRefused("a library tried to call another server by itself")
        call = way.outbound.request(
            request.method,
            str(request.url),
            headers={name: value for name, value in request.headers.items() if name in _KEPT},
            content=request.read() or None,
            secret=way.secret,
        )
        reply = asyncio.run_coroutine_threadsafe(call, way.loop).result()
        headers = {name: value for name, value in reply.headers.items() if name not in _UNDONE}
        return httpx2.Response(reply.status, headers=headers, content=reply.body, request=request)


def guarded_client() -> httpx2.Client:
    """Return a client to hand to a library. It takes nothing from the environment."""
    return httpx2.Client(transport=_Transport(), trust_env=False, follow_redirects=False)


@contextmanager
def way_out(
    outbound: Outbound, loop: asyncio.AbstractEventLoop, secret: OutboundSecret | None = None
) -> Iterator[None]:
    """Let guarded clients of this thread, which is not that of `loop`, call through `outbound` in the block."""
    token = _WAY.set(_Way(outbound=outbound, loop=loop, secret=secret))
    try:
        yield
    finally:
        _WAY.reset(token)
