"""A timer by a clock that may be one of a test."""

import asyncio
import math
from collections.abc import Callable
from typing import Final

from serai.clock import Clock

SHORTEST_S: Final = 0.001
"""What rings too early, because two clocks differ, is set again; not so soon that it would never rest."""


class Alarm:
    """Calls `ring` on the event loop when the clock says that it is time. One time is set at a time."""

    def __init__(self, clock: Clock, ring: Callable[[], None]) -> None:
        self._clock = clock
        self._ring = ring
        self._timer: asyncio.TimerHandle | None = None

    def set(self, due: float) -> None:
        """Ring at `due` on the stopwatch, and no longer when it was set for before; infinity for never."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due < math.inf:
            delay = max(due - self._clock.monotonic(), SHORTEST_S)
            self._timer = asyncio.get_running_loop().call_later(delay, self._ring)
