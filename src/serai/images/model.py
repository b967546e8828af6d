"""What is asked of an image model, and what is kept of the answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from serai.errors import InvalidInput

KIND = "images"
PICTURE_PREFIX = "img_"
"""With which the ids of pictures begin."""
MAX_PROMPT = 4000
MAX_SIDE = 8192
MAX_IMAGES = 8
MAX_STEPS = 998
"""The most to which every sampler gives times of their own, of the 1000 that networks are usually trained with."""
MAX_SEED = 2**63 - 1 - 8
"""Seeds of eight pictures in a row still fit the database."""

Prompt = Annotated[str, Meta(max_length=MAX_PROMPT)]
Name = Annotated[str, Meta(min_length=1, max_length=600)]
FileId = Annotated[str, Meta(min_length=1, max_length=64)]
Format = Literal["png", "jpeg", "webp"]


class AdapterScale(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How strongly one of the version's adapters acts on a picture; 0: not at all."""

    id: Annotated[str, Meta(min_length=1, max_length=128)]
    scale: Annotated[float, Meta(ge=-4, le=4)] = 1.0


class ImageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How pictures are made. None: as the version's parameters say. Bounds here are those of every model."""

    width: int | None = None
    """Within the version's own bounds, and at most MAX_SIDE; so is the height."""
    height: int | None = None
    num_images: Annotated[int, Meta(ge=1, le=MAX_IMAGES)] | None = None
    num_inference_steps: Annotated[int, Meta(ge=1, le=1000)] | None = None
    guidance_scale: Annotated[float, Meta(ge=0, le=100)] | None = None
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)] | None = None
    """Picture number i uses seed + i. None: the version's own, or else one is drawn, and stored."""
    max_sequence_length: Annotated[int, Meta(ge=1, le=4096)] | None = None
    strength: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Of image-to-image and of what is painted under a mask: how much of the picture is forgotten."""
    adapters: Annotated[tuple[AdapterScale, ...], Meta(max_length=16)] | None = None
    """None: as the version says. Else exactly these, each at its scale, and no other."""
    format: Format = "png"
    quality: Annotated[int, Meta(ge=1, le=100)] | None = None
    """Of JPEG and WebP; None: 90."""
    reproducible: bool | None = None
    """The same bytes again from the same seed, settings, version and device. None: if a seed is given."""


class ImageRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The payload of a job of kind `images`."""

    prompt: Prompt
    model: Name | None = None
    service: Name | None = None
    negative_prompt: Prompt = ""
    settings: ImageSettings = ImageSettings()
    image: FileId | None = None
    """What to start from or to edit: the id of a file of the caller's, or the digest of a blob that they hold."""
    mask: FileId | None = None
    """Likewise: white is painted anew."""
    previews: Annotated[int, Meta(ge=0, le=100)] | None = None
    """How many previews, evenly spread over the steps; None: one every few steps."""

    @classmethod
    def of(cls, payload: Mapping[str, Any]) -> "ImageRequest":
        """Return the payload as its own type. Raises InvalidInput that names the field."""
        try:
            return msgspec.convert(dict(payload), cls)
        except msgspec.ValidationError as error:
            message, _, where = str(error).partition(" - at `$.")
            raise InvalidInput.at(where.rstrip("`") or "payload", f"is wrong: {message}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture in the gallery."""

    id: str
    owner_id: str
    job_id: str
    position: int
    """Its place among the pictures of its job, from 0."""
    model: str
    version: str
    decision: Mapping[str, Any]
    prompt: str
    negative_prompt: str
    settings: Mapping[str, Any]
    """Every setting as it was used, defaults filled in: sent again, they give the picture again."""
    seed: int
    """Its own: the job's and its position."""
    width: int
    height: int
    format: Format
    digest: str
    """SHA-256 of the file, the name of its blob."""
    size: int
    thumb_digest: str
    thumb_size: int
    generation_ms: int
    """From the begin of its run to the picture as it came from the model: its share of its job."""
    created_at: datetime
    tags: tuple[str, ...] = ()
    is_favourite: bool = False
