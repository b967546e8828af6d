"""Who waits, and in which order: callers take turns, and nobody is passed over for ever."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from serai.runtime.model import Limits, Request, UnitId, UnitSpec

REMEMBERED_CALLERS = 4096


@dataclass(slots=True, kw_only=True)
class Waiting:
    """A request without a lease. What changes while it waits is changed by the line and the scheduler alone."""

    request: Request
    number: int
    """In the order of arrival."""
    devices: frozenset[str]
    """Where its units might be."""
    units: frozenset[UnitId]
    admitted: bool = False
    """Whether the memory of all its units is reserved: it waits for loads and threads only."""
    passes: int = 0
    oldest_since: float | None = None
    """Since when it is its caller's oldest request."""
    overdue_since: float | None = None

    @property
    def specs(self) -> tuple[UnitSpec, ...]:
        return self.request.units


@dataclass(slots=True)
class Holds:
    """What overdue requests keep from the others, while one event is handled."""

    turns: set[UnitId] = field(default_factory=set)
    """Units whose next lease belongs to an overdue request."""
    victims: set[UnitId] = field(default_factory=set)
    """Units that are to become idle and be evicted; only admitted requests may still use them."""
    devices: set[str] = field(default_factory=set)
    """Where nobody else may load."""
    threads: bool = False

    def bar(self, waiting: Waiting) -> bool:
        """Return whether a request must leave its ready units to one that is overdue."""
        if waiting.units & self.turns or (waiting.units & self.victims and not waiting.admitted):
            return True
        return self.threads and any(spec.threads for spec in waiting.specs)


class Line:
    """The waiting requests of all callers."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: dict[str, Waiting] = {}
        self._arrivals = 0
        self._turns = 0
        self._served: dict[str, int] = {}

    def __iter__(self) -> Iterator[Waiting]:
        """Yield the requests in the order of their arrival."""
        return iter(self._waiting.values())

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: str) -> bool:
        return request in self._waiting

    def is_full_for(self, caller: str) -> bool:
        own = sum(waiting.request.caller == caller for waiting in self)
        return len(self) >= self._limits.max_waiting or own >= self._limits.max_waiting_per_caller

    def add(self, request: Request, devices: frozenset[str]) -> None:
        self._arrivals += 1
        self._waiting[request.id] = Waiting(
            request=request, number=self._arrivals, devices=devices, units=request.unit_ids
        )

    def remove(self, request: str) -> Waiting | None:
        return self._waiting.pop(request, None)

    def serve(self, served: Waiting, devices: frozenset[str]) -> None:
        """Remove a request that got its lease: it was its caller's turn, and older requests were passed over."""
        del self._waiting[served.request.id]
        self._turns += 1
        self._served.pop(served.request.caller, None)
        self._served[served.request.caller] = self._turns
        if len(self._served) > REMEMBERED_CALLERS:  # the longest unserved goes; unknown callers come first as well
            del self._served[next(iter(self._served))]
        for waiting in self:
            if waiting.oldest_since is not None and waiting.number < served.number and waiting.devices & devices:
                waiting.passes += 1

    def age(self, now: float) -> None:
        """Note who has become its caller's oldest, and who has been passed over long enough."""
        callers: set[str] = set()
        for waiting in self:
            if waiting.request.caller in callers:
                continue
            callers.add(waiting.request.caller)
            if waiting.oldest_since is None:
                waiting.oldest_since = now
            late = waiting.passes >= self._limits.max_passes or now >= waiting.oldest_since + self._limits.patience_s
            if late and waiting.overdue_since is None:
                waiting.overdue_since = now

    def next_overdue(self) -> float | None:
        """Return when the next request becomes overdue if nothing else happens before."""
        times = [
            waiting.oldest_since + self._limits.patience_s
            for waiting in self
            if waiting.oldest_since is not None and waiting.overdue_since is None
        ]
        return min(times, default=None)

    def order(self) -> list[Waiting]:
        """Return the overdue, longest first; then by priority, callers in turn, the longest unserved caller first."""
        ahead: dict[tuple[str, int], int] = {}
        keys: dict[str, tuple[float, ...]] = {}
        for waiting in self:
            request = waiting.request
            if waiting.overdue_since is not None:
                keys[request.id] = (0, waiting.overdue_since, waiting.number)
                continue
            row = (request.caller, request.priority)
            ahead[row] = ahead.get(row, 0) + 1
            turn = self._served.get(request.caller, 0)
            keys[request.id] = (1, -request.priority, ahead[row], turn, waiting.number)
        return sorted(self, key=lambda waiting: keys[waiting.request.id])
