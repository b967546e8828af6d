"""Who gets which models, when: a pure state machine. Events go in with the time, effects come out. See DESIGN.md."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace

from serai.errors import SeraiError
from serai.registry.errors import CandidateInCooldown
from serai.registry.failure import Cooldown, failure_of, next_cooldown
from serai.runtime import arbiter
from serai.runtime.errors import DoesNotFit, ModelUnloaded, QueueFull, QueueTimeout
from serai.runtime.estimate import Estimator
from serai.runtime.ledger import Coming, Ledger
from serai.runtime.line import Holds, Line, Waiting
from serai.runtime.model import (
    Device,
    Effect,
    Grant,
    GrantLease,
    Limits,
    Load,
    Refuse,
    Request,
    Resident,
    Revoke,
    UnitId,
    UnitState,
    Unload,
)


class Scheduler:
    """Owns residency. Every method returns, in order, what is to be done; what was done comes back as an event.

    An event about what is not there any more (a late answer, a second cancel) changes nothing.
    """

    def __init__(self, devices: Sequence[Device], limits: Limits) -> None:
        self._limits = limits
        self._ledger = Ledger(devices, limits.cores)
        self._line = Line(limits)
        self._grants: dict[str, Grant] = {}
        self._cooldowns: dict[UnitId, Cooldown] = {}
        self._estimator = Estimator()
        self._victims: set[UnitId] = set()
        self._effects: list[Effect] = []

    # What can be seen

    @property
    def residents(self) -> tuple[Resident, ...]:
        return tuple(self._ledger.residents.values())

    @property
    def grants(self) -> tuple[Grant, ...]:
        return tuple(self._grants.values())

    @property
    def waiting(self) -> tuple[str, ...]:
        """The ids of the waiting requests, next one first."""
        return tuple(waiting.request.id for waiting in self._expected())

    @property
    def threads(self) -> int:
        """CPU threads of the units on which leases run."""
        return self._ledger.threads()

    def cooldown(self, unit: UnitId, now: float) -> float:
        """Return the seconds for which a unit is not loaded; 0 for one that is in memory, always."""
        cooldown = self._cooldowns.get(unit)
        return 0.0 if cooldown is None or unit in self._ledger.residents else cooldown.remaining(now)

    def next_tick(self) -> float | None:
        """Return when `on_tick` is due if no event comes before; None when there is nothing to wait for."""
        times = [waiting.request.deadline for waiting in self._line]
        overdue = self._line.next_overdue()
        wanted = self._wanted()
        times += [] if overdue is None else [overdue]
        times += [unit.expires for unit in self.residents if self._may_expire(unit) and unit.id not in wanted]
        return min((time for time in times if time < math.inf), default=None)

    # Requests

    def on_request(self, request: Request, now: float) -> tuple[Effect, ...]:
        """Queue a request, or refuse it: it never fits, a unit is in cooldown, or the queue is full."""
        if request.id in self._line or request.id in self._grants:
            raise ValueError("a request is made once")
        for spec in request.units:
            if spec.pinned:
                self._ledger.pin(spec.id, pinned=True)
        error = self._objection(request, now)
        if error is not None:
            self._effects.append(Refuse(request=request.id, error=error))
        else:
            devices = self._ledger.devices.values()
            possible = {device.id for device in devices if any(spec.may_be_on(device) for spec in request.units)}
            self._line.add(request, frozenset(possible))
        return self._settle(now)

    def on_cancel(self, request: str, now: float) -> tuple[Effect, ...]:
        """Forget a request that waits, with the loads under way that nobody else waits for; or end its lease."""
        waiting = self._line.remove(request)
        if waiting is None:
            self._release(request, now)
        else:
            for unit in waiting.units - self._wanted():
                resident = self._ledger.residents.get(unit)
                if resident is not None and resident.state is UnitState.LOADING and not resident.spec.pinned:
                    self._stop(unit)
        return self._settle(now)

    def on_done(self, request: str, now: float) -> tuple[Effect, ...]:
        """End a lease."""
        grant = self._release(request, now)
        if grant is not None:
            for unit in grant.units:
                self._estimator.service.add(unit, now - grant.since)
        return self._settle(now)

    # Units

    def on_ready(
        self, unit: UnitId, now: float, *, measured: int | None = None, max_leases: int | None = None
    ) -> tuple[Effect, ...]:
        """A load ended well and took `measured` bytes, for `max_leases` at once; the cooldown is over."""
        resident = self._ledger.residents.get(unit)
        if resident is not None and resident.state is UnitState.LOADING:
            self._cooldowns.pop(unit, None)
            self._estimator.load.add(unit, now - resident.since)
            self._ledger.loaded(unit, measured, max_leases, now)
        return self._settle(now)

    def on_grown(self, unit: UnitId, measured: int, now: float) -> tuple[Effect, ...]:
        """A loaded unit takes more memory than it did; what is idle makes way if the budget is passed."""
        resident = self._ledger.residents.get(unit)
        if resident is not None and resident.bytes < measured:
            self._ledger.measure(unit, measured)
        return self._settle(now)

    def on_failed(self, unit: UnitId, error: SeraiError, now: float) -> tuple[Effect, ...]:
        """A load failed, or a worker was lost; its memory is free. Who uses it gets the error.

        Where the failure starts a cooldown, who waits for it gets the error, too; else it is loaded again.
        """
        resident = self._ledger.residents.get(unit)
        if resident is not None and _starts_cooldown(resident.state, error):
            self._cooldowns[unit] = next_cooldown(self._cooldowns.get(unit), now)
            for waiting in [waiting for waiting in self._line if unit in waiting.units]:
                self._refuse(waiting, error)
        if resident is not None:
            self._remove(unit, error)
        return self._settle(now)

    def on_unload(self, unit: UnitId, now: float) -> tuple[Effect, ...]:
        """A worker has stopped and its memory is free."""
        if unit in self._ledger.residents:
            self._remove(unit, ModelUnloaded("The model was unloaded."))
        return self._settle(now)

    def on_tick(self, now: float) -> tuple[Effect, ...]:
        """Let time pass: deadlines, keep_alive, patience."""
        return self._settle(now)

    def unload(self, unit: UnitId, now: float, *, force: bool = False) -> tuple[Effect, ...]:
        """Drain a unit, pinned or not: no new leases, gone when the last one ends. By force: gone now, leases revoked.

        Requests that wait for it stay, and cause a new load.
        """
        resident = self._ledger.residents.get(unit)
        if resident is not None and resident.state is not UnitState.UNLOADING:
            self._readmit({unit})
            if force:
                self._revoke(unit, ModelUnloaded("The model was unloaded by force."))
            if force or not resident.leases:
                self._stop(unit)
            elif resident.state is UnitState.READY:
                self._ledger.move(unit, UnitState.DRAINING)
        return self._settle(now)

    def pin(self, unit: UnitId, now: float, *, pinned: bool) -> tuple[Effect, ...]:
        """Pin a unit, or let it go. A pinned one is neither evicted nor expires; pinning loads nothing."""
        self._ledger.pin(unit, pinned=pinned)
        return self._settle(now)

    def clear_cooldown(self, unit: UnitId) -> None:
        """Let a unit be loaded again at once."""
        self._cooldowns.pop(unit, None)

    # What follows from an event

    def _settle(self, now: float) -> tuple[Effect, ...]:
        """Bring everything up to date: grants before loads, unloads before loads."""
        for waiting in [waiting for waiting in self._line if now >= waiting.request.deadline]:
            usual = self._wait_of(waiting)
            self._refuse(waiting, QueueTimeout("The model was not free in the time given.", retry_after=usual))
        self._line.age(now)
        self._drop_orphans()
        self._shrink()
        holds = Holds()
        order = self._line.order()
        self._serve_overdue([waiting for waiting in order if waiting.overdue_since is not None], holds, now)
        others = [waiting for waiting in order if waiting.overdue_since is None]
        awaited = self._serve_ready(others, holds, now)
        self._admit_others(others, holds, awaited, now)
        self._victims = holds.victims
        wanted = self._wanted()
        for unit in self.residents:
            drained = unit.state is UnitState.DRAINING and not unit.leases
            if drained or (self._may_expire(unit) and unit.id not in wanted and now >= unit.expires):
                self._stop(unit.id)
        while (entry := self._ledger.startable()) is not None:
            self._ledger.start(entry, now)
            self._effects.append(Load(unit=entry.spec, device=entry.device, bytes=entry.spec.bytes))
        self._line.age(now)
        self._effects += self._estimator.announce(self._expected(), self._ledger, self._grants.values(), now)
        effects, self._effects = tuple(self._effects), []
        return effects

    def _serve_overdue(self, overdue: Iterable[Waiting], holds: Holds, now: float) -> None:
        """Grant or admit, longest first; what cannot be served yet gets everything that it needs kept for it."""
        for waiting in overdue:
            if self._ledger.are_ready(waiting.units):
                if waiting.units & holds.victims and not waiting.admitted:
                    continue
                if not holds.bar(waiting) and self._ledger.can_run(waiting.units):
                    self._grant(waiting, now)
                    continue
                waiting.admitted = True
                holds.turns |= waiting.units
                holds.threads = holds.threads or self._ledger.lacks_threads(waiting.units)
            elif not waiting.admitted and not waiting.units & holds.victims and not self._is_draining(waiting):
                planned = self._plan(waiting, holds, self._admitted_units(), now)
                if isinstance(planned, arbiter.Wait) and planned.then is not None:
                    holds.victims.update(planned.then.evict)
                    holds.devices.update(device for _, device in planned.then.place)

    def _serve_ready(self, others: Iterable[Waiting], holds: Holds, now: float) -> set[UnitId]:
        """Grant what needs no load; return the ready units that somebody still waits for."""
        awaited: set[UnitId] = set()
        for waiting in others:
            if not self._ledger.are_ready(waiting.units):
                continue
            if not holds.bar(waiting) and self._ledger.can_run(waiting.units):
                self._grant(waiting, now)
            else:
                awaited |= waiting.units
        return awaited

    def _admit_others(self, others: Iterable[Waiting], holds: Holds, awaited: set[UnitId], now: float) -> None:
        """Begin the loads for which there is room without taking away what somebody waits for."""
        tried: set[frozenset[UnitId]] = set()
        for waiting in others:
            name = waiting.request.id
            if name not in self._line or waiting.admitted or waiting.units in tried or self._is_draining(waiting):
                continue
            if waiting.units & holds.victims or self._ledger.are_ready(waiting.units):
                continue
            planned = self._plan(waiting, holds, self._admitted_units() | awaited | holds.turns, now)
            if not isinstance(planned, arbiter.Plan):
                tried.add(waiting.units)

    def _plan(
        self, waiting: Waiting, holds: Holds, keep: set[UnitId], now: float
    ) -> arbiter.Plan | arbiter.Wait | None:
        """Admit a request if there is a plan; return the plan, or None where it was refused or its devices are kept."""
        targets = [self._ledger.known(spec) for spec in waiting.specs]
        devices = list(self._ledger.devices.values())
        outlook = self._ledger.outlook()
        open_devices = [device for device in devices if device.id not in holds.devices]
        planned = arbiter.plan(targets, outlook, open_devices, keep=keep, first=self._victims)
        if isinstance(planned, arbiter.Refuse):
            if holds.devices and not isinstance(arbiter.plan(targets, outlook, devices), arbiter.Refuse):
                return None
            self._refuse(waiting, DoesNotFit.by(planned.needed, planned.budget))
            return None
        if isinstance(planned, arbiter.Plan):
            keep_alive = self._keep_alive(waiting.request)
            for unit in planned.evict:
                self._stop(unit)
            for spec, device in planned.place:
                self._ledger.coming[spec.id] = Coming(spec=spec, device=device, keep_alive=keep_alive)
            # Who finds its units loading for others reserves nothing: a crowd would go before those who are overdue.
            waiting.admitted = bool(planned.place) or waiting.overdue_since is not None
        return planned

    def _grant(self, waiting: Waiting, now: float) -> None:
        units = tuple(spec.id for spec in waiting.specs)
        devices = tuple(self._ledger.residents[unit].device for unit in units)
        self._ledger.lease(units, now)
        self._line.serve(waiting, frozenset(devices))
        self._grants[waiting.request.id] = Grant(request=waiting.request, units=waiting.units, since=now)
        self._effects.append(GrantLease(request=waiting.request.id, units=units, devices=devices))

    def _release(self, request: str, now: float) -> Grant | None:
        grant = self._grants.pop(request, None)
        if grant is not None:
            self._ledger.release(grant.units, self._keep_alive(grant.request), now)
        return grant

    def _refuse(self, waiting: Waiting, error: SeraiError) -> None:
        self._line.remove(waiting.request.id)
        self._effects.append(Refuse(request=waiting.request.id, error=error))

    def _stop(self, unit: UnitId) -> None:
        force = self._ledger.residents[unit].leases > 0
        self._ledger.move(unit, UnitState.UNLOADING)
        self._effects.append(Unload(unit=unit, force=force))

    def _remove(self, unit: UnitId, error: SeraiError) -> None:
        """Forget a unit that is gone, with the leases on it; plans that counted on it are made again."""
        if self._ledger.residents[unit].state is not UnitState.UNLOADING:
            self._revoke(unit, error)
            self._readmit({unit})
        self._ledger.remove(unit)
        for name, grant in tuple(self._grants.items()):
            if unit in grant.units:
                self._grants[name] = replace(grant, units=grant.units - {unit})

    def _revoke(self, unit: UnitId, error: SeraiError) -> None:
        for name, grant in self._grants.items():
            if unit in grant.units:
                self._effects.append(Revoke(request=name, unit=unit, error=error))

    def _readmit(self, units: set[UnitId]) -> None:
        """Take back the admission of those who counted on these units."""
        for waiting in self._line:
            if waiting.units & units:
                waiting.admitted = False

    def _drop_orphans(self) -> None:
        """Forget loads that have not begun and that no admitted request counts on."""
        admitted = self._admitted_units()
        for unit in [unit for unit in self._ledger.coming if unit not in admitted]:
            del self._ledger.coming[unit]

    def _shrink(self) -> None:
        """Come back under a budget that a measured footprint exceeds: loads not begun first, then what is idle."""
        for device in self._ledger.devices:
            while self._ledger.excess(device) > 0:
                coming = [unit for unit, entry in self._ledger.coming.items() if entry.device == device]
                if coming:
                    del self._ledger.coming[coming[-1]]
                    self._readmit({coming[-1]})
                    continue
                kept = self._admitted_units()
                spare = [unit for unit in self.residents if unit.device == device and unit.is_idle]
                spare = [unit for unit in spare if not unit.spec.pinned and unit.id not in kept]
                if not spare:
                    break
                self._stop(min(spare, key=lambda unit: unit.last_use).id)
        self._drop_orphans()

    # What is asked again and again

    def _objection(self, request: Request, now: float) -> SeraiError | None:
        threads = sum(spec.threads for spec in request.units)
        if threads > self._limits.cores:
            return DoesNotFit(f"The models need {threads} threads at once; there are {self._limits.cores}.")
        targets = [self._ledger.known(spec) for spec in request.units]
        planned = arbiter.plan(targets, (), tuple(self._ledger.devices.values()))
        if isinstance(planned, arbiter.Refuse):
            return DoesNotFit.by(planned.needed, planned.budget)
        cooldown = max(self.cooldown(spec.id, now) for spec in request.units)
        if cooldown > 0:
            return CandidateInCooldown("The model failed to load a short while ago.", retry_after=cooldown)
        if self._line.is_full_for(request.caller):
            return QueueFull("Too many requests wait for a model.", retry_after=self._limits.patience_s)
        return None

    def _wait_of(self, waiting: Waiting) -> float:
        """Return the seconds after which a request that was not served in time may well be."""
        loads = [self._estimator.load.get(unit) or 0.0 for unit in waiting.units]
        return max(self._limits.patience_s, *loads)

    def _keep_alive(self, request: Request) -> float:
        seconds = self._limits.keep_alive_s if request.keep_alive is None else request.keep_alive
        return math.inf if seconds < 0 else seconds

    def _expected(self) -> list[Waiting]:
        """Return who waits in the order in which leases are likely: the overdue, who needs no load, the others."""
        ready = self._ledger.are_ready
        return sorted(self._line.order(), key=lambda one: one.overdue_since is None and not ready(one.units))

    def _may_expire(self, unit: Resident) -> bool:
        return unit.is_idle and not unit.spec.pinned

    def _is_draining(self, waiting: Waiting) -> bool:
        found = (self._ledger.residents.get(unit) for unit in waiting.units)
        return any(unit is not None and unit.state is UnitState.DRAINING for unit in found)

    def _wanted(self) -> set[UnitId]:
        return {unit for waiting in self._line for unit in waiting.units}

    def _admitted_units(self) -> set[UnitId]:
        return {unit for waiting in self._line if waiting.admitted for unit in waiting.units}


def _starts_cooldown(state: UnitState, error: SeraiError) -> bool:
    """Say whether a failure forbids loading for a while: any of a load, and such of a loaded unit as may repeat."""
    return state is UnitState.LOADING or (state is not UnitState.UNLOADING and failure_of(error).starts_cooldown)
