"""One claimed job being run: its events stored and shown, its end written under the claim."""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import structlog

from serai.clock import Clock
from serai.errors import InternalError, InvalidInput, QuotaExceeded, SeraiError, Unavailable
from serai.events import Done, Event, Failed, Final, Text
from serai.jobs import store
from serai.jobs.feed import Feed
from serai.jobs.group import GroupedWrites
from serai.jobs.model import ClaimLost, Job, JobStalled, backoff_s, is_retryable
from serai.jobs.runner import JobContext, Runner
from serai.jobs.spool import Spool
from serai.jobs.store import Outcome
from serai.storage.database import Database

Why = Literal["cancel", "shutdown", "lost", "stalled"]

COALESCE_S = 0.25
"""At most one write of events in this time, per job."""
PENDING_EVENTS = 32
"""How many events wait for that write before the runner has to."""
UNWRITTEN_BYTES = 2**20
STOP_S = 10.0
"""How long a runner that was cancelled may take to stop before it is left behind."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What every run of a server uses."""

    database: Database
    writes: GroupedWrites
    clock: Clock
    feed: Feed
    folder: Path
    random: Callable[[], float]


class Run:
    """Runs one claimed job to an end that is stored, or until the claim is lost."""

    def __init__(self, job: Job, runner: Runner, parts: Parts) -> None:
        if job.claim is None:
            raise AssertionError("only a claimed job is run")
        self.job = job
        self.claim: str = job.claim
        self._runner = runner
        self._parts = parts
        self._folder = parts.folder / job.id / self.claim
        self._spool = Spool(self._folder / "text.ndjson")
        self._context = JobContext(job, self._folder / "work", self._touch)
        self._pending: list[Event] = []
        self._dirty = asyncio.Event()
        self._room = asyncio.Event()
        self._storing = asyncio.Lock()
        self._stop = asyncio.Event()
        self._why: Why | None = None
        self._failure: SeraiError | None = None
        self._started = self._touched = parts.clock.monotonic()
        self._budget_s = runner.stall_s

    def stop(self, why: Why) -> None:
        """End the run for a reason from outside; the first one counts, but a lost claim beats all."""
        if self._why is None or why == "lost":
            self._why = why
        self._stop.set()

    @property
    def is_healthy(self) -> bool:
        """Say whether the work makes progress: then, and only then, is its lease renewed."""
        now = self._parts.clock.monotonic()
        return now - self._touched <= self._budget_s and now - self._started <= self._runner.cap_s

    async def execute(self) -> None:
        """Run to the end. Raises nothing but CancelledError."""
        self._parts.feed.begin(self.job.id, self._spool, lambda: self._pending)
        work = asyncio.create_task(self._work(), name=f"work {self.job.id}")
        recorder = asyncio.create_task(self._record(), name=f"record {self.job.id}")
        try:
            await self._until_stopped(work)
            async with self._storing:  # cut off inside a write, it would leave in doubt what was stored
                recorder.cancel()
            await self._settle(work)
        except Exception:  # noqa: BLE001 - one run must not end the others; nothing of it is written
            _log.exception("job_not_settled", **self.job.log_context)  # its lease will run out
        finally:
            work.cancel()
            recorder.cancel()
            self._parts.feed.end(self.job.id, self._spool)
            if self._spool.size or self._context.has_folder:
                await asyncio.to_thread(_remove, self._folder)

    def _touch(self, budget_s: float | None) -> None:
        self._touched = self._parts.clock.monotonic()
        if budget_s is not None:
            self._budget_s = budget_s

    async def _work(self) -> Final:
        async with aclosing(self._runner.run(self._context)) as events:
            async for event in events:
                self._touch(None)
                if isinstance(event, Done | Failed):
                    return event
                await self._take(event)
        raise InternalError("The runner ended without its last event.")

    async def _take(self, event: Event) -> None:
        if isinstance(event, Text):
            self._spool.add(event)
            if self._spool.unwritten > UNWRITTEN_BYTES:
                await self._spool.flush()
        else:
            while len(self._pending) >= PENDING_EVENTS:
                self._room.clear()
                await self._room.wait()
            # Of one step that is told many times, the latest is enough; a new stage is a new event.
            if self._pending and _is_same_step(self._pending[-1], event):
                self._pending.pop()
            self._pending.append(event)
        self._dirty.set()
        self._parts.feed.publish(self.job.id, event)

    async def _record(self) -> None:
        while True:
            await self._dirty.wait()
            await asyncio.sleep(COALESCE_S)  # a job that ends sooner writes its events with its end
            self._dirty.clear()
            async with self._storing:
                await self._store_events()

    async def _store_events(self) -> None:
        """Write what waits; what cannot be written now waits on, what never can ends the run."""
        events = list(self._pending)
        try:
            await self._spool.flush()
            if events:
                await self._write(store.append_events, Outcome(events=events, decision=self._context.decision))
        except ClaimLost:
            self.stop("lost")
        except Unavailable:
            self._dirty.set()
        except SeraiError as error:
            self._failure = error
            self._stop.set()
        else:
            self._pending = [event for event in self._pending if not any(event is stored for stored in events)]
            self._room.set()

    async def _until_stopped(self, work: "asyncio.Task[Final]") -> None:
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not work.done():
            work.cancel()
            await asyncio.wait({work}, timeout=STOP_S)
        if not work.done():
            _log.error("runner_ignores_cancel", **self.job.log_context)

    async def _settle(self, work: "asyncio.Task[Final]") -> None:
        context = self._context
        outcome = Outcome(
            events=self._pending, digests=context.digests, decision=context.decision, writes=context.writes
        )
        final = self._final(work)
        if self._why == "lost":
            _log.warning("claim_lost", **self.job.log_context)
        elif isinstance(final, Done):
            await self._end_with(final, outcome)
        elif final is not None:
            await self._fail(final, outcome)
        else:
            await self._persist(lambda: self._write(store.release, outcome))

    def _final(self, work: "asyncio.Task[Final]") -> Final | None:
        """Return how the run ended; None for one that was interrupted or cancelled."""
        if self._failure is not None:
            return Failed.of(self._failure)
        if work.done() and not work.cancelled():
            error = work.exception()
            if error is None:
                return work.result()
            if not isinstance(error, SeraiError):
                _log.error("runner_defect", exc_info=error, **self.job.log_context)
            return Failed.of(error)
        if self._why == "stalled":
            return Failed.of(JobStalled("The job made no progress within its time."))
        if self._why is None:  # the runner cancelled itself
            return Failed.of(InternalError("The work ended without a result."))
        return None

    async def _end_with(self, done: Done, outcome: Outcome) -> None:
        writes, clock = self._parts.writes, self._parts.clock
        try:
            await self._persist(lambda: writes.run(store.finish, clock, self.job.id, self.claim, done.result, outcome))
        except (InvalidInput, InternalError, QuotaExceeded) as error:  # it cannot be stored, or not for this owner
            await self._fail(Failed.of(error), replace(outcome, events=()), is_final=True)

    async def _fail(self, failed: Failed, outcome: Outcome, *, is_final: bool = False) -> None:
        pause_s = None
        if is_retryable(failed.code) and not is_final:
            pause_s = backoff_s(self.job.error_count + 1, self._parts.random())
        writes, clock = self._parts.writes, self._parts.clock

        def write(left: Outcome) -> Awaitable[Job]:
            return writes.run(store.fail, clock, self.job.id, self.claim, failed, pause_s=pause_s, outcome=left)

        try:
            await self._persist(lambda: write(outcome))
        except InvalidInput:  # one of the events cannot be stored: the end can
            await self._persist(lambda: write(Outcome()))

    async def _write(self, function: Callable[..., Job], outcome: Outcome) -> Job:
        parts = self._parts
        return await parts.writes.run(function, parts.clock, self.job.id, self.claim, outcome)

    async def _persist(self, write: Callable[[], Awaitable[Job]]) -> None:
        """Write the end, however long the database is away: what was done must not be done again."""
        pause_s = 0.1
        while self._why != "lost":
            self._touch(None)
            try:
                ended = await write()
            except ClaimLost:
                break
            except Unavailable as error:
                _log.warning("job_end_waits", problem=error.code, **self.job.log_context)
                await asyncio.sleep(pause_s)
                pause_s = min(pause_s * 2, 5.0)
            else:
                _log.info("job_ended", status=ended.status, **self.job.log_context)
                return
        _log.warning("claim_lost", **self.job.log_context)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # another run of the job has its folder there
        folder.parent.rmdir()


def _is_same_step(one: Event, other: Event) -> bool:
    return type(one) is type(other) and getattr(one, "stage", None) == getattr(other, "stage", None)
