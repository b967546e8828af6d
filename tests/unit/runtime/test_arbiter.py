"""The arbiter: for the whole set or not at all, by bytes, least recently used first, and always when it can be done."""

from itertools import chain, combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serai.runtime.arbiter import Plan, Refuse, Wait, plan
from serai.runtime.model import UNIT_MOVES, Device, DeviceKind, Request, Resident, UnitId, UnitSpec, UnitState


def unit(name: str, size: int, *devices: str, pinned: bool = False) -> UnitSpec:
    name_of = UnitId(weights=name, engine="fake", quantization="int8", device_kind=DeviceKind.CUDA)
    return UnitSpec(id=name_of, bytes=size, devices=devices, pinned=pinned)


def resident(
    spec: UnitSpec, device: str = "a", *, state: UnitState = UnitState.READY, leases: int = 0, used: float = 0.0
) -> Resident:
    return Resident(spec=spec, device=device, bytes=spec.bytes, state=state, since=0.0, leases=leases, last_use=used)


def device(name: str, budget: int) -> Device:
    return Device(id=name, kind=DeviceKind.CUDA, budget=budget)


A = device("a", 10)
B = device("b", 10)


def test_the_least_recently_used_goes_first() -> None:
    """Of two idle units either of which would do, the older one is evicted, whatever order they are listed in."""
    old, new, target = unit("old", 5), unit("new", 5), unit("target", 4)
    expected = Plan(evict=(old.id,), place=((target, "a"),))
    assert plan([target], [resident(new, used=2.0), resident(old, used=1.0)], [A]) == expected


def test_what_could_stay_is_not_evicted() -> None:
    """An old small unit stays where a large one has to go anyway."""
    small, large, target = unit("small", 2), unit("large", 8), unit("target", 8)
    found = plan([target], [resident(small, used=1.0), resident(large, used=2.0)], [A])
    assert found == Plan(evict=(large.id,), place=((target, "a"),))


def test_a_free_device_is_used_before_anything_is_evicted() -> None:
    """Nobody leaves a device while another has room."""
    target = unit("target", 6)
    assert plan([target], [resident(unit("x", 8))], [A, B]) == Plan(evict=(), place=((target, "b"),))


def test_eviction_stays_on_the_device_that_needs_it() -> None:
    """A unit bound to one device causes no eviction on another, however old what is there may be."""
    target, here, there = unit("target", 6, "b"), unit("here", 8), unit("there", 8)
    found = plan([target], [resident(there, "a", used=0.0), resident(here, "b", used=9.0)], [A, B])
    assert found == Plan(evict=(here.id,), place=((target, "b"),))


@pytest.mark.parametrize(
    "occupant",
    [
        resident(unit("x", 8), leases=1),
        resident(unit("x", 8), state=UnitState.LOADING),
        resident(unit("x", 8), state=UnitState.DRAINING, leases=1),
    ],
)
def test_work_in_flight_is_waited_for(occupant: Resident) -> None:
    """What is busy, loading or draining is not evicted; the answer says what the plan will be."""
    target = unit("target", 6)
    then = Plan(evict=(occupant.id,), place=((target, "a"),))
    assert plan([target], [occupant], [A]) == Wait(then=then)


def test_a_pin_is_waited_for_without_hope() -> None:
    """A pinned unit never goes, so no plan is promised."""
    assert plan([unit("target", 6)], [resident(unit("x", 8, pinned=True))], [A]) == Wait(then=None)


def test_a_set_is_planned_at_once_or_not_at_all() -> None:
    """One of two would fit beside the busy unit: neither is placed."""
    busy = resident(unit("x", 5), leases=1)
    found = plan([unit("one", 4), unit("two", 4)], [busy], [A])
    assert isinstance(found, Wait)


def test_a_target_moves_where_nothing_else_helps() -> None:
    """A member of the set that sits on the only device of another moves to its second one."""
    free, bound = unit("free", 6), unit("bound", 6, "a")
    found = plan([free, bound], [resident(free, "a")], [A, B])
    assert found == Plan(evict=(free.id,), place=((bound, "a"), (free, "b")))


def test_what_never_fits_is_refused_with_both_figures() -> None:
    """Refusal names the bytes needed and the budget; a kind of device that is missing has the budget 0."""
    assert plan([unit("x", 11)], [], [A]) == Refuse(needed=11, budget=10)
    assert plan([unit("x", 6), unit("y", 6)], [], [A]) == Refuse(needed=12, budget=10)
    assert plan([unit("x", 1)], [], [Device(id="c", kind=DeviceKind.CPU, budget=10)]) == Refuse(needed=1, budget=0)


@pytest.mark.parametrize(("before", "after"), list(product(UnitState, UnitState)))
def test_units_move_as_the_table_says(before: UnitState, after: UnitState) -> None:
    """Every move of the table is possible, every other one is refused."""
    subject = resident(unit("x", 1), state=before)
    if after in UNIT_MOVES[before]:
        assert subject.moved(after).state is after
    else:
        with pytest.raises(ValueError, match="cannot become"):
            subject.moved(after)


def test_nonsense_is_no_value() -> None:
    """A unit without bytes and a request that names nothing, or one unit twice, cannot be made."""
    with pytest.raises(ValueError, match="bytes"):
        unit("x", 0)
    for units in ((), (unit("x", 1), unit("x", 2))):
        with pytest.raises(ValueError, match="at least one"):
            Request(id="r", units=units, caller="c", arrival=0.0, deadline=1.0)


Case = tuple[list[UnitSpec], list[Resident], list[Device], frozenset[UnitId]]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    devices = [device(name, draw(st.integers(4, 12))) for name in ("a", "b")]
    specs = [
        unit(
            name,
            draw(st.integers(1, 9)),
            *draw(st.sampled_from([(), ("a",), ("b",)])),
            pinned=draw(st.integers(0, 5)) == 0,
        )
        for name in "pqrstu"[: draw(st.integers(1, 6))]
    ]
    residents: list[Resident] = []
    for spec in specs:
        places = [d for d in devices if spec.may_be_on(d)]
        place = draw(st.sampled_from([None, *places]))
        if place is None:
            continue
        used = sum(r.bytes for r in residents if r.device == place.id)
        if used + spec.bytes <= place.budget:
            state = draw(st.sampled_from([*[UnitState.READY] * 4, *UnitState]))
            leases = draw(st.integers(0, 2)) // 2 if state in (UnitState.READY, UnitState.DRAINING) else 0
            residents.append(resident(spec, place.id, state=state, leases=leases, used=draw(st.integers(0, 3))))
    targets = draw(st.lists(st.sampled_from(specs), min_size=1, max_size=3, unique=True))
    keep = draw(st.frozensets(st.sampled_from([spec.id for spec in specs]), max_size=2))
    return targets, residents, devices, keep


def fits(targets: list[UnitSpec], residents: list[Resident], devices: list[Device], evict: frozenset[UnitId]) -> bool:
    """Try every placement of what would be missing after these evictions."""
    stay = [r for r in residents if r.state is not UnitState.UNLOADING and r.id not in evict]
    missing = [t for t in targets if t.id not in {r.id for r in stay}]
    for places in product(*[[d.id for d in devices if t.may_be_on(d)] for t in missing]):
        loads = {d: sum(t.bytes for t, p in zip(missing, places, strict=True) if p == d.id) for d in devices}
        if all(sum(r.bytes for r in stay if r.device == d.id) + loads[d] <= d.budget for d in devices):
            return True
    return False


@settings(max_examples=600, deadline=None)
@given(cases())
def test_a_plan_is_found_exactly_when_one_exists(case: Case) -> None:
    """Against brute force over every eviction and placement: within budgets; nothing busy, pinned, kept, or in vain."""
    targets, residents, devices, keep = case
    may_go = [r.id for r in residents if r.is_idle and not r.spec.pinned and r.id not in keep]
    subsets = [frozenset(s) for s in chain.from_iterable(combinations(may_go, n) for n in range(len(may_go) + 1))]
    exists = any(fits(targets, residents, devices, subset) for subset in subsets)
    found = plan(targets, residents, devices, keep=keep)
    assert isinstance(found, Plan) == exists
    assert isinstance(found, Refuse) == (not fits(targets, [], devices, frozenset()))
    if isinstance(found, Wait):
        unpinned = {r.id for r in residents if not r.spec.pinned or r.state is UnitState.DRAINING}
        everything = [
            frozenset(s) for n in range(len(unpinned) + 1) for s in combinations(sorted(unpinned, key=str), n)
        ]
        assert (found.then is not None) == any(fits(targets, residents, devices, subset) for subset in everything)
    if not isinstance(found, Plan):
        return
    assert set(found.evict) <= set(may_go)
    stay = [r for r in residents if r.state is not UnitState.UNLOADING and r.id not in found.evict]
    assert {t.id for t in targets} <= {r.id for r in stay} | {spec.id for spec, _ in found.place}
    used = {d.id: sum(r.bytes for r in stay if r.device == d.id) for d in devices}
    for spec, place in found.place:
        used[place] += spec.bytes
        assert spec.may_be_on(next(d for d in devices if d.id == place))
    assert all(used[d.id] <= d.budget for d in devices)
    for r in residents:
        if r.id in found.evict and r.id not in {t.id for t in targets}:
            assert used[r.device] + r.bytes > next(d.budget for d in devices if d.id == r.device)
