"""What is asked of an image model, judged before anything is computed."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from serai.engines.base import AdapterUse
from serai.engines.images.image_latents import fitted
from serai.engines.images.image_schedule import NoiseSchedule
from serai.engines.images.image_turns import Mix
from serai.engines.images.openvino_image_folder import PipelineShape
from serai.engines.tasks import Array, GenerateImage
from serai.errors import InvalidInput

_MAX_SIDE = 8192
_MAX_IMAGES = 64
_MAX_SEED = 2**63 - 1


def checked(task: GenerateImage, shape: PipelineShape, schedule: NoiseSchedule, *, takes_source: bool) -> GenerateImage:
    """Return the task with source and mask of the picture's size. Raises InvalidInput that names the field."""
    for name in ("width", "height"):
        side, step = getattr(task, name), shape.size_step
        if not step <= side <= _MAX_SIDE or side % step:
            raise InvalidInput.at(name, f"must be a multiple of {step} up to {_MAX_SIDE} with this model, not {side}")
    trained = schedule.config.num_train_timesteps
    most_steps = schedule.most_steps(task.steps if 0 < task.steps < trained else trained)
    for name, least, most in (("steps", 1, most_steps), ("images", 1, _MAX_IMAGES), ("seed", 0, _MAX_SEED)):
        if not least <= getattr(task, name) <= most:
            raise InvalidInput.at(name, f"must be from {least} to {most}, not {getattr(task, name)}")
    if not math.isfinite(task.guidance_scale) or not 0 < task.strength <= 1:
        field = "strength" if math.isfinite(task.guidance_scale) else "guidance_scale"
        raise InvalidInput.at(field, "must be more than 0 and at most 1" if field == "strength" else "must be a number")
    if task.mask is not None and task.source is None:
        raise InvalidInput.at("mask", "says which part of a source is painted anew, and there is no source")
    if task.source is None:
        return task
    if not takes_source:
        raise InvalidInput.at(
            "source",
            "cannot be used: this pipeline has no encoder for pictures",
            hint="Use a pipeline with a vae_encoder.",
        )
    return msgspec.structs.replace(
        task,
        source=_fitted(task.source, "source", 3, task),
        mask=None if task.mask is None else _fitted(task.mask, "mask", 2, task),
    )


def scales_of(task: GenerateImage, adapters: Sequence[AdapterUse]) -> Mix:
    """Return the adapters that act, with their scales. Raises InvalidInput for a name that none of them has."""
    unknown = sorted(task.adapter_scales.keys() - {use.name for use in adapters})
    if unknown:
        raise InvalidInput.at("adapter_scales", f"names {unknown[0][:120]!r}, and this version has no such adapter")
    scales = [(use.id, float(task.adapter_scales.get(use.name, use.scale))) for use in adapters]
    if not all(math.isfinite(scale) for _, scale in scales):
        raise InvalidInput.at("adapter_scales", "must be numbers")
    return tuple((id_, scale) for id_, scale in scales if scale)


def _fitted(array: Array, field: str, dimensions: int, task: GenerateImage) -> Array:
    shape = tuple(array.shape)
    is_whole = array.dtype == "uint8" and len(shape) == dimensions and len(array.data) == math.prod(shape)
    if not is_whole or min(shape, default=0) < 1 or max(shape[:2]) > _MAX_SIDE or (dimensions == 3 and shape[2] != 3):
        raise InvalidInput.at(field, f"must be uint8, height × width{' × 3' if dimensions == 3 else ''}")
    pixels: Any = np.frombuffer(array.data, np.uint8).reshape(shape)
    sized = fitted(pixels, task.width, task.height)
    return Array(dtype="uint8", shape=sized.shape, data=sized.tobytes())
