"""The one dispatcher of live answers: when they begin, what keeps their line open, and who stops them.

An answer that is not read any more is cancelled: when its client leaves, before the first token too,
and where nothing is streamed too.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine, Mapping
from typing import Any, Protocol, TypeVar, cast

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from serai.api.protocol import GONE
from serai.api.streams import HEARTBEAT, HEARTBEAT_S, SSE_TYPE
from serai.chat.chats import Chats
from serai.chat.embeddings import Embedder
from serai.chat.reply import Ending, Gathered, Reply, gather
from serai.serving.serving import Serving


def chats_of(request: Request) -> Chats:
    """Return what answers chats."""
    chats: Chats = request.app.state.parts.chats
    return chats


def embedder_of(request: Request) -> Embedder:
    """Return what turns texts into vectors."""
    embedder: Embedder = request.app.state.parts.embedder
    return embedder


def serving_of(request: Request) -> Serving:
    """Return what loads and unloads by name."""
    serving: Serving = request.app.state.parts.serving
    return serving


START_WITHIN_S = 15.0
"""How long headers wait for the first output, so that they tell who answers."""

Result = TypeVar("Result")
_encode = msgspec.json.Encoder().encode


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return `value` as JSON."""
    return Response(_encode(value), status, dict(headers or {}), "application/json")


async def unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` returns; cancel it when the client leaves. Raises ClientDisconnect then.

    It runs in the task of the request: a task of its own for each step would cost more than most steps do.
    """
    working = cast("asyncio.Task[Any]", asyncio.current_task())
    others = working.cancelling()
    has_left = is_over = False

    def leave(watching: "asyncio.Future[None]") -> None:
        nonlocal has_left
        if not watching.cancelled():
            watching.exception()  # who cannot be listened to has left, too
            has_left = not is_over and working.cancel()

    told: asyncio.Future[None] | None = request.scope.get("extensions", {}).get(GONE, {}).get(GONE)
    # What our own protocol tells costs less than a task that listens for it.
    gone = told or asyncio.ensure_future(_disconnected(request.receive))
    gone.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not has_left or working.cancelling() > others + 1:
            raise
        raise ClientDisconnect from None
    finally:
        is_over = True
        if has_left:
            working.uncancel()
        gone.remove_done_callback(leave)
        if told is None:
            gone.cancel()


async def whole(request: Request, reply: Reply, into: Gathered) -> Ending:
    """Gather the whole answer into `into`, and return how it ended; it is cancelled when the client leaves."""
    _, ending = await unless_gone(request, gather(reply, into))
    return ending


async def answered(request: Request, opening: Coroutine[Any, Any, Reply]) -> tuple[Reply, Gathered, Ending]:
    """Open a reply and gather the whole of it; cancelled when the client leaves. Raises ClientDisconnect then."""

    async def open_and_gather() -> tuple[Reply, Gathered, Ending]:
        reply = await opening
        return reply, *await gather(reply)

    return await unless_gone(request, open_and_gather())


async def begun(request: Request, reply: Reply) -> None:
    """Return when a stream of `reply` may be opened. Raises the error of an answer that failed before that.

    Where it raises, or is cancelled, the reply is closed.
    """
    try:
        await unless_gone(request, reply.started(START_WITHIN_S))
    except BaseException:
        await reply.aclose()
        raise


class Closes(Protocol):
    """What goes on behind a stream."""

    async def aclose(self) -> None:
        """Stop it, if it goes on."""


class Live(Response):
    """A streamed answer. When its client leaves, `chunks` and `reply` are closed; heartbeats fill its silence.

    `reply` is named apart because chunks that nobody has begun to read close nothing.
    """

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        *,
        reply: Closes | None = None,
        media_type: str = SSE_TYPE,
        heartbeat: bytes | None = HEARTBEAT,
        every_s: float = HEARTBEAT_S,
    ) -> None:
        self.status_code = 200
        self.background = None
        self.media_type = media_type
        self.body = b""
        self.init_headers({"x-accel-buffering": "no", "cache-control": "no-store", **headers})
        del self.headers["content-length"]
        self._chunks = chunks
        self._reply = reply
        self._heartbeat = heartbeat
        self._every_s = every_s
        self._sent_at = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything; return at the end, or when the client has gone."""
        pump = asyncio.ensure_future(self._pump(send))
        others = [asyncio.ensure_future(_disconnected(receive))]
        if self._heartbeat is not None:
            others.append(asyncio.ensure_future(self._beat(send, self._heartbeat)))
        try:
            await asyncio.wait((pump, others[0]), return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
        finally:
            await _end(pump, *others)
            await self._chunks.aclose()
            if self._reply is not None:
                await self._reply.aclose()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        now = asyncio.get_running_loop().time
        self._sent_at = now()
        async for chunk in self._chunks:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            self._sent_at = now()
        self._heartbeat = None
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _beat(self, send: Send, heartbeat: bytes) -> None:
        now = asyncio.get_running_loop().time
        while self._heartbeat is not None:
            silent = now() - self._sent_at if self._sent_at else 0.0
            if silent < self._every_s:
                await asyncio.sleep(self._every_s - silent)
            else:
                self._sent_at = now()
                await send({"type": "http.response.body", "body": heartbeat, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _end(*tasks: "asyncio.Future[Any]") -> None:
    """Cancel what still runs, and return when it is over; also where this task itself is being cancelled."""
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.wait(tasks)
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()  # whoever was to see it has seen it
