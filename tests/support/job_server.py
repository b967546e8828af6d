"""A small server that only runs jobs, as a program: what the fault tests kill, stop and starve.

Put together by hand from the real parts. Where it is to die at a named point, the parts are wrapped
here; the package knows nothing of it.
"""

import argparse
import asyncio
import hashlib
import itertools
import os
import random
import signal
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog

from serai.clock import SystemClock
from serai.errors import Unavailable, UpstreamFailed
from serai.events import Done, Event, Progress, Text
from serai.ids import new_id
from serai.jobs.feed import Feed
from serai.jobs.group import GroupedWrites
from serai.jobs.run import Parts
from serai.jobs.runner import JobContext, Resource, Runners
from serai.jobs.supervisor import Pace, Supervisor
from serai.jobs.webhooks import Webhooks
from serai.storage.connect import open_postgresql, open_sqlite
from serai.storage.database import Database
from serai.storage.tables.jobs import job_webhooks, jobs

MASTER = b"fault tests' master key, 32 bytes"


def die() -> None:
    """End this process as the kernel would: nothing is flushed, no handler runs."""
    os.kill(os.getpid(), signal.SIGKILL)


class Chew:
    """A runner that takes steps; `fail_first` fails the first attempt; the result names its claim.

    No step ends before the file `gate` of the payload is there.
    """

    kind = "chew"
    version = 1
    resource = "cpu"
    stall_s = 60.0
    cap_s = 600.0

    def __init__(self, step_s: float, point: str | None) -> None:
        self._step_s = step_s
        self._point = point

    def check(self, payload: Mapping[str, Any]) -> None:
        pass

    async def run(self, context: JobContext) -> AsyncGenerator[Event, None]:
        self._pass("begin")
        yield Text(delta="chewing")
        for step in range(int(context.payload["steps"])):
            yield Progress(stage=f"step {step}")
            await asyncio.sleep(self._step_s)
            while (gate := context.payload.get("gate")) and not Path(gate).exists():  # noqa: ASYNC110, ASYNC240 - a test opens it
                await asyncio.sleep(0.02)
            self._pass("step")
        if context.payload.get("fail_first") and context.job.error_count == 0:
            raise UpstreamFailed("The first attempt fails.")
        self._pass("end")
        text = str(context.payload["text"])
        digest = hashlib.sha256(text.encode()).hexdigest()
        yield Done(result={"sha256": digest, "claim": context.job.claim, "pid": os.getpid()})

    def _pass(self, name: str) -> None:
        if self._point == f"runner:{name}":
            die()


def wrap(target: Database | GroupedWrites, point: str) -> None:
    """Have the process die at `function:before`, `:inside` (before its commit) or `:after` of a store function.

    At `function:stop` it stops inside the transaction, once, as if somebody had sent SIGSTOP.
    """
    name, when = point.split(":")
    real = target.run
    has_stopped = False

    async def run(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if function.__name__ != name:
            return await real(function, *args, **kwargs)

        def inside(connection: Any, *inner: Any, **more: Any) -> Any:
            result = function(connection, *inner, **more)
            nonlocal has_stopped
            if when == "stop":
                if not has_stopped:
                    has_stopped = True
                    os.kill(os.getpid(), signal.SIGSTOP)
            elif result:  # a claim of nothing is not the point
                if when == "before":
                    connection.rollback()
                die()
            return result

        result = await real(function if when == "after" else inside, *args, **kwargs)
        if when == "after" and (result or result is None):
            die()
        return result

    target.run = run  # type: ignore[method-assign]


def open_database(where: str, idle_s: float | None) -> Database:
    return open_postgresql(where, pool_size=4, idle_s=idle_s) if "://" in where else open_sqlite(Path(where))


async def serve(options: argparse.Namespace, point: str | None) -> None:
    database = open_database(options.database, options.idle_s)
    writes = GroupedWrites(database)
    if point and not point.startswith("runner:"):
        wrap(database, point)
        wrap(writes, point)
    clock, feed, incarnation = SystemClock(), Feed(database), new_id("srv")
    runners = Runners([Resource(name="cpu", concurrency=options.concurrency)], [Chew(options.step_s, point)])
    folder = Path(options.folder)
    parts = Parts(
        database=database, writes=writes, clock=clock, feed=feed, folder=folder / "runs", random=random.random
    )
    pace = Pace(lease_s=options.lease_s, beat_s=options.lease_s / 3, poll_s=0.3, crash_limit=options.crash_limit)
    supervisor = Supervisor(runners, parts, incarnation=incarnation, is_alone=options.alone, new_id=new_id, pace=pace)
    hooks = Webhooks(database, log_hook(folder), master=MASTER, clock=clock, new_id=new_id, random=random.random)
    feed.open()
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, lambda: asyncio.ensure_future(supervisor.stop(drain_s=5.0))
    )
    sending = asyncio.create_task(hooks.run())
    watching = asyncio.create_task(stop_when_idle(database, supervisor)) if options.until_idle else None
    os.write(1, f"ready {os.getpid()}\n".encode())
    await supervisor.run()
    for task in (sending, watching):
        if task is not None:
            task.cancel()
    feed.close()
    await database.close()


def log_hook(folder: Path) -> Any:
    """Return a `Send` that writes down what it was given, durably, and takes it."""

    async def send(url: str, *, headers: Mapping[str, str], body: bytes) -> int:
        handle = os.open(folder / "hooks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(handle, headers["webhook-id"].encode() + b"\n")
        os.close(handle)
        return 204

    return send


async def stop_when_idle(database: Database, supervisor: Supervisor) -> None:
    open_jobs = sa.select(sa.func.count()).select_from(jobs).where(jobs.c.finished_at.is_(None))
    unsent = sa.select(sa.func.count()).select_from(job_webhooks).where(job_webhooks.c.next_at.is_not(None))
    while True:
        try:
            left = await database.read(lambda c: c.execute(open_jobs).scalar_one() + c.execute(unsent).scalar_one())
        except Unavailable:
            left = 1
        if not left:
            await supervisor.stop()
            return
        await asyncio.sleep(0.05)


def respawn(options: argparse.Namespace) -> None:
    """Start the server again whenever it is killed, without importing anything anew; each has its point."""
    for point in itertools.chain(options.point, itertools.repeat(None)):
        child = os.fork()  # no thread runs here: each server opens its own database
        if child == 0:
            asyncio.run(serve(options, point))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            sys.exit(os.waitstatus_to_exitcode(status))


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--point", action="append", default=[], help="one for each start, with --respawn")
    parser.add_argument("--idle-s", type=float)
    parser.add_argument("--lease-s", type=float, default=30.0)
    parser.add_argument("--step-s", type=float, default=0.01)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--crash-limit", type=int, default=3)
    for flag in ("--alone", "--respawn", "--until-idle"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    chosen = parse(sys.argv[1:])
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if chosen.respawn:
        respawn(chosen)
    else:
        asyncio.run(serve(chosen, chosen.point[0] if chosen.point else None))
