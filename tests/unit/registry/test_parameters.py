"""Settings are checked against a version's parameters before anything is queued."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.errors import InvalidInput
from serai.registry.parameters import Parameter, Value, check_parameters, default_steps, resolve

PARAMETERS = {
    "num_inference_steps": Parameter(default=30, min=1, max=50),
    "guidance_scale": Parameter(default=2.5, min=0, max=10),
    "true_cfg": Parameter(default=1.0, fixed=True),
    "tiling": Parameter(default=False),
    "scheduler": Parameter(default="euler"),
    "seed": Parameter(min=0, max=2**32 - 1),
    "width": Parameter(default=512, multiple_of=64),
}


def test_defaults_fill_what_was_not_given() -> None:
    """What a caller leaves out, or sends as null, has the version's default."""
    settings = resolve(PARAMETERS, {"guidance_scale": 3, "scheduler": None})
    assert settings == {
        "num_inference_steps": 30,
        "guidance_scale": 3,
        "true_cfg": 1.0,
        "tiling": False,
        "scheduler": "euler",
        "seed": None,
        "width": 512,
    }


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("num_inference_steps", 0, "at least 1"),
        ("num_inference_steps", 51, "at most 50"),
        ("num_inference_steps", 10.5, "whole number"),
        ("num_inference_steps", True, "whole number"),
        ("num_inference_steps", "10", "whole number"),
        ("guidance_scale", math.nan, "finite"),
        ("guidance_scale", math.inf, "finite"),
        ("guidance_scale", False, "number"),
        ("guidance_scale", -0.1, "at least 0"),
        ("true_cfg", 2.0, "fixed at 1.0"),
        ("true_cfg", True, "fixed at 1.0"),
        ("tiling", 1, "true or false"),
        ("scheduler", 3, "text"),
        ("seed", -1, "at least 0"),
        ("seed", "x", "number"),
        ("width", 520, "multiple of 64, not 520"),
        ("nonsense", 1, "not a parameter"),
    ],
)
def test_a_wrong_setting_names_field_bound_and_value(name: str, value: Value, told: str) -> None:
    """The refusal of a setting names the field and says what is allowed."""
    with pytest.raises(InvalidInput, match=told) as caught:
        resolve(PARAMETERS, {name: value})
    assert isinstance(caught.value.details, list)
    assert caught.value.details[0]["field"] == name


def test_a_fixed_parameter_accepts_its_own_value() -> None:
    """Sending a fixed parameter with the value it has is no error."""
    assert resolve(PARAMETERS, {"true_cfg": 1.0})["true_cfg"] == 1.0


@pytest.mark.parametrize(
    "parameter",
    [
        Parameter(min=2, max=1),
        Parameter(fixed=True),
        Parameter(default=5, max=4),
        Parameter(default="x", min=1),
        Parameter(default=20, multiple_of=16),
        Parameter(default="x", multiple_of=16),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(parameter: Parameter) -> None:
    """A version cannot declare a parameter that no value fits."""
    with pytest.raises(InvalidInput, match=r"parameters\.p"):
        check_parameters({"p": parameter})


@pytest.mark.parametrize(
    ("parameters", "steps"),
    [
        ({"num_inference_steps": Parameter(default=50)}, 50),
        ({"steps": Parameter(default=4)}, 4),
        ({"steps": Parameter(default=True)}, None),
        ({"steps": Parameter(default="many")}, None),
        ({}, None),
    ],
)
def test_default_steps(parameters: dict[str, Parameter], steps: int | None) -> None:
    """Steps are read under either name, and are absent where there are none."""
    assert default_steps(parameters) == steps


@given(
    st.dictionaries(
        st.sampled_from([*PARAMETERS, "other"]), st.none() | st.booleans() | st.integers() | st.floats() | st.text()
    )
)
def test_resolving_accepts_only_what_is_within_bounds(given_: dict[str, Value]) -> None:
    """Whatever is sent, the answer has exactly the declared names, each within its bounds, or is refused."""
    try:
        settings = resolve(PARAMETERS, given_)
    except InvalidInput:
        return
    assert settings.keys() == PARAMETERS.keys()
    for name, value in settings.items():
        low, high = PARAMETERS[name].min, PARAMETERS[name].max
        if low is not None and high is not None and value is not None:
            assert isinstance(value, int | float)
            assert low <= value <= high
