"""The two ledgers: bytes per device, CPU threads of what runs. It records; it decides nothing."""

import math
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from serai.runtime.model import Device, Resident, UnitId, UnitSpec, UnitState


@dataclass(frozen=True, slots=True, kw_only=True)
class Coming:
    """A unit whose place is settled and whose load waits until the bytes are really free."""

    spec: UnitSpec
    device: str
    keep_alive: float


class Ledger:
    """What holds memory and threads, and what is about to."""

    def __init__(self, devices: Sequence[Device], cores: int) -> None:
        self.devices = {device.id: device for device in devices}
        self.cores = cores
        self.residents: dict[UnitId, Resident] = {}
        self.coming: dict[UnitId, Coming] = {}
        self.pins: set[UnitId] = set()
        self._measured: dict[UnitId, int] = {}
        self._keep_alive: dict[UnitId, float] = {}

    # Bytes

    def known(self, spec: UnitSpec) -> UnitSpec:
        """Return the spec with the bytes that were measured, and the pin as it is now."""
        return replace(spec, bytes=self._measured.get(spec.id, spec.bytes), pinned=spec.id in self.pins)

    def outlook(self) -> list[Resident]:
        """Return what the arbiter plans with: residents, and the coming units as if they were loading."""
        coming = [
            Resident(
                spec=entry.spec, device=entry.device, bytes=entry.spec.bytes, state=UnitState.LOADING, since=math.inf
            )
            for entry in self.coming.values()
        ]
        return [*self.residents.values(), *coming]

    def used(self, device: str) -> int:
        """Return the bytes that are in use on a device, whatever state their units are in."""
        return sum(resident.bytes for resident in self.residents.values() if resident.device == device)

    def excess(self, device: str) -> int:
        """Return by how many bytes a device will be over its budget when all that is under way has ended."""
        staying = [unit for unit in self.outlook() if unit.device == device and unit.state is not UnitState.UNLOADING]
        return sum(unit.bytes for unit in staying) - self.devices[device].budget

    # Threads

    def threads(self) -> int:
        """Return the threads of the units on which at least one lease runs."""
        return sum(resident.spec.threads for resident in self.residents.values() if resident.leases)

    def are_ready(self, units: Iterable[UnitId]) -> bool:
        found = (self.residents.get(unit) for unit in units)
        return all(resident is not None and resident.state is UnitState.READY for resident in found)

    def lacks_threads(self, units: Iterable[UnitId]) -> bool:
        """Return whether leases on these ready units would need more threads than there are."""
        more = sum(self.residents[unit].spec.threads for unit in units if not self.residents[unit].leases)
        return self.threads() + more > self.cores

    def can_run(self, units: AbstractSet[UnitId]) -> bool:
        """Return whether one more lease on all of these ready units could start now."""
        full = any(self.residents[unit].leases >= self.residents[unit].spec.max_leases for unit in units)
        return not full and not self.lacks_threads(units)

    # What happened

    def start(self, entry: Coming, now: float) -> Resident:
        """Enter a coming unit that begins to load."""
        del self.coming[entry.spec.id]
        resident = Resident(
            spec=entry.spec, device=entry.device, bytes=entry.spec.bytes, state=UnitState.LOADING, since=now
        )
        self.residents[resident.id] = resident
        self._keep_alive[resident.id] = entry.keep_alive
        return resident

    def startable(self) -> Coming | None:
        """Return a coming unit whose bytes are really free, if there is one."""
        for entry in self.coming.values():
            budget = self.devices[entry.device].budget
            if entry.spec.id not in self.residents and self.used(entry.device) + entry.spec.bytes <= budget:
                return entry
        return None

    def loaded(self, unit: UnitId, measured: int | None, max_leases: int | None, now: float) -> None:
        """Record that a load ended well, with what the worker tells better than the estimate."""
        resident = self.residents[unit].moved(UnitState.READY)
        spec = replace(resident.spec, max_leases=max_leases or resident.spec.max_leases)
        self.residents[unit] = replace(resident, spec=spec, last_use=now, expires=now + self._keep_alive[unit])
        if measured is not None:
            self.measure(unit, measured)

    def measure(self, unit: UnitId, size: int) -> None:
        """Record what a unit really takes. Plans count at most its device's budget: it did fit, with nothing beside."""
        resident = self.residents[unit]
        self._measured[unit] = min(size, self.devices[resident.device].budget)
        self.residents[unit] = replace(resident, bytes=size)

    def move(self, unit: UnitId, state: UnitState) -> None:
        self.residents[unit] = self.residents[unit].moved(state)

    def lease(self, units: Iterable[UnitId], now: float) -> None:
        for unit in units:
            resident = self.residents[unit]
            self.residents[unit] = replace(resident, leases=resident.leases + 1, last_use=now)

    def release(self, units: Iterable[UnitId], keep_alive: float, now: float) -> None:
        """Give back one lease on each of these units; unused, they expire `keep_alive` seconds from now."""
        for unit in units:
            resident = self.residents[unit]
            self.residents[unit] = replace(resident, leases=resident.leases - 1, last_use=now, expires=now + keep_alive)

    def remove(self, unit: UnitId) -> None:
        """Forget a unit whose memory is free."""
        self.residents.pop(unit, None)
        self._keep_alive.pop(unit, None)

    def pin(self, unit: UnitId, *, pinned: bool) -> None:
        (self.pins.add if pinned else self.pins.discard)(unit)
        if unit in self.residents:
            resident = self.residents[unit]
            self.residents[unit] = replace(resident, spec=replace(resident.spec, pinned=pinned))
        if unit in self.coming:
            entry = self.coming[unit]
            self.coming[unit] = replace(entry, spec=replace(entry.spec, pinned=pinned))
