"""The run loop under any order of requests, cancels, answers, deaths and commands: the books agree at every step."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from serai.errors import LoadFailed, OutOfMemory, SeraiError
from serai.events import Done, Text
from serai.runtime.lease import Stream
from serai.runtime.model import Device, DeviceKind, Limits
from support.runtime_stage import CPU, HELLO, Asked, Stage, claim, staged
from support.scripted_backend import ScriptedWorker, turns

pytestmark = pytest.mark.anyio

DEVICES = (
    CPU,
    Device(id="cuda:0", kind=DeviceKind.CUDA, budget=100),
    Device(id="cuda:1", kind=DeviceKind.CUDA, budget=70),
)
CLAIMS = (
    claim("a", 100),
    claim("b", 60, threads=2),
    claim("c", 50, pinned=True),
    claim("d", 70, kind=DeviceKind.CUDA),
    claim("e", 90, kind=DeviceKind.CUDA),
    claim("f", 30, kind=DeviceKind.CUDA, threads=0),
)


class Chaos:
    """Does one random thing after another to a stage."""

    def __init__(self, stage: Stage, chance: random.Random) -> None:
        self.stage = stage
        self.chance = chance
        self.asked: list[Asked] = []
        self.streams: list[Stream] = []
        self.unloads: list[Awaitable[None]] = []
        self.done: dict[str, int] = {}
        self.ways: dict[str, Callable[[], Awaitable[None]]] = {
            name.removeprefix("do_"): getattr(self, name) for name in dir(self) if name.startswith("do_")
        }

    async def step(self) -> None:
        name = self.chance.choice(["ask", "ask", "ask", "ready", "ready", "let_go", "let_go", "run", *self.ways])
        self.done[name] = self.done.get(name, 0) + 1
        await self.ways[name]()
        await turns()
        self.check()

    def check(self) -> None:
        runtime, backend = self.stage.runtime, self.stage.backend
        assert runtime.check_integrity() == ()
        for device in DEVICES:
            held = sum(worker.spec.memory_bytes for worker in backend.alive if worker.spec.device == device.id)
            assert held <= device.budget
        holding = [asked for asked in self.asked if asked.has_it]
        assert runtime.figures().leases == len(holding)
        assert runtime.figures().waiting == sum(not asked.task.done() and not asked.has_it for asked in self.asked)
        assert len(runtime.loaded()) >= len([worker for worker in backend.alive if not worker.stops])

    def worker(self, *, is_loading: bool | None = None) -> ScriptedWorker | None:
        ready = {loaded.pid for loaded in self.stage.runtime.loaded() if loaded.state != "loading"}
        alive = [worker for worker in self.stage.backend.alive if not worker.stops]
        if is_loading is not None:
            alive = [worker for worker in alive if (worker.pid not in ready) is is_loading]
        return self.chance.choice(alive) if alive else None

    async def do_ask(self) -> None:
        claims = self.chance.sample(CLAIMS, self.chance.choice([1, 1, 1, 2, 3]))
        if sum(one.unit.threads for one in claims) <= 4:
            keep = self.chance.choice([None, None, 0.0, -1.0, 20.0])
            caller, wait = self.chance.choice("xyz"), self.chance.choice([5.0, 1e6])
            self.asked.append(self.stage.ask(*claims, caller=caller, timeout_s=wait, keep_alive=keep))

    async def do_cancel(self) -> None:
        live = [asked for asked in self.asked if not asked.task.done()]
        if live:
            await self.chance.choice(live).cancel()

    async def do_let_go(self) -> None:
        holding = [asked for asked in self.asked if asked.has_it]
        if holding:
            await self.chance.choice(holding).done()

    async def do_run(self) -> None:
        holding = [asked.lease for asked in self.asked if asked.has_it and asked.lease is not None]
        if holding:
            lease = self.chance.choice(holding)
            for number in range(len(lease.devices)):
                if number not in lease._streams or lease._streams[number].is_over:
                    self.streams.append(lease.run(HELLO, unit=number))

    async def do_answer(self) -> None:
        worker = self.worker(is_loading=False)
        if worker is not None and worker.runs:
            worker.tell(Text(delta="x"), Done(result={}))

    async def do_close_stream(self) -> None:
        if self.streams:
            await self.chance.choice(self.streams).aclose()

    async def do_ready(self) -> None:
        worker = self.worker(is_loading=True)
        if worker is not None:
            worker.ready()

    async def do_leave(self) -> None:
        for worker in self.stage.backend.alive:
            if worker.stops:
                worker.leave()

    async def do_die(self) -> None:
        worker = self.worker()
        if worker is not None:
            worker.leave(self.chance.choice([-11, 1, None]))

    async def do_exit(self) -> None:
        worker = self.worker()
        if worker is not None:
            worker.exit(self.chance.choice([LoadFailed("Broken."), OutOfMemory("Full.")]))

    async def do_unload(self) -> None:
        one, force = self.chance.choice(CLAIMS), self.chance.choice([True, False])
        self.unloads.append(asyncio.ensure_future(self.stage.runtime.unload(one.unit.id, force=force)))

    async def do_pin(self) -> None:
        self.stage.runtime.pin(self.chance.choice(CLAIMS).unit.id, pinned=self.chance.choice([True, False]))

    async def do_pass_time(self) -> None:
        await self.stage.advance(self.chance.choice([0.5, 6.0, 130.0, 700.0]))

    async def do_forgive(self) -> None:
        self.stage.runtime.clear_cooldown(self.chance.choice(CLAIMS).unit.id)

    async def finish(self) -> None:
        """Let everything end well; nobody waits for ever."""
        for one in CLAIMS:
            self.stage.runtime.pin(one.unit.id, pinned=False)
        for _ in range(3000):
            if all(asked.task.done() for asked in self.asked):
                break
            await self.do_leave()
            await self.do_ready()
            await self.do_let_go()
            await self.stage.advance(0.1)
            self.check()
        assert all(asked.task.done() for asked in self.asked)
        for asked in self.asked:
            error = None if asked.task.cancelled() else asked.task.exception()
            assert error is None or isinstance(error, SeraiError)
        await self.stage.advance(1e7)
        await self.do_leave()
        await turns()


@pytest.mark.parametrize("seed", range(12))
async def test_the_books_agree_whatever_happens(seed: int) -> None:
    """500 random steps each; at the end everybody was served or told why not."""
    chance = random.Random(seed)
    limits = Limits(cores=4, max_waiting=30, max_waiting_per_caller=12, patience_s=5.0)
    async with staged(devices=DEVICES, limits=limits, max_runs=2, leaves_at_once=seed % 2 == 0) as stage:
        chaos = Chaos(stage, chance)
        for _ in range(500):
            await chaos.step()
        await chaos.finish()
        assert set(chaos.done) == set(chaos.ways)
        assert all(stream.is_over for stream in chaos.streams)
        for unloading in chaos.unloads:
            await unloading
