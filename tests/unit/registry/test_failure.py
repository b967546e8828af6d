"""Which failures lead on, and how long a version is left alone after a failed load."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serai import errors
from serai.registry.errors import CandidateInCooldown, ModelNotPulled
from serai.registry.failure import Cooldown, Failure, Situation, failure_of, next_cooldown

KEY = ("m", "1.0.0")


@pytest.mark.parametrize(
    ("error", "failure", "final"),
    [
        (errors.InvalidInput("x"), Failure.CLIENT_ERROR, True),
        (errors.TooLarge("x"), Failure.CLIENT_ERROR, True),
        (errors.Forbidden("x"), Failure.CLIENT_ERROR, True),
        (errors.Unauthenticated("x"), Failure.CLIENT_ERROR, True),
        (errors.NotFound("x"), Failure.CLIENT_ERROR, True),
        (errors.Conflict("x"), Failure.CLIENT_ERROR, True),
        (errors.QuotaExceeded("x"), Failure.CLIENT_ERROR, True),
        (errors.Cancelled("x"), Failure.CANCELLED, True),
        (errors.DeadlineExceeded("x"), Failure.TIMEOUT, False),
        (errors.UpstreamFailed("x"), Failure.REMOTE_5XX, False),
        (errors.RateLimited("x"), Failure.REMOTE_429, False),
        (errors.Unavailable("x"), Failure.UNAVAILABLE, False),
        (ModelNotPulled("x"), Failure.UNAVAILABLE, False),
        (CandidateInCooldown("x"), Failure.COOLDOWN, False),
        (errors.InternalError("x"), Failure.LOAD_ERROR, False),
        (MemoryError(), Failure.OUT_OF_MEMORY, False),
        (OSError("x"), Failure.LOAD_ERROR, False),
    ],
)
def test_a_clients_own_error_is_final_and_ours_is_not(error: Exception, failure: Failure, final: bool) -> None:
    """Bad input, lack of rights and cancellation never fall back; load, memory, time and upstream do."""
    assert failure_of(error) is failure
    assert failure.is_final is final


def test_cooldowns_double_up_to_an_hour() -> None:
    """300 s, 600 s, 1200 s, 2400 s, then 3600 s for ever; forgetting the last starts again at 300 s."""
    seconds = []
    cooldown = None
    for _ in range(6):
        cooldown = next_cooldown(cooldown, now=10.0)
        seconds.append(cooldown.seconds)
    assert seconds == [300, 600, 1200, 2400, 3600, 3600]
    assert next_cooldown(None, now=0.0) == Cooldown(until=300.0, seconds=300.0)


def test_a_cooldown_never_blocks_a_loaded_version() -> None:
    """A version in memory answers whatever failed before (the cooldown once blocked it)."""
    cooldowns = {KEY: next_cooldown(None, now=100.0)}
    assert Situation(now=100.0, cooldowns=cooldowns).blocked_for(KEY) == 300.0
    assert Situation(now=399.0, cooldowns=cooldowns).blocked_for(KEY) == 1.0
    assert Situation(now=400.0, cooldowns=cooldowns).blocked_for(KEY) == 0.0
    assert Situation(now=100.0, cooldowns=cooldowns, loaded=frozenset({KEY})).blocked_for(KEY) == 0.0
    assert Situation(now=100.0, cooldowns=cooldowns).blocked_for(("m", "2.0.0")) == 0.0


@given(st.integers(1, 30), st.floats(0, 1e9), st.floats(0, 1e5))
def test_a_cooldown_ends_and_is_bounded(failures: int, now: float, later: float) -> None:
    """After any number of failures the wait is between 300 s and an hour, and ends when it should."""
    cooldown = None
    for _ in range(failures):
        cooldown = next_cooldown(cooldown, now)
    assert cooldown is not None
    assert 300 <= cooldown.seconds <= 3600
    assert cooldown.remaining(now + later) == max(0.0, cooldown.until - (now + later))
    assert cooldown.remaining(now + 3601) == 0
