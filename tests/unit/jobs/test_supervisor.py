"""What happens to a job between its claim and its end, on both databases."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import sqlalchemy as sa

from serai.clock import ManualClock
from serai.errors import DatabaseUnavailable, DiskFull, NotFound, UpstreamFailed
from serai.events import Done, Event, Failed, Progress
from serai.hub.errors import NotEnoughSpace
from serai.ids import new_id
from serai.jobs import store
from serai.jobs.group import GroupedWrites
from serai.jobs.runner import JobContext
from serai.storage.database import Database
from serai.storage.tables.jobs import job_events, jobs

pytestmark = pytest.mark.anyio


async def finish(context: JobContext) -> AsyncGenerator[Event, None]:
    yield Done(result={"by": context.job.id})


class Gate:
    """A script that says when it has begun and ends when it is let."""

    def __init__(self) -> None:
        self.begun, self.go, self.left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.running = self.most = 0

    async def __call__(self, context: JobContext) -> AsyncGenerator[Event, None]:
        self.running += 1
        self.most = max(self.most, self.running)
        self.begun.set()
        try:
            await self.go.wait()
            yield Done(result={})
        finally:
            self.running -= 1
            self.left.set()


def add(database: Database, job_id: str, **values: Any) -> None:
    database.run_sync(lambda c: c.execute(sa.update(jobs).where(jobs.c.id == job_id).values(values)))


async def test_a_job_that_is_enqueued_is_run_and_its_result_stored(database: Database, serve: Any) -> None:
    """The supervisor is woken by the enqueue and the result is the runner's."""
    async with serve(database, {"finish": finish}) as server:
        job = await server.ended(await server.put("finish"))
    assert (job.status, job.result, job.attempts) == ("succeeded", {"by": job.id}, 1)


async def test_a_resource_is_never_used_by_more_jobs_than_it_allows(database: Database, serve: Any) -> None:
    """With room for two, two run; the others wait and then run."""
    gate = Gate()
    async with serve(database, {"gate": gate}, concurrency=2) as server:
        made = [await server.put("gate") for _ in range(5)]
        await gate.begun.wait()
        gate.go.set()
        ended = [await server.ended(job) for job in made]
    assert {job.status for job in ended} == {"succeeded"}
    assert gate.most <= 2


@pytest.mark.parametrize(
    ("error", "code", "errors"),
    [
        (UpstreamFailed("no"), "UPSTREAM_FAILED", 3),
        (NotFound("no"), "NOT_FOUND", 1),
        (NotEnoughSpace("no"), "NOT_ENOUGH_SPACE", 1),
        (KeyError(1), "INTERNAL_ERROR", 3),
    ],
)
async def test_only_what_may_pass_is_tried_again(
    database: Database, serve: Any, error: Exception, code: str, errors: int
) -> None:
    """A user's error is final at once; an upstream's or a defect is tried up to the bound."""
    failures = 0

    async def fail(context: JobContext) -> AsyncGenerator[Event, None]:
        nonlocal failures
        failures += 1
        raise error
        yield

    async with serve(database, {"fail": fail}) as server:
        job = await server.put("fail")
        while not (await server.get(job)).is_terminal:
            await database.run(lambda c: c.execute(sa.update(jobs).values(run_at=None)))  # no pause in this test
            await asyncio.sleep(0)
            server.supervisor._wake.set()
        ended = await server.get(job)
    assert (ended.status, ended.error and ended.error["code"], failures) == ("failed", code, errors)


async def test_a_failed_event_is_the_jobs_failure(database: Database, serve: Any) -> None:
    """A runner may end with `Failed`; a code that is not known as passing is final."""

    async def fail(context: JobContext) -> AsyncGenerator[Event, None]:
        yield Failed(code="MODEL_REFUSED", message="no", hint="another")

    async with serve(database, {"fail": fail}) as server:
        job = await server.ended(await server.put("fail"))
    assert job.error == {"code": "MODEL_REFUSED", "message": "no", "hint": "another"}


async def test_a_stream_without_its_last_event_is_a_defect(database: Database, serve: Any) -> None:
    """A runner that just stops did not succeed."""

    async def stop(context: JobContext) -> AsyncGenerator[Event, None]:
        yield Progress(stage="x")

    async with serve(database, {"stop": stop}) as server:
        job = await server.put("stop")
        add(database, job.id, max_errors=1)
        ended = await server.ended(job)
    assert ended.error is not None
    assert ended.error["code"] == "INTERNAL_ERROR"


async def test_a_result_that_cannot_be_stored_fails_the_job(database: Database, serve: Any) -> None:
    """NaN and its like end the job with the reason, without another try."""

    async def bad(context: JobContext) -> AsyncGenerator[Event, None]:
        yield Done(result={"value": float("nan")})

    async with serve(database, {"bad": bad}) as server:
        job = await server.ended(await server.put("bad"))
    assert (job.status, job.error and job.error["code"], job.attempts) == ("failed", "INVALID_INPUT", 1)


async def test_an_event_that_cannot_be_stored_fails_the_job(database: Database, serve: Any) -> None:
    """The run is ended, not left hanging."""

    async def bad(context: JobContext) -> AsyncGenerator[Event, None]:
        yield Progress(stage="x", detail={"value": 2**70})
        await asyncio.Event().wait()

    async with serve(database, {"bad": bad}) as server:
        job = await server.ended(await server.put("bad"))
    assert (job.status, job.error and job.error["code"]) == ("failed", "INVALID_INPUT")


async def test_cancel_stops_a_running_job_at_once(database: Database, serve: Any) -> None:
    """The runner is stopped at its `await`, long before any beat, and the job ends as cancelled."""
    gate = Gate()
    async with serve(database, {"gate": gate}, beat_s=3600) as server:
        job = await server.put("gate")
        await gate.begun.wait()
        assert (await server.cancel(job)).status == "running"
        await gate.left.wait()
        ended = await server.ended(job)
    assert (ended.status, ended.result) == ("cancelled", None)


async def test_a_shutdown_gives_jobs_back_without_counting_an_attempt(database: Database, serve: Any) -> None:
    """The next server runs the job as if it had never been started."""
    gate = Gate()
    async with serve(database, {"gate": gate}) as server:
        job = await server.put("gate")
        await gate.begun.wait()
    job = await server.get(job)
    assert (job.status, job.attempts, job.error_count, job.crash_count) == ("queued", 0, 0, 0)
    gate.go.set()
    async with serve(database, {"gate": gate}) as server:
        assert (await server.ended(job)).attempts == 1


async def test_a_drain_lets_running_jobs_end(database: Database, serve: Any) -> None:
    """Within the drain a running job finishes; nothing new is begun."""
    gate = Gate()
    async with serve(database, {"gate": gate}, concurrency=1, drain_s=30) as server:
        first, second = await server.put("gate"), await server.put("gate")
        await gate.begun.wait()
        asyncio.get_running_loop().call_soon(gate.go.set)
    assert (await server.get(first)).status == "succeeded"
    assert (await server.get(second)).status == "queued"


async def test_a_run_that_lost_its_claim_is_stopped_and_its_output_thrown_away(database: Database, serve: Any) -> None:
    """When another server took the job, the beat notices, and the first run writes nothing more."""
    gate = Gate()
    async with serve(database, {"gate": gate}, beat_s=0.05) as server:
        job = await server.put("gate")
        await gate.begun.wait()
        add(database, job.id, claim="stolen", holder="another")
        await gate.left.wait()
    row = await server.get(job)
    assert (row.status, row.claim, row.result) == ("running", "stolen", None)


async def test_a_silent_run_loses_its_lease_and_is_tried_again(database: Database, serve: Any) -> None:
    """A runner that makes no progress within its budget is ended as stalled."""
    gate, clock = Gate(), ManualClock()
    async with serve(database, {"gate": gate}, clock=clock, beat_s=0.02) as server:
        job = await server.put("gate")
        add(database, job.id, max_errors=1)
        await gate.begun.wait()
        clock.advance(61)
        ended = await server.ended(job)
    assert (ended.status, ended.error and ended.error["code"]) == ("failed", "JOB_STALLED")


async def test_a_phase_with_its_own_budget_may_be_silent_that_long(database: Database, serve: Any) -> None:
    """`touch(budget_s=…)` keeps the watchdog quiet; the cap on the whole run stays."""
    gate, clock, told = Gate(), ManualClock(), asyncio.Event()

    async def patient(context: JobContext) -> AsyncGenerator[Event, None]:
        context.touch(budget_s=10_000)
        told.set()
        async for event in gate(context):
            yield event

    async with serve(database, {"patient": patient}, clock=clock, beat_s=0.02) as server:
        job = await server.put("patient")
        add(database, job.id, max_errors=1)
        await told.wait()
        clock.advance(300)
        for _ in range(5):
            await server.supervisor._beat()
        assert (await server.get(job)).status == "running"
        clock.advance(301)
        ended = await server.ended(job)
    assert ended.error is not None
    assert ended.error["code"] == "JOB_STALLED"


async def test_leases_are_renewed_while_the_work_goes_on(database: Database, serve: Any) -> None:
    """A job that runs longer than its lease is not taken from a healthy holder."""
    gate = Gate()
    async with serve(database, {"gate": gate}, lease_s=0.3, beat_s=0.05) as server:
        job = await server.put("gate")
        await gate.begun.wait()
        first = (await server.get(job)).lease_until
        await server.until(job, lambda row: row.lease_until != first)
        gate.go.set()
        ended = await server.ended(job)
    assert (ended.attempts, ended.crash_count, ended.status) == (1, 0, "succeeded")


async def test_a_burst_of_progress_is_stored_as_few_events(database: Database, serve: Any) -> None:
    """A thousand steps in a moment are at most a handful of rows, the last of them the newest."""

    async def burst(context: JobContext) -> AsyncGenerator[Event, None]:
        for step in range(1000):
            yield Progress(stage="step", done=step)
        yield Done(result={})

    async with serve(database, {"burst": burst}) as server:
        job = await server.put("burst")
        followed = await server.follow(job)
    stored = [f for f in followed if f.seq is not None]
    assert [f.seq for f in stored] == list(range(1, len(stored) + 1))
    assert len(stored) <= 8
    assert stored[-2].event == Progress(stage="step", done=999)


async def test_an_end_waits_for_a_database_that_is_away(
    database: Database, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that was done is not done again because its end could not be written at once."""
    real, refused = GroupedWrites.run, [DatabaseUnavailable("away"), DiskFull("full")]
    runs = 0

    async def run(writes: GroupedWrites, function: Any, *args: Any, **kwargs: Any) -> Any:
        if function is store.finish and refused:
            raise refused.pop()
        return await real(writes, function, *args, **kwargs)

    async def once(context: JobContext) -> AsyncGenerator[Event, None]:
        nonlocal runs
        runs += 1
        yield Done(result={})

    monkeypatch.setattr(GroupedWrites, "run", run)
    async with serve(database, {"once": once}) as server:
        job = await server.ended(await server.put("once"))
    assert (job.status, runs, refused) == ("succeeded", 1, [])


async def test_the_folder_of_an_attempt_is_gone_after_it(database: Database, serve: Any) -> None:
    """Whatever a runner left there."""
    seen = []

    async def litter(context: JobContext) -> AsyncGenerator[Event, None]:
        folder = await asyncio.to_thread(lambda: context.folder)
        await asyncio.to_thread((folder / "x").write_bytes, b"x")
        seen.append(folder)
        yield Done(result={})

    async with serve(database, {"litter": litter}) as server:
        await server.ended(await server.put("litter"))
    assert seen
    assert not seen[0].exists()
    assert list(server.folder.iterdir()) == []


async def test_a_job_of_an_unknown_kind_or_version_is_shown_as_blocked(database: Database, serve: Any) -> None:
    """It stays queued, with the reason, and others run past it."""
    async with serve(database, {"finish": finish}) as server:
        known = server.runners.prepare(kind="work", payload={"do": "finish"}, owner_id="ann", new_id=new_id)
        for changes in ({"kind": "strange"}, {"version": 2}):
            new = dataclasses.replace(known, id=new_id("job"), **changes)
            job = await database.run(store.enqueue, server.clock, new)
            ended = await server.ended(await server.put("finish"))
            assert server.runners.reason(await server.get(job)) == "blocked"
            assert server.runners.reason(ended) is None


async def test_events_of_many_jobs_have_no_gap(database: Database, serve: Any) -> None:
    """Sixty jobs side by side: each has 1 … n with exactly one end, which is the last."""

    async def steps(context: JobContext) -> AsyncGenerator[Event, None]:
        for stage in ("a", "b", "c"):
            yield Progress(stage=stage)
            await asyncio.sleep(0)
        yield Done(result={})

    async with serve(database, {"steps": steps}, concurrency=8) as server:
        for job in [await server.put("steps") for _ in range(60)]:
            await server.ended(job)
    rows = await database.read(lambda c: c.execute(sa.select(job_events).order_by("job_id", "seq")).all())
    by_job: dict[str, list[Any]] = {}
    for row in rows:
        by_job.setdefault(row.job_id, []).append(row)
    assert len(by_job) == 60
    for events in by_job.values():
        assert [row.seq for row in events] == [1, 2, 3, 4, 5]
        assert [row.event["type"] for row in events].index("done") == 4


@pytest.mark.postgres
async def test_two_servers_share_the_work_and_either_may_leave(postgres_url: str, serve: Any) -> None:
    """On one PostgreSQL, jobs of a server that leaves are finished by the other, each once."""
    from serai.storage.connect import open_postgresql

    gates = [Gate(), Gate()]
    first, second = (open_postgresql(postgres_url, pool_size=3) for _ in range(2))
    try:
        async with serve(second, {"gate": gates[1]}, concurrency=2) as stays:
            async with serve(first, {"gate": gates[0]}, concurrency=2) as leaves:
                made = [await leaves.put("gate") for _ in range(8)]
                await asyncio.gather(*(gate.begun.wait() for gate in gates))
            gates[1].go.set()
            ended = [await stays.ended(job) for job in made]
        assert [(job.status, job.attempts) for job in ended] == [("succeeded", 1)] * 8
    finally:
        first.close_sync()
        second.close_sync()
