"""Framings of one event stream: server-sent events and NDJSON. The payload is `events.to_json`, always."""

import asyncio
from collections.abc import AsyncIterator

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


async def with_heartbeat(frames: AsyncIterator[bytes], every_s: float = HEARTBEAT_S) -> AsyncIterator[bytes]:
    """Yield `frames`, and a comment whenever none came for `every_s` seconds, so that proxies keep the line open.

    Closing this closes `frames` too.
    """
    pending: asyncio.Future[bytes] | None = None
    try:
        while True:
            pending = pending or asyncio.ensure_future(anext(frames))
            done, _ = await asyncio.wait({pending}, timeout=every_s)
            if not done:
                yield HEARTBEAT
                continue
            try:
                frame = pending.result()
            except StopAsyncIteration:
                return
            finally:
                pending = None
            yield frame
    finally:
        if pending is not None:
            pending.cancel()
            await asyncio.gather(pending, return_exceptions=True)
        close = getattr(frames, "aclose", None)
        if close is not None:
            await close()
