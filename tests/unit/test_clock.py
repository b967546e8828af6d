"""Clocks: the calendar may jump, the stopwatch may not."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai.clock import ManualClock, SystemClock

START = datetime(2026, 1, 1, tzinfo=UTC)
seconds = st.floats(0, 10**8, allow_nan=False)


def test_the_systems_clock_speaks_utc_and_never_goes_back() -> None:
    """`now` is timezone-aware in UTC; a thousand readings of the stopwatch are in order."""
    clock = SystemClock()
    assert clock.now().tzinfo is UTC
    readings = [clock.monotonic() for _ in range(1000)]
    assert readings == sorted(readings)


def test_a_manual_clock_stands_still() -> None:
    """Nothing moves it but its owner."""
    clock = ManualClock()
    assert [clock.now() for _ in range(3)] == [START] * 3
    assert [clock.monotonic() for _ in range(3)] == [0.0] * 3


def test_a_manual_clock_starts_where_it_is_told() -> None:
    """The start is the first reading."""
    start = datetime(2030, 5, 6, 7, 8, 9, tzinfo=UTC)
    assert ManualClock(start).now() == start


@given(st.lists(seconds, max_size=5))
def test_time_that_passes_passes_on_both(steps: list[float]) -> None:
    """`advance` moves calendar and stopwatch alike."""
    clock = ManualClock()
    for step in steps:
        clock.advance(step)
    assert clock.monotonic() == pytest.approx(sum(steps))
    assert clock.now() - START == pytest.approx(timedelta(seconds=sum(steps)), abs=timedelta(microseconds=10))


@given(st.floats(-(10**8), 10**8, allow_nan=False))
def test_a_jump_moves_the_calendar_alone(step: float) -> None:
    """As NTP does: in either direction, and the stopwatch does not notice."""
    clock = ManualClock()
    clock.advance(5)
    clock.jump(step)
    assert clock.monotonic() == 5
    assert clock.now() == START + timedelta(seconds=5) + timedelta(seconds=step)


def test_a_stopwatch_cannot_run_backwards() -> None:
    """A negative advance is refused and changes nothing."""
    clock = ManualClock()
    with pytest.raises(ValueError, match="backwards"):
        clock.advance(-0.001)
    assert (clock.now(), clock.monotonic()) == (START, 0.0)
