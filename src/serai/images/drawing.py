"""One attempt to draw what a job asks for: what is asked, who draws, and what came of it."""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final

from serai.engines.base import EngineInfo
from serai.engines.tasks import GenerateImage
from serai.events import Media
from serai.images.course import ImageCourse
from serai.images.inputs import Inputs, array_in
from serai.images.metadata import document_of
from serai.images.model import PICTURE_PREFIX, ImageRequest, Picture
from serai.images.plan import Resolved, resolved
from serai.jobs.model import Job
from serai.registry.snapshot import Candidate
from serai.storage.blobs import Blob

_TOLD: Final = ("device", "batched", "usage", "revised_prompt", "reproducible", "unused", "truncated")
"""What a model's last event says, where it says it."""
_SPARE: Final = 2
"""How much longer than the picture that is wanted one to start from is opened where its proportions change."""
_ID_DIGITS: Final = "0123456789abcdefghjkmnpqrstvwxyz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A picture whose file and thumbnail were stored a moment ago, and that no row names yet."""

    position: int
    seed: int
    size: tuple[int, int]
    file: Blob
    thumb: Blob


@dataclass(slots=True, kw_only=True)
class Drawing:
    """One attempt: what is asked, and what came of it. The candidate is the one that was tried last."""

    job: Job
    asked: ImageRequest
    inputs: Inputs
    course: ImageCourse = field(default_factory=ImageCourse)
    candidate: Candidate | None = None
    settings: Resolved | None = None
    kept: list[Kept] = field(default_factory=list)
    has_begun: bool = False
    """Whether anything was heard of the run of the candidate that is tried."""
    shown: Counter[int] = field(default_factory=Counter)
    """Previews so far, by picture."""

    def wants(self, preview: Media) -> bool:
        """Say whether a preview is one of those that are shown, and count it."""
        self.shown[preview.index] += 1
        return self.shown[preview.index] <= self.used.previews

    async def task(self, candidate: Candidate, engine: EngineInfo) -> GenerateImage:
        """Return the task for one version. Raises InvalidInput, BlobNotFound, and what the decoder finds wrong."""
        settle = partial(resolved, candidate.version, self.asked, seed=seed_of(self.job.id), task=candidate.model.task)
        chosen, inputs = settle(), self.inputs
        max_side = _longest(self.asked, chosen)
        source = mask = None
        if inputs.image is not None:
            image = await inputs.opened(inputs.image, max_side=max_side)
            chosen = settle(source_size=(image.info.width or image.width, image.info.height or image.height))
            source = await array_in((chosen.width, chosen.height), image, "RGB")
            del image
        if inputs.mask is not None:
            opened = await inputs.opened(inputs.mask, max_side=max_side)
            mask = await array_in((chosen.width, chosen.height), opened, "L")
        self.candidate, self.settings = candidate, chosen
        self.begin_anew()
        return chosen.task(self.asked, source, mask)

    def begin_anew(self) -> None:
        """Forget how far it was: another candidate is tried."""
        self.course = ImageCourse(images=self.used.images, steps=self.used.steps)
        self.has_begun = False
        self.shown.clear()

    @property
    def drawn_by(self) -> Candidate:
        assert self.candidate is not None, "a picture comes from a candidate"
        return self.candidate

    @property
    def used(self) -> Resolved:
        assert self.settings is not None, "a picture comes from settings"
        return self.settings

    def document(self, seed: int, size: tuple[int, int]) -> dict[str, Any]:
        """Return what makes a picture, and nothing that differs when it is made again: so are its bytes the same."""
        model, version = self.drawn_by.key
        return document_of(
            model=model,
            version=version,
            prompt=self.asked.prompt,
            negative_prompt=self.asked.negative_prompt,
            settings=self.used.settings(),
            seed=seed,
            size=size,
            sources=self.inputs.document(),
        )


def _longest(asked: ImageRequest, chosen: Resolved) -> int:
    """Return how long the sides of a picture need be that is to be fitted into the size of these settings."""
    longest, given = max(chosen.width, chosen.height), asked.settings
    keeps_proportions = given.width is None and given.height is None
    return longest if keeps_proportions else _SPARE * longest


def seed_of(job_id: str) -> int:
    """Return the seed of a job that gave none: another for each job, the same for each of its attempts; 32 bits."""
    return int.from_bytes(hashlib.blake2b(job_id.encode(), digest_size=4).digest(), "big")


def picture_id(job_id: str, position: int) -> str:
    """Return the id of a job's picture number `position` < 32: the job's own, its last digit telling which."""
    return f"{PICTURE_PREFIX}{job_id.partition('_')[2][:-1]}{_ID_DIGITS[position]}"


def pictures_of(drawing: Drawing, decision: Mapping[str, Any], at: datetime) -> list[Picture]:
    """Return the rows of what was kept; the time of the job is shared equally."""
    model, version = drawing.drawn_by.key
    settings = drawing.used.settings()
    share_ms = round(drawing.course.generating_s * 1000 / len(drawing.kept))
    return [
        Picture(
            id=picture_id(drawing.job.id, kept.position),
            owner_id=drawing.job.owner_id,
            job_id=drawing.job.id,
            position=kept.position,
            model=model,
            version=version,
            decision=decision,
            prompt=drawing.asked.prompt,
            negative_prompt=drawing.asked.negative_prompt,
            settings=settings,
            seed=kept.seed,
            width=kept.size[0],
            height=kept.size[1],
            format=drawing.used.format,
            digest=kept.file.digest,
            size=kept.file.size,
            thumb_digest=kept.thumb.digest,
            thumb_size=kept.thumb.size,
            generation_ms=share_ms,
            created_at=at,
        )
        for kept in drawing.kept
    ]


def result_of(drawing: Drawing, pictures: list[Picture], told: Mapping[str, Any], *, total_s: float) -> dict[str, Any]:
    """Return the result of the job; `told` is what the model's last event holds."""
    course = drawing.course
    seconds = {name: value for name, value in (told.get("timings") or {}).items() if isinstance(value, int | float)}
    seconds |= {"loading_s": course.loading_s, "generating_s": course.generating_s, "total_s": total_s}
    model, version = drawing.drawn_by.key
    result: dict[str, Any] = {
        "images": [_shown(picture) for picture in pictures],
        "model": model,
        "version": version,
        "seed": drawing.used.seed,
        "settings": drawing.used.settings(),
        "timings": {name: round(value, 3) for name, value in seconds.items()},
    }
    return result | {name: told[name] for name in _TOLD if told.get(name) not in (None, [], {})}


def _shown(picture: Picture) -> dict[str, Any]:
    url = f"/images/{picture.id}"
    return {
        "id": picture.id,
        "url": url,
        "thumb_url": f"{url}?size=thumb",
        "seed": picture.seed,
        "width": picture.width,
        "height": picture.height,
        "format": picture.format,
        "sha256": picture.digest,
        "bytes": picture.size,
    }
