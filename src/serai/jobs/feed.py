"""Following a job: its stored events without a gap, wherever it runs, and its live ones where it runs here."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

from serai.events import Event, Text
from serai.jobs import store
from serai.jobs.model import TERMINAL
from serai.jobs.spool import Spool
from serai.storage.database import Database

LIVE_EVENTS = 256
"""How many live events wait for one slow follower; it then loses live ones, never stored ones or text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """One event. `seq` is the number of a stored one (the `id:` of SSE), None for a live one.

    A stored event may repeat the live one before it.
    """

    seq: int | None
    event: Event


@dataclass(slots=True, eq=False)
class _Follower:
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    live: deque[Event] = field(default_factory=lambda: deque(maxlen=LIVE_EVENTS))
    is_behind: bool = True  # stored events may be there that it has not read
    spool: Spool | None = None
    offset: int = 0


class Feed:
    """Who follows which job on this server. Used on one event loop, between `open` and `close`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._followers: dict[str, set[_Follower]] = {}
        self._spools: dict[str, Spool] = {}
        self._unsubscribe: Callable[[], None] = _nothing

    def open(self) -> None:
        """Begin to hear of stored events, of this server and of the others."""
        loop = asyncio.get_running_loop()

        def on_notice(job_id: str | None) -> None:
            loop.call_soon_threadsafe(self._on_stored, job_id)

        self._unsubscribe = self._database.notices.subscribe(store.EVENTS_TOPIC, on_notice)

    def close(self) -> None:
        """Hear no more."""
        self._unsubscribe()

    def begin(self, job_id: str, spool: Spool) -> None:
        """A run of the job starts here and streams its text into `spool`."""
        self._spools[job_id] = spool
        for follower in self._followers.get(job_id, ()):
            follower.spool, follower.offset = spool, 0

    def publish(self, job_id: str, event: Event) -> None:
        """Show a live event of the run to those who follow it now; text they take from the spool."""
        for follower in self._followers.get(job_id, ()):
            if not isinstance(event, Text):
                follower.live.append(event)
            follower.wake.set()

    def end(self, job_id: str, spool: Spool) -> None:
        """The run is over; its text can be had no longer."""
        if self._spools.get(job_id) is spool:
            del self._spools[job_id]

    async def follow(self, job_id: str, *, owner_id: str | None, after: int | None) -> AsyncGenerator[Followed, None]:
        """Yield the job's events after number `after` (None: all that are kept), then as they come, to its end.

        The last one is `Done` or `Failed`. Raises JobNotFound, EventsGone, InvalidInput. Closing it
        stops the looking, never the job.
        """
        follower = _Follower(spool=self._spools.get(job_id))
        self._followers.setdefault(job_id, set()).add(follower)
        try:
            while True:
                page = await self._read_stored(follower, job_id, owner_id, after)
                async for live in self._drain(follower):
                    yield Followed(seq=None, event=live)
                if page is None:
                    await follower.wake.wait()
                    follower.wake.clear()
                    continue
                for stored in page.events:
                    after = stored.seq
                    yield Followed(seq=stored.seq, event=stored.event)
                if (after or 0) < page.last_seq:
                    follower.is_behind = True
                elif page.status in TERMINAL:
                    return
        finally:
            self._forget(job_id, follower)

    async def _read_stored(
        self, follower: _Follower, job_id: str, owner_id: str | None, after: int | None
    ) -> store.EventPage | None:
        if not follower.is_behind:
            return None
        follower.is_behind = False
        return await self._database.read(store.events, job_id, owner_id=owner_id, after=after)

    async def _drain(self, follower: _Follower) -> AsyncGenerator[Event, None]:
        """Yield the live events that wait, and the text that was streamed meanwhile."""
        while follower.live:
            yield follower.live.popleft()
        spool = follower.spool
        while spool is not None and follower.spool is spool and follower.offset < spool.size:
            for end, event in await spool.read(follower.offset):
                if follower.spool is not spool:  # another run began: its text starts anew
                    break
                follower.offset = end
                yield event

    def _on_stored(self, job_id: str | None) -> None:
        concerned = [job_id] if job_id is not None else list(self._followers)
        for name in concerned:
            for follower in self._followers.get(name, ()):
                follower.is_behind = True
                follower.wake.set()

    def _forget(self, job_id: str, follower: _Follower) -> None:
        followers = self._followers[job_id]
        followers.discard(follower)
        if not followers:
            del self._followers[job_id]


def _nothing() -> None:
    """Stand for the subscription of a feed that is not open."""
