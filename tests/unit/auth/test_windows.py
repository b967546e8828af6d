"""Counting in memory: what the library counts, one look at a time."""

import random
from types import SimpleNamespace

import limits.aio.storage.memory
import limits.aio.strategies
import pytest
from limits import RateLimitItemPerHour, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter

from serai.auth import windows
from serai.auth.windows import Windows


class Seconds:
    """A clock that is set."""

    def __init__(self) -> None:
        self.now = 1_000_000.0  # the library takes the first window of all for its own predecessor

    def __call__(self) -> float:
        return self.now


@pytest.mark.anyio
@pytest.mark.parametrize("seed", range(8))
async def test_it_decides_as_the_library(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Over random calls of three names, costs and pauses: the same is let through, the same is left."""
    chance, seconds = random.Random(seed), Seconds()
    for module in (limits.aio.storage.memory, limits.aio.strategies):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=seconds))
    ours, theirs = Windows(seconds), SlidingWindowCounterRateLimiter(MemoryStorage())
    items = (RateLimitItemPerMinute(7), RateLimitItemPerHour(40))
    refused = 0
    for _ in range(400):
        item, name, cost = chance.choice(items), chance.choice("abc"), chance.choice((1, 1, 1, 3))
        assert ours.test(item, "key", name, cost=cost) == await theirs.test(item, "key", name, cost=cost)
        passed = ours.hit(item, "key", name, cost=cost)
        assert passed == await theirs.hit(item, "key", name, cost=cost)
        refused += not passed
        stats = await theirs.get_window_stats(item, "key", name)
        assert ours.get_window_stats(item, "key", name).remaining == stats.remaining
        seconds.now += chance.choice((0.0, 0.5, 3.7, 40.0))
    assert refused > 20


def test_what_weighs_nothing_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many clients that came once do not stay in memory; those that still count do."""
    monkeypatch.setattr(windows, "_FIRST_SWEEP", 100)
    seconds = Seconds()
    counted, item = Windows(seconds), RateLimitItemPerMinute(1)
    for number in range(1000):
        seconds.now += 60
        counted.hit(item, f"{number}")
    assert len(counted._windows) <= 110
    assert not counted.test(item, "999")
