"""Where a pull stands, as its events tell it: a stage, and one fraction over all stages that only grows."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from serai.events import Progress
from serai.hub.meter import Meter
from serai.pulls.model import Stage

T = TypeVar("T")

TICK_S = 1.0
"""An event comes at least so often."""

SPANS: dict[bool, dict[Stage, tuple[float, float]]] = {
    True: {
        "resolve": (0.0, 0.0),
        "download": (0.0, 0.6),
        "verify": (0.6, 0.65),
        "convert": (0.65, 0.95),
        "register": (0.95, 0.98),
        "load": (0.98, 1.0),
    },
    False: {
        "resolve": (0.0, 0.0),
        "download": (0.0, 0.95),
        "verify": (0.95, 0.97),
        "convert": (0.97, 0.97),
        "register": (0.97, 0.98),
        "load": (0.98, 1.0),
    },
}
"""From and to, of the whole, by whether there is a conversion. A guess: its part differs by model and machine."""


class Course:
    """Mutable: the work says where it is, the runner tells it."""

    def __init__(self) -> None:
        self.stage: Stage = "resolve"
        self.converts = False
        self.meter: Meter | None = None
        """Of the download, from when it is known what there is to fetch."""
        self.changed = asyncio.Event()
        """Set when there is something to tell before the next tick."""
        self._part = 0.0
        self._told = 0.0

    def enter(self, stage: Stage) -> None:
        self.stage = stage
        self._part = 0.0
        self.changed.set()

    def report(self, fraction: float) -> None:
        """Take how far the stage is."""
        self._part = max(self._part, min(1.0, fraction))

    def event(self) -> Progress:
        """Return the event for now."""
        figures = self.meter.figures() if self.meter is not None else None
        if figures is not None and self.stage == "download":
            self.report(figures.fraction)
        start, stop = SPANS[self.converts][self.stage]
        self._told = max(self._told, start + (stop - start) * self._part)
        return Progress(
            stage=self.stage,
            fraction=round(self._told, 4),
            done=figures.downloaded_bytes if figures is not None else None,
            total=figures.total_bytes if figures is not None else None,
            unit="bytes" if figures is not None else None,
            detail=figures.detail() if figures is not None else None,
        )

    def last_event(self) -> Progress:
        """Return the event of the end: everything is done."""
        self.report(1.0)
        self._told = 1.0
        return self.event()


class Work(Generic[T]):
    """A coroutine that runs while somebody tells how far it is; it is cancelled, and waited for, with the block."""

    def __init__(self, work: Coroutine[Any, Any, T], course: Course) -> None:
        self._task = asyncio.ensure_future(work)
        self._changed = course.changed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task})

    async def goes_on(self) -> bool:
        """Wait for its end, or for something to tell: a new stage, or the tick. Says whether it still runs."""
        change = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait({self._task, change}, timeout=TICK_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            change.cancel()
            self._changed.clear()
        return not self._task.done()

    @property
    def result(self) -> T:
        """Return what it came to, or raise what it raised."""
        return self._task.result()
