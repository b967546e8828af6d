"""The scheduler against a world that keeps books of its own and believes nothing that it is told."""

import heapq
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serai.errors import SeraiError, WorkerCrashed, WorkerHung
from serai.runtime.model import (
    Device,
    DeviceKind,
    Effect,
    GrantLease,
    Limits,
    Load,
    Position,
    Refuse,
    Request,
    Revoke,
    UnitId,
    UnitSpec,
    UnitState,
    Unload,
)
from serai.runtime.scheduler import Scheduler

CRASH = WorkerCrashed("It crashed.")
HANG = WorkerHung("It hung.")


def unit(name: str, size: int, *, threads: int = 0, leases: int = 1, kind: DeviceKind = DeviceKind.CUDA) -> UnitSpec:
    name_of = UnitId(weights=name, engine="fake", quantization="int8", device_kind=kind)
    return UnitSpec(id=name_of, bytes=size, threads=threads, max_leases=leases)


class World:
    """Carries out effects and checks each of them against what it has itself seen."""

    def __init__(self, devices: Iterable[Device], limits: Limits) -> None:
        self.devices = {device.id: device for device in devices}
        self.limits = limits
        self.scheduler = Scheduler(tuple(devices), limits)
        self.now = 0.0
        self.memory: dict[UnitId, Load] = {}
        self.state: dict[UnitId, UnitState] = {}
        self.requests: dict[str, Request] = {}
        self.waiting: dict[str, float] = {}
        self.oldest_since: dict[str, float] = {}
        self.passes: dict[str, int] = {}
        self.leases: dict[str, set[UnitId]] = {}
        self.told: dict[str, int] = {}
        self.outcome: dict[str, str] = {}
        self.pinned: set[UnitId] = set()
        self.commanded: set[UnitId] = set()
        self.given_up: set[UnitId] = set()
        self.most_used = 0
        self.loads = 0

    def used(self, device: str) -> int:
        return sum(load.bytes for load in self.memory.values() if load.device == device)

    def users(self, unit: UnitId) -> int:
        return sum(unit in units for units in self.leases.values())

    def threads(self) -> int:
        return sum(load.unit.threads for name, load in self.memory.items() if self.users(name))

    def request(self, request: Request) -> list[Effect]:
        self.requests[request.id] = request
        self.waiting[request.id] = self.now
        self.passes[request.id] = 0
        self.pinned |= {spec.id for spec in request.units if spec.pinned}
        return self.apply(self.scheduler.on_request(request, self.now))

    def cancel(self, name: str) -> list[Effect]:
        if self.waiting.pop(name, None) is not None:
            self.outcome[name] = "cancelled"
            left = self.requests[name].unit_ids - self.pinned - self.awaited()
            self.given_up = {unit for unit in left if self.state.get(unit) is UnitState.LOADING}
        self.leases.pop(name, None)
        effects = self.apply(self.scheduler.on_cancel(name, self.now))
        assert not self.given_up, "a load went on that nobody waits for"
        return effects

    def awaited(self) -> set[UnitId]:
        return {unit for name in self.waiting for unit in self.requests[name].unit_ids}

    def done(self, name: str) -> list[Effect]:
        del self.leases[name]
        return self.apply(self.scheduler.on_done(name, self.now))

    def ready(self, name: UnitId) -> list[Effect]:
        self.state[name] = UnitState.READY
        return self.apply(self.scheduler.on_ready(name, self.now))

    def gone(self, name: UnitId) -> None:
        del self.memory[name], self.state[name]
        self.commanded.discard(name)

    def unloaded(self, name: UnitId) -> list[Effect]:
        self.gone(name)
        for units in self.leases.values():
            units.discard(name)
        return self.apply(self.scheduler.on_unload(name, self.now))

    def failed(self, name: UnitId, error: SeraiError) -> list[Effect]:
        self.gone(name)
        effects = self.apply(self.scheduler.on_failed(name, error, self.now))
        for request, units in self.leases.items():
            if name in units:
                assert any(isinstance(e, Revoke) and e.request == request and e.unit == name for e in effects)
                units.discard(name)
        return effects

    def tick(self) -> list[Effect]:
        return self.apply(self.scheduler.on_tick(self.now))

    def apply(self, effects: tuple[Effect, ...]) -> list[Effect]:
        for effect in effects:
            match effect:
                case Load(unit=spec, device=device, bytes=size):
                    assert spec.id not in self.memory
                    assert spec.may_be_on(self.devices[device])
                    self.memory[spec.id] = effect
                    self.state[spec.id] = UnitState.LOADING
                    self.loads += 1
                    self.most_used = max(self.most_used, self.used(device))
                    assert self.used(device) <= self.devices[device].budget
                    assert size == spec.bytes
                case Unload(unit=name):
                    assert self.state[name] is not UnitState.UNLOADING
                    if name in self.given_up:
                        self.given_up.discard(name)
                    elif name not in self.commanded:
                        assert self.state[name] is UnitState.READY
                        assert name not in self.pinned
                        assert not self.users(name)
                    self.state[name] = UnitState.UNLOADING
                case GrantLease(request=request, units=units):
                    self.granted(request, units)
                case Refuse(request=request):
                    del self.waiting[request]
                    self.outcome[request] = "refused"
                case Revoke(request=request, unit=name):
                    assert name in self.leases[request]
                case Position(request=request, position=position, eta=eta):
                    assert request in self.waiting
                    assert eta is None or eta >= 0
                    self.told[request] = position
        self.note_oldest()
        return list(effects)

    def granted(self, request: str, units: tuple[UnitId, ...]) -> None:
        wanted = self.requests[request]
        assert set(units) == wanted.unit_ids
        assert all(self.state.get(name) is UnitState.READY and name not in self.commanded for name in units)
        del self.waiting[request]
        self.outcome[request] = "granted"
        self.leases[request] = set(units)
        assert self.threads() <= self.limits.cores
        assert all(self.users(name) <= self.memory[name].unit.max_leases for name in units)
        for older in self.oldest_since:
            if older in self.waiting and list(self.requests).index(older) < list(self.requests).index(request):
                self.passes[older] += 1

    def note_oldest(self) -> None:
        seen: set[str] = set()
        for name in self.waiting:
            caller = self.requests[name].caller
            if caller not in seen:
                seen.add(caller)
                self.oldest_since.setdefault(name, self.now)

    def check(self) -> None:
        """Compare the scheduler's books with these."""
        assert {r.id: (r.device, r.bytes) for r in self.scheduler.residents} == {
            name: (load.device, load.bytes) for name, load in self.memory.items()
        }
        assert all(self.used(device) <= budget.budget for device, budget in self.devices.items())
        assert self.scheduler.threads == self.threads() <= self.limits.cores
        assert set(self.scheduler.waiting) == set(self.waiting)
        assert {g.request.id: set(g.units) for g in self.scheduler.grants} == self.leases
        for position, name in enumerate(self.scheduler.waiting, 1):
            assert self.told[name] == position
        for resident in self.scheduler.residents:
            assert resident.leases == self.users(resident.id)

    def finish(self, patience: int = 2000) -> None:
        """Let all loads, unloads and leases end well, and time pass, until nothing is left to happen."""
        for _ in range(patience):
            self.check()
            loading = [name for name, state in self.state.items() if state is UnitState.LOADING]
            leaving = [name for name, state in self.state.items() if state is UnitState.UNLOADING]
            if leaving:
                self.unloaded(leaving[0])
            elif loading:
                self.ready(loading[0])
            elif self.leases:
                self.done(next(iter(self.leases)))
            elif self.waiting:
                due = self.scheduler.next_tick()
                assert due is not None
                self.now = max(self.now, due)
                self.tick()
            else:
                return
        raise AssertionError(f"still waiting: {list(self.waiting)}")


GPUS = (
    Device(id="gpu0", kind=DeviceKind.CUDA, budget=10),
    Device(id="gpu1", kind=DeviceKind.CUDA, budget=7),
    Device(id="cpu", kind=DeviceKind.CPU, budget=8),
)
UNITS = (
    unit("a", 6, threads=1, leases=2),
    unit("b", 5),
    unit("c", 9),
    unit("d", 4, threads=2, kind=DeviceKind.CPU),
    unit("e", 5, threads=1, leases=3, kind=DeviceKind.CPU),
    unit("f", 2),
)


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of requests, answers, failures, cancels and commands."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(GPUS, Limits(cores=3, max_waiting=12, max_waiting_per_caller=6, max_passes=3))
        self.count = 0

    @rule(
        units=st.lists(st.sampled_from(UNITS), min_size=1, max_size=3, unique=True),
        caller=st.sampled_from("xyz"),
        priority=st.integers(0, 1),
        wait=st.sampled_from([5.0, 1e9, 1e9]),
        keep_alive=st.sampled_from([None, -1.0, 0.0, 7.0]),
    )
    def ask(self, units: list[UnitSpec], caller: str, priority: int, wait: float, keep_alive: float | None) -> None:
        self.count += 1
        now = self.world.now
        self.world.request(
            Request(
                id=f"r{self.count}", units=tuple(units), caller=caller, arrival=now, deadline=now + wait,
                priority=priority, keep_alive=keep_alive,
            )
        )  # fmt: skip

    @precondition(lambda self: self.count)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        live = [*self.world.waiting, *self.world.leases] or ["r1"]
        self.world.cancel(data.draw(st.sampled_from(live)))

    @precondition(lambda self: self.world.leases)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        self.world.done(data.draw(st.sampled_from(sorted(self.world.leases))))

    def in_state(self, *states: UnitState) -> list[UnitId]:
        return [name for name, state in self.world.state.items() if state in states]

    @precondition(lambda self: self.in_state(UnitState.LOADING))
    @rule(data=st.data())
    def ready(self, data: st.DataObject) -> None:
        self.world.ready(data.draw(st.sampled_from(self.in_state(UnitState.LOADING))))

    @precondition(lambda self: self.in_state(UnitState.UNLOADING))
    @rule(data=st.data())
    def unloaded(self, data: st.DataObject) -> None:
        self.world.unloaded(data.draw(st.sampled_from(self.in_state(UnitState.UNLOADING))))

    @precondition(lambda self: self.in_state(UnitState.LOADING, UnitState.READY))
    @rule(data=st.data(), error=st.sampled_from([CRASH, HANG]))
    def failed(self, data: st.DataObject, error: SeraiError) -> None:
        name = data.draw(st.sampled_from(self.in_state(UnitState.LOADING, UnitState.READY)))
        was_ready = self.world.state[name] is UnitState.READY
        before = self.world.scheduler.cooldown(name, self.world.now)
        self.world.failed(name, error)
        if was_ready and error is HANG:
            assert self.world.scheduler.cooldown(name, self.world.now) <= before
            return
        assert self.world.scheduler.cooldown(name, self.world.now) >= 300
        if data.draw(st.booleans()):
            self.world.scheduler.clear_cooldown(name)

    @precondition(lambda self: self.world.memory)
    @rule(data=st.data(), force=st.booleans())
    def unload(self, data: st.DataObject, force: bool) -> None:
        name = data.draw(st.sampled_from(list(self.world.memory)))
        self.world.commanded.add(name)
        self.world.apply(self.world.scheduler.unload(name, self.world.now, force=force))

    @rule(spec=st.sampled_from(UNITS), pinned=st.booleans())
    def pin(self, spec: UnitSpec, pinned: bool) -> None:
        (self.world.pinned.add if pinned else self.world.pinned.discard)(spec.id)
        self.world.apply(self.world.scheduler.pin(spec.id, self.world.now, pinned=pinned))

    @rule(seconds=st.sampled_from([0.5, 6.0, 400.0]))
    def pass_time(self, seconds: float) -> None:
        self.world.now += seconds
        self.world.tick()

    @invariant()
    def books_agree(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        for spec in UNITS:
            self.world.pinned.discard(spec.id)
            self.world.apply(self.world.scheduler.pin(spec.id, self.world.now, pinned=False))
        long = [name for name in self.world.waiting if self.world.requests[name].deadline >= 1e9]
        self.world.finish()
        assert all(self.world.outcome[name] == "granted" for name in long)
        assert set(self.world.outcome) == set(self.world.requests)
        assert self.world.threads() == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


class Simulation:
    """A world in which loads, unloads and leases take time."""

    def __init__(self, world: World, chance: random.Random, *, load_s: float, unload_s: float) -> None:
        self.world = world
        self.chance = chance
        self.load_s, self.unload_s = load_s, unload_s
        self.service: dict[str, float] = {}
        self.waits: dict[str, float] = {}
        self.longest_as_oldest = 0.0
        self._events: list[tuple[float, int, Callable[[], list[Effect]]]] = []
        self._count = 0

    def at(self, time: float, act: Callable[[], list[Effect]]) -> None:
        self._count += 1
        heapq.heappush(self._events, (time, self._count, act))

    def ask(self, time: float, request: Request, service: float) -> None:
        self.service[request.id] = service
        self.at(time, lambda: self.world.request(request))

    def run(self) -> None:
        while self._events or self.world.waiting:
            due = self.world.scheduler.next_tick()
            if not self._events or (due is not None and due < self._events[0][0]):
                assert due is not None
                self.world.now = max(self.world.now, due)
                self.follow(self.world.tick())
                continue
            self.world.now, _, act = heapq.heappop(self._events)
            self.follow(act())

    def follow(self, effects: list[Effect]) -> None:
        now, world = self.world.now, self.world
        world.check()
        for effect in effects:
            match effect:
                case Load(unit=spec):
                    self.at(now + self.load_s, lambda name=spec.id: world.ready(name))  # type: ignore[misc]
                case Unload(unit=name):
                    self.at(now + self.unload_s, lambda name=name: world.unloaded(name))  # type: ignore[misc]
                case GrantLease(request=name):
                    self.waits[name] = now - world.requests[name].arrival
                    self.longest_as_oldest = max(self.longest_as_oldest, now - world.oldest_since.get(name, now))
                    self.at(now + self.service[name], lambda name=name: world.done(name))  # type: ignore[misc]
                case _:
                    pass


def models(count: int) -> list[UnitSpec]:
    return [unit(f"m{n}", 100, threads=2, leases=2, kind=DeviceKind.CPU) for n in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_two_hundred_random_requests_over_four_models(seed: int) -> None:
    """With room for 1.5 models nothing passes the budget, all are served, and none is passed over beyond the bound."""
    chance = random.Random(seed)
    limits = Limits(cores=2, max_waiting=200, max_waiting_per_caller=200, max_passes=8, patience_s=10.0)
    world = World([Device(id="cpu", kind=DeviceKind.CPU, budget=150)], limits)
    simulation = Simulation(world, chance, load_s=2.0, unload_s=0.2)
    units, callers, time = models(4), 4, 0.0
    for number in range(200):
        time += chance.expovariate(1.2)
        request = Request(
            id=f"r{number}", units=(chance.choice(units),), caller=f"c{chance.randrange(callers)}", arrival=time,
            deadline=time + 1e6,
        )  # fmt: skip
        simulation.ask(time, request, chance.uniform(0.2, 1.5))
    simulation.run()
    assert len(simulation.waits) == 200
    assert set(world.outcome.values()) == {"granted"}
    assert world.most_used == 100
    switch = 1.5 + 0.2 + 2.0  # the longest lease ends, the old model leaves, the new one comes
    assert simulation.longest_as_oldest <= limits.patience_s + callers * switch
    assert max(world.passes.values()) <= limits.max_passes + 1  # a grant of the same moment
    assert world.loads < 100  # work for the resident model goes first: not a load per request


@pytest.mark.parametrize("service", [0.5, 30.0])
def test_a_flood_by_one_key_leaves_anothers_waits_bounded(service: float) -> None:
    """With 200 requests of one key queued, another key's p95 wait is at most two service times."""
    chance = random.Random(1)
    limits = Limits(cores=2, max_waiting=400, max_waiting_per_caller=400)
    world = World([Device(id="cpu", kind=DeviceKind.CPU, budget=300)], limits)
    simulation = Simulation(world, chance, load_s=2.0, unload_s=0.2)
    spec = unit("m", 100, threads=2, leases=1, kind=DeviceKind.CPU)
    asks = [("flood", 0.0) for _ in range(200)]
    asks += [("other", 2.0 + service * (4 * n + chance.random())) for n in range(40)]
    for number, (caller, time) in enumerate(asks):
        request = Request(id=f"{caller}{number}", units=(spec,), caller=caller, arrival=time, deadline=1e9)
        simulation.ask(time, request, service)
    simulation.run()
    waits = sorted(wait for name, wait in simulation.waits.items() if name.startswith("other"))
    assert len(waits) == 40
    assert waits[int(len(waits) * 0.95)] <= 2 * service
    assert len(simulation.waits) == 240
