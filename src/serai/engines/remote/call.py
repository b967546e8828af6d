"""One task on another server: its time, its secret, and the asking."""

from collections.abc import Collection, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from types import MappingProxyType

from serai.clock import Clock
from serai.engines.remote.failures import failure_of
from serai.outbound import Outbound, OutboundSecret, StreamedReply

JSON: Mapping[str, str] = MappingProxyType(
    {
        "content-type": "application/json",
        "accept": "application/json, text/event-stream",
        "accept-encoding": "identity",  # who compresses a stream holds it back
    }
)
LARGE = 256 * 1024
"""From so many bytes on, JSON is read in a thread: it would keep all other calls waiting."""
_MAX_ERROR_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteCall:
    """What all requests of one task share. `deadline` is on the clock's stopwatch."""

    outbound: Outbound = field(repr=False)
    clock: Clock = field(repr=False)
    secret: OutboundSecret | None
    began: float
    deadline: float

    @property
    def remaining_s(self) -> float:
        return max(self.deadline - self.clock.monotonic(), 0.0)

    @property
    def secret_value(self) -> str | None:
        """What must never be told to anybody."""
        return self.secret.value if self.secret is not None else None

    def asked(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = JSON,
        content: bytes | None = None,
        accepted: Collection[int] = (200,),
        max_bytes: int | None = None,
    ) -> "_Asked":
        """Ask and give the answer, whose status is one of `accepted`. Raises what any other status means."""
        streaming = self.outbound.stream(
            method,
            url,
            headers=headers,
            content=content,
            secret=self.secret,
            timeout_s=self.remaining_s,
            max_bytes=max_bytes,
            follow_redirects=False,
        )
        return _Asked(self, streaming, accepted)


class _Asked(AbstractAsyncContextManager[StreamedReply]):
    """What `RemoteCall.asked` gives. A class, because `asynccontextmanager` costs each call more."""

    def __init__(
        self, call: RemoteCall, streaming: AbstractAsyncContextManager[StreamedReply], accepted: Collection[int]
    ) -> None:
        self._call = call
        self._streaming = streaming
        self._accepted = accepted

    async def __aenter__(self) -> StreamedReply:
        call, reply = self._call, await self._streaming.__aenter__()
        if reply.status not in self._accepted:
            try:
                body = await _start_of(reply)
            finally:
                await self._streaming.__aexit__(None, None, None)
            raise failure_of(reply.status, reply.headers, body, secret=call.secret_value, now=call.clock.now())
        return reply

    async def __aexit__(self, *_: object) -> None:
        await self._streaming.__aexit__(None, None, None)


def is_event_stream(reply: StreamedReply) -> bool:
    """Say whether an answer comes as server-sent events."""
    return reply.headers.get("content-type", "").lower().startswith("text/event-stream")


async def whole(reply: StreamedReply) -> bytes:
    """Return an answer's body."""
    return b"".join([piece async for piece in reply.aiter_bytes()])


async def _start_of(reply: StreamedReply) -> bytes:
    """Return as much of an answer as its error can take."""
    body = b""
    async with aclosing(reply.aiter_bytes()) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            body += piece
            if len(body) > _MAX_ERROR_BYTES:
                break
    return body
