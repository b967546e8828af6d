"""Places and turns: never more inside than may be, first come first served, nothing lost."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.events import Queued
from serai.serving.admission import Gate, Turn
from serai.serving.errors import ServiceQueueFull

pytestmark = pytest.mark.anyio


async def test_positions_are_told_when_they_change() -> None:
    """Each who waits hears where it stands, and then comes in, in order."""
    gate = Gate()
    inside = gate.draw("s", 1)
    waiting = [gate.draw("s", 1) for _ in range(3)]
    told: list[list[Queued]] = [[], [], []]
    tasks = [asyncio.create_task(turn.wait(heard.append)) for turn, heard in zip(waiting, told, strict=True)]
    await asyncio.sleep(0)
    waiting[1].release()
    inside.release()
    await tasks[0]
    assert [[event.position for event in heard] for heard in told] == [[1], [2], [3, 2, 1]]
    waiting[0].release()
    await tasks[2]
    waiting[2].release()
    tasks[1].cancel()
    await asyncio.wait(tasks)
    assert gate._lines == {}


async def test_a_changed_bound_holds_at_once() -> None:
    """More places let those in who wait; fewer let nobody in until enough have left."""
    gate = Gate()
    first, second, third = (gate.draw("s", 1) for _ in range(3))
    assert [turn.is_admitted for turn in (first, second, third)] == [True, False, False]
    fourth = gate.draw("s", 2)
    assert [turn.is_admitted for turn in (second, third, fourth)] == [True, False, False]
    fifth = gate.draw("s", 1)
    first.release()
    assert not third.is_admitted
    second.release()
    assert third.is_admitted
    sixth = gate.draw("s", None)
    assert all(turn.is_admitted for turn in (fourth, fifth, sixth))


async def test_nobody_waits_where_nobody_may() -> None:
    """A queue of no length refuses whom there is no place for, and only them."""
    gate = Gate()
    with gate.draw("s", 1, 0):
        with pytest.raises(ServiceQueueFull):
            gate.draw("s", 1, 0)
        assert gate.draw("other", 1, 0).is_admitted
    assert gate.draw("s", 1, 0).is_admitted


@given(
    concurrency=st.integers(1, 3), queue=st.none() | st.integers(0, 3), steps=st.lists(st.integers(0, 9), max_size=60)
)
def test_never_too_many_and_nobody_forgotten(concurrency: int, queue: int | None, steps: list[int]) -> None:
    """Whatever comes and goes: the bounds hold, nobody waits while there is room, and the end is empty."""
    gate = Gate()
    turns: list[Turn] = []
    for step in steps:
        if step >= 5 and turns:
            turn = turns.pop(step % len(turns))
            turn.release()
            turn.release()
        else:
            try:
                turns.append(gate.draw("s", concurrency, queue))
            except ServiceQueueFull:
                assert queue is not None
                assert len(turns) >= concurrency + queue
        inside = [turn for turn in turns if turn.is_admitted]
        assert len(inside) == min(concurrency, len(turns))
        assert inside == turns[: len(inside)]
    for turn in turns:
        turn.release()
    assert gate._lines == {}
