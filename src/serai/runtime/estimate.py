"""How long things usually take, and so how long a request will wait."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from serai.runtime.ledger import Ledger
from serai.runtime.line import Waiting
from serai.runtime.model import Grant, Position, UnitId, UnitSpec, UnitState

WEIGHT = 0.3
"""Of the newest value in the moving averages."""
TOLERANCE = 0.2
"""An estimate that moved by less than this share of itself, or by less than a second, is not announced again."""
LATE = 0.25
"""Of its usual time: what is counted as left of something that should be nearly over, or is late."""


class Averages:
    """Exponential moving averages of seconds, per unit."""

    def __init__(self) -> None:
        self._values: dict[UnitId, float] = {}

    def add(self, unit: UnitId, seconds: float) -> None:
        before = self._values.get(unit, seconds)
        self._values[unit] = before + WEIGHT * (seconds - before)

    def get(self, unit: UnitId) -> float | None:
        return self._values.get(unit)

    def usual(self, unit: UnitId) -> float:
        """Return the seconds, infinite where nothing is known."""
        return self._values.get(unit, math.inf)

    def left(self, unit: UnitId, passed: float) -> float:
        """Return what is left of something that began `passed` seconds ago."""
        usual = self.usual(unit)
        return max(usual - passed, LATE * usual)


@dataclass(slots=True, kw_only=True)
class _Course:
    """What is ahead for one unit, in seconds from now; infinite where it is not known."""

    device: str
    bytes: int
    threads: int
    stays: bool
    """Whether its memory is not given back when it has nothing to do."""
    free: float = 0.0
    """When its next lease may begin."""
    runs: float = 0.0
    """When all its leases will be over; it needs its threads until then."""
    busy: float = 0.0
    """When it has nothing to do; it needs its memory until then."""


class Estimator:
    """Measures service and load times; says for every waiting request its position and estimate, when they change.

    A request begins when those in front of it have had their time on its units, by as many at once as
    each takes, and when units of others have ended of which it needs the memory or the threads.
    """

    def __init__(self) -> None:
        self.service = Averages()
        self.load = Averages()
        self._said: dict[str, tuple[int, float | None]] = {}

    def announce(
        self, order: Sequence[Waiting], ledger: Ledger, grants: Collection[Grant], now: float
    ) -> list[Position]:
        """Return the positions that changed since the last call, and the estimates that moved noticeably."""
        said: dict[str, tuple[int, float | None]] = {}
        changed: list[Position] = []
        courses = self._under_way(ledger, grants, now) if order else {}
        for position, waiting in enumerate(order, 1):
            wait = self._wait(waiting, courses, ledger)
            eta = None if math.isinf(wait) else wait
            name = waiting.request.id
            before = self._said.get(name)
            end = None if eta is None else now + eta
            if before is None or before[0] != position or _moved(before[1], end, now):
                changed.append(Position(request=name, position=position, eta=eta))
                said[name] = (position, end)
            else:
                said[name] = before
        self._said = said
        return changed

    def _under_way(self, ledger: Ledger, grants: Collection[Grant], now: float) -> dict[UnitId, _Course]:
        """Return what is ahead for the units in memory, without those who wait."""
        courses: dict[UnitId, _Course] = {}
        for unit, resident in ledger.residents.items():
            if resident.state is UnitState.UNLOADING:
                continue
            spec = resident.spec
            left = [self.service.left(unit, now - grant.since) for grant in grants if unit in grant.units]
            course = _Course(device=resident.device, bytes=resident.bytes, threads=spec.threads, stays=spec.pinned)
            if resident.state is UnitState.LOADING:
                course.free = course.busy = self.load.left(unit, now - resident.since)
            elif left:
                course.free = sum(left) / spec.max_leases if len(left) >= spec.max_leases else 0.0
                course.busy = course.runs = max(left)
            courses[unit] = course
        for unit, entry in ledger.coming.items():
            if unit not in courses:
                course = _course(ledger.known(entry.spec), entry.device)
                course.free = course.busy = self.load.usual(unit)
                courses[unit] = course
        return courses

    def _wait(self, waiting: Waiting, courses: dict[UnitId, _Course], ledger: Ledger) -> float:
        """Return the seconds until a request begins, and enter it among what is ahead."""
        running = [one for unit, one in courses.items() if unit not in waiting.units and one.runs > 0]
        threads = ledger.cores - sum(course.threads for course in running)
        needed = sum(spec.threads for spec in waiting.specs)
        start = _enough(threads, needed, [(course.runs, course.threads) for course in running])
        for spec in waiting.specs:
            if spec.id not in courses:
                courses[spec.id] = self._coming(spec, waiting.units, courses, ledger)
            start = max(start, courses[spec.id].free)
        for spec in waiting.specs:
            course, service = courses[spec.id], self.service.usual(spec.id)
            course.free = start + service / spec.max_leases
            course.runs = max(course.runs, start + service)
            course.busy = max(course.busy, course.runs)
        return start

    def _coming(
        self, spec: UnitSpec, together: Collection[UnitId], courses: dict[UnitId, _Course], ledger: Ledger
    ) -> _Course:
        """Return what is ahead for a unit that is loaded when there is memory for it beside those it is used with."""
        known = ledger.known(spec)
        begins: list[tuple[float, str]] = []
        for device in ledger.devices.values():
            if not spec.may_be_on(device):
                continue
            free, held = device.budget, []
            for unit, course in courses.items():
                if course.device != device.id or not (course.stays or course.busy or unit in together):
                    continue
                free -= course.bytes
                if not course.stays and unit not in together:
                    held.append((course.busy, course.bytes))
            begins.append((_enough(free, known.bytes, held), device.id))
        begin, where = min(begins, default=(math.inf, ""))
        course = _course(known, where)
        course.free = course.busy = begin + self.load.usual(spec.id)
        return course


def _course(spec: UnitSpec, device: str) -> _Course:
    return _Course(device=device, bytes=spec.bytes, threads=spec.threads, stays=spec.pinned)


def _enough(free: int, needed: int, held: list[tuple[float, int]]) -> float:
    """Return the seconds until `needed` is free; infinite where it will not be. `held`: when how much is given back."""
    if free >= needed:
        return 0.0
    for seconds, amount in sorted(held):
        free += amount
        if free >= needed:
            return seconds
    return math.inf


def _moved(before: float | None, end: float | None, now: float) -> bool:
    """Say whether an expected end differs noticeably from the one that was told."""
    if before is None or end is None:
        return before is not end
    return abs(end - before) > max(1.0, TOLERANCE * abs(before - now))
