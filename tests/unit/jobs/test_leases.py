"""What a beat recovers: never a job that this server itself knows to be running."""

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from serai.events import Done, Event
from serai.jobs import store
from serai.jobs.group import GroupedWrites
from serai.jobs.runner import JobContext
from serai.storage.database import Database
from serai.storage.tables.jobs import jobs

pytestmark = pytest.mark.anyio

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


class Gate:
    """A script that says when it has begun and ends when it is let."""

    def __init__(self) -> None:
        self.begun, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self, context: JobContext) -> AsyncGenerator[Event, None]:
        self.begun.set()
        await self.go.wait()
        yield Done(result={})


def let_every_lease_run_out(database: Database) -> None:
    database.run_sync(
        lambda c: c.execute(sa.update(jobs).where(jobs.c.status == "running").values(lease_until=LONG_AGO))
    )


async def test_a_lease_that_runs_out_inside_a_beat_takes_no_job_from_this_server(
    database: Database, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock may jump between renewing and recovering: what is known to be alive here is not recovered here."""
    gate, real, recoveries = Gate(), Database.run, 0

    async def run(self: Database, function: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal recoveries
        if function is store.recover:
            recoveries += 1
            await asyncio.to_thread(let_every_lease_run_out, database)
        return await real(self, function, *args, **kwargs)

    async with serve(database, {"gate": gate}, beat_s=3600) as server:
        job = await server.put("gate")
        await gate.begun.wait()
        monkeypatch.setattr(Database, "run", run)
        assert await server.supervisor._beat() == 0
        gate.go.set()
        ended = await server.ended(job)
    assert recoveries
    assert (ended.status, ended.attempts, ended.crash_count) == ("succeeded", 1, 0)


async def test_a_lease_that_runs_out_before_the_claim_is_known_here_takes_no_job_either(
    database: Database, serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A beat does not recover while a claim of this server is on its way back from the database."""
    gate, real, beats = Gate(), GroupedWrites.run, []

    async def run(self: GroupedWrites, function: Any, *args: Any, **kwargs: Any) -> Any:
        result = await real(self, function, *args, **kwargs)
        if function is store.claim and result:
            await asyncio.to_thread(let_every_lease_run_out, database)
            beats.append(asyncio.create_task(server.supervisor._beat()))
            for _ in range(20):  # SQLite's one writer thread takes them in turn: the beat's come in between
                await database.run(lambda connection: None)
        return result

    monkeypatch.setattr(GroupedWrites, "run", run)
    async with serve(database, {"gate": gate}, beat_s=3600) as server:
        job = await server.put("gate")
        await gate.begun.wait()
        assert [await beat for beat in beats] == [0]
        gate.go.set()
        ended = await server.ended(job)
    assert (ended.status, ended.attempts, ended.crash_count) == ("succeeded", 1, 0)
