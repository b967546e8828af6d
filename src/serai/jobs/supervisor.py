"""The loop of each server that claims jobs, runs them side by side, and keeps their leases."""

import asyncio
import contextlib
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog

from serai.errors import Unavailable
from serai.ids import NewId
from serai.jobs import store
from serai.jobs.model import Job
from serai.jobs.run import Parts, Run
from serai.jobs.runner import Runners

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The times of a supervisor, in seconds, and its bounds."""

    lease_s: float = 30.0
    beat_s: float = 10.0
    """How often leases are renewed and dead ones looked for; a third of the lease."""
    poll_s: float = 2.0
    """How often to look for work that nobody announced: a pause that is over, a notice that was lost."""
    retention: timedelta = timedelta(days=30)
    prune_s: float = 3600.0
    crash_limit: int = 3


class Supervisor:
    """Runs the jobs of this server from `run` to `stop`. One task per job; nothing blocks the loop.

    `incarnation` names this start of this server and no other. `is_alone`: no other server uses this
    database, and a lock that the caller holds proves it; then what an earlier incarnation ran is
    taken back at once, not when its leases run out.
    """

    def __init__(
        self,
        runners: Runners,
        parts: Parts,
        *,
        incarnation: str,
        is_alone: bool,
        new_id: NewId,
        pace: Pace | None = None,
    ) -> None:
        self._runners = runners
        self._parts = parts
        self._incarnation = incarnation
        self._is_alone = is_alone
        self._new_id = new_id
        self._pace = pace or Pace()
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._beat_now = asyncio.Event()
        self._claiming = asyncio.Lock()
        self._is_stopping = False
        self._pruned_at: float | None = None

    async def run(self) -> None:
        """Claim and run until `stop`; outlives a database that goes away and comes back."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._on(store.QUEUE_TOPIC, self._wake))
            stack.callback(self._on(store.CANCEL_TOPIC, self._beat_now))
            await asyncio.to_thread(_empty, self._parts.folder)
            while self._is_alone and not self._is_stopping and not await self._steadily(self._take_back):
                pass
            beats = asyncio.create_task(self._keep_beating(), name="job beats")
            try:
                await self._keep_claiming()
                while self._tasks:
                    await asyncio.wait(self._tasks)
            finally:
                beats.cancel()
                for task in self._tasks:
                    task.cancel()

    async def stop(self, *, drain_s: float = 0.0) -> None:
        """Claim nothing more, let running jobs end for `drain_s` seconds, give the others back to the queue."""
        self._is_stopping = True
        self._wake.set()
        if self._tasks and drain_s > 0:
            await asyncio.wait(self._tasks, timeout=drain_s)
        for run in self._runs.values():
            run.stop("shutdown")

    @property
    def running(self) -> int:
        """Return how many jobs run here."""
        return len(self._tasks)

    def _on(self, topic: str, event: asyncio.Event) -> Callable[[], None]:
        loop = asyncio.get_running_loop()
        return self._parts.database.notices.subscribe(topic, lambda _: _set_soon(loop, event))

    async def _keep_claiming(self) -> None:
        while not self._is_stopping:
            self._wake.clear()
            if await self._steadily(self._claim) and not self._is_stopping:
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._pace.poll_s)
        for run in self._runs.values():  # claimed while `stop` was called
            run.stop("shutdown")

    async def _claim(self) -> int:
        """Claim for every free place; return how many jobs were started."""
        async with self._claiming:
            return await self._claim_free()

    async def _claim_free(self) -> int:
        busy = Counter(run.job.resource for run in self._runs.values())
        free = {name: resource.concurrency - busy[name] for name, resource in self._runners.resources.items()}
        wanted = {name: count for name, count in free.items() if count > 0}
        if not wanted:
            return 0
        taken: list[Job] = await self._parts.writes.run(
            store.claim,
            self._parts.clock,
            token=self._new_id("claim"),
            holder=self._incarnation,
            kinds=self._runners.kinds,
            wanted=wanted,
            lease_s=self._pace.lease_s,
        )
        for job in taken:
            self._start(job)
        return len(taken)

    def _start(self, job: Job) -> None:
        run = Run(job, self._runners.of(job.kind), self._parts)
        self._runs[run.claim + job.id] = run
        task = asyncio.create_task(run.execute(), name=job.id)
        self._tasks.add(task)

        def on_end(ended: asyncio.Task[None]) -> None:
            self._tasks.discard(ended)
            del self._runs[run.claim + job.id]
            self._wake.set()

        task.add_done_callback(on_end)

    async def _keep_beating(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._beat_now.wait(), self._pace.beat_s)
            self._beat_now.clear()
            await self._steadily(self._beat)

    async def _beat(self) -> int:
        """Renew first, then recover: after a jump of the clock no healthy job of this server looks dead."""
        database, clock = self._parts.database, self._parts.clock
        runs = {run.job.id: run for run in self._runs.values()}
        for run in runs.values():
            if not run.is_healthy:
                run.stop("stalled")
        healthy = {job_id: run.claim for job_id, run in runs.items() if run.is_healthy}
        held = await database.run(store.renew, clock, healthy, lease_s=self._pace.lease_s)
        for job_id in healthy:
            if job_id not in held:
                runs[job_id].stop("lost")
            elif held[job_id]:
                runs[job_id].stop("cancel")
        settled = await database.run(store.settle_cancelled, clock)
        async with self._claiming:  # a claim on its way, made before the clock jumped, must not look dead
            alive = {run.job.id for run in self._runs.values()}
            recovered = await database.run(store.recover, clock, crash_limit=self._pace.crash_limit, but=alive)
        for job in recovered:
            _log.warning("job_recovered", status=job.status, crashes=job.crash_count, **job.log_context)
        await self._prune()
        if settled:
            self._beat_now.set()  # there may be more, and a parent that waited for these
        return len(recovered)

    async def _take_back(self) -> int:
        """Recover everything that earlier incarnations ran; return 1 when that is done."""
        while await self._parts.database.run(
            store.recover, self._parts.clock, crash_limit=self._pace.crash_limit, not_holder=self._incarnation
        ):
            pass
        return 1

    async def _prune(self) -> None:
        now = self._parts.clock.monotonic()
        if self._pruned_at is not None and now - self._pruned_at < self._pace.prune_s:
            return
        while await self._parts.database.run(store.prune, self._parts.clock, older_than=self._pace.retention):
            pass
        self._pruned_at = now

    async def _steadily(self, step: Callable[[], Any]) -> int:
        """Do one step; a database that is away is waited for, a defect is logged, and the loop goes on."""
        try:
            return int(await step())
        except Unavailable as error:
            _log.warning("jobs_wait", step=step.__name__, problem=error.code)
        except Exception:  # noqa: BLE001 - the loop that everything depends on must outlive a defect
            _log.exception("jobs_step_failed", step=step.__name__)
        await asyncio.sleep(min(1.0, self._pace.poll_s))
        return 0


def _set_soon(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(event.set)


def _empty(folder: Path) -> None:
    """Remove what runs of an earlier start left behind."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(0o700, parents=True, exist_ok=True)
