"""Opening a picture with Pillow. Runs in the child only."""

import io
import warnings
from typing import BinaryIO, Literal

from PIL import Image, ImageCms, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin

from serai.decode.messages import Limits, MediaInfo, Pixels, Refusal
from serai.decode.sniff import PICTURES

# The child cannot load a module any more: all that Pillow puts off is loaded here.
Image.preinit()
PUT_OFF = (MpoImagePlugin, TiffImagePlugin, WebPImagePlugin)

MAX_ICC_BYTES = 4 * 2**20
MAX_SCANS = 200
"""Of a JPEG: a progressive one has about ten; each goes over all pixels again."""
_PIECE = 2**20
_STRIP_BYTES = 4 * 2**20
_ORIENTATION_TAG = 0x0112
_UPRIGHT: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))


def probe(file: BinaryIO, media_type: str, limits: Limits) -> MediaInfo:
    """Read the headers only. Raises Refusal, and whatever Pillow does with a damaged file."""
    image = _open(file, media_type, limits)
    return _describe(image, media_type, image.size, _orientation(image))


def to_pixels(file: BinaryIO, media_type: str, limits: Limits, max_side: int | None, sink: BinaryIO) -> Pixels:
    """Write the picture to `sink`: upright, sRGB, 8 bits, rows from the top, RGB or RGBA.

    Of an animation it is the first frame. Raises like `probe`.
    """
    image = _open(file, media_type, limits)
    size = image.size
    if max_side is not None:
        image.draft(None, (max_side, max_side))
    image.load()
    orientation = _orientation(image)  # only now: the EXIF data of a PNG may follow its pixels
    info = _describe(image, media_type, size, orientation)
    upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
    width, height, mode = write_pixels(upright, max_side, sink)
    return Pixels(info=info, width=width, height=height, mode=mode)


def write_pixels(image: Image.Image, max_side: int | None, sink: BinaryIO) -> tuple[int, int, Literal["RGB", "RGBA"]]:
    """Reduce `image` to fit a square of `max_side`, make it sRGB and write it; return its width, height and mode."""
    profile = image.info.get("icc_profile")
    image = _to_8_bits(image)
    if max_side is not None:
        image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    image = _to_srgb(image, profile)
    rows = max(1, _STRIP_BYTES // (4 * image.width))
    sink.writelines(
        image.crop((0, top, image.width, min(image.height, top + rows))).tobytes()
        for top in range(0, image.height, rows)
    )
    sink.flush()
    return image.width, image.height, "RGBA" if image.mode == "RGBA" else "RGB"


def _open(file: BinaryIO, media_type: str, limits: Limits) -> Image.Image:
    if media_type == "image/jpeg" and _count(file, b"\xff\xda") > MAX_SCANS:
        raise Refusal("scans")
    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    try:
        image = Image.open(file, formats=(PICTURES[media_type],))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Refusal("pixels") from None
    if min(image.size) < 1:
        raise Refusal("malformed")
    return image


def _count(file: BinaryIO, marker: bytes) -> int:
    """Return how often two bytes that begin with FF stand in the file, and go back to its start.

    In a JPEG's compressed data FF is never followed by a marker's second byte; in metadata chance makes
    one of the two bytes asked for in 64 KiB.
    """
    found, last = 0, b""
    while piece := file.read(_PIECE):
        found += (last + piece).count(marker)
        last = piece[-1:]
    file.seek(0)
    return found


def _describe(image: Image.Image, media_type: str, size: tuple[int, int], orientation: int) -> MediaInfo:
    width, height = size[::-1] if orientation >= 5 else size
    # Only these two say it in their header; a TIFF would have to be walked, and may go in circles.
    frames = getattr(image, "n_frames", 1) if media_type in ("image/png", "image/webp") else 1
    return MediaInfo(kind="image", media_type=media_type, width=width, height=height, frames=frames)


def _orientation(image: Image.Image) -> int:
    """Return what is left to do: Pillow turns a TIFF by itself, and tells its size as turned."""
    if image.format == "TIFF":
        return 1
    try:
        # Not the method of PNG files, which decodes the whole picture.
        value = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except Exception:  # noqa: BLE001  damaged EXIF data raises all sorts; the picture itself may be whole
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Return the picture in a mode of 8 bits per channel that can be resized: no palette, no wide grey."""
    if image.mode.startswith("I") or image.mode == "F":
        return _narrow(image)
    if image.mode in ("1", "P", "PA", "LA", "La", "RGBa") or "transparency" in image.info:
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image


def _narrow(image: Image.Image) -> Image.Image:
    """Return wide grey as 8-bit grey. The full scale of 32-bit integers and floats is told by the brightest pixel."""
    is_short = image.mode.startswith("I;16")
    wide = (image.convert("I") if is_short else image).convert("F")
    (brightest,) = (float(bound) for bound in wide.getextrema()[1:] if isinstance(bound, float))
    scales = (65535.0,) if is_short else (1.0, 255.0, 65535.0, 2.0**31)
    factor = 255 / next((scale for scale in scales if brightest <= scale), 65535.0)
    return wide.point(lambda value: value * factor).convert("L")


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return the picture as RGB or RGBA in sRGB. A profile that is damaged or too big is as none."""
    wanted = "RGBA" if image.mode == "RGBA" else "RGB"
    if image.mode == "LAB":
        return ImageCms.profileToProfile(image, _LAB, _SRGB, outputMode="RGB") or image
    if profile is not None and len(profile) <= MAX_ICC_BYTES and image.mode in ("RGB", "RGBA", "L", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if "sRGB" not in ImageCms.getProfileDescription(source):
                image = ImageCms.profileToProfile(image, source, _SRGB, outputMode=wanted) or image
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    return image if image.mode == wanted else image.convert(wanted)
