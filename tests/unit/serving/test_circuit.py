"""Circuits open after failures in a row, let one trial through, and close on success."""

import pytest

from serai.registry.failure import Failure
from serai.serving.circuit import COUNTED, Bounds, Circuits

KEY = ("m", "1.0.0")
BOUNDS = Bounds(failures=3, first_s=5, longest_s=15)


def failed(times: int, failure: Failure = Failure.CRASH, *, now: float = 0.0) -> Circuits:
    circuits = Circuits(BOUNDS)
    for _ in range(times):
        assert circuits.begin(KEY, now)
        circuits.on_failure(KEY, failure, now)
    return circuits


@pytest.mark.parametrize("failure", sorted(COUNTED))
def test_it_opens_after_failures_in_a_row(failure: Failure) -> None:
    """Not before, and for the time that is told."""
    assert failed(2, failure).blocked(0.0) == {}
    assert failed(3, failure).blocked(1.0)[KEY].remaining(1.0) == 4.0
    assert len(failed(3, failure)) == 1


@pytest.mark.parametrize("failure", sorted(set(Failure) - COUNTED))
def test_what_says_nothing_of_the_candidate_is_not_counted(failure: Failure) -> None:
    """Loads have a cooldown of their own; mistakes and departures are the caller's."""
    assert failed(10, failure).blocked(0.0) == {}


def test_a_success_between_begins_the_count_anew() -> None:
    """Only failures in a row count."""
    circuits = failed(2)
    circuits.on_success(KEY)
    circuits.on_failure(KEY, Failure.CRASH, 0.0)
    assert circuits.blocked(0.0) == {}


def test_one_request_tries_when_the_time_is_over() -> None:
    """Others are kept away until it has ended."""
    circuits = failed(3)
    assert not circuits.begin(KEY, 4.9)
    assert circuits.begin(KEY, 5.0)
    assert not circuits.begin(KEY, 5.0)
    assert KEY in circuits.blocked(1000.0)
    circuits.on_success(KEY)
    assert circuits.begin(KEY, 1000.0)
    assert len(circuits) == 0


def test_a_failed_trial_opens_it_for_longer_up_to_a_bound() -> None:
    """5, 10, 15, 15 seconds."""
    circuits, now = failed(3), 0.0
    for expected in (5.0, 10.0, 15.0, 15.0):
        (cooldown,) = circuits.blocked(now).values()
        assert cooldown.seconds == expected
        now += expected
        assert circuits.begin(KEY, now)
        circuits.on_failure(KEY, Failure.TIMEOUT, now)


@pytest.mark.parametrize("end", ["abandoned", "client's mistake"])
def test_a_trial_without_a_verdict_lets_the_next_one_try(end: str) -> None:
    """A client that leaves, or that sent nonsense, proves nothing."""
    circuits = failed(3)
    assert circuits.begin(KEY, 6.0)
    if end == "abandoned":
        circuits.on_abandoned(KEY)
    else:
        circuits.on_failure(KEY, Failure.CLIENT_ERROR, 6.0)
    assert circuits.begin(KEY, 6.0)
    assert not circuits.begin(KEY, 6.0)


def test_failures_of_those_who_began_before_it_opened_change_nothing() -> None:
    """A crowd that fails together opens it once, not for ever longer."""
    circuits = failed(3)
    for _ in range(20):
        circuits.on_failure(KEY, Failure.CRASH, 1.0)
    assert circuits.blocked(0.0)[KEY].seconds == 5.0
    assert circuits.begin(KEY, 5.0)


def test_an_admin_clears_it() -> None:
    """At once, and the count begins anew."""
    circuits = failed(3)
    circuits.clear(KEY)
    assert circuits.begin(KEY, 0.0)
    circuits.on_failure(KEY, Failure.CRASH, 0.0)
    assert circuits.blocked(0.0) == {}
