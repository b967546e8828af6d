"""How many jobs a second, how soon they start, and how many are lost when the worker is killed.

    python benchmarks/jobs.py [--jobs 1000] [--quick] [--peers [NAME …]] [--json FILE]

The workload: jobs that hash a short text and note their start and end in a file, 8 at a time, enqueued
one after the other. Measured are: enqueueing while nothing runs; draining that queue, from the first
start to the last end; enqueueing and running at the same time, from the first call to the last end; and
how long an idle server takes from the call of an enqueue to the first line of the runner. Then 150 jobs
of 50 ms whose worker is killed 8 times.

Ours is the real supervisor at its default pace, 8 jobs at a time, in the process that enqueues, as the
server does it; the others have a worker process and a client, as theirs do. SQLite and PostgreSQL keep
their durable settings (fsync on). `--quick`: 200 jobs, no kills. `--peers` runs DBOS, Huey and
Procrastinate too, in a virtual environment that this script makes under ~/.cache/serai-benchmarks.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import structlog

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from jobs_peers import CONCURRENCY, KILLS, PEERS, latencies, measure_peers, notes, work  # noqa: E402 - needs the path

from serai.clock import SystemClock  # noqa: E402 - keeps the imports together
from serai.events import Done, Event  # noqa: E402 - keeps the imports together
from serai.ids import new_id  # noqa: E402 - keeps the imports together
from serai.jobs import store  # noqa: E402 - keeps the imports together
from serai.jobs.feed import Feed  # noqa: E402 - keeps the imports together
from serai.jobs.group import GroupedWrites  # noqa: E402 - keeps the imports together
from serai.jobs.model import NewJob  # noqa: E402 - keeps the imports together
from serai.jobs.run import Parts  # noqa: E402 - keeps the imports together
from serai.jobs.runner import JobContext, Resource, Runners  # noqa: E402 - keeps the imports together
from serai.jobs.supervisor import Supervisor  # noqa: E402 - keeps the imports together
from serai.storage.connect import open_postgresql, open_sqlite  # noqa: E402 - keeps the imports together
from serai.storage.database import Database  # noqa: E402 - keeps the imports together
from serai.storage.schema import upgrade  # noqa: E402 - keeps the imports together
from support.job_faults import ServerProgram, put, status_counts, where_of  # noqa: E402 - needs the path
from support.servers import PostgresServer, find_postgresql  # noqa: E402 - needs the path

CLOCK = SystemClock()


class Noted:
    """The runner of the workload."""

    kind, version, resource, stall_s, cap_s = "noted", 1, "cpu", 60.0, 600.0

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)

    def check(self, payload: Mapping[str, Any]) -> None:
        pass

    async def run(self, context: JobContext) -> AsyncGenerator[Event, None]:
        yield Done(result={"sha256": work(self._folder, context.payload["number"], 0)})


@contextlib.asynccontextmanager
async def serving(database: Database, folder: Path) -> AsyncIterator[None]:
    feed = Feed(database)
    runners = Runners([Resource(name="cpu", concurrency=CONCURRENCY)], [Noted(folder)])
    writes, runs = GroupedWrites(database), folder / "runs"
    parts = Parts(database=database, writes=writes, clock=CLOCK, feed=feed, folder=runs, random=random.random)
    supervisor = Supervisor(runners, parts, incarnation=new_id("srv"), is_alone=True, new_id=new_id)
    feed.open()
    task = asyncio.create_task(supervisor.run())
    yield
    await supervisor.stop(drain_s=5)
    await task
    feed.close()


async def enqueue(database: Database, number: int) -> None:
    new = NewJob(id=new_id("job"), kind="noted", version=1, payload={"number": number}, owner_id="ann", resource="cpu")
    await database.run(store.enqueue, CLOCK, new)


async def all_noted(folder: Path, count: int) -> None:
    while len(notes(folder, "end")) < count:  # noqa: ASYNC110 - a file is what is waited for
        await asyncio.sleep(0.02)


async def measure(database: Database, folder: Path, count: int, turns: int) -> dict[str, Any]:
    """Return the figures of our queue; see the top of this file."""
    folders = [folder / name for name in ("drain", "live", "turns")]
    for place in folders:
        await asyncio.to_thread(place.mkdir, parents=True)
    drain, live, idle = folders
    await enqueue(database, -1)  # connects
    begun = time.time()
    for number in range(count):
        await enqueue(database, number)
    enqueued = time.time() - begun
    async with serving(database, drain):
        await all_noted(drain, count + 1)
    drained = max(notes(drain, "end").values()) - min(notes(drain, "start").values())
    async with serving(database, live):
        begun = time.time()
        for number in range(count):
            await enqueue(database, number)
        await all_noted(live, count)
    through = max(notes(live, "end").values()) - begun
    waits = []
    async with serving(database, idle):
        for number in range(turns):
            begun = time.time()
            await enqueue(database, number)
            await all_noted(idle, number + 1)
            waits.append(1000 * (notes(idle, "start")[number] - begun))
    return {
        "enqueued_per_s": round(count / enqueued),
        "drained_per_s": round(count / drained),
        "through_per_s": round(count / through),
        **latencies(waits),
    }


def lost_in_kills(database: Database, folder: Path) -> int:
    """Return how many of 150 jobs of 50 ms have no right end after their server was killed 8 times."""
    made = [put(database, f"text {number}", steps=1) for number in range(150)]
    options = ["--alone", "--respawn", "--until-idle", "--step-s", "0.05", "--concurrency", str(CONCURRENCY)]
    with ServerProgram(where_of(database), folder, *options) as server:
        for _ in range(KILLS):
            pid = server.ready()
            before = status_counts(database)["succeeded"]
            while status_counts(database)["succeeded"] < min(140, before + 6):
                time.sleep(0.01)
            os.kill(pid, signal.SIGKILL)
        server.wait()
    return len(made) - status_counts(database)["succeeded"]


def measure_kills(folder: Path, found: dict[str, dict[str, Any]]) -> None:
    """Add the column of the kill test."""
    database = open_sqlite(folder / "kills.db")
    upgrade(database)
    found["serai, SQLite"]["lost_in_kills"] = lost_in_kills(database, folder / "kills a")
    database.close_sync()
    with postgresql(folder / "kills") as server:
        database = open_postgresql(server.create("kills"), pool_size=2)
        upgrade(database)
        found["serai, PostgreSQL"]["lost_in_kills"] = lost_in_kills(database, folder / "kills b")
        database.close_sync()


def ours(folder: Path, count: int, turns: int) -> dict[str, dict[str, Any]]:
    found = {}
    database = open_sqlite(folder / "serai.db")
    upgrade(database)
    found["serai, SQLite"] = asyncio.run(measure(database, folder / "a", count, turns))
    database.close_sync()
    with postgresql(folder) as server:
        database = open_postgresql(server.create("serai"), pool_size=8)
        upgrade(database)
        found["serai, PostgreSQL"] = asyncio.run(measure(database, folder / "b", count, turns))
        database.close_sync()
    return found


@contextlib.contextmanager
def postgresql(folder: Path) -> Any:
    if find_postgresql() is None:
        raise SystemExit("PostgreSQL's binaries are not installed (apt install postgresql)")
    folder.mkdir(exist_ok=True)
    folder.chmod(0o711)
    server = PostgresServer(folder / "postgres", options=("max_connections=60",))
    server.start()
    try:
        yield server
    finally:
        server.stop()


def show(figures: dict[str, dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in figures.values() for name in row))
    print(" | ".join(["queue".ljust(28), *names]))
    for queue, row in figures.items():
        print(" | ".join([queue.ljust(28), *(str(row.get(name, "–")).rjust(len(name)) for name in names)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="which; all where none is named")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory(prefix="serai-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        count = 200 if options.quick else options.jobs
        figures = ours(folder, count, 40)
        if not options.quick:
            measure_kills(folder, figures)
        if options.peers is not None:
            figures |= measure_peers(options.peers or list(PEERS), folder, count, kills=not options.quick)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
