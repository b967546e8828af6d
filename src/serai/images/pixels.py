"""Pictures as pixels: in to a model, out to a file. Blocks, and loads Pillow: import and call it in a thread.

Nothing here opens a file of somebody else's: what comes in was decoded already, or is a worker's own PPM.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from PIL import Image

from serai.decode.decoder import DecodedImage
from serai.engines.tasks import Array
from serai.images import files
from serai.images.model import Format

Size = tuple[int, int]

_GROUND: Final = {"RGB": (255, 255, 255, 255), "L": (0, 0, 0, 255)}


def array_of(decoded: DecodedImage, size: Size, mode: Literal["RGB", "L"]) -> Array:
    """Return the picture in this size as uint8; what is transparent is white in colour, black in grey."""
    picture = _picture(decoded)
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, _GROUND[mode]), picture)
    picture = picture.convert(mode)
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    return Array(dtype="uint8", shape=shape, data=picture.tobytes())


def file_of(
    pixels: bytes | DecodedImage,
    *,
    format: Format,  # noqa: A002 - the field's name
    quality: int | None,
    document: Callable[[Size], Mapping[str, Any]] | None,
) -> tuple[Size, bytes]:
    """Return size and file of a PPM or a decoded picture. `document` says what made one of a size; None: nothing.

    Raises EngineFailed for what is no PPM.
    """
    picture = _picture(pixels)
    told = None if document is None else document(picture.size)
    return picture.size, files.encode(picture, format=format, quality=quality, document=told)


def thumb_of(pixels: bytes | DecodedImage) -> bytes:
    """Return the thumbnail of a PPM or a decoded picture. Raises EngineFailed for what is no PPM."""
    return files.thumbnail(_picture(pixels))


def _picture(pixels: bytes | DecodedImage) -> Image.Image:
    if isinstance(pixels, bytes):
        return files.read_ppm(pixels)
    return Image.frombytes(pixels.mode, (pixels.width, pixels.height), pixels.pixels)
