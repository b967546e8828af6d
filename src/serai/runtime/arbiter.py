"""What must leave which device so that a set of units fits: decided at once for the whole set, by bytes, LRU."""

from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import combinations

from serai.runtime.model import Device, Resident, UnitId, UnitSpec, UnitState

NOTHING: frozenset[UnitId] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Evict these first, then load those, each on its device."""

    evict: tuple[UnitId, ...]
    place: tuple[tuple[UnitSpec, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """There is no room now. `then` is the plan once the work in flight ends; None while pins alone are in the way."""

    then: Plan | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    """There is never room, however empty the devices are: bytes needed, and the budget that they exceed."""

    needed: int
    budget: int


def plan(
    targets: Sequence[UnitSpec],
    residents: Iterable[Resident],
    devices: Sequence[Device],
    *,
    keep: AbstractSet[UnitId] = NOTHING,
    first: AbstractSet[UnitId] = NOTHING,
) -> Plan | Wait | Refuse:
    """Return how all of `targets` come to be in memory, or that they cannot yet, or never.

    A plan is found whenever one exists. It evicts only what is ready, idle, not pinned and not in `keep`;
    of those the least recently used, `first` before others; nothing that could stay. A target that is in
    memory stays where it is, unless the set fits in no other way. What is unloading counts as gone: who
    carries the plan out loads when the bytes are really free. The search is exponential in the targets
    that are missing (devices to the power of targets), which are few.
    """
    refused = _never(targets, devices)
    if refused is not None:
        return refused
    staying = [resident for resident in residents if resident.state is not UnitState.UNLOADING]
    unpinned = {unit.id for unit in staying if not unit.spec.pinned or unit.state is UnitState.DRAINING}
    idle = {unit.id for unit in staying if unit.is_idle and unit.id in unpinned - keep}
    staying.sort(key=lambda resident: (resident.id not in first, resident.id not in idle, resident.last_use))
    return _search(targets, staying, devices, idle) or Wait(then=_search(targets, staying, devices, unpinned))


def _never(targets: Sequence[UnitSpec], devices: Sequence[Device]) -> Refuse | None:
    """Return the refusal of what does not fit empty devices."""
    if any(_placements(targets, {device.id: device.budget for device in devices}, devices)):
        return None
    for target in targets:
        largest = max((device.budget for device in devices if target.may_be_on(device)), default=0)
        if target.bytes > largest:
            return Refuse(needed=target.bytes, budget=largest)
    usable = [device.budget for device in devices if any(target.may_be_on(device) for target in targets)]
    return Refuse(needed=sum(target.bytes for target in targets), budget=sum(usable))


def _search(
    targets: Sequence[UnitSpec], residents: Sequence[Resident], devices: Sequence[Device], may_go: AbstractSet[UnitId]
) -> Plan | None:
    """Return the cheapest plan that moves the fewest targets from one device to another."""
    present = {resident.id for resident in residents}
    missing = [target for target in targets if target.id not in present]
    movable = [target for target in targets if target.id in present & may_go]
    for count in range(len(movable) + 1):
        plans = [
            found
            for moving in combinations(movable, count)
            if (found := _cheapest(targets, [*missing, *moving], residents, devices, may_go)) is not None
        ]
        if plans:
            return min(plans, key=lambda found: len(found.evict))
    return None


def _cheapest(
    targets: Sequence[UnitSpec],
    placing: Sequence[UnitSpec],
    residents: Sequence[Resident],
    devices: Sequence[Device],
    may_go: AbstractSet[UnitId],
) -> Plan | None:
    """Return the plan that places exactly `placing` and evicts the fewest units, then the fewest bytes."""
    moved = {target.id for target in placing}
    wanted = {target.id for target in targets}
    leaving = [resident for resident in residents if resident.id in moved]
    free = {device.id: device.budget for device in devices}
    spare: dict[str, list[Resident]] = {device.id: [] for device in devices}
    for resident in residents:
        if resident.device not in free or resident.id in moved:
            continue
        free[resident.device] -= resident.bytes
        if resident.id in may_go and resident.id not in wanted:
            spare[resident.device].append(resident)
    room = {device: free[device] + sum(resident.bytes for resident in spare[device]) for device in free}
    best: tuple[int, int] | None = None
    found: Plan | None = None
    for places in _placements(placing, room, devices):
        evicted = [*leaving]
        for device in dict.fromkeys(places):
            load = sum(target.bytes for target, place in zip(placing, places, strict=True) if place == device)
            evicted += _evictions(load - free[device], spare[device])
        cost = (len(evicted), sum(resident.bytes for resident in evicted))
        if best is None or cost < best:
            best = cost
            found = Plan(
                evict=tuple(resident.id for resident in evicted), place=tuple(zip(placing, places, strict=True))
            )
    return found


def _placements(
    targets: Sequence[UnitSpec], room: dict[str, int], devices: Sequence[Device]
) -> Iterator[tuple[str, ...]]:
    """Yield every way to give each target a device so that no device's room is exceeded, best devices first."""
    if not targets:
        yield ()
        return
    target, rest = targets[0], targets[1:]
    allowed = [device.id for device in devices if target.may_be_on(device)]
    if target.devices:
        allowed.sort(key=target.devices.index)
    for device in allowed:
        if target.bytes <= room[device]:
            for places in _placements(rest, {**room, device: room[device] - target.bytes}, devices):
                yield (device, *places)


def _evictions(need: int, spare: Sequence[Resident]) -> list[Resident]:
    """Return enough of `spare`, which is in the order of leaving, to free `need` bytes; none that could stay."""
    chosen: list[Resident] = []
    freed = 0
    for resident in spare:
        if freed >= need:
            break
        chosen.append(resident)
        freed += resident.bytes
    for resident in reversed(tuple(chosen)):
        if freed - resident.bytes >= need:
            chosen.remove(resident)
            freed -= resident.bytes
    return chosen
