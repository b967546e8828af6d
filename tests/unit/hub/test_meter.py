"""The figures of a download."""

import pytest

from serai.clock import ManualClock
from serai.hub.meter import Meter


def test_speed_and_time_left_come_from_what_came() -> None:
    """A steady source is told with its speed, and with the seconds that are left."""
    clock = ManualClock()
    meter = Meter(1000, clock)
    for _ in range(4):
        clock.advance(1)
        meter.count("a", 100)
        figures = meter.figures()
    assert figures.downloaded_bytes == 400
    assert figures.speed == pytest.approx(100)
    assert figures.eta_s == pytest.approx(6)
    assert figures.fraction == pytest.approx(0.4)


def test_a_change_of_speed_shows_smoothly() -> None:
    """One fast second does not make the whole download fast."""
    clock = ManualClock()
    meter = Meter(10**6, clock)
    for size in (100, 100, 100, 10_000):
        clock.advance(1)
        meter.count("a", size)
        figures = meter.figures()
    assert 100 < figures.speed < 5000


def test_what_was_here_is_done_but_has_no_speed() -> None:
    """Bytes found on the disk count as done, and say nothing of the network."""
    clock = ManualClock()
    meter = Meter(1000, clock)
    meter.place("a", 900)
    clock.advance(1)
    figures = meter.figures()
    assert (figures.downloaded_bytes, figures.speed, figures.eta_s) == (900, 0.0, None)
    assert meter.left_bytes == 100


def test_a_file_that_starts_anew_does_not_turn_the_figures_back() -> None:
    """What was told stays told until the file has caught up."""
    meter = Meter(1000, ManualClock())
    meter.count("a", 500)
    assert meter.figures().downloaded_bytes == 500
    meter.place("a", 0)
    assert meter.figures().downloaded_bytes == 500
    meter.count("a", 1000)
    assert meter.figures().fraction == 1.0


def test_nothing_to_fetch_is_done() -> None:
    """An empty download is whole."""
    figures = Meter(0, ManualClock()).figures()
    assert (figures.fraction, figures.eta_s) == (1.0, 0.0)
