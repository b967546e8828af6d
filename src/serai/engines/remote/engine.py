"""Models behind other servers: the engines `remote` (OpenAI's API, fal.ai's queue) and `http` (JSON in, JSON out).

They run in the server's event loop, through `outbound`, and need no worker and no memory. Failures are
raised, never told as `Failed`: before the first event and after it alike.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
import msgspec

from serai.clock import Clock
from serai.engines.errors import RemoteFailed
from serai.engines.options import HttpOptions, RemoteOptions
from serai.engines.remote.answers import Answer, body_in, embeddings_in
from serai.engines.remote.call import LARGE, RemoteCall, is_event_stream, whole
from serai.engines.remote.images import image_events
from serai.engines.remote.requests import request_for, url_below
from serai.engines.remote.sse import EventParser
from serai.engines.tasks import Chat, Embed, Fetch, Generate, GenerateImage
from serai.errors import DeadlineExceeded, OutboundRefused, UpstreamFailed
from serai.events import Done, Event
from serai.outbound import Outbound, OutboundSecret, UpstreamTooLarge
from serai.registry.source import RemoteSource

RemoteTask = Chat | Generate | Embed | Fetch | GenerateImage

IMAGE_TIMEOUT_S = 900.0
"""For pictures where neither the caller nor the options say less: who asks for them waits for hours if need be."""
_LINGER_S = 0.05
"""How long the end of a stream is awaited behind its last event, so that the connection can be used again."""


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

        `timeout_s`, or what the options allow if that is less, holds for all of it, with the wait for one of
        the endpoint's slots. Raises InvalidInput, RateLimited (with the seconds that the server asks for),
        DeadlineExceeded, RemoteFailed.
        """
        usual_s = IMAGE_TIMEOUT_S if isinstance(task, GenerateImage) else timeout_s
        call = self._call(secret, min(timeout_s, options.timeout_s or usual_s))
        try:
            with await self._slot(source.endpoint, options.max_concurrency, call):
                async with aclosing(_events(task, source, options, call)) as events:
                    async for event in events:
                        yield event
        except RemoteFailed:
            raise
        except DeadlineExceeded as error:
            raise DeadlineExceeded("The server behind this model did not answer in time.") from error
        except OutboundRefused as error:
            raise RemoteFailed(
                "The server behind this model may not be called.",
                hint="An admin adds its address to outbound_allow, and its origin to the secret.",
            ) from error
        except UpstreamTooLarge as error:
            raise RemoteFailed("The server behind this model answered more than is accepted.") from error
        except UpstreamFailed as error:
            raise RemoteFailed("The connection to the server behind this model failed.") from error

    def _call(self, secret: OutboundSecret | None, timeout_s: float) -> RemoteCall:
        began = self._clock.monotonic()
        return RemoteCall(
            outbound=self._outbound, clock=self._clock, secret=secret, began=began, deadline=began + timeout_s
        )

    async def _slot(self, endpoint: str, most: int, call: RemoteCall) -> "_Slot":
        """Return one of the calls that an endpoint may have at once. Raises DeadlineExceeded."""
        limiter = self._slots.get(endpoint)
        if limiter is None:
            limiter = self._slots[endpoint] = anyio.CapacityLimiter(most)
        if limiter.total_tokens != most:
            limiter.total_tokens = most
        slot = _Slot(limiter)
        try:
            limiter.acquire_on_behalf_of_nowait(slot)
        except anyio.WouldBlock:
            with anyio.move_on_after(call.deadline - self._clock.monotonic()) as waiting:
                await limiter.acquire_on_behalf_of(slot)
            if waiting.cancelled_caught:
                raise DeadlineExceeded("No call of the server became free in time.") from None
        return slot


class _Slot:
    """A call of an endpoint; given back at the end of its block."""

    def __init__(self, limiter: anyio.CapacityLimiter) -> None:
        self._limiter = limiter

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        self._limiter.release_on_behalf_of(self)


def _events(
    task: RemoteTask, source: RemoteSource, options: RemoteOptions | HttpOptions, call: RemoteCall
) -> AsyncGenerator[Event]:
    """Return the events of a task. Raises InvalidInput for what the server cannot be asked."""
    if isinstance(task, Fetch):
        return _answered(task, call, source.endpoint, msgspec.json.encode(task.body))
    assert isinstance(options, RemoteOptions), "only `remote` runs chats, texts, embeddings and pictures"
    if isinstance(task, GenerateImage):
        return image_events(task, source, options, call)
    request = request_for(task, source.model, options)
    url = url_below(source.endpoint, request.path)
    if isinstance(task, Embed):
        return _answered(task, call, url, request.content)
    return _streamed(task, call, url, request.content)


async def _answered(task: Embed | Fetch, call: RemoteCall, url: str, content: bytes) -> AsyncGenerator[Event]:
    async with call.asked("POST", url, content=content) as reply:
        body = await whole(reply)
    read = body_in if isinstance(task, Fetch) else partial(embeddings_in, count=len(task.texts))
    done: Done = read(body) if len(body) < LARGE else await anyio.to_thread.run_sync(read, body)
    yield done


async def _streamed(task: Chat | Generate, call: RemoteCall, url: str, content: bytes) -> AsyncGenerator[Event]:
    answer = Answer(n=task.sampling.n, logprobs=task.sampling.logprobs is not None, secret=call.secret_value)
    parser = EventParser()
    first = None
    async with call.asked("POST", url, content=content) as reply:
        if not is_event_stream(reply):
            raise RemoteFailed("The server behind this model answered without a stream.")
        async with aclosing(reply.aiter_bytes()) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                for data in parser.feed(piece):
                    for text in answer.take(data):
                        if first is None:
                            first = call.clock.monotonic()
                        yield text
                    if answer.is_over:
                        break
                if answer.is_over:
                    break
            if reply.is_whole:
                await anext(pieces, None)  # waits for nothing
            elif answer.is_over:
                with anyio.move_on_after(_LINGER_S):
                    await anext(pieces, None)
        ended = call.clock.monotonic()
        first = ended if first is None else first
        yield answer.result({"prompt_s": first - call.began, "generation_s": ended - first})
