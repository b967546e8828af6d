"""Who waits for a lease, and what they are told meanwhile."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import structlog

from serai.clock import Clock
from serai.errors import SeraiError
from serai.events import Loading, Queued
from serai.runtime.lease import Claim, Lease
from serai.runtime.model import Request, UnitId
from serai.runtime.observer import Observer

Watch = Callable[[Queued | Loading], None]

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiter:
    """A request that waits, with the future by which it gets its lease or its error."""

    request: Request
    claims: tuple[Claim, ...]
    watch: Watch | None
    lease: asyncio.Future[Lease]

    def claim_on(self, unit: UnitId) -> Claim | None:
        """Return its claim on a unit, if it has one."""
        return next((claim for claim in self.claims if claim.unit.id == unit), None)


class Waiters:
    """All who wait, by the id of their request. An id that is not here any more is passed over."""

    def __init__(self, clock: Clock, observer: Observer) -> None:
        self._clock = clock
        self._observer = observer
        self._waiters: dict[str, Waiter] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._waiters))

    def __len__(self) -> int:
        return len(self._waiters)

    def add(self, waiter: Waiter) -> None:
        self._waiters[waiter.request.id] = waiter

    def claims(self, name: str) -> tuple[Claim, ...]:
        """Return what a request that waits has claimed."""
        return self._waiters[name].claims

    def claim_on(self, unit: UnitId) -> Claim:
        """Return the claim on a unit of the one who has waited longest for it."""
        return next(found for waiter in self._waiters.values() if (found := waiter.claim_on(unit)) is not None)

    def grant(self, name: str, lease: Lease) -> None:
        waiter = self._remove(name, "granted")
        if waiter is not None and not waiter.lease.done():
            waiter.lease.set_result(lease)

    def refuse(self, name: str, error: SeraiError) -> None:
        waiter = self._remove(name, error.code)
        if waiter is not None and not waiter.lease.done():
            waiter.lease.set_exception(error)

    def leave(self, waiter: Waiter) -> None:
        """Forget one who was cancelled, maybe after its answer had come."""
        self._remove(waiter.request.id, "cancelled")
        if waiter.lease.done() and not waiter.lease.cancelled():
            waiter.lease.exception()  # taken, so that nobody complains that it was not

    def tell_position(self, name: str, position: int, eta_s: float | None) -> None:
        if name in self._waiters:
            self._tell(self._waiters[name], Queued(position=position, eta_s=eta_s))

    def tell_loading(self, unit: UnitId, fraction: float, *, only: Waiter | None = None) -> None:
        """Tell everyone who waits for a unit, or one of them, how far its load is."""
        for waiter in tuple(self._waiters.values()) if only is None else (only,):
            claim = waiter.claim_on(unit)
            if claim is not None:
                model, _, version = claim.engine.name.partition("@")
                self._tell(waiter, Loading(model=model, version=version, fraction=fraction))

    def _tell(self, waiter: Waiter, event: Queued | Loading) -> None:
        if waiter.watch is None:
            return
        try:
            waiter.watch(event)
        except Exception:  # noqa: BLE001 - the run loop outlives a defect of one who watches
            _log.exception("watch_failed")

    def _remove(self, name: str, outcome: str) -> Waiter | None:
        waiter = self._waiters.pop(name, None)
        if waiter is not None:
            waited = self._clock.monotonic() - waiter.request.arrival
            self._observer.on_wait(waiter.claims[0].engine.engine, outcome, waited)
        return waiter
