"""Pictures as pixels: in to a model, out to a file. Blocks, and loads Pillow: import and call it in a thread.

Nothing here opens a file of somebody else's: what comes in was decoded already, or is a worker's own PPM.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from PIL import Image

from serai.decode.decoder import DecodedImage
from serai.engines.tasks import Array
from serai.images import files
from serai.images.model import Format

Size = tuple[int, int]

_GROUND: Final = {"RGB": (255, 255, 255, 255), "L": (0, 0, 0, 255)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A picture as it is kept."""

    file: bytes
    thumb: bytes
    size: Size


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


def make(
    pixels: bytes | DecodedImage,
    *,
    format: Format,  # noqa: A002 - the field's name
    quality: int | None,
    document: Callable[[Size], Mapping[str, Any]] | None,
) -> Made:
    """Return file and thumbnail of a PPM or a decoded picture. `document` says what made one of a size; None: nothing.

    Raises EngineFailed for what is no PPM.
    """
    picture = files.read_ppm(pixels) if isinstance(pixels, bytes) else _picture(pixels)
    told = None if document is None else document(picture.size)
    file = files.encode(picture, format=format, quality=quality, document=told)
    return Made(file=file, thumb=files.thumbnail(picture), size=picture.size)


def _picture(decoded: DecodedImage) -> Image.Image:
    return Image.frombytes(decoded.mode, (decoded.width, decoded.height), decoded.pixels)
