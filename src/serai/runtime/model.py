"""The values of the runtime: devices, resident units, requests, and the effects that the scheduler asks for.

Times are seconds on the caller's monotonic clock, memory is bytes.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from serai.errors import SeraiError


class DeviceKind(StrEnum):
    """What computes: the processor, or a CUDA card."""

    CPU = "cpu"
    CUDA = "cuda"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One memory with a budget that all kinds of model share."""

    id: str
    kind: DeviceKind
    budget: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitId:
    """What is in memory once: versions that differ in adapters or parameters alone have the same."""

    weights: str
    """Digest of the base weights."""
    engine: str
    quantization: str
    device_kind: DeviceKind


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSpec:
    """What a resident unit asks of the machine."""

    id: UnitId
    bytes: int
    """Estimated before the first load; what a load measured replaces it."""
    threads: int = 0
    """CPU threads of its worker while at least one lease on it runs; the leases of one batch share them."""
    max_leases: int = 1
    """How many runs its engine takes at once (continuous batching)."""
    devices: tuple[str, ...] = ()
    """Ids of the devices it may be on, best first; empty for every device of its kind."""
    pinned: bool = False

    def __post_init__(self) -> None:
        if self.bytes <= 0 or self.threads < 0 or self.max_leases < 1:
            raise ValueError("a unit has bytes > 0, threads ≥ 0 and max_leases ≥ 1")

    def may_be_on(self, device: Device) -> bool:
        return device.kind is self.id.device_kind and (not self.devices or device.id in self.devices)


class UnitState(StrEnum):
    """Where a resident unit stands in its life; one that is gone has no state."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    """No new leases; unloaded when the last one ends."""
    UNLOADING = "unloading"
    """Its worker is being stopped; its bytes are in use until `on_unload`."""


UNIT_MOVES: Final[dict[UnitState, frozenset[UnitState]]] = {
    UnitState.LOADING: frozenset({UnitState.READY, UnitState.UNLOADING}),
    UnitState.READY: frozenset({UnitState.DRAINING, UnitState.UNLOADING}),
    UnitState.DRAINING: frozenset({UnitState.UNLOADING}),
    UnitState.UNLOADING: frozenset(),
}
"""Which state may follow which; from every state a unit may also be gone (unloaded, failed, crashed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A unit that holds memory."""

    spec: UnitSpec
    device: str
    bytes: int
    state: UnitState
    since: float
    """When its load began."""
    leases: int = 0
    last_use: float = -math.inf
    expires: float = math.inf
    """When its keep_alive is over if nothing uses it until then."""

    @property
    def id(self) -> UnitId:
        return self.spec.id

    @property
    def is_idle(self) -> bool:
        """Whether it is loaded, and nobody uses it."""
        return self.state is UnitState.READY and self.leases == 0

    def moved(self, state: UnitState) -> "Resident":
        """Return it in the next state; ValueError where `UNIT_MOVES` does not allow it."""
        if state not in UNIT_MOVES[self.state]:
            raise ValueError(f"a unit that is {self.state} cannot become {state}")
        return replace(self, state=state)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Somebody wants to use all of `units` at once."""

    id: str
    units: tuple[UnitSpec, ...]
    caller: str
    """Key of the caller: callers take turns."""
    arrival: float
    deadline: float
    """When waiting ends with `QueueTimeout`; it does not limit a lease."""
    priority: int = 0
    """Larger goes first, as long as nobody is overdue."""
    keep_alive: float | None = None
    """Seconds that the units stay after it: negative for ever, 0 not at all, None as configured."""

    def __post_init__(self) -> None:
        if not self.units or len(self.unit_ids) != len(self.units):
            raise ValueError("a request names at least one unit, and none twice")

    @property
    def unit_ids(self) -> frozenset[UnitId]:
        return frozenset(spec.id for spec in self.units)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """A lease that runs: which of the request's units it still holds, and since when."""

    request: Request
    units: frozenset[UnitId]
    since: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds the scheduler."""

    cores: int
    """Threads of all running units together."""
    max_waiting: int = 256
    max_waiting_per_caller: int = 64
    max_passes: int = 16
    """How many later requests may be served before the oldest of a caller, on a device that it could use."""
    patience_s: float = 10.0
    """How long the oldest request of a caller is passed over at most."""
    keep_alive_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Start a worker; answer with `on_ready`, or with `on_failed` when it is gone again."""

    unit: UnitSpec
    device: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Unload:
    """Stop the worker; answer with `on_unload` when its memory is free."""

    unit: UnitId
    force: bool = False
    """Whether leases are in flight; each got a `Revoke`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantLease:
    """The request may use its units, `devices` in their order; answer with `on_done` when it has ended."""

    request: str
    units: tuple[UnitId, ...]
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """The request gets no lease; it is forgotten."""

    request: str
    error: SeraiError


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke:
    """A running lease lost one of its units; the lease still ends with `on_done`."""

    request: str
    unit: UnitId
    error: SeraiError


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where a request stands: 1 is next. `eta` is in seconds; None when nothing was measured yet."""

    request: str
    position: int
    eta: float | None


Effect = Load | Unload | GrantLease | Refuse | Revoke | Position
