"""What callers send to be kept: stored within their quota, and opened by the decoder before anything names it."""

from collections.abc import AsyncIterable
from dataclasses import dataclass
from typing import Any

from msgspec import to_builtins
from starlette.requests import Request

from serai.api.access import caller_of, parts_of
from serai.decode.errors import MediaMalformed
from serai.decode.messages import MediaInfo
from serai.errors import InvalidInput, TooLarge, UnsupportedMedia
from serai.files.store import over_quota
from serai.storage import links
from serai.storage.blobs import Blob

BINARY: dict[str, Any] = {"type": "string", "format": "binary"}
"""The schema of a file, for the description of the API."""
_PROOF_SIDE = 64
"""A picture is opened whole, so that no damaged one is kept; its pixels are not needed here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What was sent, stored; no row names it yet."""

    blob: Blob
    info: MediaInfo

    @property
    def told(self) -> dict[str, Any]:
        """Return what the content says of itself."""
        return {name: value for name, value in to_builtins(self.info).items() if value is not None}


def quota_of(request: Request) -> int:
    """Return the bytes that the caller may keep."""
    own = caller_of(request).disk_quota_bytes
    return own if own is not None else parts_of(request).settings.disk_quota_bytes


async def put_within_quota(
    request: Request, content: bytes | AsyncIterable[bytes], *, size: int | None = None, field: str = "body"
) -> Blob:
    """Store bytes for which the caller has room now; whoever writes the row that names them counts again.

    `size`: where it is known before. Raises QuotaExceeded, TooLarge, and InvalidInput for nothing at all.
    """
    parts, quota = parts_of(request), quota_of(request)
    used = await parts.database.read(links.usage, caller_of(request).user_id)
    left, least = quota - used, 1 if size is None else size
    if least > left:
        raise over_quota(used, quota, least)
    most = min(parts.settings.max_body_bytes, left)
    try:
        blob = await parts.blobs.put(content, max_bytes=most)
    except TooLarge:
        if most == left:
            raise over_quota(used, quota, left + 1) from None
        raise
    if blob.size == 0:
        raise InvalidInput.at(field, "is empty")
    return blob


async def proven(request: Request, blob: Blob, *, only_pictures: bool = False) -> Upload:
    """Open what was put a moment ago: a picture, sound or video. Raises what the decoder raises.

    What is none, or damaged, is not kept.
    """
    parts = parts_of(request)
    with await parts.blobs.open(blob.digest) as content:
        try:
            if only_pictures:
                return Upload(blob=blob, info=(await parts.decoder.image(content, max_side=_PROOF_SIDE)).info)
            info = await parts.decoder.probe(content)
            if info.kind == "image":
                await parts.decoder.image(content, max_side=_PROOF_SIDE)
        except (MediaMalformed, UnsupportedMedia):
            # Content alone decided, so whoever sends the same bytes is refused too, and nobody is about to name
            # this blob. Not so where time or memory decided: those are left to the collector.
            if not await parts.database.read(links.recorded, [blob.digest]):
                await parts.blobs.delete(blob.digest)
            raise
    return Upload(blob=blob, info=info)
