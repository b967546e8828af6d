"""Bytes that never change under their name: revalidated by their digest, read in ranges (RFC 9110, 13 and 14)."""

import re
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from serai.api.access import parts_of
from serai.api.errors import RangeNotSatisfiable
from serai.errors import InternalError

_RANGE = re.compile(r"bytes=(?P<first>\d{0,18})-(?P<last>\d{0,18})", re.ASCII | re.IGNORECASE)
FOR_EVER: Mapping[str, str] = {"cache-control": "private, max-age=31536000, immutable", "vary": "authorization, cookie"}
"""Whoever may read it keeps it a year; another who uses the same browser does not get it."""


async def content(request: Request, *, digest: str, size: int, media_type: str, headers: Mapping[str, str]) -> Response:
    """Return a blob whole (200), the range that was asked for (206), or that it is as the client has it (304).

    More than one range is answered with the whole, as RFC 9110 allows. Raises RangeNotSatisfiable, and
    InternalError where the bytes are missing from the disk.
    """
    blobs = parts_of(request).blobs
    etag = f'"{digest}"'
    told = {**headers, "etag": etag, "accept-ranges": "bytes"}
    if _is_known(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=told)
    if await blobs.size(digest) != size:
        raise InternalError("The file's content is missing from the disk.", hint="Restore it from a backup.")
    asked = request.headers.get("range", "") if request.headers.get("if-range", etag) == etag else ""
    wanted = range_of(asked, size)
    first, end = wanted or (0, size)
    told["content-length"] = str(end - first)
    if wanted is not None:
        told["content-range"] = f"bytes {first}-{end - 1}/{size}"
    status = 200 if wanted is None else 206
    if request.method == "HEAD":
        return Response(None, status, told, media_type)
    return StreamingResponse(blobs.read(digest, start=first, end=end), status, told, media_type)


def range_of(header: str, size: int) -> tuple[int, int] | None:
    """Return the first byte and the one behind the last, or None where the whole is to be sent.

    Raises RangeNotSatisfiable.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or not (match["first"] or match["last"]):
        return None
    if match["first"]:
        first, last = int(match["first"]), int(match["last"] or size - 1)
        if match["last"] and last < first:
            return None
    else:
        first, last = max(0, size - int(match["last"])), size - 1
    if first >= size:
        raise RangeNotSatisfiable.of(size)
    return first, min(last + 1, size)


def _is_known(header: str, etag: str) -> bool:
    tags = {tag.strip().removeprefix("W/") for tag in header.split(",")}
    return "*" in tags or etag in tags
