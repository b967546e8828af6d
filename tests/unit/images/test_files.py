"""Pictures as files: pixels in, PNG, JPEG and WebP out, with what made them or without."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from serai.errors import EngineFailed
from serai.images.files import encode, read_ppm, thumbnail
from serai.images.metadata import document_of, parameters
from support.embedded import opened, read_embedded

FORMATS = ("png", "jpeg", "webp")
DOCUMENT: dict[str, Any] = {
    "model": "starter-image",
    "version": "1.0.0",
    "prompt": "a cat, in a hat",
    "negative_prompt": "blurry",
    "settings": {
        "num_inference_steps": 20,
        "guidance_scale": 7.5,
        "width": 128,
        "height": 128,
        "format": "png",
        "seed": 1,
        "num_images": 1,
    },
    "seed": 1,
    "width": 128,
    "height": 128,
    "format": "png",
}
HOSTILE = [
    "",
    "NUL \0 bell \a escape \x1b delete \x7f next line \x85",
    "not characters \ufffe \uffff, separators \u2028 \u2029",
    "<x:xmpmeta>&amp;</serai:document>]]><!-- \"'",
    "گربه‌ای با کلاه 🐱‍👓 \U0010ffff",
    "line\r\nNegative prompt: another\nSteps: 1, Seed: 2",
    "&" * 4000,
    "\x01" * 4000,
    "😀" * 4000,
    "</serai:document>" * 235,
]


def picture(mode: str = "RGB", size: tuple[int, int] = (37, 21)) -> Image.Image:
    """Return a picture in which no two rows or columns are alike."""
    red = Image.linear_gradient("L").resize(size)
    bands = [red, red.rotate(180), Image.radial_gradient("L").resize(size), Image.linear_gradient("L").resize(size)]
    return Image.merge(mode, bands[: len(mode)])


def texts(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def test_a_document_is_of_one_picture() -> None:
    """Its own seed, and none of the others that its job made; of what it began with, what is known."""
    settings = {**DOCUMENT["settings"], "seed": 0, "num_images": 3}
    names = ("model", "version", "prompt", "negative_prompt")
    fields: dict[str, Any] = {name: DOCUMENT[name] for name in names}
    told = document_of(**fields, settings=settings, seed=1, size=(128, 128), sources={})
    assert told == DOCUMENT
    begun = document_of(**fields, settings=settings, seed=1, size=(128, 128), sources={"image_sha256": "0" * 64})
    assert begun == {**DOCUMENT, "image_sha256": "0" * 64}


def test_ppm_becomes_the_same_pixels() -> None:
    """What an engine tells is read byte for byte."""
    image = picture()
    assert read_ppm(b"P6\n37 21\n255\n" + image.tobytes()).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    "data",
    [b"", b"P5\n1 1\n255\n0", b"P6\n1 1\n65535\n000000", b"P6\n0 1\n255\n", b"P6\n99999 1\n255\n", b"P6\n1 1\n255\n00"],
)
def test_what_is_no_ppm_is_refused(data: bytes) -> None:
    """Another form, another depth, a size out of range, and pixels that are missing."""
    with pytest.raises(EngineFailed):
        read_ppm(data)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_picture_with_its_document_has_the_same_pixels(kind: Any, mode: str) -> None:
    """The document comes back as it was, and changes no pixel."""
    image = picture(mode)
    plain, told = (opened(encode(image, format=kind, quality=80, document=one)) for one in (None, DOCUMENT))
    assert told.mode == plain.mode
    assert told.tobytes() == plain.tobytes()
    assert read_embedded(encode(image, format=kind, document=DOCUMENT)) == DOCUMENT


def test_png_keeps_every_pixel() -> None:
    """PNG is the picture itself, transparency included."""
    image = picture("RGBA")
    assert ImageChops.difference(opened(encode(image, format="png", document=DOCUMENT)), image).getbbox() is None


def test_jpeg_shows_white_behind_what_is_transparent() -> None:
    """JPEG has no transparency: nothing black appears where there was nothing."""
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    assert opened(encode(image, format="jpeg", document=None)).getpixel((8, 8)) == (255, 255, 255)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_input_gives_the_same_bytes(kind: Any) -> None:
    """No time and no chance is in a file."""
    assert len({encode(picture(), format=kind, document=DOCUMENT) for _ in range(2)}) == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_without_a_document_nothing_is_told(kind: Any) -> None:
    """Not even by what the picture was made, nor what a remote engine had written into it."""
    image = picture()
    image.info = {"comment": b"secret", "Software": "secret", "exif": b"secret", "xmp": b"secret"}
    data = encode(image, format=kind, document=None)
    assert read_embedded(data) is None
    telling = (b"Serai", b"serai", b"secret", b"Exif", b"EXIF", b"iTXt", b"tEXt", b"xmp", b"XMP")
    assert [word for word in telling if word in data] == []


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("prompt", HOSTILE)
def test_any_prompt_survives(kind: Any, prompt: str) -> None:
    """Control characters, XML, emoji, Persian and 4,000 characters of the costliest kind come back as they were."""
    document = {**DOCUMENT, "prompt": prompt, "negative_prompt": prompt[::-1]}
    data = encode(picture(), format=kind, document=document)
    assert read_embedded(data) == document
    assert opened(data).size == (37, 21)


@given(prompt=st.text(max_size=60), kind=st.sampled_from(FORMATS))
def test_every_text_survives(prompt: str, kind: Any) -> None:
    """Whatever Unicode holds."""
    document = {**DOCUMENT, "prompt": prompt}
    assert read_embedded(encode(picture(size=(9, 5)), format=kind, document=document)) == document


def test_parameters_are_in_the_form_of_the_web_uis() -> None:
    """The prompt, what was not wanted, and one line of settings."""
    from serai import __version__

    assert parameters(DOCUMENT) == (
        "a cat, in a hat\nNegative prompt: blurry\n"
        f"Steps: 20, CFG scale: 7.5, Seed: 1, Size: 128x128, Model: starter-image, Version: Serai {__version__}"
    )


def test_a_value_with_a_comma_is_quoted() -> None:
    """A name that would break the line of settings apart stands in quotes, as the web UIs do it."""
    line = parameters({**DOCUMENT, "model": 'a, "b": c', "negative_prompt": ""}).splitlines()[-1]
    assert 'Model: "a, \\"b\\": c", Version' in line


def test_pillow_reads_what_is_told() -> None:
    """A reader that knows nothing of Serai finds the parameters where the web UIs look for them."""
    expected = parameters(DOCUMENT)
    png = opened(encode(picture(), format="png", document=DOCUMENT))
    assert (png.info["parameters"], png.info["Software"]) == (expected, "Serai")
    for kind in ("jpeg", "webp"):
        exif = opened(encode(picture(), format=kind, document=DOCUMENT)).getexif()
        comment = exif.get_ifd(0x8769)[0x9286]
        assert (comment[:8], comment[8:].decode("utf-16-be")) == (b"UNICODE\0", expected)
        assert exif[0x0131] == "Serai"


EXIFTOOL = shutil.which("exiftool")


@pytest.mark.parametrize("kind", FORMATS)
def test_exiftool_reads_what_is_told(kind: Any, tmp_path: Path) -> None:
    """A common tool finds the prompt, the parameters, the source type and the software, and nothing wrong."""
    if EXIFTOOL is None:
        if os.environ.get("CI", "").lower() in ("1", "true"):
            pytest.fail("CI skips nothing: exiftool is not installed (apt install libimage-exiftool-perl)")
        pytest.skip("NOT TESTED: exiftool is not installed (apt install libimage-exiftool-perl)")
    document = {**DOCUMENT, "prompt": "گربه <b>&amp; 🐱"}
    path = tmp_path / f"picture.{kind}"
    path.write_bytes(encode(picture(), format=kind, document=document))
    command = [EXIFTOOL, "-json", "-a", "-validate", "-warning", "-error", "-all", "-charset", "utf8", str(path)]
    done = subprocess.run(command, capture_output=True, check=True, timeout=100)
    told = msgspec.json.decode(done.stdout)[0]
    # EXIF is asked for more by its standard than is true of a picture that no camera took: a resolution, a version.
    wrong = [one for one in texts(told.get("Warning", [])) if not one.startswith("Missing required")]
    assert wrong == []
    assert told["Description"] == document["prompt"]
    assert told["Parameters" if kind == "png" else "UserComment"].splitlines() == parameters(document).splitlines()
    assert "trainedAlgorithmicMedia" in told["DigitalSourceType"]
    assert (told["Software"], told["CreatorTool"]) == ("Serai", "Serai")
    assert (told["ImageWidth"], told["ImageHeight"]) == (37, 21)
    assert read_embedded(path.read_bytes()) == document


@pytest.mark.parametrize(
    ("size", "expected"), [((512, 256), (256, 128)), ((40, 20), (40, 20)), ((100, 5000), (5, 256))]
)
def test_a_thumbnail_is_small(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """Its longer side is 256 pixels, or what it was."""
    small = opened(thumbnail(picture(size=size)))
    assert (small.format, small.size) == ("WEBP", expected)
