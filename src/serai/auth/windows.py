"""Counting in memory, on the path of every request: the sliding window counter of the library limits.

What is counted in the window before weighs as much as of it still lies in the last period. The library's own
storage takes two dozen awaits and as many keys made of text for a request; here a question is a look into a
dict. Several servers count in Redis, through the library.
"""

from collections.abc import Callable
from math import floor
from typing import NamedTuple

from limits import RateLimitItem

_FIRST_SWEEP = 4096


class Stats(NamedTuple):
    """What is left now, and the seconds until more is."""

    remaining: int
    reset_s: float


class _Window:
    __slots__ = ("before", "count", "number")

    def __init__(self, number: int) -> None:
        self.number, self.count, self.before = number, 0, 0


class Windows:
    """Counts by name and period. A clock that is set back gives nobody anything: it must be a monotonic one."""

    def __init__(self, seconds: Callable[[], float]) -> None:
        self._seconds = seconds
        self._windows: dict[tuple[int, tuple[str, ...]], _Window] = {}
        self._sweep_at = _FIRST_SWEEP

    def test(self, item: RateLimitItem, *names: str, cost: int = 1) -> bool:
        """Say whether `cost` would pass; counts nothing."""
        now, period = self._seconds(), item.get_expiry()
        return item.amount - _weight(period, self._window(period, names, now), now) >= cost

    def hit(self, item: RateLimitItem, *names: str, cost: int = 1) -> bool:
        """Count `cost` if it passes, and say whether it did."""
        now, period = self._seconds(), item.get_expiry()
        window = self._window(period, names, now)
        if item.amount - _weight(period, window, now) < cost:
            return False
        window.count += cost
        return True

    def get_window_stats(self, item: RateLimitItem, *names: str) -> Stats:
        """Return what is left, and when that next grows."""
        now, period = self._seconds(), item.get_expiry()
        window = self._window(period, names, now)
        left = period - now % period
        waits = [left] if window.count else []
        if window.before:
            waits.append(left % (period / window.before))
        return Stats(max(0, item.amount - _weight(period, window, now)), min(waits, default=0.0))

    def _window(self, period: int, names: tuple[str, ...], now: float) -> _Window:
        """Return the window that is open now, with what the one before it counted."""
        number = int(now // period)
        key = (period, names)
        window = self._windows.get(key)
        if window is None:
            if len(self._windows) >= self._sweep_at:
                self._sweep(now)
            window = self._windows[key] = _Window(number)
        elif number > window.number:
            window.before = window.count if number == window.number + 1 else 0
            window.number, window.count = number, 0
        return window

    def _sweep(self, now: float) -> None:
        """Forget the windows that weigh nothing any more."""
        kept = {key: window for key, window in self._windows.items() if now // key[0] <= window.number + 1}
        self._windows = kept
        self._sweep_at = max(_FIRST_SWEEP, 2 * len(self._windows))


def _weight(period: int, window: _Window, now: float) -> int:
    if not window.before:
        return window.count
    return floor(window.before * (1 - now % period / period)) + window.count
