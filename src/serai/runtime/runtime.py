"""The run loop: asks the scheduler, carries out what it answers, and tells it what became of that.

Everything here runs on one event loop. Between asking the scheduler and acting on its answer nothing
is awaited, so there are no locks. See DESIGN.md.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Final

import msgspec
import structlog

from serai.clock import Clock
from serai.errors import SeraiError, Unavailable
from serai.ids import NewId
from serai.runtime import integrity
from serai.runtime.alarm import Alarm
from serai.runtime.backends.base import Backend
from serai.runtime.errors import ModelUnloaded
from serai.runtime.footprints import Footprints
from serai.runtime.hardware import read_oom_kills
from serai.runtime.lease import Claim, Lease
from serai.runtime.loaded import Loaded, describe
from serai.runtime.model import (
    Device,
    Effect,
    GrantLease,
    Limits,
    Load,
    Position,
    Refuse,
    Request,
    Resident,
    Revoke,
    UnitId,
    UnitSpec,
    UnitState,
    Unload,
)
from serai.runtime.observer import Figures, Left, NoObserver, Observer
from serai.runtime.scheduler import Scheduler
from serai.runtime.waiters import Waiter, Waiters, Watch
from serai.runtime.worker.messages import Ready
from serai.runtime.workers import Keeper, Pace, Parts

__all__ = ["Claim", "Lease", "Loaded", "Pace", "Runtime"]

WATCH_SHARE: Final = 0.25
"""Workers are looked at so often within the silence that they are allowed: a hang is noticed a quarter late at most."""

_log = structlog.get_logger(__name__)


class Runtime:
    """Which models are in memory, and who uses them: `lease` is the only door. Made and used on one event loop.

    `oom_kills` tells how often the kernel has killed for want of memory. What is due by `clock` is done
    at its time; who moves a clock by hand calls `tick` afterwards.
    """

    def __init__(
        self,
        *,
        backend: Backend,
        devices: Sequence[Device],
        limits: Limits,
        clock: Clock,
        new_id: NewId,
        footprints: Footprints,
        observer: Observer | None = None,
        pace: Pace = Pace(),  # noqa: B008 - a frozen value
        oom_kills: Callable[[], int | None] = read_oom_kills,
    ) -> None:
        self._scheduler = Scheduler(devices, limits)
        self._devices = tuple(devices)
        self._limits = limits
        self._clock = clock
        self._new_id = new_id
        self._footprints = footprints
        self._observer = observer or NoObserver()
        self._backend = backend
        self._parts = Parts(
            backend=backend,
            clock=clock,
            pace=pace,
            oom_kills=oom_kills,
            on_loading=self._on_loading,
            on_ready=self._on_ready,
            on_grown=self._on_grown,
            on_end=self._on_end,
        )
        self._waiters = Waiters(clock, self._observer)
        self._leases: dict[str, tuple[Lease, tuple[UnitId, ...]]] = {}
        self._keepers: dict[UnitId, Keeper] = {}
        self._commanded: set[UnitId] = set()
        self._effects: deque[Effect] = deque()
        self._is_acting = False
        self._is_closed = False
        self._alarm = Alarm(clock, self.tick)
        self._problems: tuple[str, ...] = ()

    # The door

    def lease(
        self,
        claims: Sequence[Claim],
        *,
        caller: str,
        timeout_s: float,
        priority: int = 0,
        keep_alive: float | None = None,
        watch: Watch | None = None,
    ) -> AbstractAsyncContextManager[Lease]:
        """Wait for all of `claims` to be in memory and free, all at once; the lease ends with the block.

        `timeout_s` limits the wait, not the lease. `watch` is called with the place in the queue and with
        how far loads are, whenever they change; it must not block. Being cancelled leaves the queue at
        once, and a load that nobody else wants is given up. Raises `DoesNotFit`, `CandidateInCooldown`,
        `QueueFull`, `QueueTimeout`, what a load failed of, `Unavailable` once the runtime is closed.
        """
        return self._lease(tuple(claims), caller, timeout_s, priority, keep_alive, watch)

    @asynccontextmanager
    async def _lease(
        self,
        claims: tuple[Claim, ...],
        caller: str,
        timeout_s: float,
        priority: int,
        keep_alive: float | None,
        watch: Watch | None,
    ) -> AsyncIterator[Lease]:
        if self._is_closed:
            raise Unavailable("The server is stopping.")
        now = self._clock.monotonic()
        request = Request(
            id=self._new_id("lease"),
            units=tuple(self._planned(claim.unit) for claim in claims),
            caller=caller,
            arrival=now,
            deadline=now + timeout_s,
            priority=priority,
            keep_alive=keep_alive,
        )
        waiter = Waiter(request=request, claims=claims, watch=watch, lease=asyncio.get_running_loop().create_future())
        self._waiters.add(waiter)
        for keeper in (self._keepers.get(claim.unit.id) for claim in claims):
            if keeper is not None and keeper.ready is None:
                self._waiters.tell_loading(keeper.unit, keeper.fraction, only=waiter)
        self._act(self._scheduler.on_request(request, now))
        lease = await self._granted(waiter)
        try:
            yield lease
        finally:
            lease.end()
            self._leases.pop(request.id, None)
            self._act(self._scheduler.on_done(request.id, self._clock.monotonic()))

    async def _granted(self, waiter: Waiter) -> Lease:
        try:
            return await waiter.lease
        except asyncio.CancelledError:
            self._waiters.leave(waiter)
            self._leases.pop(waiter.request.id, None)
            self._act(self._scheduler.on_cancel(waiter.request.id, self._clock.monotonic()))
            raise

    def _planned(self, unit: UnitSpec) -> UnitSpec:
        """Return the unit with the bytes to plan with: no less than estimated, for an engine may fill what it got.

        More where more was measured; but what has been loaded once is never said not to fit for its growth.
        """
        room = max((device.budget for device in self._devices if unit.may_be_on(device)), default=0)
        measured = min(self._footprints.get(unit.id) or 0, room)
        return replace(unit, bytes=max(unit.bytes, measured))

    # What can be seen and said

    def loaded(self) -> tuple[Loaded, ...]:
        """Return what is in memory, in the order in which it came."""
        residents = self._scheduler.residents
        return tuple(describe(resident, self._keepers[resident.id], self._clock) for resident in residents)

    def cooldown(self, unit: UnitId) -> float:
        """Return the seconds for which a unit is not loaded because it failed; 0 for one that is in memory."""
        return self._scheduler.cooldown(unit, self._clock.monotonic())

    def clear_cooldown(self, unit: UnitId) -> None:
        """Let a unit that failed be loaded again at once."""
        self._scheduler.clear_cooldown(unit)

    def pin(self, unit: UnitId, *, pinned: bool) -> None:
        """Keep a unit in memory, or let it go. Pinning loads nothing."""
        self._act(self._scheduler.pin(unit, self._clock.monotonic(), pinned=pinned))

    async def unload(self, unit: UnitId, *, force: bool = False) -> None:
        """Return when the unit has left memory; at once if it is not there.

        Without `force` its leases end first, and no new ones begin; cancelling the call does not stop that.
        With it their streams raise `ModelUnloaded`. Who waits for the unit causes a new load.
        """
        keeper = self._keepers.get(unit)
        if keeper is not None:
            self._commanded.add(unit)
            self._act(self._scheduler.unload(unit, self._clock.monotonic(), force=force))
            await keeper.gone.wait()

    async def close(self) -> None:
        """Give nobody a lease any more, end every worker, and return when all of them are gone."""
        self._is_closed = True
        now = self._clock.monotonic()
        for name in self._waiters:
            self._waiters.refuse(name, Unavailable("The server is stopping."))
            self._act(self._scheduler.on_cancel(name, now))
        for unit in tuple(self._keepers):
            self._commanded.add(unit)
            self._act(self._scheduler.unload(unit, now, force=True))
        if self._keepers:
            await asyncio.wait([keeper.task for keeper in self._keepers.values()])
        self._alarm.set(math.inf)
        await self._backend.close()

    def tick(self) -> None:
        """Do what is due by the clock. Called by itself in time; early calls change nothing."""
        now = self._clock.monotonic()
        for keeper in tuple(self._keepers.values()):
            keeper.check(now)
        self._act(self._scheduler.on_tick(now))

    def figures(self) -> Figures:
        """Return how things stand. May be called from any thread."""
        residents = self._scheduler.residents
        used = {device.id: 0 for device in self._devices}
        for resident in residents:
            used[resident.device] += resident.bytes
        return Figures(
            waiting=len(self._waiters),
            leases=len(self._leases),
            loaded=len(residents),
            bytes=used,
            budgets={device.id: device.budget for device in self._devices},
            threads=sum(resident.spec.threads for resident in residents if resident.leases),
            cores=self._limits.cores,
        )

    def check_integrity(self) -> tuple[str, ...]:
        """Return every contradiction between the ledgers, the workers and the leases; log them if they are new.

        Repairs nothing: a contradiction is a defect, and what hides it is worse.
        """
        leases = {name: frozenset(units) for name, (_, units) in self._leases.items()}
        problems = integrity.problems(
            self._scheduler, workers=self._keepers, waiting=frozenset(self._waiters), leases=leases
        )
        if problems and problems != self._problems:
            _log.error("runtime_integrity", problems=problems)
        self._problems = problems
        return problems

    # Carrying out

    def _act(self, effects: Sequence[Effect]) -> None:
        """Carry out effects in their order; those that a callback causes meanwhile come after them."""
        self._effects.extend(effects)
        if self._is_acting:
            return
        self._is_acting = True
        try:
            while self._effects:
                self._carry_out(self._effects.popleft())
        finally:
            self._is_acting = False
        if not self._waiters and not self._leases:
            self.check_integrity()
        self._alarm.set(min(self._due(), default=math.inf))

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case GrantLease():
                self._grant(effect)
            case Refuse(request=name, error=error):
                self._waiters.refuse(name, error)
            case Position(request=name, position=position, eta=eta):
                self._waiters.tell_position(name, position, eta)
            case Load():
                self._load(effect)
            case Unload():
                self._unload(effect)
            case Revoke(request=name, unit=unit, error=error):
                lease, units = self._leases[name]
                lease.lose(units.index(unit), error)

    def _grant(self, effect: GrantLease) -> None:
        keepers = [self._keepers[unit] for unit in effect.units]
        for keeper, claim in zip(keepers, self._waiters.claims(effect.request), strict=True):
            keeper.names[claim.engine.name] = None
        lease = Lease(keepers, effect.devices)
        self._leases[effect.request] = (lease, effect.units)
        self._waiters.grant(effect.request, lease)

    def _load(self, effect: Load) -> None:
        unit = effect.unit.id
        engine = self._waiters.claim_on(unit).engine
        spec = msgspec.structs.replace(engine, device=effect.device, memory_bytes=effect.bytes)
        _log.info("model_loading", model=spec.name, engine=spec.engine, device=effect.device, bytes=effect.bytes)
        self._keepers[unit] = Keeper(unit, spec, self._parts)
        self._waiters.tell_loading(unit, 0.0)

    def _unload(self, effect: Unload) -> None:
        keeper = self._keepers[effect.unit]
        why = self._reason_to_leave(keeper)
        _log.info("model_unloading", model=keeper.spec.name, device=keeper.spec.device, why=why.value)
        self._observer.on_leave(keeper.spec.engine, why)
        grace = 0.0 if keeper.ready is None or effect.force else self._parts.pace.grace_s
        keeper.end(ModelUnloaded(f"{keeper.spec.name} was unloaded."), grace_s=grace)

    def _reason_to_leave(self, keeper: Keeper) -> Left:
        if keeper.unit in self._commanded:
            return Left.COMMANDED
        if keeper.ready is None:
            return Left.ABORTED
        is_expired = self._resident(keeper).expires <= self._clock.monotonic()
        return Left.EXPIRED if is_expired else Left.EVICTED

    def _resident(self, keeper: Keeper) -> Resident:
        return next(resident for resident in self._scheduler.residents if resident.id == keeper.unit)

    # What keepers tell

    def _on_loading(self, keeper: Keeper, fraction: float) -> None:
        keeper.fraction = fraction
        self._waiters.tell_loading(keeper.unit, fraction)

    def _on_ready(self, keeper: Keeper, ready: Ready) -> None:
        now = self._clock.monotonic()
        self._footprints.put(keeper.unit, ready.bytes)
        self._observer.on_load(keeper.spec.engine, "ready", now - keeper.begun)
        _log.info("model_loaded", model=keeper.spec.name, seconds=round(now - keeper.begun, 3), bytes=ready.bytes)
        taken = max(ready.bytes, keeper.spec.memory_bytes)
        self._act(self._scheduler.on_ready(keeper.unit, now, measured=taken, max_leases=ready.max_runs))

    def _on_grown(self, keeper: Keeper, size: int) -> None:
        self._footprints.put(keeper.unit, size)
        if size > keeper.spec.memory_bytes:
            self._act(self._scheduler.on_grown(keeper.unit, size, self._clock.monotonic()))

    def _on_end(self, keeper: Keeper, error: SeraiError) -> None:
        del self._keepers[keeper.unit]
        self._commanded.discard(keeper.unit)
        now = self._clock.monotonic()
        was_told = self._resident(keeper).state is UnitState.UNLOADING
        engine, name = keeper.spec.engine, keeper.spec.name
        if keeper.ready is None:
            self._observer.on_load(engine, "stopped" if was_told else error.code, now - keeper.begun)
        elif not was_told:
            self._observer.on_lost(engine, error.code)
        if was_told:
            _log.info("model_unloaded", model=name)
            self._act(self._scheduler.on_unload(keeper.unit, now))
        else:
            _log.warning(
                "worker_lost", model=name, loaded=keeper.ready is not None, problem=error.code, text=str(error)
            )
            self._act(self._scheduler.on_failed(keeper.unit, error, now))

    # Time

    def _due(self) -> Iterator[float]:
        now = self._clock.monotonic()
        scheduled = self._scheduler.next_tick()
        if scheduled is not None:
            yield scheduled
        if self._keepers:
            yield now + self._parts.pace.silence_s * WATCH_SHARE
        for keeper in self._keepers.values():
            due = keeper.due()
            if due is not None:
                yield due
