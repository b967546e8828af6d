"""Time as a parameter: whatever needs the time is handed a `Clock`, so that tests own it."""

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Clock(Protocol):
    """Two clocks in one: the calendar (which may jump) and the stopwatch (which may not)."""

    def now(self) -> datetime:
        """Return the time of day, timezone-aware, in UTC."""
        ...

    def monotonic(self) -> float:
        """Return seconds from an arbitrary start; never goes backwards."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()


class ManualClock:
    """A clock that stands still until it is told to move."""

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._now = start
        self._elapsed = 0.0

    def now(self) -> datetime:
        return self._now

    def monotonic(self) -> float:
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Let `seconds` (≥ 0) pass on both clocks."""
        if seconds < 0:
            raise ValueError("a stopwatch cannot run backwards; use jump() for the calendar")
        self._elapsed += seconds
        self._now += timedelta(seconds=seconds)

    def jump(self, seconds: float) -> None:
        """Move the calendar alone, in either direction, as NTP or an administrator would."""
        self._now += timedelta(seconds=seconds)
