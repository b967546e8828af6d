"""How many calls go on at once: of one service (its revision's limits), or to one server elsewhere.

First come, first served. A place that is given up goes to the first who waits. Used on one event loop.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final, Self

from serai.events import Queued
from serai.serving.errors import ServiceQueueFull

Watch = Callable[[Queued], None]

RETRY_AFTER_S: Final = 1.0
"""When a place may be free again; how long answers take is known to nobody here."""


class Turn:
    """One call's place, or its turn to get one; whoever draws it gives it back with `release`, once or more often."""

    def __init__(self, gate: "Gate", name: str) -> None:
        self._gate = gate
        self._name = name
        self._admitted = asyncio.Event()
        self._is_released = False
        self._watch: Watch | None = None
        self._told = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    async def wait(self, watch: Watch) -> None:
        """Return with a place; `watch` is told the position when it changes. Cancelled, the turn is kept."""
        self._watch = watch
        if not self._admitted.is_set():
            self.tell(self._gate.position(self._name, self))
            await self._admitted.wait()

    def release(self) -> None:
        """Give the place, or the turn, to the next."""
        if not self._is_released:
            self._is_released = True
            self._gate.leave(self._name, self)

    # The gate's side

    @property
    def is_admitted(self) -> bool:
        return self._admitted.is_set()

    def admit(self) -> None:
        self._admitted.set()

    def tell(self, position: int) -> None:
        if self._watch is not None and position != self._told:
            self._told = position
            self._watch(Queued(position=position))


class _Line:
    """Who is in, and who waits, under one name."""

    def __init__(self) -> None:
        self.concurrency: int | None = None
        self.inside = 0
        self.waiting: deque[Turn] = deque()

    @property
    def is_full(self) -> bool:
        return self.concurrency is not None and self.inside >= self.concurrency

    def advance(self) -> None:
        """Let in who may come, and tell the others how far they are."""
        before = len(self.waiting)
        while self.waiting and not self.is_full:
            self.inside += 1
            self.waiting.popleft().admit()
        if len(self.waiting) != before:
            self.tell()

    def tell(self) -> None:
        for number, turn in enumerate(self.waiting, start=1):
            turn.tell(number)


class Gate:
    """The lines, by name."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}

    def draw(self, name: str, concurrency: int | None, queue_length: int | None = None) -> Turn:
        """Return a turn, which counts from now on. `concurrency` holds for the line from now on; None: no bound.

        Raises ServiceQueueFull where all places are taken and `queue_length` calls wait.
        """
        line = self._lines.setdefault(name, _Line())
        line.concurrency = concurrency
        line.advance()
        if line.is_full and queue_length is not None and len(line.waiting) >= queue_length:
            message = f"{name} answers {concurrency} calls at once, and {queue_length} wait already."
            raise ServiceQueueFull(message, retry_after=RETRY_AFTER_S)
        turn = Turn(self, name)
        line.waiting.append(turn)
        line.advance()
        return turn

    def position(self, name: str, turn: Turn) -> int:
        """Return the place in the line, 1 is next."""
        return self._lines[name].waiting.index(turn) + 1

    def leave(self, name: str, turn: Turn) -> None:
        """Take back what was drawn."""
        line = self._lines[name]
        if turn.is_admitted:
            line.inside -= 1
            line.advance()
        else:
            line.waiting.remove(turn)
            line.tell()
        if not line.inside and not line.waiting:
            del self._lines[name]
