"""Events between the task that makes an answer and the one that reads it."""

import asyncio
from collections import deque
from typing import Final

from serai.events import Event, Media, Text

BOUND_BYTES: Final = 4 * 2**20
_EVENT_BYTES: Final = 256


class Channel:
    """One writer, one reader. The reader never waits for what is here; the writer waits where too much is."""

    def __init__(self, bound: int = BOUND_BYTES) -> None:
        self._bound = bound
        self._events: deque[Event] = deque()
        self._held = 0
        self._is_closed = False
        self._arrived = asyncio.Event()
        self._has_room = asyncio.Event()
        self._has_room.set()

    def put(self, event: Event) -> None:
        """Add an event; after `close` it is dropped."""
        if self._is_closed:
            return
        self._events.append(event)
        self._held += _size(event)
        self._arrived.set()
        if self._held > self._bound:
            self._has_room.clear()

    @property
    def is_full(self) -> bool:
        return self._held > self._bound

    async def room(self) -> None:
        """Return when the reader has not fallen behind."""
        await self._has_room.wait()

    def close(self) -> None:
        """Nothing follows any more; what is here can still be read."""
        self._is_closed = True
        self._arrived.set()

    def forget(self) -> None:
        """Drop what was not read."""
        self.ready()

    async def get(self) -> Event | None:
        """Return the next event, waiting for it; None at the end."""
        while not self._events:
            if self._is_closed:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        self._read(_size(event))
        return event

    def ready(self) -> list[Event]:
        """Return the events that are here already."""
        events = [*self._events]
        self._events.clear()
        self._read(self._held)
        return events

    def _read(self, size: int) -> None:
        self._held -= size
        if self._held <= self._bound:
            self._has_room.set()


def _size(event: Event) -> int:
    """Return about how many bytes an event holds."""
    if isinstance(event, Media):
        return _EVENT_BYTES + len(event.data)
    return _EVENT_BYTES + (len(event.delta) if isinstance(event, Text) else 0)
