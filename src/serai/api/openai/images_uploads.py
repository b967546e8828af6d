"""Pictures that come with a call: opened by the decoder, kept as files of the caller until the call is over."""

import asyncio
import struct
import zlib
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from anyio import CancelScope
from msgspec import to_builtins
from starlette.datastructures import UploadFile
from starlette.requests import Request

from serai.api.access import actor_of, caller_of, parts_of
from serai.decode.decoder import DecodedImage
from serai.errors import InvalidInput
from serai.files import store
from serai.storage import links
from serai.storage.blobs import Blob

PROOF_SIDE = 64
"""A picture is opened whole, so that no damaged one reaches a worker; its pixels are not needed here."""
MASK_SIDE = 2048
"""A mask with a longer side is reduced to it."""
_PIECE = 2**16
_GREY = 0
_CLEAR_TO_WHITE = bytes([255]) + bytes(255)
"""Alpha 0 becomes 255, every other 0."""


class Uploads:
    """What one call sent. Closed, its files are removed again."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._ids: list[str] = []

    async def keep(self, field: str, upload: UploadFile) -> tuple[str, DecodedImage]:
        """Keep a picture; return the id of its file, and the picture in small.

        Raises what the decoder raises, naming the field, and QuotaExceeded.
        """
        seen = await self._opened(field, upload, PROOF_SIDE)
        size = upload.size or 0
        await self._check_quota(size)
        blob = await parts_of(self._request).blobs.put(_pieces(upload), max_bytes=size)
        info = {name: value for name, value in to_builtins(seen.info).items() if value is not None}
        return await self._add(blob, seen.info.media_type, info), seen

    async def keep_mask(self, field: str, upload: UploadFile, picture: DecodedImage) -> str:
        """Keep a mask whose clear areas are to be painted as the one that a job takes; return the id of its file.

        Raises InvalidInput for one of another size than the picture, or without clear areas.
        """
        mask = await self._opened(field, upload, MASK_SIDE)
        if (mask.info.width, mask.info.height) != (picture.info.width, picture.info.height):
            raise InvalidInput.at(
                field, f"has {mask.info.width}x{mask.info.height}, not {picture.info.width}x{picture.info.height}"
            )
        drawn = await asyncio.to_thread(_painted, field, mask)
        await self._check_quota(len(drawn))
        blob = await parts_of(self._request).blobs.put(drawn, max_bytes=len(drawn))
        info = {"kind": "image", "media_type": "image/png", "width": mask.width, "height": mask.height, "frames": 1}
        return await self._add(blob, "image/png", info)

    async def aclose(self) -> None:
        """Remove what was kept. May be called more than once."""
        parts, owner = parts_of(self._request), caller_of(self._request).user_id
        actor, now = actor_of(self._request), parts.clock.now()
        with CancelScope(shield=True):
            while self._ids:
                with suppress(store.FileNotFound):
                    await parts.database.run(store.remove, self._ids.pop(), owner, actor, now)

    async def _opened(self, field: str, upload: UploadFile, max_side: int) -> DecodedImage:
        try:
            return await parts_of(self._request).decoder.image(upload.file, max_side=max_side)
        except InvalidInput as error:
            problem = error.message[:1].lower() + error.message[1:].rstrip(".")
            raise type(error).at(field, problem, hint=error.hint) from None

    async def _check_quota(self, size: int) -> None:
        """Raise QuotaExceeded before anything is written; what is sent at the same time is counted when it is added."""
        used = await parts_of(self._request).database.read(links.usage, caller_of(self._request).user_id)
        if used + size > self._quota:
            raise store.over_quota(used, self._quota, size)

    async def _add(self, blob: Blob, media_type: str, info: dict[str, Any]) -> str:
        parts = parts_of(self._request)
        file = store.File(
            id=parts.new_id("file"),
            owner_id=caller_of(self._request).user_id,
            digest=blob.digest,
            name="",
            media_type=media_type,
            size=blob.size,
            info=info,
            created_at=parts.clock.now(),
        )
        self._ids.append(file.id)
        await parts.database.run(store.add, file, self._quota, actor_of(self._request))
        return file.id

    @property
    def _quota(self) -> int:
        own = caller_of(self._request).disk_quota_bytes
        return own if own is not None else parts_of(self._request).settings.disk_quota_bytes


async def _pieces(upload: UploadFile) -> AsyncGenerator[bytes, None]:
    await upload.seek(0)
    while piece := await upload.read(_PIECE):
        yield piece


def _painted(field: str, mask: DecodedImage) -> bytes:
    """Return the mask as a grey PNG: white where it is clear, black elsewhere. Raises InvalidInput."""
    if mask.mode != "RGBA":
        raise InvalidInput.at(field, "has no transparency: clear areas (alpha 0) say what is painted anew")
    painted = mask.pixels[3::4].translate(_CLEAR_TO_WHITE)
    if 255 not in painted:
        raise InvalidInput.at(field, "has no clear area (alpha 0): nothing would be painted anew")
    width = mask.width
    rows = b"".join(b"\0" + painted[start : start + width] for start in range(0, len(painted), width))
    header = struct.pack(">IIBBBBB", width, mask.height, 8, _GREY, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
