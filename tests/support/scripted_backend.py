"""A backend without processes: a test says what each worker does, step by step."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from serai.engines.base import EngineSpec, Run
from serai.errors import SeraiError
from serai.events import Done, Event, Text
from serai.runtime.errors import WorkerGone
from serai.runtime.worker.messages import (
    Cancel,
    Exit,
    Feed,
    FromWorker,
    Loading,
    Ready,
    Start,
    Stats,
    Stop,
    Told,
    ToWorker,
)

Played = Callable[["ScriptedWorker"], None]


class ScriptedWorker:
    """Says what the test makes it say, and remembers what it was told."""

    def __init__(self, spec: EngineSpec, backend: "ScriptedBackend", number: int) -> None:
        self.spec = spec
        self.number = number
        self.name = spec.name
        self.heard: list[ToWorker] = []
        self.runs: dict[int, Run] = {}
        self.stops: list[float] = []
        self.is_gone = False
        self.leaves_at_once = backend.leaves_at_once
        self._backend = backend
        self._said: list[FromWorker] = []
        self._status: int | None = None
        self._arrived = asyncio.Event()
        self._left = asyncio.Event()

    # The seam

    @property
    def pid(self) -> int | None:
        return 1000 + self.number

    def send(self, message: ToWorker) -> None:
        if self.is_gone:
            return
        self.heard.append(message)
        if isinstance(message, Start):
            self.runs[message.run.id] = message.run
            assert len(self.runs) <= self._backend.max_runs, "more runs than the worker takes"
            self._backend.on_run(self, message.run)
        elif isinstance(message, Cancel):
            self.runs.pop(message.run, None)

    async def receive(self) -> Sequence[FromWorker]:
        while not self._said:
            if self.is_gone:
                raise WorkerGone("It is gone.", status=self._status)
            self._arrived.clear()
            await self._arrived.wait()
        said, self._said = self._said, []
        return said

    async def stop(self, grace_s: float) -> None:
        if not self.is_gone:
            self.stops.append(grace_s)
            self.heard.append(Stop())
            self._backend.on_stop(self)
            if self.leaves_at_once:
                self.leave()
        await self._left.wait()

    # What the test does

    def say(self, *messages: FromWorker) -> None:
        if not self.is_gone:
            self._said += messages
            self._arrived.set()

    def loading(self, fraction: float) -> None:
        self.say(Loading(fraction=fraction))

    def ready(self, size: int | None = None, **facts: Any) -> None:
        size = self.spec.memory_bytes if size is None else size
        self.say(Ready(bytes=size, max_runs=self._backend.max_runs, facts=facts))

    def stats(self, size: int) -> None:
        self.say(Stats(bytes=size, runs=len(self.runs), steps=1))

    def tell(self, *events: Event, run: int | None = None) -> None:
        """Say events of a run; of the one that was started last where none is named."""
        number = run if run is not None else max(self.runs)
        for event in events:
            self.say(Told(number, event))
            if isinstance(event, Done):
                self.runs.pop(number, None)

    def answer(self, *words: str) -> None:
        """Answer the run that was started last."""
        self.tell(*(Text(delta=word) for word in words), Done(result={"words": len(words)}))

    def exit(self, error: SeraiError) -> None:
        self.say(Exit(code=error.code, message=error.message, hint=error.hint))
        self.leave(1)

    def leave(self, status: int | None = 0) -> None:
        """End the process with this status, at once."""
        if not self.is_gone:
            self.is_gone = True
            self._status = status
            self._backend.on_gone(self)
            self._arrived.set()
            self._left.set()

    def feeds(self) -> list[Feed]:
        return [message for message in self.heard if isinstance(message, Feed)]

    def cancels(self) -> list[int]:
        return [message.run for message in self.heard if isinstance(message, Cancel)]


def _nothing(*_: object) -> None:
    pass


class ScriptedBackend:
    """Makes scripted workers; `on_…` lets a test follow, and play, what happens to all of them."""

    def __init__(self, *, max_runs: int = 1, leaves_at_once: bool = True) -> None:
        self.max_runs = max_runs
        self.leaves_at_once = leaves_at_once
        self.workers: list[ScriptedWorker] = []
        self.refusal: SeraiError | None = None
        self.spawn_gate: asyncio.Event | None = None
        self.is_closed = False
        self.on_spawn: Played = _nothing
        self.on_run: Callable[[ScriptedWorker, Run], None] = _nothing
        self.on_stop: Played = _nothing
        self.on_gone: Played = _nothing

    @property
    def alive(self) -> list[ScriptedWorker]:
        return [worker for worker in self.workers if not worker.is_gone]

    def worker(self, name: str) -> ScriptedWorker:
        """Return the newest worker of a version."""
        return next(worker for worker in reversed(self.workers) if worker.name == name)

    async def spawn(self, spec: EngineSpec) -> ScriptedWorker:
        if self.spawn_gate is not None:
            await self.spawn_gate.wait()
        if self.refusal is not None:
            raise self.refusal
        worker = ScriptedWorker(spec, self, len(self.workers))
        self.workers.append(worker)
        self.on_spawn(worker)
        return worker

    async def close(self) -> None:
        self.is_closed = True
        for worker in self.alive:
            worker.leave()


async def turns(count: int = 30) -> None:
    """Let the event loop go round: everything that waits for nothing outside has happened then."""
    for _ in range(count):
        await asyncio.sleep(0)
