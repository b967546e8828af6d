"""What OpenAI's clients ask of image models becomes a job, is left aside and said, or is refused by name."""

import io
from collections.abc import Mapping
from typing import Any

import jsonschema_rs
import pytest
from PIL import Image

from serai.api.openai.images_answers import usage_of
from serai.api.openai.images_forms import described
from serai.api.openai.images_uploads import _painted
from serai.api.openai.images_urls import sign
from serai.api.openai.images_wire import EditIn, GenerationIn, VariationIn, in_our_words
from serai.decode.decoder import DecodedImage
from serai.decode.messages import MediaInfo
from serai.errors import InvalidInput
from serai.images.model import AdapterScale


def generation(**fields: Any) -> GenerationIn:
    return GenerationIn.model_validate({"prompt": "a hill", "model": "m", **fields})


def refusal(body: VariationIn) -> Mapping[str, Any]:
    """Return the entry of the error that a body ends in."""
    with pytest.raises(InvalidInput) as refused:
        body.asked(), body.wish()
    assert refused.value.details
    entry = refused.value.details[0]  # type: ignore[index]
    assert isinstance(entry, Mapping)
    return entry


def test_every_field_has_its_place_in_the_job() -> None:
    """Sizes, counts, formats, and what is ours: the payload says the same in its own words."""
    asked = generation(
        n=2,
        size="640x384",
        output_format="webp",
        output_compression=70,
        seed=7,
        steps=4,
        guidance_scale=2,
        negative_prompt="rain",
        adapters=[{"id": "ink", "scale": 0.5}, {"id": "fog"}],
    ).asked()
    settings = asked.settings
    assert (asked.prompt, asked.model, asked.negative_prompt, asked.previews) == ("a hill", "m", "rain", 0)
    assert (settings.width, settings.height, settings.num_images) == (640, 384, 2)
    assert (settings.format, settings.quality) == ("webp", 70)
    assert (settings.seed, settings.num_inference_steps, settings.guidance_scale) == (7, 4, 2.0)
    assert settings.adapters == (AdapterScale(id="ink", scale=0.5), AdapterScale(id="fog"))


@pytest.mark.parametrize("size", [None, "auto"])
def test_without_a_size_the_model_says_it(size: str | None) -> None:
    """Auto, or nothing: neither side is in the payload."""
    settings = generation(size=size).asked().settings
    assert (settings.width, settings.height) == (None, None)


@pytest.mark.parametrize(
    "size", ["", "512", "512x", "x512", "512X512", "0x512", "-1x512", "5e2x512", "512x512 ", "٥١٢x512"]
)
def test_a_size_has_one_form(size: str) -> None:
    """What is not WIDTHxHEIGHT in plain digits is refused as size."""
    assert refusal(generation(size=size))["field"] == "size"


def test_a_size_out_of_bounds_is_told_as_size() -> None:
    """The job knows width and height; the caller gave neither."""
    assert refusal(generation(size="99999x64"))["field"] == "size"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"output_format": "gif"}, "output_format"),
        ({"output_format": "svg"}, "output_format"),
        ({"background": "transparent"}, "background"),
        ({"output_compression": 50}, "output_compression"),
        ({"output_compression": 50, "output_format": "png"}, "output_compression"),
        ({"partial_images": 1}, "partial_images"),
        ({"stream": True, "n": 2}, "n"),
        ({"stream": True, "response_format": "url"}, "response_format"),
        ({"steps": 3, "num_inference_steps": 4}, "num_inference_steps"),
        ({"timeout": 0.5}, "timeout"),
        ({"frame_count": 3}, "frame_count"),
        ({"svg": {"model": "x"}}, "svg"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    """Nothing that would change the pictures is dropped in silence."""
    assert refusal(generation(**fields))["field"] == field


def test_what_changes_nothing_is_left_aside_and_said() -> None:
    """Quality, style and the like are taken, and named; auto asks for nothing."""
    wish = generation(quality="hd", style="vivid", moderation="low", background="opaque", user="u").wish()
    assert wish.left_aside == ("quality", "moderation", "style")
    assert generation(quality="auto", background="auto", output_compression=100).wish().left_aside == ()
    edit = EditIn.model_validate({"prompt": "a hill", "input_fidelity": "high"})
    assert edit.wish().left_aside == ("input_fidelity",)


def test_a_stream_asks_for_its_previews() -> None:
    """As many as partial pictures, and none where nobody asks; the kind of call names the events."""
    body = generation(stream=True, partial_images=3)
    assert body.asked().previews == 3
    assert (body.wish().event, body.wish().partials, body.wish().streams) == ("image_generation", 3, True)
    assert generation(stream=True).asked().previews == 0
    assert EditIn.model_validate({"prompt": "x", "stream": True}).wish().event == "image_edit"


def test_a_variation_has_no_words() -> None:
    """A picture is all that it starts from."""
    asked = VariationIn(n=1).asked(image="file_1")
    assert (asked.prompt, asked.image, asked.mask) == ("", "file_1", None)


def test_errors_of_a_job_are_told_in_the_callers_words() -> None:
    """Each field by the name that it has here; what names none stays as it is."""
    for field, named in (("settings.height", "size"), ("settings.num_images", "n"), ("settings.seed", "seed")):
        told = in_our_words(InvalidInput.at(field, "is wrong", hint="h"))
        assert (told.message, told.hint, told.details) == (
            f"{named}: is wrong",
            "h",
            [{"field": named, "problem": "is wrong"}],
        )
    plain = InvalidInput("No.")
    assert in_our_words(plain) is plain


def test_a_mask_is_turned_around() -> None:
    """Clear areas become white, all others black; one without a clear area, or without alpha, is refused."""

    def mask(mode: Any, pixels: bytes) -> DecodedImage:
        info = MediaInfo(kind="image", media_type="image/png", width=2, height=1)
        return DecodedImage(info=info, width=2, height=1, mode=mode, pixels=pixels)

    drawn = Image.open(io.BytesIO(_painted("mask", mask("RGBA", b"\1\2\3\0\4\5\6\1"))))
    assert (drawn.mode, drawn.size, drawn.tobytes()) == ("L", (2, 1), b"\xff\0")
    for wrong in (mask("RGBA", b"\0\0\0\1" * 2), mask("RGB", bytes(6))):
        with pytest.raises(InvalidInput, match="mask: has no"):
            _painted("mask", wrong)


def test_usage_is_what_another_server_counted() -> None:
    """Here nothing is counted: zeros, for clients that read them."""
    assert usage_of({})["total_tokens"] == 0
    told = usage_of({"usage": {"input_tokens": 3, "output_tokens": 4, "input_tokens_details": {"text_tokens": 3}}})
    assert (told["total_tokens"], told["input_tokens_details"]) == (7, {"text_tokens": 3, "image_tokens": 0})


def test_a_signature_holds_for_one_picture_and_time() -> None:
    """Another picture, time or server gives another one."""
    signed = {sign(b"m", "img_1", 5), sign(b"m", "img_2", 5), sign(b"m", "img_1", 6), sign(b"n", "img_1", 5)}
    assert len(signed) == 4


def test_a_form_is_described_with_its_files_and_bounds() -> None:
    """Every field that is taken, its type and bounds, without null, and complete in itself; lists are JSON."""
    told = described(EditIn, {"image": "a picture", "mask": "a mask"})
    form = told["content"]["multipart/form-data"]
    schema = form["schema"]
    assert set(schema["properties"]) == {"image", "mask", *EditIn.model_fields}
    assert schema["required"] == ["image", "prompt"]
    assert schema["properties"]["mask"] == {"type": "string", "format": "binary", "description": "a mask"}
    assert schema["properties"]["n"] == {"type": "integer", "minimum": 1, "maximum": 8}
    strength = schema["properties"]["strength"]
    assert (strength["type"], strength["exclusiveMinimum"], strength["maximum"]) == ("number", 0, 1)
    scale = schema["properties"]["adapters"]["items"]["properties"]["scale"]
    assert scale == {"type": "number", "minimum": -4, "maximum": 4, "default": 1.0}
    assert form["encoding"] == {"adapters": {"contentType": "application/json"}}
    assert "$ref" not in str(told)
    assert "null" not in str(told)
    assert jsonschema_rs.meta.is_valid(schema)
    only = described(VariationIn, {"image": "a picture"})["content"]["multipart/form-data"]["schema"]
    assert only["required"] == ["image"]
