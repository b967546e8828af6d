"""Every field has bounds, and a refusal names the field, the bound and the value."""

from typing import Any

import msgspec
import pytest

from serai.chat.sampling import BOUNDS, checked, for_version, grammar_of, needs_of, stops
from serai.engines.tasks import Grammar, Sampling
from serai.errors import InvalidInput
from serai.registry.parameters import Parameter

WRONG = {
    "temperature": [-0.1, 2.1, float("nan"), "1", True],
    "top_p": [0, 1.1, -1],
    "top_k": [-1, 1.5, 10**7],
    "min_p": [-0.1, 1.1],
    "repetition_penalty": [0, 11],
    "presence_penalty": [-2.1, 2.1],
    "frequency_penalty": [-2.1, 2.1],
    "max_tokens": [0, -1, 2**30, 1.5],
    "n": [0, 17],
    "seed": [2**63, 0.5],
    "logprobs": [-1, 21],
}


@pytest.mark.parametrize(("field", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_out_of_bounds_is_refused(field: str, value: Any) -> None:
    """With the name that the dialect gives to the field."""
    with pytest.raises(InvalidInput, match=f"^their_{field}: must be"):
        checked({field: value}, {field: f"their_{field}"})


def test_every_field_with_bounds_is_one_of_sampling() -> None:
    """And every number of sampling has bounds."""
    assert set(BOUNDS) == set(Sampling.__struct_fields__) - {"stop", "logit_bias", "grammar"}


def test_what_is_given_comes_out_typed() -> None:
    """Whole numbers as int, others as float, nothing that was not given."""
    given = {"temperature": 1, "top_k": 5, "stop": "x", "logit_bias": {"3": -1}, "seed": -1, "min_p": None}
    found = checked(given)
    assert found == {"temperature": 1.0, "top_k": 5, "stop": ("x",), "logit_bias": {3: -1.0}, "seed": 2**63 - 1}
    assert isinstance(found["temperature"], float)
    assert Sampling(**found).top_k == 5


@pytest.mark.parametrize("value", [[""], ["a"] * 17, ["x" * 501], 5, [5]])
def test_wrong_stops_are_refused(value: Any) -> None:
    """Empty ones, long ones, too many."""
    with pytest.raises(InvalidInput, match="stop"):
        stops(value)


@pytest.mark.parametrize("value", [{"a": 1}, {"1": 101}, {"1": "x"}, [1], dict.fromkeys(map(str, range(1025)), 1)])
def test_wrong_biases_are_refused(value: Any) -> None:
    """Tokens are numbers, biases from −100 to 100, at most 1024 of them."""
    with pytest.raises(InvalidInput, match="logit_bias"):
        checked({"logit_bias": value})


def test_a_version_fills_what_the_caller_leaves_out() -> None:
    """The caller goes first, then the version, then the dialect; the version's bounds hold."""
    parameters = {
        "temperature": Parameter(default=0.6, min=0, max=1),
        "top_k": Parameter(default=20),
        "style": Parameter(default="x"),
    }
    dialect = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
    assert for_version(parameters, {"top_k": 3, "seed": 1}, dialect) == Sampling(
        temperature=0.6, top_k=3, top_p=0.9, seed=1
    )
    with pytest.raises(InvalidInput, match="at most 1"):
        for_version(parameters, {"temperature": 1.5}, {})


def test_a_response_format_becomes_a_grammar() -> None:
    """JSON of any kind, or of a schema; plain text is none."""
    assert grammar_of(None) is None
    assert grammar_of({"type": "text"}) is None
    assert grammar_of({"type": "json_object"}) == Grammar(kind="json_schema", value='{"type":"object"}')
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    for form in ({"json_schema": {"name": "x", "schema": schema}}, {"schema": schema}):
        grammar = grammar_of({"type": "json_schema", **form})
        assert grammar is not None
        assert msgspec.json.decode(grammar.value) == schema
    for wrong in ({"type": "xml"}, {}, "json", {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}}):
        with pytest.raises(InvalidInput, match="response_format"):
            grammar_of(wrong)


def test_what_not_every_engine_can_do_is_known_by_field() -> None:
    """Each need with the name that the dialect gives to the field."""
    sampling = Sampling(n=2, logprobs=3, logit_bias={1: 1.0}, grammar=grammar_of({"type": "json_object"}))
    needs = {need.capability: need.field for need in needs_of(sampling, {"response_format": "format"})}
    assert needs == {
        "n": "n",
        "logprobs": "logprobs",
        "top_logprobs": "top_logprobs",
        "logit_bias": "logit_bias",
        "grammar": "format",
    }
    assert needs_of(Sampling(logprobs=0)) == needs_of(Sampling(logprobs=0, temperature=2))
    assert needs_of(Sampling()) == ()


def test_a_default_of_zero_makes_no_whole_number_of_a_temperature() -> None:
    """JSON and TOML write 0 for 0.0; what the field is says which numbers it takes."""
    declared = {"temperature": Parameter(default=0, min=0, max=2), "top_k": Parameter(default=40)}
    assert for_version(declared, {"temperature": 0.7}, {}).temperature == 0.7
    assert for_version(declared, {}, {}) == Sampling(temperature=0.0, top_k=40)
    with pytest.raises(InvalidInput):
        for_version(declared, {"top_k": 1.5}, {})
