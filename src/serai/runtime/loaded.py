"""What is in memory, told to people."""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from serai.clock import Clock
from serai.runtime.model import Resident, UnitId, UnitState
from serai.runtime.workers import Keeper


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A unit that is in memory, on its way in, or on its way out."""

    unit: UnitId
    names: tuple[str, ...]
    """The versions that have used it, 'model@version', the first one first."""
    engine: str
    device: str
    pid: int | None
    bytes: int
    threads: int
    state: UnitState
    last_use: datetime | None
    """None before the load has ended."""
    expires: datetime | None
    """When it leaves if nobody uses it; None while it is used, and for never."""
    in_flight: int
    pinned: bool
    facts: dict[str, Any]


def describe(resident: Resident, keeper: Keeper, clock: Clock) -> Loaded:
    """Return a unit as it stands; times of the stopwatch become times of day."""
    never = resident.spec.pinned or resident.leases > 0
    return Loaded(
        unit=resident.id,
        names=tuple(keeper.names),
        engine=keeper.spec.engine,
        device=resident.device,
        pid=keeper.pid,
        bytes=resident.bytes,
        threads=resident.spec.threads,
        state=resident.state,
        last_use=_time_of_day(resident.last_use, clock),
        expires=None if never else _time_of_day(resident.expires, clock),
        in_flight=resident.leases,
        pinned=resident.spec.pinned,
        facts=dict(keeper.facts),
    )


def _time_of_day(moment: float, clock: Clock) -> datetime | None:
    if math.isinf(moment):
        return None
    try:
        return clock.now() + timedelta(seconds=moment - clock.monotonic())
    except OverflowError:
        return None  # a keep_alive of a million years
