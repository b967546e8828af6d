"""Pictures that are drawn by one call of a pipeline, step by step."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image

from serai.clock import Clock
from serai.engines.images.diffusers_adapters import Mix
from serai.engines.images.diffusers_calls import Recipe, fitting_mask, fitting_source
from serai.engines.images.diffusers_parked import Parked, Pause
from serai.engines.images.diffusers_pictures import Projection, inpainted
from serai.engines.tasks import GenerateImage

MAX_PICTURES = 8
MAX_PIXELS = 4 * 1024 * 1024
"""Of all pictures in one call; a larger one is drawn alone."""
TILED_PIXELS = 1536 * 1536
"""From here on the autoencoder works in tiles, which bounds its memory and changes pixels slightly."""

PROMPT, DENOISING, DECODING = "prompt_s", "denoising_s", "decoding_s"


@dataclass(slots=True, kw_only=True)
class Drawing:
    """A run, how far it is, and what it took."""

    run: int
    task: GenerateImage
    recipe: Recipe
    mix: Mix
    next: int = 0
    """The first picture that no call has been begun for."""
    done: int = 0
    steps: int = 0
    is_batched: bool = False
    seconds: dict[str, float] = field(default_factory=lambda: {PROMPT: 0.0, DENOISING: 0.0, DECODING: 0.0})

    @property
    def key(self) -> Hashable:
        """What pictures of one call have in common; None for those that are drawn alone."""
        task = self.task
        if task.reproducible or self.recipe.kind == "edit":
            return None
        return (
            self.recipe.kind,
            (task.width, task.height, task.steps, task.guidance_scale, task.max_sequence_length),
            bool(task.negative_prompt),
            task.strength if task.source is not None else None,
            self.mix,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """One picture of a call: number `index` of a run."""

    drawing: Drawing
    index: int


class Batch:
    """One call of a pipeline."""

    def __init__(self, places: Sequence[Place], *, denoiser: torch.nn.Module, clock: Clock) -> None:
        self.places = tuple(places)
        first = places[0].drawing
        self.recipe, self.mix, self.size = first.recipe, first.mix, (first.task.width, first.task.height)
        self.done = 0
        self.total = first.task.steps
        self._denoiser = denoiser
        self._clock = clock
        self._latents: torch.Tensor | None = None
        self._pipeline: Any = None
        self._mark: Any = None
        self._phase, self._since = PROMPT, 0.0
        self._seconds = {PROMPT: 0.0, DENOISING: 0.0, DECODING: 0.0}
        self._call = Parked(self._draw)

    @property
    def drawings(self) -> tuple[Drawing, ...]:
        """The runs that have pictures in the call."""
        return tuple({place.drawing.run: place.drawing for place in self.places}.values())

    @property
    def seconds(self) -> Mapping[str, float]:
        """What was computed so far, by phase; standing still does not count."""
        return self._seconds

    def resume(self) -> bool:
        """Make the next denoising step, or after the last one decode; return False when the pictures are there."""
        self._since = self._clock.monotonic()
        try:
            return self._call.resume()
        finally:
            self._enter(DECODING if self.done >= self.total else self._phase)

    def pictures(self) -> list[Image.Image]:
        """Return the finished pictures, one for each place."""
        drawn = self._call.result
        if self.recipe.kind != "inpaint":
            return drawn
        tasks = [place.drawing.task for place in self.places]
        return [
            inpainted(picture, fitting_source(self.recipe, task), fitting_mask(task))
            for picture, task in zip(drawn, tasks, strict=True)
        ]

    def preview(self, number: int, projection: Projection) -> bytes | None:
        """Return what the picture at a place looks like so far, None where the latents cannot be read."""
        latents = self._latents
        if latents is None:
            return None
        if latents.ndim == 3 and hasattr(self._pipeline, "_unpack_latents"):
            try:
                latents = self._pipeline._unpack_latents(  # noqa: SLF001 - packed in its own way
                    latents, self.size[1], self.size[0], self._pipeline.vae_scale_factor
                )
            except (TypeError, RuntimeError):
                return None
        if latents.ndim == 5:  # one frame of a video's autoencoder
            latents = latents[:, :, 0]
        return projection.preview(latents[number], self.size) if latents.ndim == 4 else None

    def stop(self) -> None:
        """End the call where it is, and free what it holds."""
        self._call.stop()
        self._latents = None
        if self._pipeline is not None:
            self._pipeline.maybe_free_model_hooks()

    def _draw(self, pause: Pause) -> list[Image.Image]:
        def on_step_end(pipeline: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            self.done = step + 1
            self._latents = tensors.get("latents")
            pause()
            return {}

        tasks = [place.drawing.task for place in self.places]
        seeds = [place.drawing.task.seed + place.index for place in self.places]
        takes = getattr(self.recipe.pipeline, "_callback_tensor_inputs", ())
        self._pipeline, arguments = self.recipe.call(
            tasks,
            seeds,
            callback_on_step_end=on_step_end,
            callback_on_step_end_tensor_inputs=["latents"] if "latents" in takes else [],
        )
        self._mark = self._denoiser.register_forward_pre_hook(self._on_forward)
        try:
            pictures: list[Image.Image] = self._pipeline(**arguments).images
        finally:
            self._mark.remove()
        self._latents = None
        return pictures

    def _on_forward(self, *_: Any) -> None:
        """Mark the end of the prompt's part, once: before the first step there is no pause for another call to use."""
        self._mark.remove()
        self._enter(DENOISING)
        self.total = int(getattr(self._pipeline, "num_timesteps", 0) or self.total)

    def _enter(self, phase: str) -> None:
        now = self._clock.monotonic()
        self._seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now


def room_for(width: int, height: int) -> int:
    """Return how many pictures of a size one call draws at most."""
    return max(1, min(MAX_PICTURES, MAX_PIXELS // (width * height)))


def is_tiled(width: int, height: int) -> bool:
    """Say whether the autoencoder works in tiles on a picture of this size."""
    return width * height >= TILED_PIXELS
