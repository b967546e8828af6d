"""Framings of one event stream: server-sent events and NDJSON. The payload is `events.to_json`, always."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

from serai.events import Event, to_json

HEARTBEAT_S = 15.0
HEARTBEAT = b": still here\n\n"
SSE_TYPE = "text/event-stream; charset=utf-8"
NDJSON_TYPE = "application/x-ndjson"


def sse(event: Event, seq: int | None = None) -> bytes:
    """Return one frame. `seq` becomes the `id:` from which a client resumes with Last-Event-ID."""
    number = b"" if seq is None else b"id: %d\n" % seq
    return number + b"event: " + event.__struct_config__.tag.encode() + b"\ndata: " + to_json(event) + b"\n\n"  # type: ignore[union-attr]


def ndjson(event: Event) -> bytes:
    """Return one line."""
    return to_json(event) + b"\n"


async def with_heartbeat(
    frames: AsyncGenerator[bytes, None], *, until: asyncio.Event, every_s: float = HEARTBEAT_S
) -> AsyncGenerator[bytes, None]:
    """Yield `frames`, and a comment whenever none came for `every_s` seconds, so that proxies keep the line open.

    Ends early when `until` is set (the server stops): a client then resumes elsewhere, or later.
    Closing this closes `frames`.
    """
    stop: asyncio.Future[bool] = asyncio.ensure_future(until.wait())
    pending: asyncio.Future[bytes] | None = None
    try:
        while not until.is_set():
            pending = pending or asyncio.ensure_future(anext(frames))
            waited: list[asyncio.Future[Any]] = [pending, stop]
            await asyncio.wait(waited, timeout=every_s, return_when=asyncio.FIRST_COMPLETED)
            if not pending.done():
                if not until.is_set():
                    yield HEARTBEAT
                continue
            ready, pending = pending, None
            try:
                yield ready.result()
            except StopAsyncIteration:
                return
    finally:
        stop.cancel()
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        await frames.aclose()
