"""Which values of a setting one version takes: its defaults and bounds, and what is usual. Pure."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from msgspec.structs import replace as with_fields

from serai.errors import InvalidInput
from serai.images.model import MAX_IMAGES, MAX_SEED, MAX_SIDE, MAX_STEPS, ImageSettings
from serai.registry.parameters import STEPS, Parameter, resolve
from serai.registry.version import Version

SIZE_STEP: Final = 8
"""Sides are multiples of it where a version says nothing else: by it the common autoencoders reduce pictures."""
_MOST: Final = {
    "width": MAX_SIDE,
    "height": MAX_SIDE,
    "num_images": MAX_IMAGES,
    "num_inference_steps": MAX_STEPS,
    "seed": MAX_SEED,
}
"""Above these no version goes, whatever it says: pictures are made in memory, and steps have times of their own."""
_DEFAULTS: Final[Mapping[str, Parameter]] = {
    "width": Parameter(default=512, min=SIZE_STEP, max=2048),
    "height": Parameter(default=512, min=SIZE_STEP, max=2048),
    "num_images": Parameter(default=1, min=1, max=MAX_IMAGES),
    "num_inference_steps": Parameter(default=20, min=1, max=200),
    "guidance_scale": Parameter(default=7.5, min=0, max=30),
    "seed": Parameter(min=0, max=MAX_SEED),
    "strength": Parameter(default=0.8, min=0, max=1),
}
"""What holds where a version says nothing: those of the Stable Diffusion family."""


def find_declared(version: Version, name: str) -> Parameter | None:
    """Return what the version says of a setting, whichever of its names it uses."""
    names: Sequence[str] = STEPS if name in STEPS else (name,)
    return next((version.parameters[one] for one in names if one in version.parameters), None)


def _parameter(version: Version, name: str) -> Parameter:
    """Return the bounds and the default of a setting; a default that nobody gave lies within the bounds."""
    usual = _DEFAULTS.get(name, Parameter())
    declared = find_declared(version, name)
    if declared is None:
        return usual
    if name in _MOST:
        most = _MOST[name]
        declared = with_fields(declared, max=most if declared.max is None else min(declared.max, most))
    default = usual.default if declared.default is None else declared.default
    if isinstance(default, bool) or not isinstance(default, int | float):
        return declared
    if declared.default is None and declared.multiple_of is not None:
        default = max(1, round(default / declared.multiple_of)) * declared.multiple_of
    if declared.min is not None and default < declared.min:
        default = declared.min
    if declared.max is not None and default > declared.max:
        default = declared.max
    return with_fields(declared, default=default)


def _checked(name: str, parameter: Parameter, value: float | None) -> Any:
    """Return the value, or else the default. Raises InvalidInput that names the setting."""
    field = f"settings.{name}"
    return resolve({field: parameter}, {field: value})[field]


def whole(version: Version, name: str, value: int | None) -> int:
    """Return a whole number as given, or else as the version says. Raises InvalidInput that names the setting."""
    parameter = _parameter(version, name)
    if isinstance(parameter.default, float) and parameter.default.is_integer():
        parameter = with_fields(parameter, default=int(parameter.default))
    found = _checked(name, parameter, value)
    if isinstance(found, bool) or not isinstance(found, int):
        raise InvalidInput.at(f"settings.{name}", f"must be a whole number, not {found!r}")
    return found


def number(version: Version, name: str, value: float | None) -> float:
    """Return a number as given, or else as the version says. Raises InvalidInput that names the setting."""
    parameter = _parameter(version, name)
    if isinstance(parameter.default, int) and not isinstance(parameter.default, bool):
        parameter = with_fields(parameter, default=float(parameter.default))
    found = _checked(name, parameter, None if value is None else float(value))
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise InvalidInput.at(f"settings.{name}", f"must be a number, not {found!r}")
    return float(found)


def sides(version: Version, given: ImageSettings, source_size: tuple[int, int] | None) -> tuple[int, int]:
    """Return width and height; where none is given, with a source's proportions. Raises InvalidInput."""
    size = (whole(version, "width", given.width), whole(version, "height", given.height))
    if source_size is not None and given.width is None and given.height is None:
        longest = max(size) / max(source_size)
        size = (
            _nearest(_parameter(version, "width"), source_size[0] * longest),
            _nearest(_parameter(version, "height"), source_size[1] * longest),
        )
    for name, side in zip(("width", "height"), size, strict=True):
        step = _step(_parameter(version, name))
        if side <= 0 or side % step:
            raise InvalidInput.at(f"settings.{name}", f"must be a multiple of {step}, not {side}")
    return size


def _step(parameter: Parameter) -> int:
    """Return what a side is a multiple of."""
    return parameter.multiple_of or SIZE_STEP


def _nearest(parameter: Parameter, side: float) -> int:
    """Return the side that a version takes, within its bounds, which is nearest to another."""
    if parameter.fixed and isinstance(parameter.default, int):
        return parameter.default
    step = _step(parameter)
    lowest = -(-int(parameter.min or step) // step)
    highest = int(parameter.max or side + step) // step
    return max(1, lowest, min(round(side / step), highest)) * step


def first_seed(version: Version, given: int | None, drawn: int, images: int) -> int:
    """Return the seed of the first picture: with it that of the last one, too, is one that the version takes."""
    parameter = _parameter(version, "seed")
    own = parameter.default
    has_own = isinstance(own, int | float) and own >= 0  # below 0 it commonly says that one is drawn
    least, most = max(0, math.ceil(parameter.min or 0)), int(MAX_SEED if parameter.max is None else parameter.max)
    if parameter.fixed and has_own:
        most = int(own or 0)
    last = most - images + 1
    is_drawn = given is None and not has_own
    seed = least + drawn % max(1, last - least + 1) if is_drawn else whole(version, "seed", given)
    if seed <= last:
        return seed
    if given is None or parameter.fixed:
        why = f"this version takes no seed above {most}, and the first is {seed}"
        raise InvalidInput.at("settings.num_images", f"must be at most {most - seed + 1}, not {images}: {why}")
    raise InvalidInput.at("settings.seed", f"must be at most {last} for {images} pictures, not {seed}")
