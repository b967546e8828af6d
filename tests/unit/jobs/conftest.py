"""A server's part that runs jobs, put together by hand, with runners that a test scripts."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from serai.clock import Clock, SystemClock
from serai.events import Event
from serai.ids import new_id
from serai.jobs import store
from serai.jobs.feed import Feed, Followed
from serai.jobs.group import GroupedWrites
from serai.jobs.model import Job
from serai.jobs.run import Parts
from serai.jobs.runner import JobContext, Resource, Runners
from serai.jobs.supervisor import Pace, Supervisor
from serai.storage.database import Database

Script = Callable[[JobContext], AsyncGenerator[Event, None]]


class Scripted:
    """A runner that does what the test says under the name that is the payload's `do`."""

    version = 1
    stall_s = 60.0
    cap_s = 600.0

    def __init__(self, scripts: Mapping[str, Script], *, kind: str = "work", resource: str = "cpu") -> None:
        self.kind, self.resource, self.scripts = kind, resource, scripts

    def check(self, payload: Mapping[str, Any]) -> None:
        pass

    def run(self, context: JobContext) -> AsyncGenerator[Event, None]:
        return self.scripts[context.payload["do"]](context)


@dataclass
class Server:
    database: Database
    clock: Clock
    runners: Runners
    feed: Feed
    supervisor: Supervisor
    folder: Path

    async def put(self, do: str, **changes: Any) -> Job:
        arguments: dict[str, Any] = {"kind": "work", "payload": {"do": do}, "owner_id": "ann", **changes}
        new = self.runners.prepare(new_id=new_id, **arguments)
        return await self.database.run(store.enqueue, self.clock, new)

    async def follow(self, job: Job, after: int | None = None) -> list[Followed]:
        """Return every event of the job, when it has ended."""
        async with asyncio.timeout(30):
            return [followed async for followed in self.feed.follow(job.id, owner_id="ann", after=after)]

    async def ended(self, job: Job) -> Job:
        await self.follow(job)
        return await self.get(job)

    async def get(self, job: Job) -> Job:
        return await self.database.read(store.get, job.id, owner_id=None)

    async def until(self, job: Job, condition: Callable[[Job], bool]) -> Job:
        """Wait for the row to be as `condition` says."""
        async with asyncio.timeout(30):
            while not condition(row := await self.get(job)):  # noqa: ASYNC110 - a row is what is waited for
                await asyncio.sleep(0.01)
        return row

    async def cancel(self, job: Job) -> Job:
        return await self.database.run(store.cancel, self.clock, job.id, owner_id="ann")


StartServer = Callable[..., Any]


@pytest.fixture
def serve(tmp_path: Path) -> StartServer:
    @asynccontextmanager
    async def start(
        database: Database,
        scripts: Mapping[str, Script],
        *,
        clock: Clock | None = None,
        concurrency: int = 4,
        runner: Any = None,
        drain_s: float = 0.0,
        **pace: Any,
    ) -> AsyncIterator[Server]:
        clock = clock or SystemClock()
        feed = Feed(database)
        runners = Runners([Resource(name="cpu", concurrency=concurrency)], [runner or Scripted(scripts)])
        incarnation = new_id("srv")
        folder = tmp_path / incarnation
        parts = Parts(
            database=database,
            writes=GroupedWrites(database),
            clock=clock,
            feed=feed,
            folder=folder,
            random=random.random,
        )
        supervisor = Supervisor(
            runners, parts, incarnation=incarnation, is_alone=False, new_id=new_id, pace=Pace(poll_s=0.2, **pace)
        )
        feed.open()
        task = asyncio.create_task(supervisor.run())
        try:
            yield Server(database, clock, runners, feed, supervisor, folder)
        finally:
            await supervisor.stop(drain_s=drain_s)
            async with asyncio.timeout(30):
                await task
            feed.close()

    return start


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[BlockBuster]:
    """A blocking call of the package on the event loop fails the test."""
    with blockbuster_ctx("serai.jobs") as guard:
        yield guard
