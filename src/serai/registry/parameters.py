"""The parameters of generation that a version accepts: their defaults, bounds and what is fixed."""

import math
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from serai.errors import InvalidInput

Value = bool | int | float | str | None

STEPS = ("num_inference_steps", "steps")
"""Names under which a version tells how many denoising steps it takes."""


class Parameter(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One parameter. The type of `default` is the type that it takes; None takes any."""

    default: Value = None
    min: float | None = None
    max: float | None = None
    multiple_of: Annotated[int, Meta(ge=1)] | None = None
    """What whole numbers must be multiples of: the sides of a picture, where a network halves them."""
    fixed: bool = False
    """A fixed parameter accepts its default and nothing else."""


def plain(number: float) -> str:
    """Return a number in digits: 1.67772e+07 says nothing to who must stay below it."""
    return str(int(number)) if math.isfinite(number) and number == int(number) else repr(number)


def default_steps(parameters: Mapping[str, Parameter]) -> int | None:
    """Return how many denoising steps are taken by default; None where the version has no such thing."""
    for name in STEPS:
        parameter = parameters.get(name)
        if parameter is not None and isinstance(parameter.default, int) and not isinstance(parameter.default, bool):
            return parameter.default
    return None


def check_parameters(parameters: Mapping[str, Parameter]) -> None:
    """Refuse a declaration that contradicts itself. Raises InvalidInput that names the parameter."""
    for name, parameter in parameters.items():
        field = f"parameters.{name}"
        if parameter.min is not None and parameter.max is not None and parameter.min > parameter.max:
            raise InvalidInput.at(field, f"has min {plain(parameter.min)} above max {plain(parameter.max)}")
        if parameter.fixed and parameter.default is None:
            raise InvalidInput.at(field, "is fixed and so needs a default")
        if parameter.default is not None:
            _check_bounds(field, parameter, parameter.default)


def resolve(parameters: Mapping[str, Parameter], given: Mapping[str, Value]) -> dict[str, Value]:
    """Return every declared parameter with the value given, or else its default.

    Raises InvalidInput that names the field, the bound and the value, for the first that is wrong:
    unknown, out of bounds, of another type, or changed although fixed.
    """
    for name, value in given.items():
        parameter = parameters.get(name)
        if parameter is None:
            known = ", ".join(sorted(parameters)) or "none"
            raise InvalidInput.at(name, f"is not a parameter of this version (it has: {known})")
        if value is not None:
            _check_value(name, parameter, value)
    merged = {name: parameter.default for name, parameter in parameters.items()}
    merged.update({name: value for name, value in given.items() if value is not None})
    return merged


def _check_value(name: str, parameter: Parameter, value: Value) -> None:
    if parameter.fixed and (
        value != parameter.default or isinstance(value, bool) != isinstance(parameter.default, bool)
    ):
        raise InvalidInput.at(name, f"is fixed at {parameter.default!r} and cannot be {value!r}")
    expected = parameter.default
    if isinstance(expected, bool) and not isinstance(value, bool):
        raise InvalidInput.at(name, f"must be true or false, not {value!r}")
    if isinstance(expected, int) and not isinstance(expected, bool):
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole:
            raise InvalidInput.at(name, f"must be a whole number, not {value!r}")
    if isinstance(expected, float) and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InvalidInput.at(name, f"must be a number, not {value!r}")
    if isinstance(expected, str) and not isinstance(value, str):
        raise InvalidInput.at(name, f"must be a text, not {value!r}")
    _check_bounds(name, parameter, value)


def _check_bounds(name: str, parameter: Parameter, value: Value) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        if (parameter.min, parameter.max, parameter.multiple_of) != (None, None, None):
            raise InvalidInput.at(name, f"has bounds, so it must be a number, not {value!r}")
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidInput.at(name, "must be a finite number")
    if parameter.min is not None and value < parameter.min:
        raise InvalidInput.at(name, f"must be at least {plain(parameter.min)}, not {value!r}")
    if parameter.max is not None and value > parameter.max:
        raise InvalidInput.at(name, f"must be at most {plain(parameter.max)}, not {value!r}")
    if parameter.multiple_of is not None and value % parameter.multiple_of:
        raise InvalidInput.at(name, f"must be a multiple of {parameter.multiple_of}, not {value!r}")
