"""What a pipeline of diffusers can be asked for, and the call that asks: from text, from a picture, masked, editing.

| a task with | is run by |
|---|---|
| a prompt alone | the pipeline, where it needs no picture |
| `source` | image-to-image over the same weights; an editing pipeline (FLUX Kontext and the like) itself |
| `source` and `mask` | inpainting over the same weights |

What guidance means depends on the pipeline, too:

| pipeline | `guidance_scale` | `negative_prompt` |
|---|---|---|
| Stable Diffusion and most others | classifier-free guidance | taken |
| with guidance distilled into the weights (FLUX) | an input of the network | refused: nothing would heed it |
| with `true_cfg_scale` by default (Qwen-Image) | that | taken |
"""

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import diffusers
import torch
from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image, AutoPipelineForInpainting
from PIL import Image

from serai.engines.images.diffusers_pictures import picture_of, resized, within
from serai.engines.tasks import GenerateImage
from serai.errors import InvalidInput, LoadFailed

Kind = Literal["text", "image", "inpaint", "edit"]

_LONGEST_PROMPT = 512
"""Tokens that pipelines with `max_sequence_length` take at least; some have a larger default."""
_EMPTY = " "
"""A negative prompt that says nothing, where there has to be one for guidance to work."""
_INPAINTING = {"FluxKontextPipeline": "FluxKontextInpaintPipeline"}
"""Pairs over the same weights that diffusers' own table lacks."""
_HOOKS = ("_all_hooks", "_offload_device", "_offload_gpu_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A pipeline for one kind of task, with what its call takes."""

    kind: Kind
    pipeline: Any
    parameters: Mapping[str, inspect.Parameter]
    multiple: int
    """Width and height are multiples of this."""

    @classmethod
    def of(cls, kind: Kind, pipeline: Any) -> "Recipe":
        processor = getattr(pipeline, "image_processor", None)
        multiple = processor.config.vae_scale_factor if processor is not None else 8
        parameters = dict(inspect.signature(type(pipeline).__call__).parameters)
        return cls(kind=kind, pipeline=pipeline, parameters=parameters, multiple=int(multiple))

    @property
    def is_guided_by_true_cfg(self) -> bool:
        scale = self.parameters.get("true_cfg_scale")
        return scale is not None and isinstance(scale.default, int | float) and scale.default > 1

    @property
    def takes_negative_prompt(self) -> bool:
        return "negative_prompt" in self.parameters and (
            "true_cfg_scale" not in self.parameters or self.is_guided_by_true_cfg
        )

    def check(self, task: GenerateImage) -> None:
        """Raise InvalidInput for what this pipeline cannot do."""
        for field, side in (("width", task.width), ("height", task.height)):
            if side < self.multiple or side % self.multiple:
                near = max(round(side / self.multiple), 1) * self.multiple
                raise InvalidInput.at(field, f"is {side}, no multiple of {self.multiple}", hint=f"{near} is one.")
        for field, number in (("images", task.images), ("steps", task.steps)):
            if number < 1:
                raise InvalidInput.at(field, "must be 1 or more")
        if task.negative_prompt and not self.takes_negative_prompt:
            raise InvalidInput.at("negative_prompt", "cannot be followed by this model, whose guidance is built in")
        self._check_length(task.max_sequence_length)

    def call(self, tasks: Sequence[GenerateImage], seeds: Sequence[int], **fields: Any) -> tuple[Any, dict[str, Any]]:
        """Return a pipeline of its own state and the arguments that draw one picture for each task and seed.

        The tasks differ in prompts and pictures alone. The noise is drawn on the CPU: it is the same on every device.
        """
        first = tasks[0]
        wanted: dict[str, Any] = {
            "prompt": [task.prompt for task in tasks],
            "generator": [torch.Generator().manual_seed(seed) for seed in seeds],
            "width": first.width,
            "height": first.height,
            "num_inference_steps": first.steps,
            "output_type": "pil",
            "max_area": first.width * first.height,
            "_auto_resize": False,
            **self._guidance(tasks),
            **self._pictures(tasks),
            **fields,
        }
        if first.max_sequence_length is not None:
            wanted["max_sequence_length"] = first.max_sequence_length
        return _with_own_state(self.pipeline), {name: wanted[name] for name in wanted if name in self.parameters}

    def _guidance(self, tasks: Sequence[GenerateImage]) -> dict[str, Any]:
        scale = tasks[0].guidance_scale
        if self.is_guided_by_true_cfg:
            return {"true_cfg_scale": scale, "negative_prompt": [task.negative_prompt or _EMPTY for task in tasks]}
        if not self.takes_negative_prompt or not tasks[0].negative_prompt:
            return {"guidance_scale": scale}
        return {"guidance_scale": scale, "negative_prompt": [task.negative_prompt for task in tasks]}

    def _pictures(self, tasks: Sequence[GenerateImage]) -> dict[str, Any]:
        if self.kind == "text":
            return {}
        pictures = [fitting_source(self, task) for task in tasks]
        if self.kind == "edit":
            return {"image": pictures}
        fields: dict[str, Any] = {"image": pictures, "strength": _strength(tasks[0])}
        if self.kind == "inpaint":
            fields["mask_image"] = [fitting_mask(task) for task in tasks]
        return fields

    def _check_length(self, length: int | None) -> None:
        if length is None:
            return
        known = self.parameters.get("max_sequence_length")
        if known is None:
            raise InvalidInput.at("max_sequence_length", "cannot be chosen with this model")
        longest = max(known.default if isinstance(known.default, int) else 0, _LONGEST_PROMPT)
        if not 1 <= length <= longest:
            raise InvalidInput.at("max_sequence_length", f"is {length}, and must be from 1 to {longest}")


class Recipes:
    """All kinds of tasks that one set of weights serves."""

    def __init__(self, pipeline: Any) -> None:
        self._recipes: dict[Kind, Recipe] = {}
        for kind in _kinds_of(pipeline):
            self._recipes[kind] = Recipe.of(kind, pipeline)
        if "text" in self._recipes:
            self._derive(pipeline)
        for recipe in self._recipes.values():
            recipe.pipeline.set_progress_bar_config(disable=True)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return tuple(self._recipes)

    @property
    def from_text(self) -> Recipe | None:
        return self._recipes.get("text")

    def choose(self, task: GenerateImage) -> Recipe:
        """Return the recipe of a task, whose input is checked. Raises InvalidInput that names the field."""
        recipe = self._of_kind(task)
        recipe.check(task)
        if task.source is not None:
            source = picture_of(task.source, "source")
            if task.mask is not None and picture_of(task.mask, "mask").size != source.size:
                raise InvalidInput.at("mask", "is not of the source's size")
        return recipe

    def _of_kind(self, task: GenerateImage) -> Recipe:
        if task.mask is not None and task.source is None:
            raise InvalidInput.at("mask", "needs a source to lie on")
        if task.mask is not None:
            if "inpaint" not in self._recipes:
                raise InvalidInput.at("mask", "cannot be used: this model does not paint parts of a picture")
            return self._recipes["inpaint"]
        if task.source is None:
            if "text" not in self._recipes:
                raise InvalidInput.at("source", "is needed: this model draws from a picture")
            return self._recipes["text"]
        found = self._recipes.get("edit") or self._recipes.get("image")
        if found is None and "text" not in self._recipes:
            raise InvalidInput.at("mask", "is needed: this model paints parts of a picture")
        if found is None:
            raise InvalidInput.at("source", "cannot be used: this model draws from text alone")
        return found

    def _derive(self, pipeline: Any) -> None:
        """Add what diffusers has over the same components."""
        kinds: list[tuple[Kind, Any]] = [("image", AutoPipelineForImage2Image), ("inpaint", AutoPipelineForInpainting)]
        for kind, auto in kinds:
            if kind == "image" and "edit" in self._recipes:
                continue
            other = getattr(diffusers, _INPAINTING.get(type(pipeline).__name__, ""), None)
            try:
                made = other(**pipeline.components) if other is not None else auto.from_pipe(pipeline)
            except (ValueError, TypeError):
                continue  # there is none, or it needs more than is there
            for name in _HOOKS:
                if hasattr(pipeline, name):
                    object.__setattr__(made, name, getattr(pipeline, name))
            if "callback_on_step_end" in inspect.signature(type(made).__call__).parameters:
                self._recipes[kind] = Recipe.of(kind, made)


def fitting_source(recipe: Recipe, task: GenerateImage) -> Image.Image:
    """Return the source as the pipeline wants it: in the result's size, or, to be edited, in its own proportions."""
    if task.source is None:
        raise InvalidInput.at("source", "is needed")
    picture = picture_of(task.source, "source")
    if recipe.kind == "edit":
        return within(picture, task.width * task.height, recipe.multiple)
    return resized(picture, task.width, task.height)


def fitting_mask(task: GenerateImage) -> Image.Image:
    """Return the mask in the size of the result."""
    if task.mask is None:
        raise InvalidInput.at("mask", "is needed")
    return resized(picture_of(task.mask, "mask"), task.width, task.height)


def _strength(task: GenerateImage) -> float:
    """Return the share of the steps that is made: one at least, as with the other engines."""
    if int(task.steps * task.strength) >= 1:
        return task.strength
    least = 1 / task.steps
    return least if task.steps * least >= 1 else math.nextafter(least, 1)


def _kinds_of(pipeline: Any) -> tuple[Kind, ...]:
    """Return what the pipeline itself does, by what its call takes. Raises LoadFailed."""
    name = type(pipeline).__name__
    if getattr(pipeline, "controlnet", None) is not None:
        raise LoadFailed(f"{name} needs control pictures, which no task holds.")
    parameters = inspect.signature(type(pipeline).__call__).parameters
    if "num_frames" in parameters or "prompt" not in parameters:
        raise LoadFailed(f"{name} does not make pictures from prompts.")
    if "mask_image" in parameters:
        return ("inpaint",)
    if "image" not in parameters:
        return ("text",)
    if "strength" in parameters:
        return ("image",)
    is_optional = parameters["image"].default is None and "Edit" not in name and "Pix2Pix" not in name
    return ("text", "edit") if is_optional else ("edit",)


def _with_own_state(pipeline: Any) -> Any:
    """Return the pipeline over the same networks, with schedulers of its own: several calls may be half-way at once."""
    own = copy.copy(pipeline)
    for name, component in pipeline.components.items():
        if isinstance(component, diffusers.SchedulerMixin):
            scheduler: Any = component
            object.__setattr__(own, name, type(scheduler).from_config(scheduler.config))
    return own
