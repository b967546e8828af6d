"""Pictures as files: from an engine's pixels to PNG, JPEG and WebP. Pure and slow: call it in a thread."""

import io
import re
import zlib
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags, Image
from PIL.PngImagePlugin import PngInfo

from serai.errors import EngineFailed
from serai.images import metadata
from serai.images.model import MAX_SIDE, Format

THUMBNAIL_SIDE = 256
DEFAULT_QUALITY = 90
_PNG = {"compress_type": zlib.Z_RLE}
"""Runs alone, which zlib has for pictures: of photographs the size of deflate's default, in a third of the time."""
_THUMBNAIL = {"quality": 80, "method": 2}
"""Method 2 makes files a few per cent larger than Pillow's own 4, in half the time."""
_COMMENT_TYPES = (b"\x92\x86\0\1", b"\x92\x86\0\7")
"""How the entry of UserComment begins: Pillow gives it the type of numbers, where EXIF asks for that of "undefined"."""
_PPM = re.compile(rb"P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s")


def read_ppm(data: bytes) -> Image.Image:
    """Return the picture of a binary PPM (P6, 8 bits). Raises EngineFailed for anything else, or another size."""
    head = _PPM.match(data)
    size = (0, 0) if head is None else (int(head[1]), int(head[2]))
    if head is None or not all(1 <= side <= MAX_SIDE for side in size):
        raise EngineFailed("The engine told pixels in a form that is not PPM.")
    if len(data) - head.end() != 3 * size[0] * size[1]:
        raise EngineFailed("The engine told another number of pixels than it said.")
    return Image.frombytes("RGB", size, data[head.end() :])


def encode(
    image: Image.Image,
    *,
    format: Format,  # noqa: A002 - the field's name
    quality: int | None = None,
    document: Mapping[str, Any] | None,
) -> bytes:
    """Return the file; the same input gives the same bytes.

    `quality`: of JPEG and WebP, 1 to 100, None: 90. `document`: what made the picture, to be embedded; None: the
    file tells nothing of how it was made, nor by what.
    """
    if format == "jpeg":
        image = _opaque(image)
    options = _PNG if format == "png" else {"quality": DEFAULT_QUALITY if quality is None else quality}
    return _saved(image, format, **options, **({} if document is None else _telling(format, document)))


def thumbnail(image: Image.Image) -> bytes:
    """Return a WebP whose longer side is 256 pixels, or the picture's own where that is shorter."""
    small = image.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    return _saved(small, "webp", **_THUMBNAIL)


def _telling(kind: Format, document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of Pillow with which a file tells the document."""
    if kind == "png":
        texts = PngInfo()
        for name, text in metadata.texts(document).items():
            texts.add_itxt(name, text)
        return {"pnginfo": texts}
    exif = Image.Exif()
    exif.endian = ">"  # as the web UIs write it
    exif[ExifTags.Base.Software] = metadata.SOFTWARE
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = metadata.comment(document)
    told = exif.tobytes().replace(*_COMMENT_TYPES, 1)
    return {"exif": told, "xmp": metadata.xmp(document)}


def _saved(image: Image.Image, kind: Format, **options: Any) -> bytes:
    plain = image.copy()
    plain.info = {}  # Pillow writes some of what it read: comments, profiles, the EXIF of a remote engine
    file = io.BytesIO()
    plain.save(file, kind, **options)
    return file.getvalue()


def _opaque(image: Image.Image) -> Image.Image:
    """Return the picture over white, for a format that knows no transparency."""
    if "A" not in image.getbands():
        return image.convert("RGB")
    below = Image.new("RGB", image.size, "white")
    below.paste(image, mask=image.getchannel("A"))
    return below
