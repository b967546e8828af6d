"""The run loop under load, in simulated time: budgets, evictions, and how long anybody waits."""

import asyncio
import heapq
import random
from collections.abc import Callable

import pytest

from serai.clock import ManualClock
from serai.engines.base import Run
from serai.engines.tasks import Generate
from serai.events import Done
from serai.ids import new_id
from serai.runtime.footprints import MemoryFootprints
from serai.runtime.lease import Claim
from serai.runtime.model import Effect, Limits, Unload
from serai.runtime.runtime import Runtime
from support.runtime_stage import CPU, claim
from support.scripted_backend import ScriptedBackend, ScriptedWorker, turns

pytestmark = pytest.mark.anyio

LOAD_S, UNLOAD_S = 2.0, 0.2


class Simulation:
    """A runtime whose workers take simulated time; effects are checked against the workers there really are."""

    def __init__(self, limits: Limits, *, max_runs: int = 1) -> None:
        self.clock = ManualClock()
        self.backend = ScriptedBackend(max_runs=max_runs, leaves_at_once=False)
        self.runtime = Runtime(
            backend=self.backend,
            devices=(CPU,),
            limits=limits,
            clock=self.clock,
            new_id=new_id,
            footprints=MemoryFootprints(),
            oom_kills=lambda: 0,
        )
        self.waits: dict[str, list[float]] = {}
        self.longest_as_oldest = 0.0
        self.most_bytes = 0
        self.samples = 0
        self.pinned: set[str] = set()
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0
        self._queues: dict[str, list[object]] = {}
        self._oldest_since: dict[str, float] = {}
        self._carry_out = self.runtime._carry_out
        self.runtime._carry_out = self._checked  # type: ignore[method-assign]
        self.backend.on_spawn = lambda worker: self.after(LOAD_S, worker.ready)
        self.backend.on_stop = lambda worker: self.after(UNLOAD_S, worker.leave)
        self.backend.on_run = self._play

    def after(self, seconds: float, act: Callable[[], object]) -> None:
        self._count += 1
        heapq.heappush(self._due, (self.clock.monotonic() + seconds, self._count, act))

    def _play(self, worker: ScriptedWorker, run: Run) -> None:
        assert isinstance(run.task, Generate)
        self.after(float(run.task.prompt), lambda: worker.tell(Done(result={}), run=run.id))

    def _checked(self, effect: Effect) -> None:
        if isinstance(effect, Unload):
            (worker,) = (worker for worker in self.backend.alive if worker.name == f"{effect.unit.weights}@1.0.0")
            assert not worker.runs, "a busy one was told to leave"
            assert effect.unit.weights not in self.pinned
            assert all(effect.unit not in units for _, units in self.runtime._leases.values())
        self._carry_out(effect)
        self.sample()

    def sample(self) -> None:
        """Look at the workers that hold memory, those included that are about to be started."""
        figures = self.runtime.figures()
        self.most_bytes = max(self.most_bytes, figures.bytes["cpu"])
        assert sum(worker.spec.memory_bytes for worker in self.backend.alive) <= CPU.budget
        assert figures.bytes["cpu"] <= CPU.budget
        assert figures.threads <= figures.cores
        self.samples += 1

    async def use(self, one: Claim, caller: str, service: float) -> None:
        """Ask for a model, use it for so long, and note the wait, and the part of it as the caller's oldest request."""
        asked, queue, mine = self.clock.monotonic(), self._queues.setdefault(caller, []), object()
        if not queue:
            self._oldest_since[caller] = asked
        queue.append(mine)
        async with self.runtime.lease([one], caller=caller, timeout_s=1e6) as lease:
            now = self.clock.monotonic()
            self.waits.setdefault(caller, []).append(now - asked)
            if queue[0] is mine:
                self.longest_as_oldest = max(self.longest_as_oldest, now - self._oldest_since[caller])
                self._oldest_since[caller] = now
            queue.remove(mine)
            stream = lease.run(Generate(prompt=str(service)))
            assert [event async for event in stream] == [Done(result={})]

    async def run(self, tasks: list["asyncio.Task[None]"]) -> None:
        """Let simulated time pass until all tasks have ended."""
        await turns()
        while not all(task.done() for task in tasks):
            tick = self.runtime._scheduler.next_tick()
            due = min(self._due[0][0] if self._due else 1e18, tick if tick is not None else 1e18)
            assert due < 1e18, "nothing is left to happen, and somebody waits"
            self.clock.advance(max(0.0, due - self.clock.monotonic()))
            while self._due and self._due[0][0] <= self.clock.monotonic():
                heapq.heappop(self._due)[2]()
            self.runtime.tick()
            await turns()
            self.sample()
        for task in tasks:
            task.result()

    def at(self, time: float, one: Claim, caller: str, service: float) -> "asyncio.Task[None]":
        """Have a request made at a time."""
        begun = asyncio.Event()
        self.after(time - self.clock.monotonic(), begun.set)

        async def ask() -> None:
            await begun.wait()
            await self.use(one, caller, service)

        return asyncio.create_task(ask())

    async def close(self) -> None:
        self.pinned.clear()
        self.backend.leaves_at_once = True
        for worker in self.backend.alive:
            worker.leaves_at_once = True
        await self.runtime.close()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pinned", [False, True])
async def test_two_hundred_random_requests_over_four_models(seed: int, pinned: bool) -> None:
    """With room for 1.5 models the budget holds at every effect, the busy and the pinned stay, the bound is kept."""
    chance = random.Random(seed)
    limits = Limits(cores=2, max_waiting=200, max_waiting_per_caller=200, max_passes=8, patience_s=10.0)
    simulation = Simulation(limits, max_runs=2)
    models = [claim(name, 100, threads=2, max_leases=2) for name in "abcd"]
    small = claim("pinned", 40, threads=1, pinned=True)
    if pinned:
        simulation.pinned.add("pinned")
        models.append(small)
    time, tasks, callers = 0.0, [], 4
    for _ in range(200):
        time += chance.expovariate(1.2)
        caller = f"c{chance.randrange(callers)}"
        tasks.append(simulation.at(time, chance.choice(models), caller, chance.uniform(0.2, 1.5)))
    async with asyncio.timeout(100):
        await simulation.run(tasks)
    switch = 1.5 + UNLOAD_S + LOAD_S  # the longest lease ends, the old model leaves, the new one comes
    assert sum(len(waits) for waits in simulation.waits.values()) == 200
    assert simulation.longest_as_oldest <= limits.patience_s + callers * switch
    assert simulation.most_bytes == (140 if pinned else 100)
    assert simulation.samples > 400
    assert len(simulation.backend.workers) < 100  # work for the resident model goes first
    if pinned:
        assert sum(worker.name == "pinned@1.0.0" for worker in simulation.backend.workers) == 1
    assert simulation.runtime.check_integrity() == ()
    await simulation.close()


@pytest.mark.parametrize("service", [0.5, 30.0])
async def test_a_flood_by_one_key_leaves_anothers_waits_bounded(service: float) -> None:
    """With 200 requests of one key queued, another key's p95 wait is at most two service times."""
    chance = random.Random(7)
    simulation = Simulation(Limits(cores=2, max_waiting=400, max_waiting_per_caller=400))
    model = claim("m", 100)
    tasks = [simulation.at(0.0, model, "flood", service) for _ in range(200)]
    tasks += [simulation.at(LOAD_S + service * (4 * n + chance.random()), model, "other", service) for n in range(40)]
    async with asyncio.timeout(100):
        await simulation.run(tasks)
    waits = sorted(simulation.waits["other"])
    assert len(waits) == 40
    assert waits[int(len(waits) * 0.95)] <= 2 * service
    assert len(simulation.waits["flood"]) == 200
    await simulation.close()
