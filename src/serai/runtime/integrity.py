"""Whether the books agree: the scheduler's ledgers, the workers there are, the leases that were given."""

from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Protocol

from serai.engines.base import EngineSpec
from serai.errors import SeraiError
from serai.runtime.model import UnitId, UnitState
from serai.runtime.scheduler import Scheduler


class WorkerSeen(Protocol):
    """A worker as the run loop sees it."""

    @property
    def spec(self) -> EngineSpec: ...
    @property
    def ready(self) -> object:
        """None before it is loaded."""

    @property
    def error(self) -> SeraiError | None:
        """Why it ends; None while it is to stay."""

    @property
    def runs(self) -> int: ...


def problems(
    scheduler: Scheduler,
    *,
    workers: Mapping[UnitId, WorkerSeen],
    waiting: AbstractSet[str],
    leases: Mapping[str, AbstractSet[UnitId]],
) -> tuple[str, ...]:
    """Return each contradiction in words; none while everything is as it should be."""
    return (*_of_units(scheduler, workers), *_of_requests(scheduler, waiting, leases))


def _of_units(scheduler: Scheduler, workers: Mapping[UnitId, WorkerSeen]) -> Iterator[str]:
    residents = {resident.id: resident for resident in scheduler.residents}
    for unit in residents.keys() ^ workers.keys():
        yield f"{unit.weights}: {'in the ledger without a worker' if unit in residents else 'a worker without a place'}"
    leased = Counter(unit for grant in scheduler.grants for unit in grant.units)
    for unit in residents.keys() & workers.keys():
        resident, worker = residents[unit], workers[unit]
        is_leaving, is_loading = resident.state is UnitState.UNLOADING, resident.state is UnitState.LOADING
        if resident.device != worker.spec.device:
            yield f"{unit.weights}: on {worker.spec.device}, in the ledger on {resident.device}"
        if worker.error is None and (is_leaving or is_loading is not (worker.ready is None)):
            yield f"{unit.weights}: the ledger says {resident.state}, its worker does not"
        if resident.leases != leased[unit]:
            yield f"{unit.weights}: {resident.leases} leases in the ledger, {leased[unit]} given"
        if worker.runs > leased[unit]:
            yield f"{unit.weights}: {worker.runs} runs on {leased[unit]} leases"


def _of_requests(
    scheduler: Scheduler, waiting: AbstractSet[str], leases: Mapping[str, AbstractSet[UnitId]]
) -> Iterator[str]:
    if set(scheduler.waiting) != waiting:
        yield f"{len(scheduler.waiting)} requests wait in the scheduler, {len(waiting)} callers wait"
    given = {grant.request.id: grant.units for grant in scheduler.grants}
    for name in given.keys() ^ leases.keys():
        yield f"{name}: {'a grant without a lease' if name in given else 'a lease without a grant'}"
    for name in given.keys() & leases.keys():
        if not given[name] <= leases[name]:
            yield f"{name}: the grant holds what the lease does not"
