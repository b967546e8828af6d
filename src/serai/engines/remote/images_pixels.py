"""Pictures on their way to other servers and back.

What comes back is not decoded here, only told apart by its first bytes. What is sent is written here, so that
the server process needs no library of pictures.
"""

import base64
import binascii
import math
import struct
import zlib
from typing import Final

from serai.engines.errors import RemoteFailed
from serai.engines.remote.call import RemoteCall
from serai.engines.tasks import Array
from serai.errors import InvalidInput, OutboundRefused

MAX_PICTURE_BYTES: Final = 32 * 2**20
MAX_REPLY_BYTES: Final = 128 * 2**20
"""Of an answer that holds all pictures, in base64."""

_HEADERS = {"accept": "image/png, image/jpeg, image/webp", "accept-encoding": "identity"}
_DATA = "data:"
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _RGBA = (0, 1), (2, 3), (6, 4)
"""PNG's number of a kind of pixel, and its bytes."""
_INVERSE = bytes(range(255, -1, -1))


def media_type_of(data: bytes) -> str:
    """Return the type of a PNG, JPEG or WebP by its first bytes. Raises RemoteFailed for anything else."""
    if data.startswith(_PNG):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    raise RemoteFailed("The server behind this model sent something that is no PNG, JPEG or WebP picture.")


def png_of(picture: Array) -> bytes:
    """Return 8-bit RGB (height × width × 3) as a PNG. Raises InvalidInput for another shape."""
    if len(picture.shape) != 3 or picture.shape[2] != 3:
        raise InvalidInput.at("image", "must be height × width × 3")
    _check("image", picture)
    return _png(picture.data, picture.shape[1], _RGB)


def mask_png_of(mask: Array) -> bytes:
    """Return a mask (height × width) as a PNG in which white is painted anew. Raises InvalidInput for another shape."""
    _check_mask(mask)
    return _png(mask.data, mask.shape[1], _GREY)


def transparency_png_of(mask: Array) -> bytes:
    """Return a mask as a PNG in which what is transparent is painted anew. Raises as `mask_png_of`."""
    _check_mask(mask)
    pixels = bytearray(4 * len(mask.data))
    pixels[3::4] = mask.data.translate(_INVERSE)
    return _png(bytes(pixels), mask.shape[1], _RGBA)


def data_uri(png: bytes) -> str:
    """Return a PNG as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


async def fetched(call: RemoteCall, endpoint: str, url: str) -> bytes:
    """Return the picture at an address that the server gave, which may hold it itself.

    The secret goes along only to the endpoint's own origin. Raises RemoteFailed, UpstreamFailed, DeadlineExceeded.
    """
    if url.startswith(_DATA):
        return _held(url)
    outbound = call.outbound
    try:
        is_its_own = outbound.check_url(url).origin == outbound.check_url(endpoint).origin
        reply = await outbound.request(
            "GET",
            url,
            headers=_HEADERS,
            secret=call.secret if is_its_own else None,
            timeout_s=call.remaining_s,
            max_bytes=MAX_PICTURE_BYTES,
        )
    except OutboundRefused as error:
        raise RemoteFailed(
            "The server behind this model keeps its pictures where they may not be fetched.",
            hint="An admin adds the address to outbound_allow, if it is to be trusted.",
        ) from error
    if reply.status != 200:
        raise RemoteFailed("A picture of the server behind this model could not be fetched.")
    return reply.body


def _held(url: str) -> bytes:
    kind, mark, text = url.partition(",")
    if not mark or not kind.endswith(";base64") or len(text) > MAX_PICTURE_BYTES * 4 // 3 + 4:
        raise RemoteFailed("The server behind this model sent a picture in a form that is not accepted.")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RemoteFailed("The server behind this model sent a picture that is damaged.") from None


def _check_mask(mask: Array) -> None:
    if len(mask.shape) != 2:
        raise InvalidInput.at("mask", "must be height × width")
    _check("mask", mask)


def _check(field: str, picture: Array) -> None:
    if picture.dtype != "uint8" or min(picture.shape) < 1 or len(picture.data) != math.prod(picture.shape):
        raise InvalidInput.at(field, "must hold 8 bits for each colour of each pixel")


def _png(pixels: bytes, width: int, colours: tuple[int, int]) -> bytes:
    """Return a PNG (RFC 2083) of rows that are not filtered: larger than it could be, and made in no time."""
    colour_type, channels = colours
    stride = width * channels
    rows = b"".join(b"\0" + pixels[at : at + stride] for at in range(0, len(pixels), stride))
    header = struct.pack(">IIBBBBB", width, len(pixels) // stride, 8, colour_type, 0, 0, 0)
    return _PNG + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )
