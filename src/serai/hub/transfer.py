"""One file's bytes over HTTP, from the middle if need be: what the hub and the URL share."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import anyio

from serai.errors import DeadlineExceeded, SeraiError, UpstreamFailed
from serai.hub.errors import HubFailed, HubNonsense, HubRateLimited, HubUnreachable
from serai.hub.model import Reading, RemoteFile
from serai.outbound import Outbound, OutboundSecret, StreamedReply, UpstreamTooLarge

STALL_S = 60.0
"""A source that sends nothing for so long is taken for gone."""
_WHOLE_S = 30 * 86400.0
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_SECONDS = re.compile(r"\d{1,9}")
_RATE_LIMIT = re.compile(r"(?:^|;)\s*t=(\d{1,9})")  # draft-ietf-httpapi-ratelimit-headers: seconds until it resets
_RANGE_NOT_SATISFIABLE = 416


class Answered(Exception):
    """A status that is not one of success, for the caller to name; it never leaves the hubs."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


@asynccontextmanager
async def read_range(
    outbound: Outbound,
    url: str,
    file: RemoteFile,
    *,
    start: int,
    etag: str | None,
    secret: OutboundSecret | None = None,
) -> AsyncIterator[Reading]:
    """Give the bytes of `file` at `url` from `start` on, or from 0 where the server prefers that.

    Raises Answered for a status that is no success, HubUnreachable for a connection that fails or
    stalls, HubNonsense for a range that was not asked for.
    """
    async with AsyncExitStack() as stack:
        reply = await _open(stack, outbound, url, _range_headers(start, etag), secret, file.size)
        moved = reply.status == 206 and etag is not None and strong(reply.headers.get("etag")) not in (None, etag)
        if moved or reply.status == _RANGE_NOT_SATISFIABLE:  # the part that is here belongs to another content
            start = 0
            await stack.aclose()
            reply = await _open(stack, outbound, url, _range_headers(0, None), secret, file.size)
        if reply.status not in (200, 206):
            raise Answered(reply.status, reply.headers)
        begin = start if reply.status == 206 else 0
        if reply.status == 206:
            _check_range(reply.headers.get("content-range", ""), start, file.size)
        yield Reading(start=begin, etag=strong(reply.headers.get("etag")), pieces=_pieces(reply))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer asks to wait, None where it does not say."""
    said = headers.get("retry-after", "").strip()
    if _SECONDS.fullmatch(said):
        return float(said)
    found = _RATE_LIMIT.search(headers.get("ratelimit", ""))
    return float(found[1]) if found else None


def trouble(status: int, headers: Mapping[str, str], name: str) -> SeraiError:
    """Return the error for a status that means the same whatever was asked for."""
    if status == 429:
        seconds = retry_after(headers)
        return HubRateLimited(f"The source of {name} asks to wait.", retry_after=seconds)
    if status >= 500:
        return HubFailed(f"The source of {name} failed with status {status}.", retry_after=retry_after(headers))
    return HubNonsense(f"The source of {name} answered with status {status}.")


def unreachable(error: SeraiError, name: str) -> HubUnreachable:
    """Return the error for a source that did not answer at all."""
    return HubUnreachable(f"The source of {name} cannot be reached: {error.message}.")


def strong(etag: str | None) -> str | None:
    """Return an entity tag that stands for exact bytes; a weak one cannot be resumed by."""
    return etag if etag is not None and etag.startswith('"') else None


def _range_headers(start: int, etag: str | None) -> dict[str, str]:
    # Compressed, the bytes of a range would be those of another file.
    headers = {"accept-encoding": "identity"}
    if start:
        headers["range"] = f"bytes={start}-"
        if etag is not None:
            headers["if-range"] = etag
    return headers


async def _open(
    stack: AsyncExitStack,
    outbound: Outbound,
    url: str,
    headers: Mapping[str, str],
    secret: OutboundSecret | None,
    size: int,
) -> StreamedReply:
    try:
        with anyio.fail_after(STALL_S):
            call = outbound.stream(
                "GET", url, headers=headers, secret=secret, timeout_s=_WHOLE_S, max_bytes=max(size, 1)
            )
            return await stack.enter_async_context(call)
    except TimeoutError as error:
        raise HubUnreachable("The source did not answer in time.") from error
    except (UpstreamFailed, DeadlineExceeded) as error:
        raise HubUnreachable(f"The source cannot be reached: {error.message}.") from error


async def _pieces(reply: StreamedReply) -> AsyncIterator[bytes]:
    pieces = reply.aiter_bytes()
    try:
        while True:
            with anyio.fail_after(STALL_S):
                piece = await anext(pieces, None)
            if piece is None:
                return
            yield piece
    except UpstreamTooLarge as error:
        raise HubNonsense("The source sends more than it announced.") from error
    except (UpstreamFailed, DeadlineExceeded) as error:
        raise HubUnreachable(f"The transfer was cut off: {error.message}.") from error
    except TimeoutError as error:
        raise HubUnreachable("The transfer stalled.") from error


def _check_range(text: str, start: int, size: int) -> None:
    found = _CONTENT_RANGE.fullmatch(text)
    if found is None or int(found[1]) != start or found[3] not in ("*", str(size)):
        raise HubNonsense("The source sent another part of the file than was asked for.")
