"""The door to memory: what a caller claims, the lease that it gets, and the stream of one run."""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from serai.engines.base import AdapterUse, EngineSpec
from serai.engines.tasks import AnyTask
from serai.errors import SeraiError
from serai.events import Done, Event, Failed, Media, Text
from serai.runtime.errors import SlowConsumer
from serai.runtime.model import UnitSpec

EVENT_BYTES: Final = 256
"""What an event takes in memory besides its text or data, roughly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One model of a lease."""

    unit: UnitSpec
    """What the scheduler reserves."""
    engine: EngineSpec
    """What the worker loads; `device` and `memory_bytes` are filled in at the load."""


class Seat(Protocol):
    """Where a run goes on: a worker, as a stream and a lease see it."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What the engine told of itself when it was loaded."""

    def run(self, task: AnyTask, adapters: Sequence[AdapterUse]) -> "Stream":
        """Start a run; on a worker that is gone the stream raises what it died of."""

    def feed(self, run: int, message: Mapping[str, Any]) -> None:
        """Hand a message to a run that goes on."""

    def cancel(self, run: int) -> None:
        """End a run: nothing more of it arrives, and a new one may be started at once."""


class Stream:
    """The events of one run, for one reader; the last one is `Done` or `Failed`, then the iteration ends.

    A worker that is lost raises what it died of instead: `WorkerCrashed`, `OutOfMemory`, `WorkerHung`,
    `ModelUnloaded`. What was read late is held here, up to a bound: a reader that has fallen further
    behind finds what was held, then `Failed` with the code of `SlowConsumer`; its run is cancelled.
    """

    def __init__(self, run: int, seat: Seat, *, bound: int) -> None:
        self._run = run
        self._seat = seat
        self._bound = bound
        self._events: deque[Event] = deque()
        self._held = 0
        self._error: SeraiError | None = None
        self._is_over = False
        self._arrived: asyncio.Future[None] | None = None

    def __aiter__(self) -> "Stream":
        return self

    async def __anext__(self) -> Event:
        while not self._events:
            if self._error is not None:
                raise self._error.with_traceback(None)  # it may be raised to others, too
            if self._is_over:
                raise StopAsyncIteration
            self._arrived = asyncio.get_running_loop().create_future()
            try:
                await self._arrived
            finally:
                self._arrived = None
        event = self._events.popleft()
        self._held -= _size(event)
        return event

    @property
    def is_over(self) -> bool:
        """Whether the run has ended; events of it may still be here."""
        return self._is_over

    def ready(self) -> list[Event]:
        """Return the further events that are here already, without waiting; there may be none."""
        events = [*self._events]
        self._events.clear()
        self._held = 0
        return events

    def feed(self, message: Mapping[str, Any]) -> None:
        """Hand a message to the run; one that is over takes no notice. What it refuses ends it with `Failed`.

        Raises TooLarge for a message that is too large to be sent.
        """
        if not self._is_over:
            self._seat.feed(self._run, message)

    async def aclose(self) -> None:
        """Cancel the run if it is not over, and forget what was not read. May be repeated."""
        self.close()

    def close(self) -> None:
        """Do as `aclose` does, at once."""
        self._events.clear()
        self._held = 0
        if not self._is_over:
            self._seat.cancel(self._run)
            self._end()

    # The worker's side

    def put(self, event: Event) -> None:
        """Take the next event of the run."""
        if self._is_over:
            return
        is_last = isinstance(event, Done | Failed)
        if self._held > self._bound and not is_last:
            self._seat.cancel(self._run)
            event = Failed.of(SlowConsumer("The answer was not read as fast as it was made."))
            is_last = True
        self._events.append(event)
        self._held += _size(event)
        self._is_over = is_last
        self._wake()

    def fail(self, error: SeraiError) -> None:
        """End the run: its worker is gone. What arrived before can still be read."""
        if not self._is_over:
            self._error = error
            self._end()

    def _end(self) -> None:
        self._is_over = True
        self._wake()

    def _wake(self) -> None:
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)


def _size(event: Event) -> int:
    """Return about how many bytes an event holds; results are final, so what they hold need not be bounded."""
    if isinstance(event, Text):
        extra = len(event.logprobs) * EVENT_BYTES if isinstance(event.logprobs, list) else 0
        return EVENT_BYTES + len(event.delta) + extra
    return EVENT_BYTES + (len(event.data) if isinstance(event, Media) else 0)


class Lease:
    """The right to use a set of loaded models, inside the block that it was given for."""

    def __init__(self, seats: Sequence[Seat], devices: Sequence[str]) -> None:
        self._seats = seats
        self._streams: dict[int, Stream] = {}
        self._is_over = False
        self.devices: tuple[str, ...] = tuple(devices)
        """Where each claim's unit is, in the order of the claims."""

    @property
    def facts(self) -> tuple[Mapping[str, Any], ...]:
        """What each engine told of itself (`Footprint.facts`), in the order of the claims."""
        return tuple(seat.facts for seat in self._seats)

    def run(self, task: AnyTask, *, adapters: Sequence[AdapterUse] = (), unit: int = 0) -> Stream:
        """Start a task on the claim number `unit`; at most one at a time on each.

        Raises TooLarge for a task that is too large to be sent, RuntimeError outside of the lease's block or
        while an earlier run on that unit goes on.
        """
        if self._is_over:
            raise RuntimeError("a lease is used inside its block")
        before = self._streams.get(unit)
        if before is not None and not before.is_over:
            raise RuntimeError("one run at a time: read the last one to its end, or close it")
        self._streams[unit] = self._seats[unit].run(task, adapters)
        return self._streams[unit]

    def lose(self, unit: int, error: SeraiError) -> None:
        """Let the run on a unit fail that is no longer there for it."""
        if unit in self._streams:
            self._streams[unit].fail(error)

    def end(self) -> None:
        """Cancel what still runs; the lease cannot be used any more."""
        self._is_over = True
        for stream in self._streams.values():
            stream.close()
