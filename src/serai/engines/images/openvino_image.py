"""Image pipelines of Stable Diffusion's shape by OpenVINO, on CPUs, without torch.

The networks are OpenVINO's; what is around them is here and in the modules `image_…`: tokens, noise, samplers,
guidance, masks, previews. One call of `step` is one call of a network, for one run or for several that share
it (`image_turns`), so a cancelled run is gone within one step.
"""

import math
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from serai.clock import Clock, SystemClock
from serai.engines.base import AdapterUse, EngineSpec, Footprint, Run
from serai.engines.catalogue import check_options
from serai.engines.images.image_adapters import Adapter, read_adapter
from serai.engines.images.image_asked import checked, scales_of
from serai.engines.images.image_latents import Preview, drawn_latents, kept, latent_mask, ppm, to_pixels, to_sample
from serai.engines.images.image_prompts import PromptTokens
from serai.engines.images.image_samplers import guided, make_sampler
from serai.engines.images.image_schedule import NoiseSchedule, read_config
from serai.engines.images.image_turns import Making, Mix, Picture, share
from serai.engines.images.openvino_image_folder import PipelineShape
from serai.engines.images.openvino_image_nets import Network, properties_of
from serai.engines.options import OpenvinoImageOptions
from serai.engines.quiet import quieten
from serai.engines.tasks import GenerateImage
from serai.errors import EngineFailed, InvalidInput, LoadFailed
from serai.events import PREVIEW, Done, Event, Failed, Media, Progress

quieten()

import openvino as ov  # noqa: E402 - no library is imported before its telemetry is off

_MAX_ADAPTERS = 8
"""Adapters whose matrices are kept; the one used longest ago goes first."""
_LEAST_LATENTS = 8
"""Side of the latents that the networks are tried with."""
_DEFECTS = (ArithmeticError, LookupError, ValueError)
"""What the numbers of a run may raise where something was overlooked: that run fails, and the others go on."""


class OpenvinoImage:
    """The engine `openvino-image`. See `OpenvinoImageOptions` for what can be set."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or SystemClock()
        self._makings: list[Making] = []
        """Whose turn is longest ago first."""
        self._adapters: OrderedDict[str, Adapter] = OrderedDict()
        self._shape: PipelineShape
        self._schedule: NoiseSchedule
        self._prompts: PromptTokens
        self._text_encoder: Network
        self._unet: Network
        self._decoder: Network
        self._encoder: Network | None = None
        self._preview: Preview

    def load(self, spec: EngineSpec, report: Callable[[float], None]) -> Footprint:
        """Read the folder, compile its networks, and try each on little: the first calls allocate most."""
        options = cast(OpenvinoImageOptions, check_options("openvino-image", spec.options))
        if spec.device != "cpu":
            raise LoadFailed(f"The engine openvino-image does not run on {spec.device}.")
        folder = Path(spec.folder)
        self._shape = PipelineShape.read(folder)
        self._schedule = NoiseSchedule(read_config(folder / "scheduler" / "scheduler_config.json"))
        self._prompts = PromptTokens(folder / "tokenizer", most=self._shape.tokens)
        report(0.05)
        core, properties = ov.Core(), properties_of(spec.threads, options.precision)

        def network(name: str, *inputs: str) -> Network:
            return Network(core, folder / name, inputs, properties)

        self._text_encoder = network("text_encoder", "input_ids")
        report(0.15)
        self._decoder = network("vae_decoder", "latent_sample")
        if (folder / "vae_encoder" / "openvino_model.xml").is_file():
            self._encoder = network("vae_encoder", "sample")
        report(0.3)
        self._unet = network("unet", "sample", "timestep", "encoder_hidden_states")
        report(0.8)
        self._warm_up()
        report(1.0)
        return Footprint(max_runs=options.max_runs, facts=self._facts(core, spec, properties))

    def start(self, run: Run) -> None:
        """Check the task and read its adapters; its first step encodes the texts. Raises InvalidInput, LoadFailed."""
        if not isinstance(run.task, GenerateImage):
            raise InvalidInput("An image model runs tasks of the kind 'generate_image' alone.")
        task = checked(run.task, self._shape, self._schedule, takes_source=self._encoder is not None)
        mix = scales_of(task, run.adapters)
        self._read_adapters(run.adapters, mix)
        rows, truncated = [], {}
        texts = {"negative_prompt": task.negative_prompt, "prompt": task.prompt}
        for name, text in texts.items() if task.guidance_scale > 1 else [("prompt", task.prompt)]:
            row, lost = self._prompts.encode(text, task.max_sequence_length)
            rows.append(row)
            truncated.update({name: lost} if lost else {})
        size = (task.height // self._shape.factor, task.width // self._shape.factor)
        making = Making(run=run.id, task=task, size=size, mix=mix, rows=rows, truncated=truncated)
        self._makings.append(making)

    def step(self) -> Sequence[tuple[int, Event]]:
        """Make one call of a network: encode a run's input, decode a picture, or take one step with several."""
        finished = next((one for one in self._makings if one.finished is not None), None)
        if finished is not None:
            return self._guarded([finished], lambda: self._decode(finished))
        fresh = next((one for one in self._makings if one.texts is None), None)
        if fresh is not None:
            return self._guarded([fresh], lambda: self._prepare(fresh))
        if not self._makings:
            return ()
        shared = share(self._makings)
        return self._guarded([making for making, _ in shared], lambda: self._denoise(shared))

    def feed(self, run: int, message: Mapping[str, Any]) -> None:
        """Refuse the message: the task is the whole input."""
        raise InvalidInput("This model takes nothing while it draws.")

    def cancel(self, run: int) -> None:
        """Forget the run: what it holds is its latents, and they are gone."""
        self._makings = [making for making in self._makings if making.run != run]

    def close(self) -> None:
        """Forget every run."""
        self._makings.clear()

    def _guarded(
        self, makings: Sequence[Making], work: Callable[[], Iterator[tuple[int, Event]]]
    ) -> list[tuple[int, Event]]:
        """Return the events of a call of a network; if it fails, these runs do. MemoryError ends the process."""
        try:
            events = list(work())
        except (EngineFailed, *_DEFECTS) as error:
            events = [(making.run, _failure(error)) for making in makings]
        over = {run for run, event in events if isinstance(event, Done | Failed)}
        self._makings = [making for making in self._makings if making.run not in over]
        return events

    def _prepare(self, making: Making) -> Iterator[tuple[int, Event]]:
        """Encode the texts, and the source where there is one."""
        began = self._clock.monotonic()
        task = making.task
        self._text_encoder.wear(self._worn(making.mix, self._text_encoder))
        making.texts = self._text_encoder(input_ids=np.asarray(making.rows))
        if task.source is not None:
            assert self._encoder is not None, "a source was checked for"
            pixels = np.frombuffer(task.source.data, np.uint8).reshape(task.source.shape)
            making.source = self._encoder(sample=to_sample(pixels)[None])[0]
        if task.mask is not None:
            mask = np.frombuffer(task.mask.data, np.uint8).reshape(task.mask.shape)
            making.mask = latent_mask(mask, self._shape.factor)
        making.seconds["prompt"] = self._clock.monotonic() - began
        yield from ()

    def _begin(self, making: Making) -> Picture:
        """Return the run's next picture as noise, or as its source under noise."""
        task, index, shape = making.task, making.begun, self._shape
        draws = making.draws(index)
        noise = draws.normal((shape.channels, *making.size))
        if making.source is None:
            sampler = make_sampler(self._schedule, task.steps)
            return Picture(index=index, sampler=sampler, sample=noise * sampler.noise_scale, noise=noise)
        sampler = make_sampler(self._schedule, task.steps, task.strength)
        source = (drawn_latents(making.source, shape.channels, draws) - shape.shift) * shape.scaling
        is_all_new = making.mask is not None and task.strength >= 1
        sample = noise * sampler.noise_scale if is_all_new else sampler.noised(source, noise)
        return Picture(index=index, sampler=sampler, sample=sample, noise=noise, source=source)

    def _denoise(self, shared: Sequence[tuple[Making, int]]) -> Iterator[tuple[int, Event]]:
        """Take one step with the first pictures of some runs, in one call of the network."""
        began = self._clock.monotonic()
        batch: list[tuple[Making, Picture]] = []
        failures: dict[int, Failed] = {}
        for making, count in shared:
            with _apart(making, failures):
                while len(making.pictures) < count:
                    making.pictures.append(self._begin(making))
                    making.begun += 1
                batch += [(making, picture) for picture in making.pictures[:count]]
        self._unet.wear(self._worn(shared[0][0].mix, self._unet))
        outputs = iter(self._outputs(batch) if batch else ())
        for making, picture in batch:
            output = np.stack([next(outputs) for _ in range(making.samples)])
            with _apart(making, failures):
                self._advance(making, picture, output)
        taken = [making for making, _ in shared]
        self._makings = [one for one in self._makings if one not in taken] + taken
        spent = self._clock.monotonic() - began
        for making in taken:
            making.was_batched |= len(taken) > 1
            making.seconds["denoising"] += spent
        for making, picture in batch:
            if making.run not in failures:
                yield from ((making.run, event) for event in self._told(making, picture))
        yield from failures.items()

    def _outputs(self, batch: Sequence[tuple[Making, Picture]]) -> NDArray[Any]:
        samples, times, texts = [], [], []
        for making, picture in batch:
            samples += [picture.sampler.scaled(picture.sample)] * making.samples
            times += [picture.sampler.timestep] * making.samples
            texts.append(making.texts)
        return self._unet(
            sample=np.stack(samples),
            timestep=np.asarray(times, np.float32),
            encoder_hidden_states=np.concatenate(cast("list[NDArray[Any]]", texts)),
        )

    def _advance(self, making: Making, picture: Picture, outputs: NDArray[Any]) -> None:
        output = guided(outputs, making.task.guidance_scale) if making.samples > 1 else outputs[0]
        picture.sample = picture.sampler.step(output, picture.sample)
        if making.mask is not None:
            assert picture.source is not None, "a mask is of a source"
            around = picture.sampler.noised(picture.source, picture.noise)
            picture.sample = (1 - making.mask) * around + making.mask * picture.sample

    def _told(self, making: Making, picture: Picture) -> Iterator[Event]:
        """Yield how far a picture is, and now and then what it will look like."""
        done, total = picture.sampler.at, len(picture.sampler.timesteps)
        images, every = making.task.images, making.task.preview_steps
        begun = sum(one.sampler.at for one in making.pictures)
        yield Progress(
            stage="generating",
            fraction=min(1.0, (making.done * total + begun) / (images * total)),
            done=done,
            total=total,
            unit="steps",
            detail={"image": picture.index, "images": images},
        )
        if every and done % every == 0 and done < total and picture.sampler.predicted is not None:
            data = self._preview.webp(picture.sampler.predicted)
            yield Media(name=PREVIEW, media_type="image/webp", data=data, index=picture.index)

    def _decode(self, making: Making) -> Iterator[tuple[int, Event]]:
        """Decode the run's first finished picture, and end the run with its last."""
        began = self._clock.monotonic()
        picture, task = making.pictures[0], making.task
        pixels = to_pixels(self._decoded(picture.sample[None])[0])
        if task.source is not None and task.mask is not None:
            source = np.frombuffer(task.source.data, np.uint8).reshape(task.source.shape)
            pixels = kept(pixels, source, np.frombuffer(task.mask.data, np.uint8).reshape(task.mask.shape))
        del making.pictures[0]
        making.done += 1
        making.seconds["decoding"] += self._clock.monotonic() - began
        media_type = "image/x-portable-pixmap"
        yield making.run, Media(name="picture", media_type=media_type, data=ppm(pixels), index=picture.index)
        if making.done == task.images:
            yield making.run, self._done(making, picture)

    def _decoded(self, latents: NDArray[Any]) -> NDArray[Any]:
        return self._decoder(latent_sample=latents / self._shape.scaling + self._shape.shift)

    def _done(self, making: Making, last: Picture) -> Done:
        result: dict[str, Any] = {
            "seeds": [making.task.seed + index for index in range(making.task.images)],
            "steps": len(last.sampler.timesteps),
            "timings": {f"{name}_s": seconds for name, seconds in making.seconds.items()},
            "device": "cpu",
            "batched": making.was_batched,
        }
        return Done(result=result | ({"truncated": making.truncated} if making.truncated else {}))

    def _read_adapters(self, adapters: Sequence[AdapterUse], mix: Mix) -> None:
        """Read what a mix needs and is not here yet, and forget what nobody has used for long. Raises LoadFailed."""
        wanted = {id_ for id_, _ in mix}
        for use in adapters:
            if use.id in wanted:
                if use.id not in self._adapters:
                    self._adapters[use.id] = read_adapter(use, {**self._unet.shapes, **self._text_encoder.shapes})
                self._adapters.move_to_end(use.id)
        in_use = wanted | {id_ for making in self._makings for id_, _ in making.mix}
        idle = [id_ for id_ in self._adapters if id_ not in in_use]
        for id_ in idle[: max(len(self._adapters) - _MAX_ADAPTERS, 0)]:
            del self._adapters[id_]

    def _worn(self, mix: Mix, network: Network) -> tuple[tuple[Adapter, float], ...]:
        """Return the adapters of a mix that change a network."""
        found = ((self._adapters[id_], scale) for id_, scale in mix)
        return tuple((one, scale) for one, scale in found if not one.keys().isdisjoint(network.shapes))

    def _warm_up(self) -> None:
        """Call each network once, and learn from the decoder what previews look like."""
        row, _ = self._prompts.encode("")
        texts = self._text_encoder(input_ids=np.asarray([row, row]))
        channels, factor = self._shape.channels, self._shape.factor
        side = math.lcm(_LEAST_LATENTS, self._shape.size_step // factor)
        latents = np.zeros((2, channels, side, side), np.float32)
        output = self._unet(sample=latents, timestep=np.ones(2, np.float32), encoder_hidden_states=texts)
        if output.shape != latents.shape or not np.isfinite(output).all():
            raise LoadFailed("The pipeline's denoiser gives numbers that are none, or of another shape.")
        self._preview = Preview.fit(self._decoded, channels, factor)
        if self._encoder is not None:
            self._encoder(sample=np.zeros((1, 3, side * factor, side * factor), np.float32))

    def _facts(self, core: ov.Core, spec: EngineSpec, properties: Mapping[str, Any]) -> dict[str, Any]:
        shape = self._shape
        return {
            "pipeline": shape.name,
            "scheduler": self._schedule.config.class_name,
            "width": shape.side,
            "height": shape.side,
            "size_step": shape.size_step,
            "latent_channels": shape.channels,
            "prompt_tokens": self._prompts.tokens,
            "image_to_image": self._encoder is not None,
            "adapter_layers": len(self._unet.shapes) + len(self._text_encoder.shapes),
            "quantization": shape.quantization or spec.quantization,
            "precision": properties["INFERENCE_PRECISION_HINT"],
            "threads": spec.threads,
            "device": core.get_property("CPU", "FULL_DEVICE_NAME").strip(),
            "openvino": ov.get_version().partition("-")[0],
        }


@contextmanager
def _apart(making: Making, failures: dict[int, Failed]) -> Iterator[None]:
    """Let a defect in one run's share of a call be its own failure, not that of those who share the call."""
    try:
        yield
    except _DEFECTS as error:
        failures[making.run] = _failure(error)


def _failure(error: Exception) -> Failed:
    """Return the end of a run; a defect is told to the log in full, and to its caller not at all."""
    if not isinstance(error, EngineFailed):
        traceback.print_exception(error)
        sys.stderr.flush()
    return Failed.of(error)
