"""Image pipelines by diffusers: from text, from pictures, masked, editing, with adapters; on CUDA, or slowly on CPUs.

Each step of the engine is one denoising step of one batch; batches take turns. Pictures of runs that need
not be reproducible and have the same settings are drawn in one batch. A reproducible run's pictures are
drawn one by one, so that the bytes of one do not depend on how many there are, nor on other runs.
"""

import gc
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from serai.clock import Clock, SystemClock
from serai.engines.base import EngineSpec, Footprint, Run
from serai.engines.options import DiffusersOptions
from serai.engines.quiet import quieten, quieten_transformers
from serai.engines.tasks import GenerateImage
from serai.errors import EngineFailed, InvalidInput, LoadFailed
from serai.events import PREVIEW, Done, Event, Failed, Media, Progress

quieten()
import torch  # noqa: E402 - what the fork server is to have imported
import transformers  # noqa: E402 - after quieten

quieten_transformers()
import diffusers  # noqa: E402 - after quieten: it asks transformers for much

from serai.engines.images.diffusers_adapters import Adapters, mix_of  # noqa: E402 - after quieten
from serai.engines.images.diffusers_batch import Batch, Drawing, Place, is_tiled, room_for  # noqa: E402 - after quieten
from serai.engines.images.diffusers_calls import Recipes  # noqa: E402 - after quieten
from serai.engines.images.diffusers_loading import Loaded, denoiser_of, load_pipeline  # noqa: E402 - after quieten
from serai.engines.images.diffusers_pictures import Projection, ppm  # noqa: E402 - after quieten
from serai.engines.torch_device import take_device  # noqa: E402 - after quieten

_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")
"""How torch says on a CPU that there is no more memory."""


class DiffusersImage:
    """The engine `diffusers`. See `DiffusersOptions` for what can be set."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._device = "cpu"
        self._drawings: dict[int, Drawing] = {}
        """Runs in the order in which they came."""
        self._turns: deque[Batch] = deque()
        self._projection = Projection()
        self._loaded: Loaded | None = None
        self._denoiser: torch.nn.Module
        self._recipes: Recipes
        self._adapters: Adapters

    def load(self, spec: EngineSpec, report: Callable[[float], None]) -> Footprint:
        """Read safetensors onto the device; on CUDA draw a small picture, too."""
        from serai.engines.catalogue import check_options

        options = cast(DiffusersOptions, check_options("diffusers", spec.options))
        self._prepare_device(spec)
        self._loaded = loaded = load_pipeline(spec, options, report)
        self._denoiser = denoiser_of(loaded.pipeline)
        self._recipes = Recipes(loaded.pipeline)
        self._adapters = Adapters(loaded.pipeline, options.max_adapters)
        report(0.9)
        if loaded.offload != "sequential":
            self._projection = Projection.fitted(getattr(loaded.pipeline, "vae", None))
            loaded.pipeline.maybe_free_model_hooks()
        if self._device != "cpu":
            self._warm_up()
        report(1.0)
        return Footprint(
            bytes=None if self._device == "cpu" else self.allocated_bytes(),
            max_runs=options.max_runs,
            facts={
                "pipeline": type(loaded.pipeline).__name__,
                "kinds": list(self._recipes.kinds),
                "precision": options.quantize or loaded.dtype,
                "dtype": loaded.dtype,
                "quantize": options.quantize or "none",
                "offload": loaded.offload,
                "attention": "sdpa",
                "threads": spec.threads,
                "device": spec.device,
                "diffusers": diffusers.__version__,
                "transformers": transformers.__version__,
                "torch": str(torch.__version__),
            },
        )

    def start(self, run: Run) -> None:
        """Check the task, and load adapters that are new. Raises InvalidInput, LoadFailed for an adapter."""
        task = run.task
        if not isinstance(task, GenerateImage):
            raise InvalidInput("An image model runs tasks of the kind 'generate_image' alone.")
        recipe = self._recipes.choose(task)
        uses, mix = mix_of(run.adapters, task.adapter_scales)
        self._adapters.prepare(uses, self._adapters_in_use())
        self._drawings[run.id] = Drawing(run=run.id, task=task, recipe=recipe, mix=mix)

    def step(self) -> Sequence[tuple[int, Event]]:
        """Make one denoising step of one batch, or decode its pictures."""
        self._open()
        if not self._turns:
            return ()
        batch = self._turns.popleft()
        try:
            self._adapters.switch(batch.mix)
            self._tile(batch)
            goes_on = batch.resume()
            told = list(self._progress(batch)) if goes_on else []
            files = [] if goes_on else [ppm(picture) for picture in batch.pictures()]
        except (torch.OutOfMemoryError, MemoryError):
            raise MemoryError from None
        except Exception as error:  # noqa: BLE001 - a library's; it is the runs' end, or the engine's
            return list(self._on_error(batch, error))
        if goes_on:
            self._turns.append(batch)
            return told
        return list(self._finish(batch, files))

    def feed(self, run: int, message: Mapping[str, object]) -> None:
        """Refuse the message: the task is the whole input."""
        raise InvalidInput("This model takes nothing while it draws.")

    def cancel(self, run: int) -> None:
        """Forget the run; a call that draws for nobody else ends at once."""
        if self._drawings.pop(run, None) is None:
            return
        for batch in [batch for batch in self._turns if not self._wanted(batch)]:
            self._turns.remove(batch)
            batch.stop()
        self._adapters.trim(self._adapters_in_use())

    def close(self) -> None:
        """End what goes on, and drop the model."""
        for run in tuple(self._drawings):
            self.cancel(run)
        self._loaded = None
        for name in ("_denoiser", "_recipes", "_adapters"):
            self.__dict__.pop(name, None)
        gc.collect()
        if self._device != "cpu":
            torch.cuda.empty_cache()

    def allocated_bytes(self) -> int:
        """Return what torch holds of the device's memory."""
        return int(torch.cuda.memory_reserved(self._device)) if self._device != "cpu" else 0

    def _prepare_device(self, spec: EngineSpec) -> None:
        take_device(spec)
        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        self._device = spec.device

    def _warm_up(self) -> None:
        """Draw a small picture, so that kernels are chosen and a model that cannot draw is found out."""
        recipe = self._recipes.from_text
        if recipe is None:
            return
        side = 8 * recipe.multiple
        task = GenerateImage(prompt="a", width=side, height=side, steps=1, guidance_scale=1.0, seed=0)
        drawing = Drawing(run=-1, task=task, recipe=recipe, mix=())
        batch = self._batch([Place(drawing=drawing, index=0)])
        try:
            while batch.resume():
                pass
        except torch.OutOfMemoryError:
            raise MemoryError from None
        except Exception as error:
            raise LoadFailed(f"The pipeline fails with its first picture ({type(error).__name__}).") from error

    def _open(self) -> None:
        """Begin calls for the pictures that wait, at most one call for each run."""
        busy = {drawing.run for batch in self._turns for drawing in batch.drawings}
        for drawing in self._drawings.values():
            if drawing.run in busy or drawing.next >= drawing.task.images:
                continue
            places = self._gather(drawing, busy)
            for place in places:
                place.drawing.next = place.index + 1
                busy.add(place.drawing.run)
            self._turns.append(self._batch(places))

    def _gather(self, first: Drawing, busy: set[int]) -> list[Place]:
        """Return the pictures of the next call: the run's own, and of others that wait and are asked for likewise."""
        if first.key is None:
            return [Place(drawing=first, index=first.next)]
        others = [other for other in self._drawings.values() if other.run not in busy and other.key == first.key]
        waiting = [
            Place(drawing=drawing, index=index)
            for drawing in (first, *(other for other in others if other is not first))
            for index in range(drawing.next, drawing.task.images)
        ]
        places = waiting[: room_for(first.task.width, first.task.height)]
        if len({place.drawing.run for place in places}) > 1:
            for place in places:
                place.drawing.is_batched = True
        return places

    def _batch(self, places: Sequence[Place]) -> Batch:
        return Batch(places, denoiser=self._denoiser, clock=self._clock)

    def _tile(self, batch: Batch) -> None:
        """Let the autoencoder, which the batches share, work as this one needs it."""
        vae: Any = getattr(batch.recipe.pipeline, "vae", None)
        if vae is not None and hasattr(vae, "enable_tiling"):
            (vae.enable_tiling if is_tiled(*batch.size) else vae.disable_tiling)()

    def _progress(self, batch: Batch) -> Iterator[tuple[int, Event]]:
        share = batch.done / batch.total
        for drawing in batch.drawings:
            if drawing.run not in self._drawings:
                continue
            numbers = [n for n, place in enumerate(batch.places) if place.drawing is drawing]
            images = drawing.task.images
            yield (
                drawing.run,
                Progress(
                    stage="generating",
                    fraction=(drawing.done + share * len(numbers)) / images,
                    done=batch.done,
                    total=batch.total,
                    unit="steps",
                    detail={"image": batch.places[numbers[0]].index, "images": images},
                ),
            )
            every = drawing.task.preview_steps
            if every and batch.done % every == 0 and batch.done < batch.total:
                yield from self._previews(batch, numbers)

    def _previews(self, batch: Batch, numbers: Sequence[int]) -> Iterator[tuple[int, Event]]:
        for number in numbers:
            place = batch.places[number]
            data = batch.preview(number, self._projection)
            if data is not None:
                detail = {"step": batch.done, "steps": batch.total}
                yield (
                    place.drawing.run,
                    Media(name=PREVIEW, media_type="image/webp", data=data, index=place.index, detail=detail),
                )

    def _finish(self, batch: Batch, files: Sequence[bytes]) -> Iterator[tuple[int, Event]]:
        """Hand out the pictures of a call, and end the runs that have all of theirs."""
        for place, file in zip(batch.places, files, strict=True):
            drawing = place.drawing
            if drawing.run in self._drawings:
                drawing.done += 1
                detail = {"seed": drawing.task.seed + place.index}
                yield (
                    drawing.run,
                    Media(
                        name="picture",
                        media_type="image/x-portable-pixmap",
                        data=file,
                        index=place.index,
                        detail=detail,
                    ),
                )
        for drawing in batch.drawings:
            drawing.steps = batch.total
            for phase, seconds in batch.seconds.items():
                drawing.seconds[phase] += seconds
            if drawing.run in self._drawings and drawing.done == drawing.task.images:
                del self._drawings[drawing.run]
                yield drawing.run, self._done(drawing)
        self._adapters.trim(self._adapters_in_use())

    def _done(self, drawing: Drawing) -> Done:
        task = drawing.task
        return Done(
            result={
                "seeds": [task.seed + index for index in range(task.images)],
                "steps": drawing.steps,
                "timings": {phase: round(seconds, 6) for phase, seconds in drawing.seconds.items()},
                "device": self._device,
                "batched": drawing.is_batched,
            }
        )

    def _on_error(self, batch: Batch, error: Exception) -> Iterator[tuple[int, Event]]:
        """End the runs of a call that failed; raise where nothing can be relied on any more."""
        if any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise MemoryError from None
        if self._device != "cpu":
            torch.cuda.synchronize(self._device)  # raises where the device's own state is lost
        traceback.print_exception(error)
        traceback.clear_frames(error.__traceback__)
        batch.stop()
        failure = Failed.of(EngineFailed(f"The image pipeline failed ({type(error).__name__})."))
        for drawing in batch.drawings:
            if self._drawings.pop(drawing.run, None) is not None:
                yield drawing.run, failure
        sys.stderr.flush()

    def _wanted(self, batch: Batch) -> bool:
        return any(drawing.run in self._drawings for drawing in batch.drawings)

    def _adapters_in_use(self) -> set[str]:
        runs = [*self._drawings.values(), *(drawing for batch in self._turns for drawing in batch.drawings)]
        return {name for drawing in runs for name, _ in drawing.mix}
