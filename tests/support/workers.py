"""Workers of either backend, driven by scripts, and what the machine has of them."""

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from serai.clock import SystemClock
from serai.engines.base import EngineSpec, Run
from serai.engines.tasks import Fetch
from serai.events import Done, Event, Failed
from serai.runtime.backends.base import Backend, Worker
from serai.runtime.backends.inline import InlineBackend
from serai.runtime.backends.local import LocalBackend
from serai.runtime.errors import WorkerGone
from serai.runtime.worker.messages import FromWorker, Ready, Start, Told
from support.worker_engine import ENGINES

TESTS = str(Path(__file__).parents[1])
PATIENCE_S = 60.0


def make_backend(kind: str, **environment: str) -> Backend:
    if kind == "inline":
        return InlineBackend(clock=SystemClock(), catalogue=ENGINES)
    return LocalBackend(clock=SystemClock(), catalogue=ENGINES, environment={"PYTHONPATH": TESTS, **environment})


@asynccontextmanager
async def backend_of(kind: str, **environment: str) -> AsyncIterator[Backend]:
    backend = make_backend(kind, **environment)
    try:
        yield backend
    finally:
        await backend.close()


def spec(engine: str = "scripted", *, threads: int = 1, **options: Any) -> EngineSpec:
    return EngineSpec(engine=engine, name=f"{engine}@1", threads=threads, options=options)


class Heard:
    """All that a worker has said, read as a run loop would: until what is waited for is there."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.messages: list[FromWorker] = []

    async def until(self, condition: Callable[[], Any]) -> Any:
        """Return what the condition says as soon as it says something. Raises WorkerGone."""
        with anyio.fail_after(PATIENCE_S):
            while not (found := condition()):
                self.messages += await self.worker.receive()
        return found

    async def ready(self) -> Ready:
        found: Ready = await self.until(lambda: self._first(Ready))
        return found

    def run(self, number: int, **body: Any) -> None:
        self.worker.send(Start(run=Run(id=number, task=Fetch(body=body))))

    def events(self, run: int) -> Sequence[Event]:
        return [message.event for message in self.messages if isinstance(message, Told) and message.run == run]

    async def end(self, run: int) -> Done | Failed:
        """Return the last event of the run."""
        await self.until(lambda: [event for event in self.events(run) if isinstance(event, Done | Failed)])
        last = self.events(run)[-1]
        assert isinstance(last, Done | Failed)
        return last

    async def ask(self, number: int, **body: Any) -> Mapping[str, Any]:
        """Return the result of a run."""
        self.run(number, **body)
        last = await self.end(number)
        assert isinstance(last, Done), last
        return last.result

    async def gone(self) -> WorkerGone:
        """Return what the worker died of; everything that it said before is in `messages`."""
        try:
            await self.until(lambda: False)
        except WorkerGone as gone:
            return gone
        raise AssertionError

    def _first(self, kind: type[FromWorker]) -> FromWorker | None:
        return next((message for message in self.messages if isinstance(message, kind)), None)


async def loaded(backend: Backend, engine: str = "scripted", **options: Any) -> Heard:
    heard = Heard(await backend.spawn(spec(engine, **options)))
    await heard.ready()
    return heard


def children(pid: int) -> set[int]:
    """Return the processes that any thread of `pid` started and that have not been waited for."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found |= {int(child) for child in task.read_text().split()}
    return found


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def fork_servers(pid: int | None = None) -> set[int]:
    """Return the fork servers below a process, this one if none is given."""
    found = set()
    for child in children(os.getpid() if pid is None else pid):
        with contextlib.suppress(OSError):
            if b"serai.runtime.worker.forkserver" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.add(child)
    return found


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - nothing tells what the kernel's process table has in it
            await anyio.sleep(0.005)
