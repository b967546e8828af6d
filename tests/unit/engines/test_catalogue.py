"""The catalogue: every engine is complete, its options are typed, and what is missing is said."""

import importlib
from typing import Any

import msgspec
import pytest

from serai.engines.catalogue import CATALOGUE, check_options, engine_named
from serai.engines.errors import EngineUnknown
from serai.engines.options import FakeOptions, Options
from serai.engines.tasks import AnyTask
from serai.errors import InvalidInput

TAGS = {str(task.__struct_config__.tag) for task in AnyTask.__args__}
REMOTE = {"remote", "http"}


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_entries_are_complete(name: str) -> None:
    """Each runs known tasks, says what it needs and how to get it, and has options with defaults that refuse others."""
    engine = CATALOGUE[name]
    assert engine.name == name
    assert engine.tasks <= TAGS
    assert engine.tasks or name == "reservation"
    assert engine.summary.endswith(".")
    assert bool(engine.packages) == bool(engine.remedy)
    assert issubclass(engine.options, Options)
    assert engine.options.__struct_config__.forbid_unknown_fields
    assert msgspec.to_builtins(engine.options()) == {}
    assert bool(engine.target) == (name not in REMOTE)
    assert (engine.device_kinds == ("remote",)) == (name in REMOTE)


@pytest.mark.parametrize("name", ["fake", "openvino"])
def test_targets_lead_to_engines(name: str) -> None:
    """The target can be imported and has what the protocol asks for."""
    module, _, attribute = CATALOGUE[name].target.partition(":")
    engine = getattr(importlib.import_module(module), attribute)()
    for method in ("load", "start", "step", "feed", "cancel", "close"):
        assert callable(getattr(engine, method))


def test_engines_are_found_by_name() -> None:
    """An unknown name is refused with those that there are."""
    assert engine_named("fake").name == "fake"
    with pytest.raises(EngineUnknown) as refused:
        engine_named("torchy")
    assert refused.value.hint is not None
    assert "openvino-genai" in refused.value.hint


@pytest.mark.parametrize("options", [{"byte": 1}, {"bytes": "many"}, {"max_runs": 0}, {"fail": "maybe"}])
def test_wrong_options_are_named(options: dict[str, Any]) -> None:
    """A misspelt name, a wrong type and a value out of bounds are refused; the hint lists what there is."""
    with pytest.raises(InvalidInput) as refused:
        check_options("fake", options)
    assert next(iter(options)) in refused.value.message
    assert refused.value.hint is not None
    assert "max_runs" in refused.value.hint


def test_right_options_become_typed() -> None:
    """What was left out has its default."""
    assert check_options("fake", {"max_runs": 2}) == FakeOptions(max_runs=2)
