"""What OpenAI's clients ask of image models. What we cannot do is refused by name, or left aside and said."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from serai.api.openai.wire import Model, Number
from serai.api.wire import Wire
from serai.chat.chats import timeout_of
from serai.errors import InvalidInput
from serai.images.model import MAX_PROMPT, MAX_SEED, MAX_SIDE, ImageRequest
from serai.images.plan import check_prompt
from serai.jobs.model import DEFAULT_PRIORITY

MAX_IMAGES = 8
"""OpenAI takes ten; a job here makes eight."""
MAX_PARTIALS = 3

Event = Literal["image_generation", "image_edit"]
Text = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT)]
Quality = Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"]

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)
_OUR_WORDS: Mapping[str, str] = {
    "settings.width": "size",
    "settings.height": "size",
    "settings.num_images": "n",
    "settings.num_inference_steps": "steps",
    "settings.format": "output_format",
    "settings.quality": "output_compression",
}
"""Fields of a job whose name here is another one than behind `settings.`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """How a call wants its pictures told."""

    event: Event
    """How the events of a stream begin."""
    streams: bool = False
    partials: int = 0
    as_url: bool = False
    size: str = "auto"
    timeout_s: float | None = None
    priority: int = DEFAULT_PRIORITY
    left_aside: tuple[str, ...] = ()
    """Fields that change nothing here."""


class AdapterIn(Wire):
    """One of the version's adapters; a value outside of what it takes is refused behind this."""

    id: Annotated[str, Field(min_length=1, max_length=128)]
    scale: Annotated[int | float, Field(ge=-4, le=4)] = 1.0


class VariationIn(Wire):
    """What every call can say. From `seed` on it is ours: `extra_body` of OpenAI's clients."""

    model: Model | None = Field(None, description="A model, model@version, alias, or service; none: the best choice.")
    n: Annotated[int, Field(ge=1, le=MAX_IMAGES)] | None = None
    size: str | None = Field(None, max_length=20, description="WIDTHxHEIGHT, or auto: as the model is made.")
    response_format: Literal["url", "b64_json"] | None = Field(
        None, description="b64_json, if not given. A url needs no key, and holds for an hour."
    )
    user: str | None = Field(None, max_length=512)
    safety_identifier: str | None = Field(None, max_length=512)
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = Field(None, description="Picture i of n uses seed + i.")
    negative_prompt: Annotated[str, Field(max_length=MAX_PROMPT)] = ""
    steps: Annotated[int, Field(ge=1, le=1000)] | None = None
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(None, description="The same as `steps`.")
    guidance_scale: Annotated[int | float, Field(ge=0, le=100)] | None = None
    strength: Annotated[int | float, Field(gt=0, le=1)] | None = Field(
        None, description="Of what starts from a picture: how much of it is forgotten."
    )
    adapters: Annotated[list[AdapterIn], Field(max_length=16)] | None = Field(
        None, description="Exactly these, each at its scale; none given: as the version says."
    )
    priority: Annotated[int, Field(ge=0, le=9)] = Field(DEFAULT_PRIORITY, description="0 is the most urgent.")
    timeout: Number = Field(None, description="Seconds for the whole call, 1 to 600.")

    def asked(self, *, image: str | None = None, mask: str | None = None) -> ImageRequest:
        """Return the job's payload; `image` and `mask` are ids of files. Raises InvalidInput."""
        payload: dict[str, Any] = {
            "prompt": "",
            "model": self.model,
            "negative_prompt": self.negative_prompt,
            "settings": self._settings(),
            "image": image,
            "mask": mask,
            "previews": 0,
        }
        try:
            return ImageRequest.of({**payload, **self._further()})
        except InvalidInput as error:
            raise in_our_words(error) from None

    def wish(self) -> Wish:
        """Return how the pictures are told. Raises InvalidInput."""
        return Wish(event="image_edit", **self._wishes())

    def _further(self) -> dict[str, Any]:
        """Return members of the payload that this kind of call has besides."""
        return {}

    def _wishes(self) -> dict[str, Any]:
        return {
            "as_url": self.response_format == "url",
            "size": self.size or "auto",
            "timeout_s": timeout_of(self.timeout),
            "priority": self.priority,
        }

    def _settings(self) -> dict[str, Any]:
        if self.steps is not None and self.num_inference_steps not in (None, self.steps):
            raise InvalidInput.at("num_inference_steps", "and steps differ; they mean the same, so give one")
        width, height = size_of(self.size)
        given: dict[str, Any] = {
            "width": width,
            "height": height,
            "num_images": self.n,
            "num_inference_steps": self.steps or self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "seed": self.seed,
            "strength": self.strength,
            "adapters": None if self.adapters is None else [adapter.model_dump() for adapter in self.adapters],
        }
        return {name: value for name, value in given.items() if value is not None}


class _PromptedIn(VariationIn):
    """What is drawn from words: generations and edits."""

    prompt: Text
    quality: Quality | None = Field(None, description="Left aside: `steps` is what decides here.")
    background: Literal["transparent", "opaque", "auto"] | None = None
    output_format: Literal["png", "webp", "jpeg", "gif", "svg"] | None = None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(
        None, description="The quality of WebP and JPEG; 90, if not given."
    )
    moderation: Literal["low", "auto"] | None = Field(None, description="Left aside: nothing is moderated here.")
    complexity: Literal["low", "medium", "high"] | None = Field(None, description="Left aside.")
    stream: bool | None = None
    partial_images: Annotated[int, Field(ge=0, le=MAX_PARTIALS)] | None = None
    frame_count: Any = None
    frame_duration_ms: Any = None
    svg: Any = None

    def _further(self) -> dict[str, Any]:
        check_prompt(self.prompt)
        return {"prompt": self.prompt, "previews": self.partial_images or 0}

    def _settings(self) -> dict[str, Any]:
        self._refuse_the_rest()
        settings = super()._settings()
        if self.output_format is not None:
            settings["format"] = self.output_format
        if self.output_compression is not None and self.output_format in ("webp", "jpeg"):
            settings["quality"] = max(1, self.output_compression)
        return settings

    def _wishes(self) -> dict[str, Any]:
        self._check_stream()
        return {
            **super()._wishes(),
            "streams": bool(self.stream),
            "partials": self.partial_images or 0,
            "left_aside": tuple(name for name in self._without_effect() if getattr(self, name) is not None),
        }

    def _without_effect(self) -> tuple[str, ...]:
        quality = () if self.quality == "auto" else ("quality",)
        return (*quality, "moderation", "complexity")

    def _refuse_the_rest(self) -> None:
        for name in ("frame_count", "frame_duration_ms", "svg"):
            if getattr(self, name) is not None:
                raise InvalidInput.at(name, "is not supported here")
        if self.output_format in ("gif", "svg"):
            raise InvalidInput.at("output_format", f"cannot be {self.output_format} here: png, webp or jpeg")
        if self.background == "transparent":
            raise InvalidInput.at("background", "cannot be transparent: image models here paint the whole picture")
        if self.output_compression not in (None, 100) and self.output_format not in ("webp", "jpeg"):
            raise InvalidInput.at("output_compression", "is for webp and jpeg: png loses nothing")

    def _check_stream(self) -> None:
        if not self.stream:
            if self.partial_images:
                raise InvalidInput.at("partial_images", "needs stream")
            return
        if self.n not in (None, 1):
            raise InvalidInput.at("n", "must be 1 in a stream", hint="Send several requests, or leave stream out.")
        if self.response_format == "url":
            raise InvalidInput.at("response_format", "must be b64_json in a stream")


class GenerationIn(_PromptedIn):
    style: Literal["vivid", "natural"] | None = Field(None, description="Left aside: say it in the prompt.")

    def wish(self) -> Wish:
        return Wish(event="image_generation", **self._wishes())

    def _without_effect(self) -> tuple[str, ...]:
        return (*super()._without_effect(), "style")


class EditIn(_PromptedIn):
    input_fidelity: Literal["high", "low"] | None = Field(None, description="Left aside: `strength` decides here.")

    def _without_effect(self) -> tuple[str, ...]:
        return (*super()._without_effect(), "input_fidelity")


def size_of(size: str | None) -> tuple[int | None, int | None]:
    """Return width and height; None twice for 'auto'. Raises InvalidInput."""
    if size is None or size == "auto":
        return None, None
    found = _SIZE.fullmatch(size)
    if found is None:
        raise InvalidInput.at("size", "must be auto, or WIDTHxHEIGHT as in 1024x1024")
    width, height = int(found[1]), int(found[2])
    if max(width, height) > MAX_SIDE:
        raise InvalidInput.at("size", f"must have no side over {MAX_SIDE}, not {size}")
    return width, height


def in_our_words(error: InvalidInput) -> InvalidInput:
    """Return an error about a job's fields with the names that these have in this dialect."""
    details = [entry for entry in error.details or () if isinstance(entry, Mapping)]
    told, message = [], error.message
    for entry in details:
        field = str(entry.get("field", ""))
        named = _OUR_WORDS.get(field, field.removeprefix("settings."))
        message = message.replace(f"{field}:", f"{named}:", 1) if field else message
        told.append({**entry, "field": named})
    if not told:
        return error
    return type(error)(message, hint=error.hint, details=told, retry_after=error.retry_after)
