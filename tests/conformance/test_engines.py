"""One suite for every engine: what the runtime relies on, whatever computes.

An engine is added by a case: where its weights come from, a task that it does, and one that it refuses.
"""

import sys
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serai.engines.base import Engine, EngineSpec, Footprint, Run
from serai.engines.catalogue import CATALOGUE
from serai.engines.tasks import AnyTask, Array, Generate, Infer, Sampling
from serai.errors import InvalidInput, LoadFailed, SeraiError
from serai.events import Done, Event, Failed, from_msgpack, to_msgpack

MOST_STEPS = 100_000


def small_network(folder: Path) -> None:
    """Write a network that doubles its input of any length × 3."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import numpy as np
    import openvino as ov
    from openvino import opset13 as op

    x = op.parameter([-1, 3], np.float32, name="x")
    x.output(0).set_names({"x"})
    doubled = op.multiply(x, op.constant(np.array([2], dtype=np.float32)))
    doubled.output(0).set_names({"doubled"})
    ov.save_model(ov.Model([doubled], [x], "doubling"), folder / "net.xml", compress_to_fp16=False)


def no_weights(folder: Path) -> None:
    """Need nothing."""


def rows(count: int) -> Infer:
    numbers = array("f", [float(number) for number in range(3 * count)])
    return Infer(inputs={"x": Array(dtype="float32", shape=(count, 3), data=numbers.tobytes())})


@dataclass(frozen=True, kw_only=True)
class Case:
    engine: str
    weights: Callable[[Path], None]
    tasks: tuple[AnyTask, AnyTask]
    """Two that have different answers."""
    wrong: AnyTask
    options: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case(
        engine="fake",
        weights=no_weights,
        tasks=(Generate(prompt="one two three"), Generate(prompt="another text of five words")),
        wrong=Generate(prompt="x", sampling=Sampling(logit_bias={1: 1.0})),
    ),
    Case(
        engine="openvino",
        weights=small_network,
        tasks=(rows(1), rows(50)),
        wrong=Infer(inputs={}),
        options={"max_runs": 2},
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: case.engine)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param  # type: ignore[no-any-return]


@pytest.fixture
def spec(case: Case, tmp_path: Path) -> EngineSpec:
    case.weights(tmp_path)
    return EngineSpec(engine=case.engine, name="m@1.0.0", folder=str(tmp_path), options=case.options, threads=1)


def engine_of(case: Case) -> Engine:
    module, _, attribute = CATALOGUE[case.engine].target.partition(":")
    __import__(module)
    engine: Engine = getattr(sys.modules[module], attribute)()
    return engine


def loaded(case: Case, spec: EngineSpec) -> tuple[Engine, Footprint]:
    engine = engine_of(case)
    return engine, engine.load(spec, lambda _: None)


def finish(engine: Engine, *runs: int) -> dict[int, list[Event]]:
    """Step until these runs are over; return the events of every run."""
    told: dict[int, list[Event]] = {run: [] for run in runs}
    for _ in range(MOST_STEPS):
        for run, event in engine.step():
            told.setdefault(run, []).append(event)
        if all(events and isinstance(events[-1], Done | Failed) for events in told.values()):
            return told
    raise AssertionError("the runs do not end")


def comparable(events: list[Event]) -> list[Event]:
    """Return the events without what differs from time to time."""
    return [
        Done(result={key: value for key, value in event.result.items() if key != "timings"})
        if isinstance(event, Done)
        else event
        for event in events
    ]


def alone(case: Case, spec: EngineSpec) -> list[list[Event]]:
    """Return the events of each task, one after the other."""
    engine, _ = loaded(case, spec)
    answers = []
    for number, task in enumerate(case.tasks):
        engine.start(Run(id=number, task=task))
        answers.append(comparable(finish(engine, number)[number]))
    engine.close()
    return answers


def test_a_load_tells_how_far_it_is_and_what_it_came_to(case: Case, spec: EngineSpec) -> None:
    """Fractions rise to 1; runs at once and facts are plain values."""
    told: list[float] = []
    engine = engine_of(case)
    footprint = engine.load(spec, told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert footprint.max_runs >= 1
    msgspec.json.encode(footprint)
    engine.close()


def test_a_run_ends_once(case: Case, spec: EngineSpec) -> None:
    """Exactly one `Done`, as the last event; the same task gives the same events; idle steps tell nothing."""
    first, second = alone(case, spec), alone(case, spec)
    assert first == second
    assert first[0] != first[1]
    for events in first:
        assert [type(event) for event in events].count(Done) == 1
        assert isinstance(events[-1], Done)
    engine, _ = loaded(case, spec)
    assert list(engine.step()) == []
    engine.close()


def test_events_cross_a_process_border(case: Case, spec: EngineSpec) -> None:
    """As messages they are the same as before."""
    for events in alone(case, spec):
        for event in events:
            assert from_msgpack(to_msgpack(event)) == event


def test_runs_at_once_do_not_mix(case: Case, spec: EngineSpec) -> None:
    """As many as it takes, each with the events that it has alone."""
    expected = alone(case, spec)
    engine, footprint = loaded(case, spec)
    for number in range(footprint.max_runs):
        engine.start(Run(id=number, task=case.tasks[number % 2]))
    for number, events in finish(engine, *range(footprint.max_runs)).items():
        assert comparable(events) == expected[number % 2]
    engine.close()


def test_a_cancelled_run_is_gone(case: Case, spec: EngineSpec) -> None:
    """No more events of it, and its place is free: over and over, and also before its first step."""
    expected = alone(case, spec)
    engine, footprint = loaded(case, spec)
    for number in range(0, 20 * footprint.max_runs, footprint.max_runs):
        runs = range(number, number + footprint.max_runs)
        for run in runs:
            engine.start(Run(id=run, task=case.tasks[1]))
        if number % 2:
            engine.step()
        for run in runs:
            engine.cancel(run)
        assert list(engine.step()) == []
    engine.cancel(999_999)
    engine.start(Run(id=1_000_000, task=case.tasks[0]))
    assert comparable(finish(engine, 1_000_000)[1_000_000]) == expected[0]
    engine.close()


def test_a_wrong_task_is_refused_alone(case: Case, spec: EngineSpec) -> None:
    """The engine goes on as before."""
    engine, _ = loaded(case, spec)
    for number in range(5):
        with pytest.raises(SeraiError):
            engine.start(Run(id=number, task=case.wrong))
    engine.start(Run(id=9, task=case.tasks[0]))
    assert isinstance(finish(engine, 9)[9][-1], Done)
    engine.close()


def test_an_unknown_message_is_refused_alone(case: Case, spec: EngineSpec) -> None:
    """Feeding nonsense is the caller's mistake; the run goes on."""
    engine, _ = loaded(case, spec)
    engine.start(Run(id=1, task=case.tasks[0]))
    with pytest.raises(InvalidInput):
        engine.feed(1, {"nonsense": 1})
    assert isinstance(finish(engine, 1)[1][-1], Done)
    engine.close()


def test_unknown_options_are_refused(case: Case, spec: EngineSpec) -> None:
    """Before anything is loaded."""
    with pytest.raises(InvalidInput, match="nonsense"):
        engine_of(case).load(msgspec.structs.replace(spec, options={"nonsense": 1}), lambda _: None)


def test_missing_weights_are_said(case: Case, spec: EngineSpec, tmp_path: Path) -> None:
    """An empty folder is a failed load, without a path of this machine in its words."""
    if CATALOGUE[case.engine].formats == {"none"}:
        return
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(LoadFailed) as failed:
        engine_of(case).load(msgspec.structs.replace(spec, folder=str(empty)), lambda _: None)
    assert str(tmp_path) not in f"{failed.value} {failed.value.hint}"


def test_closing_with_runs_is_fine(case: Case, spec: EngineSpec) -> None:
    """What still runs is ended."""
    engine, _ = loaded(case, spec)
    engine.start(Run(id=1, task=case.tasks[1]))
    engine.close()
