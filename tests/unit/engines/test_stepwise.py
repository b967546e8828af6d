"""Runs that take turns: one step each, alone in their failures, gone when they are cancelled."""

from collections.abc import Iterator

import pytest

from serai.engines.base import Run
from serai.engines.stepwise import Stepwise, Turns
from serai.engines.tasks import Generate
from serai.errors import InvalidInput
from serai.events import Done, Event, Failed, Text


class Counting(Stepwise):
    """Counts to the number that is its prompt; 'refuse', 'fail', 'break' and 'end' do as they say."""

    def __init__(self) -> None:
        super().__init__()
        self.held: set[int] = set()

    def begin(self, run: Run) -> Turns:
        assert isinstance(run.task, Generate)
        if run.task.prompt == "refuse":
            raise InvalidInput("refused")
        return self._count(run.id, run.task.prompt)

    def _count(self, run: int, word: str) -> Iterator[Event | None]:
        self.held.add(run)
        try:
            match word:
                case "fail":
                    raise InvalidInput("failed")
                case "break":
                    raise ValueError("broken")
                case "end":
                    return
            for number in range(int(word)):
                yield None if number % 2 else Text(delta=str(number))
            yield Done(result={})
        finally:
            self.held.discard(run)


def run(number: int, word: str) -> Run:
    return Run(id=number, task=Generate(prompt=word))


def steps(engine: Stepwise, most: int = 100) -> list[tuple[int, Event]]:
    """Return the events of so many steps."""
    return [event for _ in range(most) for event in engine.step()]


def test_a_late_run_gets_every_second_step() -> None:
    """A run that starts while another goes on gets its turns from then on."""
    engine = Counting()
    engine.start(run(1, "9"))
    steps(engine, 2)
    engine.start(run(2, "9"))
    told = [number for number, _ in steps(engine, 8)]
    assert told.count(1) == told.count(2) == 2


def test_order_is_round_robin() -> None:
    """Steps go round: 1, 2, 3, 1, 2, 3."""
    engine = Counting()
    for number in (1, 2, 3):
        engine.start(run(number, "1"))
    assert [number for number, _ in steps(engine, 6)] == [1, 2, 3, 1, 2, 3]
    assert engine.step() == ()


def test_a_failure_ends_one_run_alone() -> None:
    """An error of ours out of a run is its `Failed`; the other run goes on."""
    engine = Counting()
    engine.start(run(1, "fail"))
    engine.start(run(2, "1"))
    events = steps(engine)
    assert events[0] == (1, Failed(code="INVALID_INPUT", message="failed"))
    assert events[-1] == (2, Done(result={}))


def test_a_defect_is_not_swallowed() -> None:
    """Anything else, and a run that ends without `Done`, comes out of `step`."""
    for word, expected in (("break", ValueError), ("end", RuntimeError)):
        engine = Counting()
        engine.start(run(1, word))
        with pytest.raises(expected):
            engine.step()


def test_a_refused_run_is_not_there() -> None:
    """What `begin` refuses is no run: nothing is left of it."""
    engine = Counting()
    with pytest.raises(InvalidInput):
        engine.start(run(1, "refuse"))
    assert engine.step() == ()
    engine.cancel(1)


def test_cancelling_frees_at_once() -> None:
    """A cancelled run gives back what it holds before anything else happens, and says no more."""
    engine = Counting()
    engine.start(run(1, "9"))
    engine.start(run(2, "9"))
    steps(engine, 2)
    assert engine.held == {1, 2}
    engine.cancel(1)
    engine.cancel(1)
    assert engine.held == {2}
    assert {number for number, _ in steps(engine)} == {2}
    engine.close()


def test_closing_frees_every_run() -> None:
    """What is still running holds nothing after `close`."""
    engine = Counting()
    for number in (1, 2):
        engine.start(run(number, "9"))
    steps(engine, 2)
    engine.close()
    assert not engine.held
    assert engine.step() == ()


def test_messages_are_refused() -> None:
    """An engine that takes no messages says so."""
    engine = Counting()
    engine.start(run(1, "9"))
    with pytest.raises(InvalidInput):
        engine.feed(1, {"text": "x"})
