"""The scheduler's rules, one by one: events in, effects out, no clock and no sleep."""

from typing import TypeVar

import pytest

from serai.errors import WorkerCrashed, WorkerHung
from serai.registry.errors import CandidateInCooldown
from serai.runtime.errors import DoesNotFit, ModelUnloaded, QueueFull, QueueTimeout
from serai.runtime.model import (
    Device,
    DeviceKind,
    Effect,
    GrantLease,
    Limits,
    Load,
    Position,
    Refuse,
    Request,
    Revoke,
    UnitId,
    UnitSpec,
    UnitState,
    Unload,
)
from serai.runtime.scheduler import Scheduler

E = TypeVar("E")
BROKEN = WorkerCrashed("It broke.")
HUNG = WorkerHung("It hung.")


def unit(name: str, size: int = 6, *, threads: int = 0, leases: int = 1, pinned: bool = False) -> UnitSpec:
    name_of = UnitId(weights=name, engine="fake", quantization="int8", device_kind=DeviceKind.CPU)
    return UnitSpec(id=name_of, bytes=size, threads=threads, max_leases=leases, pinned=pinned)


def request(
    name: str,
    *units: UnitSpec,
    caller: str = "x",
    deadline: float = 1e9,
    keep_alive: float | None = None,
    priority: int = 0,
) -> Request:
    return Request(
        id=name, units=units, caller=caller, arrival=0.0, deadline=deadline, keep_alive=keep_alive, priority=priority
    )


def scheduler(budget: int = 10, **limits: float) -> Scheduler:
    bounds = Limits(**{"cores": 2, **limits})  # type: ignore[arg-type]
    return Scheduler([Device(id="cpu", kind=DeviceKind.CPU, budget=budget)], bounds)


def only(kind: type[E], effects: tuple[Effect, ...]) -> list[E]:
    return [effect for effect in effects if isinstance(effect, kind)]


def granted(effects: tuple[Effect, ...]) -> list[str]:
    return [effect.request for effect in only(GrantLease, effects)]


def refusal(effects: tuple[Effect, ...]) -> Exception:
    (refused,) = only(Refuse, effects)
    return refused.error


def loaded(core: Scheduler, *units: UnitSpec, keep_alive: float | None = None) -> None:
    """Bring units into memory at time 0, idle."""
    for spec in units:
        core.on_request(request(f"load {spec.id.weights}", spec, caller="loader", keep_alive=keep_alive), 0.0)
        core.on_ready(spec.id, 0.0)
        core.on_done(f"load {spec.id.weights}", 0.0)


A, B, C = unit("a"), unit("b"), unit("c")
SMALL = unit("s", 3)


def test_eviction_comes_before_the_load() -> None:
    """The victim is unloaded, the load waits until its memory is really free, then the lease follows."""
    core = scheduler()
    loaded(core, A)
    first = core.on_request(request("r", B), 1.0)
    assert (only(Unload, first), only(Load, first)) == ([Unload(unit=A.id)], [])
    assert only(Load, core.on_unload(A.id, 2.0)) == [Load(unit=B, device="cpu", bytes=6)]
    assert core.on_ready(B.id, 5.0) == (GrantLease(request="r", units=(B.id,), devices=("cpu",)),)


def test_a_load_does_not_delay_what_is_loaded() -> None:
    """While one unit loads, another is granted at once, again and again."""
    core = scheduler()
    loaded(core, A)
    assert only(Load, core.on_request(request("slow", SMALL, caller="y"), 1.0))
    for number in range(50):
        assert granted(core.on_request(request(f"r{number}", A), 2.0 + number)) == [f"r{number}"]
        core.on_done(f"r{number}", 2.5 + number)


def test_versions_of_one_base_share_its_unit() -> None:
    """A second version with the same unit causes no load; with room in the batch both run at once."""
    core, base = scheduler(), unit("base", leases=2)
    loaded(core, base)
    assert granted(core.on_request(request("v1", base), 1.0)) == ["v1"]
    again = core.on_request(request("v2", unit("base", leases=2)), 1.0)
    assert (granted(again), only(Load, again)) == (["v2"], [])


def test_a_set_waits_without_holding() -> None:
    """A request for two units leaves the free one to others until it gets both."""
    core = scheduler(budget=20)
    loaded(core, A, B)
    core.on_request(request("busy", B), 1.0)
    assert granted(core.on_request(request("both", A, B, caller="y"), 2.0)) == []
    assert granted(core.on_request(request("one", A, caller="z"), 3.0)) == ["one"]
    assert granted(core.on_done("busy", 4.0)) == []
    assert core.on_done("one", 5.0)[0] == GrantLease(request="both", units=(A.id, B.id), devices=("cpu", "cpu"))


def test_threads_are_counted_for_what_runs() -> None:
    """Idle units cost no threads, a batch costs them once, and more than there are is never lent."""
    core = scheduler(budget=30)
    wide, other, batch = unit("wide", threads=2), unit("other", threads=1), unit("batch", threads=2, leases=4)
    loaded(core, wide, other, batch)
    assert core.threads == 0
    assert granted(core.on_request(request("r1", batch), 1.0)) == ["r1"]
    assert granted(core.on_request(request("r2", batch), 1.0)) == ["r2"]
    assert core.threads == 2
    assert granted(core.on_request(request("r3", other), 1.0)) == []
    core.on_done("r1", 2.0)
    assert granted(core.on_done("r2", 2.0)) == ["r3"]
    assert isinstance(refusal(core.on_request(request("r4", wide, other), 3.0)), DoesNotFit)


def test_what_never_fits_is_refused_at_once() -> None:
    """The refusal names what is needed and what there is."""
    error = refusal(scheduler().on_request(request("r", unit("huge", 11)), 0.0))
    assert isinstance(error, DoesNotFit)
    assert error.details == {"needed_bytes": 11, "budget_bytes": 10}


@pytest.mark.parametrize(("limits", "late"), [({"max_passes": 3, "patience_s": 1e6}, 4), ({"patience_s": 5.0}, 5)])
def test_the_resident_model_goes_first_within_a_bound(limits: dict[str, float], late: int) -> None:
    """Work for the loaded model overtakes until N requests or T seconds have passed, then the other gets its place."""
    core = scheduler(**limits)
    loaded(core, A)
    core.on_request(request("a0", A), 0.0)
    assert core.on_request(request("switch", B, caller="y"), 0.0)
    for number in range(1, 20):
        core.on_request(request(f"a{number}", A), float(number))
        effects = core.on_done(f"a{number - 1}", float(number))
        if only(Unload, effects):
            break
        assert granted(effects) == [f"a{number}"]
    assert number == late
    assert only(Load, core.on_unload(A.id, 30.0)) == [Load(unit=B, device="cpu", bytes=6)]
    assert granted(core.on_ready(B.id, 31.0)) == ["switch"]


def test_the_overdue_gets_threads_that_are_never_free_together() -> None:
    """Two narrow units that are always busy in turn make way for a wide one that has waited long enough."""
    core = scheduler(budget=30)
    wide, one, two = unit("wide", threads=2), unit("one", threads=1), unit("two", threads=1)
    loaded(core, wide, one, two)
    core.on_request(request("one", one), 0.0)
    core.on_request(request("two", two), 0.0)
    core.on_request(request("wide", wide, caller="y"), 0.0)
    core.on_done("one", 11.0)
    assert granted(core.on_request(request("next", one, caller="z"), 11.0)) == []
    assert granted(core.on_done("two", 12.0)) == ["wide"]


def test_the_overdue_gets_units_that_are_never_free_together() -> None:
    """The free half of a set is kept for a request that has waited long enough for both."""
    core = scheduler(budget=20)
    loaded(core, A, B)
    core.on_request(request("a", A), 0.0)
    core.on_request(request("b", B), 0.0)
    core.on_request(request("both", A, B, caller="y"), 0.0)
    core.on_done("a", 11.0)
    assert granted(core.on_request(request("next", A, caller="z"), 11.0)) == []
    assert granted(core.on_done("b", 12.0)) == ["both"]


def test_the_overdue_gets_the_free_bytes_of_its_device() -> None:
    """Nobody else loads into the room that a request which has waited long enough is going to need."""
    core = scheduler()
    loaded(core, A)
    core.on_request(request("a", A), 0.0)
    core.on_request(request("big", unit("big", 9), caller="y"), 0.0)
    assert only(Load, core.on_request(request("small", SMALL, caller="z"), 11.0)) == []
    assert only(Unload, core.on_done("a", 12.0)) == [Unload(unit=A.id)]
    assert [load.unit.id.weights for load in only(Load, core.on_unload(A.id, 13.0))] == ["big"]


def test_callers_take_turns() -> None:
    """A caller with many requests waiting is served alternately with one who comes later."""
    core = scheduler()
    loaded(core, A)
    for number in range(4):
        core.on_request(request(f"flood{number}", A, caller="flood"), 1.0)
    for number in range(2):
        core.on_request(request(f"other{number}", A, caller="other"), 2.0)
    order = ["flood0"]
    for time in range(3, 8):
        order += granted(core.on_done(order[-1], float(time)))
    assert order == ["flood0", "other0", "flood1", "other1", "flood2", "flood3"]


def test_priority_goes_first() -> None:
    """Of two who wait, the one with the higher priority is next, though it came later."""
    core = scheduler()
    loaded(core, A)
    core.on_request(request("r", A), 1.0)
    core.on_request(request("low", A), 2.0)
    core.on_request(request("high", A, caller="y", priority=1), 3.0)
    assert granted(core.on_done("r", 4.0)) == ["high"]


@pytest.mark.parametrize(("keep_alive", "gone_at"), [(0.0, 2.0), (60.0, 62.0), (None, 302.0), (-1.0, None)])
def test_keep_alive(keep_alive: float | None, gone_at: float | None) -> None:
    """An idle unit goes when its keep_alive is over: at once for 0, never for a negative one."""
    core = scheduler()
    loaded(core, A, keep_alive=-1.0)
    core.on_request(request("r", A, keep_alive=keep_alive), 1.0)
    effects = core.on_done("r", 2.0)
    if keep_alive != 0.0:
        assert core.next_tick() == gone_at
        assert only(Unload, effects) == only(Unload, core.on_tick((gone_at or 1e9) - 0.1)) == []
        effects = core.on_tick(gone_at or 1e12)
    assert only(Unload, effects) == ([] if gone_at is None else [Unload(unit=A.id)])


def test_a_pinned_unit_stays() -> None:
    """It neither expires nor is evicted; who needs its place waits, until it is no longer pinned."""
    core = scheduler()
    loaded(core, unit("a", pinned=True), keep_alive=0.0)
    assert only(Unload, core.on_request(request("r", B, deadline=1e6), 1.0)) == []
    assert only(Unload, core.on_tick(5e5)) == []
    assert only(Unload, core.pin(A.id, 6e5, pinned=False)) == [Unload(unit=A.id)]


def test_drain_lets_leases_end() -> None:
    """A draining unit gives no new leases and is unloaded when the last one ends; then it is loaded for who waits."""
    core = scheduler()
    loaded(core, A)
    core.on_request(request("r", A), 1.0)
    assert core.unload(A.id, 2.0) == ()
    assert core.residents[0].state is UnitState.DRAINING
    assert granted(core.on_request(request("next", A), 3.0)) == []
    assert only(Unload, core.on_done("r", 4.0)) == [Unload(unit=A.id)]
    assert only(Load, core.on_unload(A.id, 5.0)) == [Load(unit=A, device="cpu", bytes=6)]


def test_a_set_with_a_draining_unit_waits_whole() -> None:
    """Nothing of the set is loaded before the draining unit is idle; then all of it, and the lease follows."""
    core = scheduler()
    loaded(core, A)
    core.on_request(request("r", A), 1.0)
    core.unload(A.id, 2.0)
    assert only(Load, core.on_request(request("both", A, SMALL, caller="y"), 3.0)) == []
    loads = [*only(Load, core.on_done("r", 4.0)), *only(Load, core.on_unload(A.id, 5.0))]
    assert {load.unit.id for load in loads} == {A.id, SMALL.id}
    core.on_ready(A.id, 6.0)
    assert granted(core.on_ready(SMALL.id, 7.0)) == ["both"]


def test_force_revokes_leases() -> None:
    """By force a unit goes at once, and its lease is told so; its late end changes nothing."""
    core = scheduler()
    loaded(core, A)
    core.on_request(request("r", A), 1.0)
    revoked, unloaded = core.unload(A.id, 2.0, force=True)
    assert isinstance(revoked, Revoke)
    assert isinstance(revoked.error, ModelUnloaded)
    assert unloaded == Unload(unit=A.id, force=True)
    assert core.on_unload(A.id, 3.0) == core.on_done("r", 4.0) == core.on_unload(A.id, 5.0) == ()
    assert (core.residents, core.grants) == ((), ())


def test_a_failed_load_starts_a_cooldown() -> None:
    """300 s, doubled at each failure up to an hour, told with Retry-After; a load that succeeds clears it."""
    core, now = scheduler(), 0.0
    for number, seconds in enumerate((300.0, 600.0, 1200.0, 2400.0, 3600.0, 3600.0)):
        core.on_request(request(f"r{number}", A), now)
        assert refusal(core.on_failed(A.id, BROKEN, now)) is BROKEN
        error = refusal(core.on_request(request(f"again{number}", A), now + 1.0))
        assert isinstance(error, CandidateInCooldown)
        assert error.retry_after == seconds - 1.0
        now += seconds
    core.on_request(request("good", A), now)
    core.on_ready(A.id, now)
    core.on_failed(A.id, BROKEN, now)
    assert core.cooldown(A.id, now) == 300.0
    core.clear_cooldown(A.id)
    assert only(Load, core.on_request(request("cleared", A), now))


def test_a_crash_ends_its_leases_and_frees_everything() -> None:
    """The lease is told, memory and threads are free, and other units go on."""
    core, crashing = scheduler(budget=20), unit("x", threads=2)
    loaded(core, crashing, A)
    core.on_request(request("r", crashing), 1.0)
    core.on_request(request("fine", A), 1.0)
    assert core.on_failed(crashing.id, BROKEN, 2.0) == (Revoke(request="r", unit=crashing.id, error=BROKEN),)
    assert core.threads == 0
    assert [resident.id for resident in core.residents] == [A.id]
    assert core.on_done("r", 3.0) == ()
    assert [grant.request.id for grant in core.grants] == ["fine"]


def test_cancel_while_the_victim_leaves_stops_the_load() -> None:
    """A load that has not begun is forgotten with the only request that wanted it."""
    core = scheduler()
    loaded(core, A)
    core.on_request(request("r", B), 1.0)
    core.on_cancel("r", 2.0)
    assert core.on_unload(A.id, 3.0) == ()
    assert core.residents == ()


def test_cancel_while_loading_gives_the_load_up() -> None:
    """A load that only the cancelled request waited for is stopped; the next request loads anew."""
    core = scheduler()
    core.on_request(request("r", A), 1.0)
    assert core.on_cancel("r", 2.0) == (Unload(unit=A.id),)
    assert core.on_ready(A.id, 2.5) == ()
    assert only(Load, core.on_request(request("next", A), 3.0)) == []
    assert only(Load, core.on_unload(A.id, 4.0)) == [Load(unit=A, device="cpu", bytes=6)]
    assert core.cooldown(A.id, 4.0) == 0.0


@pytest.mark.parametrize("other", [request("other", A), request("other", A, SMALL, caller="y")])
def test_cancel_while_loading_leaves_the_load_to_others(other: Request) -> None:
    """A load that somebody else waits for, alone or in a set, goes on."""
    core = scheduler()
    core.on_request(request("r", A), 1.0)
    core.on_request(other, 1.5)
    assert only(Unload, core.on_cancel("r", 2.0)) == []
    core.on_ready(SMALL.id, 3.0)
    assert granted(core.on_ready(A.id, 3.0)) == ["other"]


def test_cancel_while_loading_leaves_a_pinned_unit() -> None:
    """Somebody wants it in memory whoever asks for it."""
    core = scheduler()
    core.on_request(request("r", unit("a", pinned=True)), 1.0)
    assert core.on_cancel("r", 2.0) == ()


def test_a_deadline_leaves_the_load() -> None:
    """A load that takes longer than requests wait is not begun again and again: it goes on, and the next one has it."""
    core = scheduler()
    core.on_request(request("r", A, deadline=5.0), 1.0)
    assert isinstance(refusal(core.on_tick(5.0)), QueueTimeout)
    core.on_request(request("next", A), 6.0)
    assert granted(core.on_ready(A.id, 7.0)) == ["next"]


def test_a_hung_worker_is_loaded_again() -> None:
    """Its leases get the error; who waits stays in line, for it is no failure to load, and the unit comes anew."""
    core = scheduler()
    loaded(core, A)
    core.on_request(request("r", A), 1.0)
    core.on_request(request("next", A), 2.0)
    revoked, *effects = core.on_failed(A.id, HUNG, 3.0)
    assert revoked == Revoke(request="r", unit=A.id, error=HUNG)
    assert only(Load, tuple(effects)) == [Load(unit=A, device="cpu", bytes=6)]
    assert core.cooldown(A.id, 3.0) == 0.0
    assert granted(core.on_ready(A.id, 4.0)) == ["next"]


def test_a_load_that_fails_in_whatever_way_starts_a_cooldown() -> None:
    """What would be no reason after the load is one during it: trying again at once would fail again."""
    core = scheduler()
    core.on_request(request("r", A), 1.0)
    assert refusal(core.on_failed(A.id, HUNG, 2.0)) is HUNG
    assert core.cooldown(A.id, 2.0) == 300.0


def test_the_worker_says_how_many_leases_it_takes() -> None:
    """What was assumed before the load is replaced by what the engine can do."""
    core = scheduler()
    core.on_request(request("r1", A), 0.0)
    core.on_request(request("r2", A), 0.0)
    core.on_request(request("r3", A), 0.0)
    assert granted(core.on_ready(A.id, 1.0, max_leases=2)) == ["r1", "r2"]


def test_a_unit_that_grows_pushes_out_what_is_idle() -> None:
    """The budget holds for what is measured later, too; what is loaded alone is not refused for its growth."""
    core = scheduler()
    loaded(core, SMALL)
    core.on_request(request("r", A), 1.0)
    core.on_ready(A.id, 1.0)
    assert core.on_grown(A.id, 7, 2.0) == ()
    assert core.on_grown(A.id, 12, 3.0) == (Unload(unit=SMALL.id),)
    core.on_unload(SMALL.id, 3.0)
    assert core.on_grown(A.id, 5, 4.0) == ()
    assert only(Unload, core.on_done("r", 5.0)) == [Unload(unit=A.id)]
    assert only(Load, core.on_unload(A.id, 6.0)) == []
    assert only(Load, core.on_request(request("again", A), 7.0)) == [Load(unit=unit("a", 10), device="cpu", bytes=10)]


def test_cancel_of_a_lease_lets_the_next_in() -> None:
    """The place is usable at once."""
    core = scheduler()
    loaded(core, A)
    core.on_request(request("r", A), 1.0)
    core.on_request(request("next", A), 2.0)
    assert granted(core.on_cancel("r", 3.0)) == ["next"]


def test_the_queue_is_bounded_in_all_and_per_caller() -> None:
    """One caller cannot take all places; a full queue refuses with Retry-After."""
    core = scheduler(max_waiting=3, max_waiting_per_caller=2)
    loaded(core, A)
    core.on_request(request("run", A), 1.0)
    outcomes = [core.on_request(request(f"r{n}", A, caller=c), 2.0) for n, c in enumerate("xxxyz")]
    refused = [[effect.error for effect in only(Refuse, effects)] for effects in outcomes]
    assert [len(errors) for errors in refused] == [0, 0, 1, 0, 1]
    assert all(isinstance(error, QueueFull) and error.retry_after for errors in refused for error in errors)


def test_waiting_ends_at_the_deadline() -> None:
    """A request that is not served in its time is refused with Retry-After; its lease would not have been limited."""
    core = scheduler()
    loaded(core, A)
    core.on_request(request("r", A, deadline=5.0), 1.0)
    core.on_request(request("late", A, deadline=6.0), 1.0)
    assert core.next_tick() == 6.0
    error = refusal(core.on_tick(6.0))
    assert isinstance(error, QueueTimeout)
    assert error.retry_after
    assert [grant.request.id for grant in core.grants] == ["r"]


def test_positions_and_estimates_follow_the_queue() -> None:
    """Each change of place is told once, with the time that measured leases and loads make likely."""
    core = scheduler()
    core.on_request(request("r0", A), 0.0)
    core.on_ready(A.id, 3.0)
    core.on_done("r0", 5.0)  # a load takes 3 s, a lease 2 s
    core.on_request(request("r1", A), 5.0)
    assert core.on_request(request("r2", A), 5.0) == (Position(request="r2", position=1, eta=2.0),)
    assert core.on_request(request("r3", A), 5.0) == (Position(request="r3", position=2, eta=4.0),)
    assert core.on_tick(5.5) == ()
    assert core.on_done("r1", 7.0)[1:] == (Position(request="r3", position=1, eta=2.0),)
    (unknown,) = core.on_request(request("r4", B, caller="y"), 7.0)
    assert unknown == Position(request="r4", position=2, eta=None)


def learnt(core: Scheduler, *units: UnitSpec, load: float, service: float) -> None:
    """Let the loads and leases of these units have taken so long, one after the other, and unload them."""
    for spec in units:
        core.on_request(request(f"learn {spec.id.weights}", spec, keep_alive=0.0), 0.0)
        core.on_ready(spec.id, load)
        core.on_done(f"learn {spec.id.weights}", load + service)
        core.on_unload(spec.id, load + service)


def eta(core: Scheduler, asked: Request, now: float) -> float | None:
    """Return the estimate that a request is told when it joins the queue."""
    (told,) = [one for one in only(Position, core.on_request(asked, now)) if one.request == asked.id]
    return told.eta


def test_an_estimate_counts_what_is_left_of_a_lease() -> None:
    """Of one that runs the rest; of one that is late a part of its usual time; then those in front, one by one."""
    core = scheduler()
    learnt(core, A, load=1.0, service=8.0)
    core.on_request(request("r1", A), 100.0)
    core.on_ready(A.id, 101.0)
    assert eta(core, request("r2", A), 104.0) == 5.0
    assert eta(core, request("r3", A), 104.0) == 13.0
    assert eta(core, request("r4", A), 120.0) == 2.0 + 8.0 + 8.0


def test_an_estimate_counts_who_is_served_at_the_same_time() -> None:
    """What is in front of a request, divided by how many leases there are at once."""
    core = scheduler()
    both = unit("a", leases=2)
    learnt(core, both, load=1.0, service=8.0)
    core.on_request(request("r1", both), 100.0)
    core.on_ready(both.id, 101.0)
    core.on_request(request("r2", both), 103.0)
    assert eta(core, request("r3", both), 105.0) == (4.0 + 6.0) / 2
    assert eta(core, request("r4", both), 105.0) == 5.0 + 8.0 / 2


def test_an_estimate_counts_the_wait_for_memory() -> None:
    """A load begins when there is room: after the leases, and the loads, of those in front that need it meanwhile."""
    core = scheduler()
    learnt(core, A, B, load=3.0, service=8.0)
    learnt(core, C, load=5.0, service=2.0)
    core.on_request(request("r1", A), 100.0)
    core.on_ready(A.id, 103.0)
    assert eta(core, request("r2", B, caller="y"), 103.0) == 8.0 + 3.0
    assert eta(core, request("r3", C, caller="z"), 103.0) == (8.0 + 3.0 + 8.0) + 5.0
    loose = scheduler(budget=12)
    learnt(loose, A, B, load=3.0, service=8.0)
    loose.on_request(request("r1", A), 100.0)
    loose.on_ready(A.id, 103.0)
    assert eta(loose, request("r2", B, caller="y"), 103.0) == 3.0


def test_an_estimate_counts_the_wait_for_threads() -> None:
    """Two units that have all threads each go one after the other, whoever waits for which."""
    core = scheduler(budget=20)
    one, other = unit("a", threads=2), unit("b", threads=2)
    learnt(core, one, other, load=1.0, service=4.0)
    loaded_at_once = [request("r1", one), request("r2", other, caller="y")]
    for asked in loaded_at_once:
        core.on_request(asked, 100.0)
    core.on_ready(one.id, 101.0)
    core.on_ready(other.id, 101.0)
    assert [grant.request.id for grant in core.grants] == ["r1"]
    assert eta(core, request("r3", one, caller="z"), 101.0) == 4.0 + 4.0
    assert eta(core, request("r4", other, caller="w"), 101.0) == 4.0 + 4.0 + 4.0


def test_what_nobody_has_measured_has_no_estimate() -> None:
    """A number that left out what is in front would be too low."""
    core = scheduler()
    learnt(core, B, load=3.0, service=8.0)
    core.on_request(request("r1", A), 100.0)
    core.on_ready(A.id, 103.0)
    assert eta(core, request("r2", B, caller="y"), 103.0) is None


def test_a_measured_footprint_replaces_the_estimate() -> None:
    """A unit larger than estimated pushes out what is idle, and the next plan counts what was measured."""
    core = scheduler()
    loaded(core, SMALL)
    core.on_request(request("r", A), 1.0)
    assert only(Unload, core.on_ready(A.id, 2.0, measured=9)) == [Unload(unit=SMALL.id)]
    core.on_unload(SMALL.id, 3.0)
    core.on_done("r", 4.0)
    assert only(Unload, core.on_request(request("s", SMALL), 5.0)) == [Unload(unit=A.id)]
    core.on_unload(A.id, 6.0)
    core.on_ready(SMALL.id, 7.0)
    core.on_request(request("again", A, caller="y"), 8.0)
    core.on_done("s", 9.0)
    assert only(Load, core.on_unload(SMALL.id, 10.0))[0].bytes == 9


def test_a_request_is_made_once() -> None:
    """An id that is in use is a mistake of the caller."""
    core = scheduler()
    core.on_request(request("r", A), 0.0)
    with pytest.raises(ValueError, match="once"):
        core.on_request(request("r", A), 1.0)
