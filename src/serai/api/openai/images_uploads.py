"""Pictures that come with a call: opened by the decoder, stored for the job that will hold them."""

import asyncio
import struct
import zlib
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager

from starlette.datastructures import UploadFile
from starlette.requests import Request

from serai.api.access import parts_of
from serai.api.uploads import Upload, proven, put_within_quota
from serai.decode.decoder import DecodedImage
from serai.errors import InvalidInput
from serai.storage.blobs import Blob

MASK_SIDE = 2048
"""A mask with a longer side is reduced to it."""
_PIECE = 2**16
_GREY = 0
_CLEAR_TO_WHITE = bytes([255]) + bytes(255)
"""Alpha 0 becomes 255, every other 0."""


async def store_picture(request: Request, field: str, upload: UploadFile) -> Upload:
    """Store a picture. Raises what the decoder raises, naming the field, and QuotaExceeded."""
    blob = await put_within_quota(request, _pieces(upload), size=upload.size, field=field)
    with _naming(field):
        return await proven(request, blob, only_pictures=True)


async def store_mask(request: Request, field: str, upload: UploadFile, picture: Upload) -> Blob:
    """Store a mask whose clear areas are to be painted as the one that a job takes.

    Raises InvalidInput for one of another size than the picture, or without clear areas; and as `store_picture`.
    """
    with _naming(field):
        mask = await parts_of(request).decoder.image(upload.file, max_side=MASK_SIDE)
    if (mask.info.width, mask.info.height) != (picture.info.width, picture.info.height):
        raise InvalidInput.at(
            field, f"has {mask.info.width}x{mask.info.height}, not {picture.info.width}x{picture.info.height}"
        )
    drawn = await asyncio.to_thread(_painted, field, mask)
    return await put_within_quota(request, drawn, size=len(drawn), field=field)


@contextmanager
def _naming(field: str) -> Generator[None, None, None]:
    """Let what the decoder finds wrong name the field."""
    try:
        yield
    except InvalidInput as error:
        problem = error.message[:1].lower() + error.message[1:].rstrip(".")
        raise type(error).at(field, problem, hint=error.hint) from None


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
