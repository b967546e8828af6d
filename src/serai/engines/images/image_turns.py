"""Which pictures make their next step together. Pure.

Every step of a batch is one call of the network. Runs take turns; one that may share its call takes those of
others along that fit: latents of one size, the same adapters, texts of one length. A run that is reproducible
goes alone, and one picture at a time, so that the network always sees the same shapes for it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from serai.engines.images.image_latents import Draws
from serai.engines.images.image_samplers import Sampler
from serai.engines.tasks import GenerateImage

FloatArray = NDArray[Any]
"""float32."""
Mix = tuple[tuple[str, float], ...]
"""Ids of adapters with the scales at which they act."""

MAX_SAMPLES = 8
"""Samples of one call; a picture with guidance has two."""
_MAX_LATENTS = 4 * 64 * 64
"""Latents of one call, so that its memory is bound: two pictures of 512 × 512 pixels, which keep a CPU busy."""


@dataclass(slots=True, kw_only=True, eq=False)
class Picture:
    """One picture on its way."""

    index: int
    sampler: Sampler
    sample: FloatArray
    """Latents with the noise that they still have."""
    noise: FloatArray
    source: FloatArray | None = None
    """Latents of the picture that it is made from."""


@dataclass(slots=True, kw_only=True, eq=False)
class Making:
    """One run: its pictures, in order."""

    run: int
    task: GenerateImage
    size: tuple[int, int]
    """Of the latents: height, width."""
    mix: Mix
    truncated: dict[str, int]
    """By the field, tokens of a text that the model has no room for."""
    rows: list[list[int]]
    """Ids of the texts: without the prompt, where there is guidance, and with it."""
    texts: FloatArray | None = None
    """What the text encoder made of them; None until the run is prepared."""
    source: FloatArray | None = None
    """What the encoder made of the source."""
    mask: FloatArray | None = None
    pictures: list[Picture] = field(default_factory=list)
    """Begun and not yet decoded, by their number."""
    begun: int = 0
    done: int = 0
    was_batched: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("prompt", "denoising", "decoding"), 0.0))

    @property
    def samples(self) -> int:
        """Samples of the network for each of its pictures."""
        return len(self.rows)

    @property
    def fits_with(self) -> tuple[Any, ...]:
        """Runs with the same may share a call."""
        return self.size, self.mix, len(self.rows[0])

    @property
    def finished(self) -> Picture | None:
        """The picture that is to be decoded next."""
        first = self.pictures[0] if self.pictures else None
        return first if first is not None and first.sampler.is_done else None

    def draws(self, index: int) -> Draws:
        """Return the chance of a picture."""
        return Draws(self.task.seed + index)


def share(makings: list[Making]) -> list[tuple[Making, int]]:
    """Return who makes a step now: runs, and how many of their pictures, the first ones. `makings`: by turn.

    There is at least one. Each run has one picture before any has two.
    """
    first = makings[0]
    if first.task.reproducible:
        return [(first, 1)]
    others = [one for one in makings[1:] if not one.task.reproducible and one.fits_with == first.fits_with]
    height, width = first.size
    room = max(first.samples, min(MAX_SAMPLES, _MAX_LATENTS // (height * width)))
    counts = dict.fromkeys((first, *others), 0)
    for making in _rounds([first, *others]):
        if making.samples <= room:
            counts[making] += 1
            room -= making.samples
    return [(making, count) for making, count in counts.items() if count]


def _rounds(makings: list[Making]) -> Iterator[Making]:
    """Yield each run as often as it has pictures left, in rounds."""
    for number in range(max(making.task.images - making.done for making in makings)):
        yield from (making for making in makings if number < making.task.images - making.done)
