"""Following a job: its stored events without a gap, wherever it runs, and its live ones where it runs here."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable
from dataclasses import dataclass, field

from serai.events import Done, Event, Failed, Text
from serai.jobs import store
from serai.jobs.model import TERMINAL
from serai.jobs.spool import Spool
from serai.storage.database import Database

LIVE_EVENTS = 256
"""How many live events wait for one slow follower; it then loses live ones, never stored ones or text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed:
    """One event. `seq` is the number of a stored one (the `id:` of SSE), None for a live one."""

    seq: int | None
    event: Event
    was_shown: bool = False
    """It is stored by now, and came before as a live one: only its number is news."""


@dataclass(slots=True, eq=False)
class _Follower:
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    live: deque[Event] = field(default_factory=lambda: deque(maxlen=LIVE_EVENTS))
    shown: deque[Event] = field(default_factory=lambda: deque(maxlen=LIVE_EVENTS))
    """Live ones that it was given and that are not stored yet, as far as it knows."""
    is_behind: bool = True  # stored events may be there that it has not read
    spool: Spool | None = None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class _Run:
    spool: Spool
    unstored: Callable[[], Iterable[Event]]


class Feed:
    """Who follows which job on this server. Used on one event loop, between `open` and `close`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._followers: dict[str, set[_Follower]] = {}
        self._runs: dict[str, _Run] = {}
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

    def begin(self, job_id: str, spool: Spool, unstored: Callable[[], Iterable[Event]] = tuple) -> None:
        """A run of the job starts here and streams its text into `spool`; `unstored` is what it still has to store."""
        self._runs[job_id] = _Run(spool, unstored)
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
        run = self._runs.get(job_id)
        if run is not None and run.spool is spool:
            del self._runs[job_id]

    async def follow(self, job_id: str, *, owner_id: str | None, after: int | None) -> AsyncGenerator[Followed, None]:
        """Yield the job's events after number `after` (None: all that are kept), then as they come, to its end.

        The last one is `Done` or `Failed`. Raises JobNotFound, EventsGone, InvalidInput. Closing it
        stops the looking, never the job.
        """
        run = self._runs.get(job_id)
        follower = _Follower() if run is None else _Follower(spool=run.spool)
        if run is not None:
            # Some may have been shown before, to who comes back; without them what is stored later would come late.
            follower.live.extend(run.unstored())
        self._followers.setdefault(job_id, set()).add(follower)
        try:
            while True:
                page = await self._read_stored(follower, job_id, owner_id, after)
                for stored in () if page is None else page.events:
                    # What is stored and was not shown is older than what waits here, but the end is the last of all.
                    is_last = isinstance(stored.event, Done | Failed)
                    if is_last or stored.event in follower.live:
                        async for live in self._drain(follower, None if is_last else stored.event):
                            yield Followed(seq=None, event=live)
                    after = stored.seq
                    yield Followed(seq=stored.seq, event=stored.event, was_shown=_take_shown(follower, stored.event))
                if page is not None and page.status in TERMINAL and (after or 0) >= page.last_seq:
                    return
                async for live in self._drain(follower, None):
                    yield Followed(seq=None, event=live)
                if page is None:
                    await follower.wake.wait()
                    follower.wake.clear()
                elif (after or 0) < page.last_seq:
                    follower.is_behind = True
        finally:
            self._forget(job_id, follower)

    async def _read_stored(
        self, follower: _Follower, job_id: str, owner_id: str | None, after: int | None
    ) -> store.EventPage | None:
        if not follower.is_behind:
            return None
        follower.is_behind = False
        return await self._database.read(store.events, job_id, owner_id=owner_id, after=after)

    async def _drain(self, follower: _Follower, until: Event | None) -> AsyncGenerator[Event, None]:
        """Yield the live events that wait, up to `until`; without that, the text that was streamed meanwhile, too."""
        while follower.live:
            event = follower.live.popleft()
            follower.shown.append(event)
            yield event
            if event == until:
                return
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


def _take_shown(follower: _Follower, event: Event) -> bool:
    """Say whether the follower was given the event live; of those before it none will be stored any more."""
    if event not in follower.shown:
        return False
    while follower.shown.popleft() != event:
        pass
    return True


def _nothing() -> None:
    """Stand for the subscription of a feed that is not open."""
