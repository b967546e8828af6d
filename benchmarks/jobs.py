"""How many jobs a second, how soon they start, and how many are lost when the worker is killed.

    python benchmarks/jobs.py [--jobs 1000] [--peers] [--json FILE]

`--peers` runs DBOS, Huey and Procrastinate on the same workload, in a virtual environment that this
script makes under ~/.cache/serai-benchmarks. The workload: jobs that hash a short text, 8 at a time in
one worker process. PostgreSQL and SQLite keep their durable defaults (fsync on).
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

from serai.clock import SystemClock  # noqa: E402 - keeps the imports together
from serai.ids import new_id  # noqa: E402 - keeps the imports together
from serai.jobs import store  # noqa: E402 - keeps the imports together
from serai.jobs.digest import DigestRunner  # noqa: E402 - keeps the imports together
from serai.jobs.feed import Feed  # noqa: E402 - keeps the imports together
from serai.jobs.group import GroupedWrites  # noqa: E402 - keeps the imports together
from serai.jobs.model import Job, NewJob  # noqa: E402 - keeps the imports together
from serai.jobs.run import Parts  # noqa: E402 - keeps the imports together
from serai.jobs.runner import Resource, Runners  # noqa: E402 - keeps the imports together
from serai.jobs.supervisor import Supervisor  # noqa: E402 - keeps the imports together
from serai.storage.connect import open_postgresql, open_sqlite  # noqa: E402 - keeps the imports together
from serai.storage.database import Database  # noqa: E402 - keeps the imports together
from serai.storage.schema import upgrade  # noqa: E402 - keeps the imports together
from serai.storage.tables.jobs import jobs  # noqa: E402 - keeps the imports together
from support.job_faults import ServerProgram, put, status_counts, where_of  # noqa: E402 - needs the path
from support.servers import PostgresServer, find_postgresql  # noqa: E402 - needs the path

CONCURRENCY = 8
KILLS = 8
CLOCK = SystemClock()
AN_OPEN_JOB = sa.select(jobs.c.id).where(jobs.c.finished_at.is_(None)).limit(1)


async def no_blob(owner_id: str, digest: str) -> AsyncIterator[bytes]:
    yield b""


@contextlib.asynccontextmanager
async def serving(database: Database, folder: Path) -> AsyncIterator[Runners]:
    feed, incarnation = Feed(database), new_id("srv")
    runners = Runners([Resource(name="cpu", concurrency=CONCURRENCY)], [DigestRunner(no_blob, resource="cpu")])
    parts = Parts(
        database=database, writes=GroupedWrites(database), clock=CLOCK, feed=feed, folder=folder, random=random.random
    )
    supervisor = Supervisor(runners, parts, incarnation=incarnation, is_alone=True, new_id=new_id)
    feed.open()
    task = asyncio.create_task(supervisor.run())
    yield runners
    await supervisor.stop(drain_s=5)
    await task
    feed.close()


def new(runners: Runners, number: int) -> NewJob:
    return runners.prepare(kind="digest", payload={"text": f"text {number}"}, owner_id="ann", new_id=new_id)


async def ends(database: Database, made: list[str]) -> list[Job]:
    """Return the jobs when all have ended."""
    while True:
        if not await database.read(lambda connection: connection.execute(AN_OPEN_JOB).first()):
            return [await database.read(store.get, job_id, owner_id=None) for job_id in made]
        await asyncio.sleep(0.005)


async def measure(database: Database, folder: Path, count: int) -> dict[str, Any]:
    """Return jobs per second of enqueue and of enqueue → claim → finish, and the latency of an idle queue in ms."""
    writes = GroupedWrites(database)
    async with serving(database, folder) as runners:
        await ends(database, [(await database.run(store.enqueue, CLOCK, new(runners, 0))).id])
        begun = time.perf_counter()
        pending = asyncio.Semaphore(64)

        async def put(number: int) -> str:
            async with pending:
                return (await writes.run(store.enqueue, CLOCK, new(runners, number))).id

        made = list(await asyncio.gather(*(put(number) for number in range(count))))
        enqueued = time.perf_counter() - begun
        ended = await ends(database, made)
        whole = time.perf_counter() - begun
        waits, turns = [], []
        for number in range(100):
            start = time.perf_counter()
            job = await database.run(store.enqueue, CLOCK, new(runners, number))
            (job,) = await ends(database, [job.id])
            turns.append(1000 * (time.perf_counter() - start))
            waits.append(1000 * (job.started_at - job.created_at).total_seconds())  # type: ignore[operator]
    return {
        "enqueued_per_s": round(count / enqueued),
        "finished_per_s": round(count / whole),
        "start_p50_ms": round(statistics.median(waits), 1),
        "start_p99_ms": round(statistics.quantiles(waits, n=100)[98], 1),
        "end_p50_ms": round(statistics.median(turns), 1),
        "not_finished": sum(job.status != "succeeded" for job in ended),
    }


def lost_in_kills(database: Database, folder: Path) -> int:
    """Return how many of 150 jobs of 50 ms have no right end after their server was killed 8 times."""
    made = [put(database, f"text {number}", steps=1) for number in range(150)]
    options = ["--alone", "--respawn", "--until-idle", "--step-s", "0.05", "--concurrency", str(CONCURRENCY)]
    with ServerProgram(where_of(database), folder, *options, "--crash-limit", "20") as server:
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
    found["serai, SQLite"]["lost_in_kills"] = lost_in_kills(database, folder / "a")
    database.close_sync()
    with postgresql(folder / "kills") as server:
        database = open_postgresql(server.create("kills"), pool_size=2)
        upgrade(database)
        found["serai, PostgreSQL"]["lost_in_kills"] = lost_in_kills(database, folder / "b")
        database.close_sync()


def ours(folder: Path, count: int) -> dict[str, dict[str, Any]]:
    found = {}
    database = open_sqlite(folder / "serai.db")
    upgrade(database)
    found["serai, SQLite"] = asyncio.run(measure(database, folder / "runs", count))
    database.close_sync()
    with postgresql(folder) as server:
        database = open_postgresql(server.create("serai"), pool_size=8)
        upgrade(database)
        found["serai, PostgreSQL"] = asyncio.run(measure(database, folder / "runs", count))
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
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with tempfile.TemporaryDirectory(prefix="serai-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        figures = ours(folder, options.jobs)
        if options.peers:
            from jobs_peers import measure_peers

            measure_kills(folder, figures)
            figures |= measure_peers(folder, options.jobs)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
