"""What comes out of a good file is what was put in."""

import array
import io
import math
import os
import statistics
import subprocess
import sys
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from corpus.audio import FLOATS, coded, tone, wav
from corpus.images import black_png, oriented, saved
from corpus.video import rotated, video
from serai.decode.decoder import DecodedAudio, DecodedImage, Decoder
from serai.decode.errors import MediaMalformed, MediaTooLarge
from serai.errors import UnsupportedMedia

pytestmark = pytest.mark.anyio

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    """One loop for the whole module, so that one decoder serves it."""
    return "asyncio"


@pytest.fixture(scope="module")
async def decoder() -> AsyncIterator[Decoder]:
    decoder = Decoder(max_media_seconds=60)
    yield decoder
    await decoder.aclose()


def picture(decoded: DecodedImage) -> Image.Image:
    return Image.frombytes(decoded.mode, (decoded.width, decoded.height), decoded.pixels)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def close_to(pixel: object, wanted: tuple[int, ...], by: int = 6) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(have - want) <= by for have, want in zip(pixel, wanted, strict=True))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1"])
async def test_lossless_pictures_come_out_as_they_are(decoder: Decoder, kind: str, mode: str) -> None:
    """Every pixel of a lossless file is the pixel that was saved."""
    original = Image.effect_noise((61, 47), 80).convert(mode)
    decoded = await decoder.image(encoded(original, kind))
    assert picture(decoded).tobytes() == original.convert("RGB").tobytes()
    assert (decoded.info.width, decoded.info.height, decoded.info.media_type) == (61, 47, f"image/{kind.lower()}")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
async def test_transparency_is_kept(decoder: Decoder, kind: str) -> None:
    """A picture with alpha comes out as RGBA, alpha not multiplied in."""
    original = Image.new("RGBA", (8, 8), (200, 100, 50, 77))
    decoded = await decoder.image(encoded(original, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert decoded.mode == "RGBA"
    assert picture(decoded).getpixel((3, 3)) == (200, 100, 50, 77)


async def test_a_palette_with_transparency_becomes_rgba(decoder: Decoder) -> None:
    """The alpha of a palette is the alpha of the pixels."""
    original = Image.effect_noise((20, 20), 80).convert("RGB").quantize(16)
    decoded = await decoder.image(encoded(original, "PNG", transparency=bytes([9] * 16)))
    assert decoded.mode == "RGBA"
    assert set(decoded.pixels[3::4]) == {9}


@pytest.mark.parametrize(
    ("orientation", "corners"),
    list(enumerate(("rgbw", "grwb", "wbgr", "bwrg", "rbgw", "brwg", "wgbr", "gwrb"), start=1)),
)
async def test_pictures_come_out_upright(decoder: Decoder, orientation: int, corners: str) -> None:
    """The EXIF orientation is applied: the coloured corners are where the standard puts them."""
    image = picture(await decoder.image(oriented(orientation)))
    assert image.size == ((64, 48) if orientation < 5 else (48, 64))
    right, bottom = image.width - 8, image.height - 8
    for place, name in zip(((8, 8), (right, 8), (8, bottom), (right, bottom)), corners, strict=True):
        assert close_to(image.getpixel(place), {"r": RED, "g": GREEN, "b": BLUE, "w": (255, 255, 255)}[name])
    info = await decoder.probe(oriented(orientation))
    assert (info.width, info.height) == image.size


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
async def test_orientation_counts_in_every_type(decoder: Decoder, kind: str) -> None:
    """PNG, TIFF and WebP carry EXIF data too."""
    exif = Image.Exif()
    exif[0x0112] = 6
    original = Image.new("RGB", (20, 10), BLUE)
    original.paste(RED, (0, 0, 10, 10))
    data = encoded(original, kind, exif=exif)
    decoded = await decoder.image(data)
    assert await decoder.probe(data) == decoded.info
    assert (decoded.width, decoded.height, decoded.info.width, decoded.info.height) == (10, 20, 10, 20)
    assert close_to(picture(decoded).getpixel((5, 2)), RED)


async def test_wide_grey_keeps_its_brightness(decoder: Decoder) -> None:
    """16-bit grey, 32-bit integers and floats come out on the scale of 8 bits, not clipped to white."""
    short = Image.new("I;16", (2, 1))
    short.putpixel((0, 0), 65535)
    short.putpixel((1, 0), 32768)
    for data in (encoded(short, "PNG"), encoded(short, "TIFF")):
        assert (await decoder.image(data)).pixels[::3] == bytes((255, 127))
    for value, expected in ((0.5, 127), (128.0, 128), (32768.0, 127)):
        image = Image.new("F", (2, 1), value)
        image.putpixel((0, 0), {0.5: 1.0, 128.0: 255.0, 32768.0: 65535.0}[value])
        assert (await decoder.image(encoded(image, "TIFF"))).pixels[::3] == bytes((255, expected))


async def test_colours_are_converted_to_srgb(decoder: Decoder) -> None:
    """The embedded ICC profile decides what the numbers mean; afterwards they are sRGB."""
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    image = ImageCms.profileToProfile(Image.new("RGB", (9, 9), (200, 40, 90)), srgb, lab, outputMode="LAB")
    assert image is not None
    decoded = await decoder.image(encoded(image, "TIFF"))
    assert close_to(picture(decoded).getpixel((4, 4)), (200, 40, 90))


async def test_an_embedded_profile_is_applied(decoder: Decoder) -> None:
    """A profile with red and blue exchanged exchanges them in the picture; alpha stays."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile = profile.replace(b"rXYZ", b"tmp ").replace(b"bXYZ", b"rXYZ").replace(b"tmp ", b"bXYZ")
    named = profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be")).replace(
        b"sRGB built", b"swap built"
    )
    for mode, colour in (("RGB", RED), ("RGBA", (*RED, 99))):
        decoded = await decoder.image(encoded(Image.new(mode, (4, 4), colour), "PNG", icc_profile=bytes(named)))
        assert close_to(picture(decoded).getpixel((1, 1)), (*BLUE, *colour[3:]))


async def test_cmyk_is_converted(decoder: Decoder) -> None:
    """Ink becomes light."""
    decoded = await decoder.image(encoded(Image.new("CMYK", (8, 8), (255, 0, 255, 0)), "TIFF"))
    assert picture(decoded).getpixel((1, 1)) == GREEN


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
async def test_a_picture_is_reduced_to_fit(decoder: Decoder, kind: str) -> None:
    """`max_side` bounds the longer side and keeps the proportions; the true size is told as well."""
    decoded = await decoder.image(saved("RGB", kind, (400, 100)), max_side=50)
    assert (decoded.width, decoded.height) == (50, 13)
    assert (decoded.info.width, decoded.info.height) == (400, 100)
    small = await decoder.image(saved("RGB", kind, (40, 10)), max_side=50)
    assert (small.width, small.height) == (40, 10)


async def test_the_bound_on_pixels_is_exact() -> None:
    """A picture of as many pixels as are allowed is opened, one row more is not."""
    decoder = Decoder(max_image_pixels=10_000)
    try:
        assert (await decoder.image(black_png(100, 100, 8, 0))).width == 100
        with pytest.raises(MediaTooLarge):
            await decoder.image(black_png(100, 101, 8, 0))
        with pytest.raises(MediaTooLarge):
            await decoder.probe(black_png(100, 101, 8, 0))
    finally:
        await decoder.aclose()


async def test_a_file_of_ours_is_opened_by_its_path(decoder: Decoder, tmp_path: Path) -> None:
    """A path works like its bytes, whatever its name says."""
    path = tmp_path / "picture.m3u8"
    path.write_bytes(saved("RGB", "PNG"))
    assert await decoder.image(path) == await decoder.image(path.read_bytes())


async def test_a_file_that_is_open_is_left_as_it_is(decoder: Decoder, tmp_path: Path) -> None:
    """Wherever it stands and while it is read, the owner's position does not count and does not move."""
    path = tmp_path / "file"
    for data, opening in ((saved("RGB", "PNG"), decoder.image), (wav(tone()), decoder.audio)):
        path.write_bytes(data)
        with path.open("rb") as file:
            file.read(40)
            assert await opening(file) == await opening(data)
            assert file.tell() == 40
        path.unlink()


async def test_what_is_not_a_file_is_refused(decoder: Decoder, tmp_path: Path) -> None:
    """A pipe does not make anybody wait."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MediaMalformed):
        await decoder.image(tmp_path / "pipe")


def samples(decoded: DecodedAudio) -> "array.array[float]":
    return array.array("f", decoded.samples)


async def test_sound_keeps_its_loudness_and_pitch(decoder: Decoder) -> None:
    """A tone of 440 Hz comes out with the same level and as many crossings, at another rate."""
    decoded = await decoder.audio(wav(tone()), sample_rate=16_000)
    values = samples(decoded)
    assert len(values) == pytest.approx(16_000, abs=2)
    assert decoded.duration_s == pytest.approx(1, abs=0.01)
    assert math.sqrt(statistics.fmean(v * v for v in values)) == pytest.approx(12_000 / 32768 / math.sqrt(2), rel=0.02)
    assert sum(a < 0 <= b for a, b in pairwise(values)) == pytest.approx(440, abs=2)


async def test_channels_are_mixed_or_doubled(decoder: Decoder) -> None:
    """Stereo becomes mono, and mono stereo, interleaved."""
    left_only = array.array("h", [8000, 0] * 4000).tobytes()
    mono = samples(await decoder.audio(wav(left_only, channels=2), sample_rate=8000))
    assert len(mono) == 4000
    assert 0 < mono[2000] < 8000 / 32768
    stereo = samples(await decoder.audio(wav(tone()), sample_rate=8000, channels=2))
    assert len(stereo) == 16_000
    assert stereo[0::2] == stereo[1::2]


async def test_samples_that_are_no_numbers_come_out_as_numbers(decoder: Decoder) -> None:
    """Not-a-number, infinities and giants do not get through."""
    values = samples(await decoder.audio(wav(FLOATS, bits=64, coding=3)))
    assert len(values) > 0
    assert all(math.isfinite(value) and abs(value) < 4 for value in values)


@pytest.mark.parametrize(
    ("container", "codec"), [("flac", "flac"), ("ogg", "libopus"), ("mp3", "libmp3lame"), ("ipod", "aac")]
)
async def test_every_accepted_codec_decodes(decoder: Decoder, container: str, codec: str) -> None:
    """A second of silence is a second of silence in each."""
    decoded = await decoder.audio(coded(container, codec))
    assert decoded.duration_s == pytest.approx(1, abs=0.1)
    assert max(map(abs, samples(decoded))) < 0.01
    assert decoded.info.kind == "audio"
    assert (decoded.info.sample_rate, decoded.info.channels) == (48_000, 1)


async def test_a_caller_may_take_less_than_the_server(decoder: Decoder) -> None:
    """`max_seconds` refuses what the general bound would let pass."""
    with pytest.raises(MediaTooLarge):
        await decoder.audio(wav(tone(20_000)), max_seconds=2)
    assert (await decoder.audio(wav(tone(20_000)), max_seconds=3)).duration_s == pytest.approx(2.5, abs=0.01)


@pytest.mark.parametrize(("container", "codec"), [("mp4", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4")])
async def test_a_frame_is_the_one_that_is_shown_then(decoder: Decoder, container: str, codec: str) -> None:
    """The left half grows lighter with time: asked for later, it is lighter; past the end it is the last."""
    data = video(container, codec)
    shades = [(await decoder.video_frame(data, at)).pixels[0] for at in (0, 0.25, 0.5, 0.96, 99)]
    assert shades == sorted(shades)
    assert shades[0] < shades[1] < shades[2] < shades[3] == shades[4]


@pytest.mark.parametrize(("quarters", "edge"), [(0, "left"), (1, "top"), (2, "right"), (3, "bottom")])
async def test_video_comes_out_upright(decoder: Decoder, quarters: int, edge: str) -> None:
    """The rotation in the file is applied: the dark half, stored on the left, is where it puts it."""
    image = picture(await decoder.video_frame(rotated(quarters))).convert("L")
    assert image.size == ((64, 48) if quarters % 2 == 0 else (48, 64))
    width, height = image.size
    edges = {"left": (0, 0, 4, height), "right": (width - 4, 0, width, height), "top": (0, 0, width, 4)}
    edges["bottom"] = (0, height - 4, width, height)
    levels = {name: statistics.fmean(image.crop(box).tobytes()) for name, box in edges.items()}
    assert levels[edge] == min(levels.values()) < 20


async def test_a_probe_tells_what_a_video_holds(decoder: Decoder) -> None:
    """Size, frames, rate and duration are told without decoding it all."""
    info = await decoder.probe(video())
    assert (info.kind, info.width, info.height, info.frames, info.frame_rate) == ("video", 64, 48, 25, 25)
    assert info.duration_s == pytest.approx(1)
    assert (info.sample_rate, info.channels) == (None, None)


async def test_sound_in_a_video_container_is_sound(decoder: Decoder) -> None:
    """The tracks decide the kind, not the container."""
    info = await decoder.probe(coded("mp4", "aac"))
    assert (info.kind, info.media_type) == ("audio", "audio/mp4")


async def test_a_file_is_refused_where_another_kind_is_wanted(decoder: Decoder) -> None:
    """A picture is no sound, a sound no picture, and a video without sound has none."""
    with pytest.raises(UnsupportedMedia):
        await decoder.audio(saved("RGB", "PNG"))
    with pytest.raises(UnsupportedMedia):
        await decoder.image(wav(tone()))
    with pytest.raises(UnsupportedMedia):
        await decoder.audio(video())
    with pytest.raises(UnsupportedMedia):
        await decoder.video_frame(wav(tone()))


async def test_arguments_out_of_range_are_refused(decoder: Decoder) -> None:
    """A caller's mistake is told as such."""
    with pytest.raises(ValueError, match="max_side"):
        await decoder.image(saved("RGB", "PNG"), max_side=0)
    with pytest.raises(ValueError, match="channels"):
        await decoder.audio(wav(tone()), channels=3)
    with pytest.raises(ValueError, match="sample_rate"):
        await decoder.audio(wav(tone()), sample_rate=0)
    with pytest.raises(ValueError, match="at_s"):
        await decoder.video_frame(video(), math.nan)


def test_the_server_loads_no_decoder() -> None:
    """Importing the package brings in neither Pillow nor FFmpeg."""
    code = "import sys, serai.decode.decoder; print([m for m in ('PIL', 'av', 'ctypes') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.strip() == "[]"
