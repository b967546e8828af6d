"""Models behind other servers: the engines `remote` (OpenAI's API) and `http` (JSON in, JSON out).

They run in the server's event loop, through `outbound`, and need no worker and no memory. Failures are
raised, never told as `Failed`: before the first event and after it alike.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
import msgspec

from serai.clock import Clock
from serai.engines.errors import RemoteFailed
from serai.engines.options import HttpOptions, RemoteOptions
from serai.engines.remote_answers import Answer, body_in, embeddings_in
from serai.engines.remote_failures import failure_of
from serai.engines.remote_requests import request_for, url_below
from serai.engines.remote_sse import EventParser
from serai.engines.tasks import Chat, Embed, Fetch, Generate
from serai.errors import DeadlineExceeded, OutboundRefused, UpstreamFailed
from serai.events import Done, Event
from serai.outbound import Outbound, OutboundSecret, StreamedReply
from serai.registry.source import RemoteSource

RemoteTask = Chat | Generate | Embed | Fetch

_HEADERS = {
    "content-type": "application/json",
    "accept": "application/json, text/event-stream",
    "accept-encoding": "identity",  # who compresses a stream holds it back
}
_MAX_ERROR_BYTES = 64 * 1024
_LARGE = 256 * 1024
"""From so many bytes on, JSON is read in a thread: it would keep all other calls waiting."""
_LINGER_S = 0.05
"""How long the end of a stream is awaited behind its last event, so that the connection can be used again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One call of another server."""

    url: str
    content: bytes
    secret: OutboundSecret | None
    began: float
    deadline: float


class RemoteEngine:
    """Runs tasks on other servers. One per server process; holds connections open through `outbound`."""

    def __init__(self, outbound: Outbound, *, clock: Clock) -> None:
        self._outbound = outbound
        self._clock = clock
        self._slots: WeakValueDictionary[str, anyio.CapacityLimiter] = WeakValueDictionary()

    async def run(
        self,
        task: RemoteTask,
        source: RemoteSource,
        *,
        options: RemoteOptions | HttpOptions,
        secret: OutboundSecret | None,
        timeout_s: float,
    ) -> AsyncGenerator[Event]:
        """Yield the events of a task; the last is `Done`. Closing the iterator closes the connection at once.

        `timeout_s` holds for all of it, with the wait for one of the endpoint's slots. Raises InvalidInput,
        RateLimited (with the seconds that the server asks for), DeadlineExceeded, RemoteFailed.
        """
        call = self._call(task, source, options, secret, timeout_s)
        try:
            async with self._slot(source.endpoint, options.max_concurrency, call), self._asked(call) as reply:
                if isinstance(task, Chat | Generate):
                    async with aclosing(self._streamed(task, call, reply)) as events:
                        async for event in events:
                            yield event
                else:
                    yield await _result(task, b"".join([piece async for piece in reply.aiter_bytes()]))
        except RemoteFailed:
            raise
        except DeadlineExceeded as error:
            raise DeadlineExceeded("The server behind this model did not answer in time.") from error
        except OutboundRefused as error:
            raise RemoteFailed(
                "The server behind this model may not be called.",
                hint="An admin adds its address to outbound_allow, and its origin to the secret.",
            ) from error
        except UpstreamFailed as error:
            raise RemoteFailed("The connection to the server behind this model failed.") from error

    def _call(
        self,
        task: RemoteTask,
        source: RemoteSource,
        options: RemoteOptions | HttpOptions,
        secret: OutboundSecret | None,
        timeout_s: float,
    ) -> _Call:
        if isinstance(task, Fetch):
            url, content = source.endpoint, msgspec.json.encode(task.body)
        else:
            assert isinstance(options, RemoteOptions), "only `remote` runs chats, texts and embeddings"
            request = request_for(task, source.model, options)
            url, content = url_below(source.endpoint, request.path), request.content
        began = self._clock.monotonic()
        return _Call(url=url, content=content, secret=secret, began=began, deadline=began + timeout_s)

    @asynccontextmanager
    async def _slot(self, endpoint: str, most: int, call: _Call) -> AsyncIterator[None]:
        """Hold one of the calls that an endpoint may have at once. Raises DeadlineExceeded."""
        limiter = self._slots.get(endpoint)
        if limiter is None:
            limiter = self._slots[endpoint] = anyio.CapacityLimiter(most)
        limiter.total_tokens = most
        holder = object()
        try:
            limiter.acquire_on_behalf_of_nowait(holder)
        except anyio.WouldBlock:
            with anyio.move_on_after(call.deadline - self._clock.monotonic()) as waiting:
                await limiter.acquire_on_behalf_of(holder)
            if waiting.cancelled_caught:
                raise DeadlineExceeded("No call of the server became free in time.") from None
        try:
            yield
        finally:
            limiter.release_on_behalf_of(holder)

    @asynccontextmanager
    async def _asked(self, call: _Call) -> AsyncIterator[StreamedReply]:
        """Send the call and give the answer, which has status 200. Raises what any other status means."""
        async with self._outbound.stream(
            "POST",
            call.url,
            headers=_HEADERS,
            content=call.content,
            secret=call.secret,
            timeout_s=max(call.deadline - self._clock.monotonic(), 0.0),
            follow_redirects=False,
        ) as reply:
            if reply.status != 200:
                secret = call.secret.value if call.secret is not None else None
                body = await _start_of(reply)
                raise failure_of(reply.status, reply.headers, body, secret=secret, now=self._clock.now())
            yield reply

    async def _streamed(self, task: Chat | Generate, call: _Call, reply: StreamedReply) -> AsyncGenerator[Event]:
        if not reply.headers.get("content-type", "").lower().startswith("text/event-stream"):
            raise RemoteFailed("The server behind this model answered without a stream.")
        secret = call.secret.value if call.secret is not None else None
        answer = Answer(n=task.sampling.n, logprobs=task.sampling.logprobs is not None, secret=secret)
        parser = EventParser()
        first = None
        async with aclosing(reply.aiter_bytes()) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                for data in parser.feed(piece):
                    for text in answer.take(data):
                        if first is None:
                            first = self._clock.monotonic()
                        yield text
                    if answer.is_over:
                        break
                if answer.is_over:
                    break
            if answer.is_over:
                with anyio.move_on_after(_LINGER_S):
                    await anext(pieces, None)
        ended = self._clock.monotonic()
        first = ended if first is None else first
        yield answer.result({"prompt_s": first - call.began, "generation_s": ended - first})


async def _result(task: Embed | Fetch, body: bytes) -> Done:
    read = body_in if isinstance(task, Fetch) else partial(embeddings_in, count=len(task.texts))
    return read(body) if len(body) < _LARGE else await anyio.to_thread.run_sync(read, body)


async def _start_of(reply: StreamedReply) -> bytes:
    """Return as much of an answer as its error can take."""
    body = b""
    async with aclosing(reply.aiter_bytes()) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            body += piece
            if len(body) > _MAX_ERROR_BYTES:
                break
    return body
