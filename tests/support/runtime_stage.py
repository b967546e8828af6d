"""A runtime on two or three imagined devices, with a scripted backend and a clock that the test moves."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from serai.clock import Clock, ManualClock
from serai.engines.base import EngineSpec
from serai.engines.tasks import Generate
from serai.events import Event, Loading, Queued
from serai.ids import new_id
from serai.runtime.backends.base import Backend
from serai.runtime.footprints import MemoryFootprints
from serai.runtime.lease import Claim, Lease, Stream
from serai.runtime.model import Device, DeviceKind, Limits, UnitId, UnitSpec
from serai.runtime.observer import Left
from serai.runtime.runtime import Runtime
from serai.runtime.workers import Pace
from support.scripted_backend import ScriptedBackend, turns

CPU = Device(id="cpu", kind=DeviceKind.CPU, budget=150)
CARDS = (
    Device(id="cuda:0", kind=DeviceKind.CUDA, budget=100),
    Device(id="cuda:1", kind=DeviceKind.CUDA, budget=100),
)
HELLO = Generate(prompt="hello")


def claim(name: str, size: int = 100, *, kind: DeviceKind = DeviceKind.CPU, engine: str = "fake", **unit: Any) -> Claim:
    """Return the claim on the model `name`, of 'version' 1.0.0; its weights are called as it is."""
    options = unit.pop("options", {})
    of = UnitId(weights=name, engine=engine, quantization="none", device_kind=kind)
    spec = EngineSpec(engine=engine, name=f"{name}@1.0.0", threads=1, options=options)
    return Claim(unit=UnitSpec(id=of, bytes=size, **{"threads": 1, **unit}), engine=spec)


A, B, C, D = claim("a"), claim("b"), claim("c"), claim("d")


@dataclass
class Counted:
    """An observer that keeps everything."""

    waits: list[tuple[str, str, float]] = field(default_factory=list)
    loads: list[tuple[str, str, float]] = field(default_factory=list)
    left: list[tuple[str, Left]] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)

    def on_wait(self, engine: str, outcome: str, seconds: float) -> None:
        self.waits.append((engine, outcome, seconds))

    def on_load(self, engine: str, outcome: str, seconds: float) -> None:
        self.loads.append((engine, outcome, seconds))

    def on_leave(self, engine: str, why: Left) -> None:
        self.left.append((engine, why))

    def on_lost(self, engine: str, code: str) -> None:
        self.lost.append((engine, code))


class Asked:
    """Somebody who asks for a lease in a task of their own, and holds it until told to let go."""

    def __init__(self, runtime: Runtime, claims: Sequence[Claim], arguments: dict[str, Any]) -> None:
        self.told: list[Queued | Loading] = []
        self.lease: Lease | None = None
        self._let_go = asyncio.Event()
        self._got = asyncio.Event()
        self.task = asyncio.create_task(self._hold(runtime, claims, arguments))

    async def _hold(self, runtime: Runtime, claims: Sequence[Claim], arguments: dict[str, Any]) -> None:
        try:
            async with runtime.lease(claims, watch=self.told.append, **arguments) as self.lease:
                self._got.set()
                await self._let_go.wait()
        finally:
            self._got.set()

    @property
    def has_it(self) -> bool:
        return self.lease is not None and not self.task.done()

    async def got(self) -> Lease:
        """Return the lease when it is there; raise what it was refused with."""
        async with asyncio.timeout(30):
            await self._got.wait()
            if self.lease is None:
                await self.task
        assert self.lease is not None
        return self.lease

    async def done(self) -> None:
        """Let the lease go."""
        self._let_go.set()
        async with asyncio.timeout(30):
            await self.task

    async def cancel(self) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])


class Stage:
    """The runtime and all that the test holds of it."""

    def __init__(self, runtime: Runtime, backend: ScriptedBackend, clock: ManualClock, counted: Counted) -> None:
        self.runtime = runtime
        self.backend = backend
        self.clock = clock
        self.counted = counted
        self.asked: list[Asked] = []

    def ask(self, *claims: Claim, caller: str = "ann", timeout_s: float = 1e6, **arguments: Any) -> Asked:
        self.asked.append(Asked(self.runtime, claims, {"caller": caller, "timeout_s": timeout_s, **arguments}))
        return self.asked[-1]

    async def loaded(self, *claims: Claim, keep_alive: float | None = None) -> None:
        """Bring units into memory, idle."""
        for one in claims:
            asked = self.ask(one, keep_alive=keep_alive)
            await turns()
            self.backend.worker(one.engine.name).ready()
            await asked.got()
            await asked.done()

    async def advance(self, seconds: float) -> None:
        """Let time pass, and what is due by then happen; what needs a second look gets it."""
        self.clock.advance(seconds)
        for _ in range(2):
            self.runtime.tick()
            await turns()

    def states(self) -> dict[str, str]:
        return {loaded.unit.weights: str(loaded.state) for loaded in self.runtime.loaded()}


@asynccontextmanager
async def staged(
    *,
    devices: Sequence[Device] = (CPU,),
    limits: Limits | None = None,
    max_runs: int = 1,
    footprints: Any = None,
    oom_kills: Any = None,
    pace: Pace | None = None,
    leaves_at_once: bool = True,
) -> AsyncIterator[Stage]:
    """A runtime that is closed at the end, with its books in order at every step between."""
    clock, counted = ManualClock(), Counted()
    backend = ScriptedBackend(max_runs=max_runs, leaves_at_once=leaves_at_once)
    runtime = Runtime(
        backend=backend,
        devices=devices,
        limits=limits or Limits(cores=4),
        clock=clock,
        new_id=new_id,
        footprints=footprints or MemoryFootprints(),
        observer=counted,
        pace=pace or Pace(),
        oom_kills=oom_kills or (lambda: 0),
    )
    stage = Stage(runtime, backend, clock, counted)
    try:
        yield stage
        assert runtime.check_integrity() == ()
    finally:
        backend.leaves_at_once = True
        for worker in backend.alive:
            worker.leaves_at_once = True
            if worker.stops:
                worker.leave()
        async with asyncio.timeout(30):
            await runtime.close()
            for asked in stage.asked:
                await asked.cancel()
    assert backend.alive == []
    assert runtime.figures().leases == runtime.figures().waiting == 0


@asynccontextmanager
async def opened(backend: Backend, clock: Clock, **changes: Any) -> AsyncIterator[Runtime]:
    """A runtime over a real backend."""
    arguments: dict[str, Any] = {
        "devices": (Device(id="cpu", kind=DeviceKind.CPU, budget=2**30),),
        "limits": Limits(cores=2),
        "footprints": MemoryFootprints(),
        **changes,
    }
    runtime = Runtime(backend=backend, clock=clock, new_id=new_id, **arguments)
    try:
        yield runtime
    finally:
        async with asyncio.timeout(60):
            await runtime.close()


async def read(stream: Stream) -> list[Event]:
    """Return all events of a stream."""
    async with asyncio.timeout(60):
        return [event async for event in stream]
