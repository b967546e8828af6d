"""How long things usually take, and so how long a request will wait."""

from collections.abc import Sequence

from serai.runtime.ledger import Ledger
from serai.runtime.line import Waiting
from serai.runtime.model import Position, UnitId, UnitState

WEIGHT = 0.3
"""Of the newest value in the moving averages."""
TOLERANCE = 0.2
"""An estimate that moved by less than this share of itself, or by less than a second, is not announced again."""


class Averages:
    """Exponential moving averages of seconds, per unit."""

    def __init__(self) -> None:
        self._values: dict[UnitId, float] = {}

    def add(self, unit: UnitId, seconds: float) -> None:
        before = self._values.get(unit, seconds)
        self._values[unit] = before + WEIGHT * (seconds - before)

    def get(self, unit: UnitId) -> float | None:
        return self._values.get(unit)


class Estimator:
    """Measures service and load times; says for every waiting request its position and estimate, when they change."""

    def __init__(self) -> None:
        self.service = Averages()
        self.load = Averages()
        self._said: dict[str, tuple[int, float | None]] = {}

    def announce(self, order: Sequence[Waiting], ledger: Ledger, now: float) -> list[Position]:
        """Return the positions that changed since the last call, and the estimates that moved noticeably."""
        queued: dict[UnitId, float] = {
            unit: (self.service.get(unit) or 0.0) / resident.spec.max_leases
            for unit, resident in ledger.residents.items()
            if resident.leases >= resident.spec.max_leases
        }
        threads: dict[UnitId, int] = {unit: resident.spec.threads for unit, resident in ledger.residents.items()}
        said: dict[str, tuple[int, float | None]] = {}
        changed: list[Position] = []
        for position, waiting in enumerate(order, 1):
            eta = self._eta(waiting, queued, threads, ledger, now)
            name = waiting.request.id
            before = self._said.get(name)
            end = None if eta is None else now + eta
            if before is None or before[0] != position or _moved(before[1], end, now):
                changed.append(Position(request=name, position=position, eta=eta))
                said[name] = (position, end)
            else:
                said[name] = before
            for spec in waiting.specs:
                service = self.service.get(spec.id) or 0.0
                queued[spec.id] = queued.get(spec.id, 0.0) + service / spec.max_leases
                threads[spec.id] = spec.threads
        self._said = said
        return changed

    def _eta(
        self,
        waiting: Waiting,
        queued: dict[UnitId, float],
        threads: dict[UnitId, int],
        ledger: Ledger,
        now: float,
    ) -> float | None:
        """Return loads that are left, and the work ahead that cannot run beside it; None when nothing is known."""
        loads: list[float] = []
        for spec in waiting.specs:
            resident = ledger.residents.get(spec.id)
            if resident is not None and resident.state is UnitState.READY:
                continue
            usual = self.load.get(spec.id)
            if usual is None:
                return None
            begun = resident is not None and resident.state is UnitState.LOADING
            loads.append(max(0.0, usual - (now - resident.since)) if resident is not None and begun else usual)
        if not loads and all(self.service.get(spec.id) is None for spec in waiting.specs):
            return None
        need = sum(spec.threads for spec in waiting.specs)
        work = sum(
            seconds
            for unit, seconds in queued.items()
            if unit in waiting.units or threads.get(unit, 0) + need > ledger.cores
        )
        return max(loads, default=0.0) + work


def _moved(before: float | None, end: float | None, now: float) -> bool:
    """Say whether an expected end differs noticeably from the one that was told."""
    if before is None or end is None:
        return before is not end
    return abs(end - before) > max(1.0, TOLERANCE * abs(before - now))
