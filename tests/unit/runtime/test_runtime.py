"""The run loop over a scripted backend: what is loaded, granted, stopped and told, and when."""

import asyncio

import pytest

from serai.errors import LoadFailed, Unavailable
from serai.events import Done, Loading, Queued, Text
from serai.registry.errors import CandidateInCooldown
from serai.runtime.errors import DoesNotFit, ModelUnloaded, QueueTimeout
from serai.runtime.model import DeviceKind, Limits
from serai.runtime.observer import Left
from support.runtime_stage import CARDS, CPU, HELLO, A, B, C, claim, read, staged
from support.scripted_backend import turns

pytestmark = pytest.mark.anyio


async def test_a_lease_loads_runs_and_stays_for_the_next() -> None:
    """The worker gets the device and the bytes of the plan; the second lease needs no load."""
    async with staged() as stage:
        asked = stage.ask(A)
        await turns()
        worker = stage.backend.worker("a@1.0.0")
        assert (worker.spec.device, worker.spec.memory_bytes) == ("cpu", 100)
        assert not asked.has_it
        worker.ready(context=4096)
        lease = await asked.got()
        assert (lease.devices, lease.facts) == (("cpu",), ({"context": 4096},))
        stream = lease.run(HELLO)
        worker.answer("one", "two")
        assert await read(stream) == [Text(delta="one"), Text(delta="two"), Done(result={"words": 2})]
        await asked.done()
        await (again := stage.ask(A)).got()
        assert again.told == []
        assert len(stage.backend.workers) == 1


async def test_a_load_that_never_ends_delays_nobody_else() -> None:
    """While B loads for ever, A is leased and answers, again and again, without a turn of the clock."""
    async with staged(devices=(CPU, *CARDS)) as stage:
        await stage.loaded(A)
        never = stage.ask(claim("b", 50))
        await turns()
        a = stage.backend.worker("a@1.0.0")
        running = stage.ask(A, caller="first")
        lease = await running.got()
        stream = lease.run(HELLO)
        for number in range(100):
            a.tell(Text(delta=str(number)))
            assert await anext(stream) == Text(delta=str(number))
        a.answer()
        assert await read(stream) == [Done(result={"words": 0})]
        await running.done()
        for _ in range(20):
            asked = stage.ask(A)
            await asked.got()
            await asked.done()
        assert not never.has_it
        assert stage.clock.monotonic() == 0
        await never.cancel()


async def test_positions_and_loads_are_told_to_who_waits() -> None:
    """Place in the queue, then how far the load is, with the model's own name; nothing after the lease is there."""
    async with staged() as stage:
        first, second = stage.ask(A), stage.ask(A, caller="bob")
        await turns()
        worker = stage.backend.worker("a@1.0.0")
        worker.loading(0.5)
        await turns()
        half = Loading(model="a", version="1.0.0", fraction=0.5)
        assert first.told[:2] == [Loading(model="a", version="1.0.0", fraction=0.0), Queued(position=1)]
        assert first.told[-1] == second.told[-1] == half
        assert Queued(position=2) in second.told
        third = stage.ask(A, caller="eve")
        await turns()
        assert third.told == [half, Queued(position=3)]
        await third.cancel()
        worker.ready()
        await first.got()
        await turns()
        assert second.told[-1] == Queued(position=1)
        told = len(first.told)
        await first.done()
        await second.got()
        assert len(first.told) == told


async def test_one_who_watches_badly_disturbs_nobody() -> None:
    """A watch that raises is logged and passed over."""

    def watch(event: Queued | Loading) -> None:
        raise ValueError("not me")

    async with staged() as stage:
        task = asyncio.ensure_future(stage.runtime.lease([A], caller="x", timeout_s=9, watch=watch).__aenter__())
        other = stage.ask(A)
        await turns()
        stage.backend.worker("a@1.0.0").ready()
        await task
        await other.cancel()


@pytest.mark.parametrize("pinned", [False, True])
async def test_eviction_comes_before_the_load(pinned: bool) -> None:
    """The idle model is gone before the other begins to load; a pinned one stays, and the request waits."""
    async with staged(leaves_at_once=False) as stage:
        await stage.loaded(A)
        stage.runtime.pin(A.unit.id, pinned=pinned)
        asked = stage.ask(B, timeout_s=5.0)
        await turns()
        assert [worker.name for worker in stage.backend.workers] == ["a@1.0.0"]
        worker = stage.backend.workers[0]
        if pinned:
            await stage.advance(5.0)
            with pytest.raises(QueueTimeout):
                await asked.got()
            assert worker.stops == []
            return
        assert worker.stops == [5.0]
        assert stage.states() == {"a": "unloading"}
        worker.leave()
        await turns()
        assert stage.states() == {"b": "loading"}
        stage.backend.worker("b@1.0.0").ready()
        await asked.got()
        assert stage.counted.left == [("fake", Left.EVICTED)]


@pytest.mark.parametrize(("keep_alive", "gone_after"), [(0.0, 0.0), (7.0, 7.0), (None, 300.0), (-1.0, None)])
async def test_keep_alive(keep_alive: float | None, gone_after: float | None) -> None:
    """An idle unit leaves when its keep_alive is over: 0 at once, N after N seconds, -1 never."""
    async with staged() as stage:
        await stage.loaded(A, keep_alive=keep_alive)
        if gone_after is None:
            await stage.advance(1e7)
            assert stage.states() == {"a": "ready"}
            assert stage.runtime.loaded()[0].expires is None
            return
        if gone_after:
            await stage.advance(gone_after - 0.5)
            assert stage.states() == {"a": "ready"}
            await stage.advance(0.5)
        await turns()
        assert stage.states() == {}
        assert stage.backend.alive == []
        assert stage.counted.left == [("fake", Left.EXPIRED)]


async def test_a_cancel_in_the_queue_leaves_it_at_once() -> None:
    """The place is free in the same turn, and the next one moves up."""
    async with staged() as stage:
        await stage.loaded(A)
        holder = stage.ask(A)
        await holder.got()
        second, third = stage.ask(A, caller="bob"), stage.ask(A, caller="eve")
        await turns()
        await second.cancel()
        assert second.task.cancelled()
        assert third.told[-1] == Queued(position=1, eta_s=0.0)
        await holder.done()
        await third.got()


@pytest.mark.parametrize("is_spawned", [True, False])
async def test_a_cancel_during_the_load_gives_it_up(is_spawned: bool) -> None:
    """Nobody else wants it: the worker is killed without grace, or never comes to be."""
    async with staged() as stage:
        gate = stage.backend.spawn_gate = asyncio.Event()
        if is_spawned:
            gate.set()
        asked = stage.ask(A)
        await turns()
        await asked.cancel()
        gate.set()
        await turns()
        assert [worker.stops[0] for worker in stage.backend.workers] == ([0.0] if is_spawned else [])
        assert stage.states() == {}
        assert stage.counted.left == [("fake", Left.ABORTED)]
        assert stage.counted.loads == [("fake", "stopped", 0.0)]
        assert stage.counted.waits == [("fake", "cancelled", 0.0)]
        assert stage.runtime.cooldown(A.unit.id) == 0


async def test_a_cancel_during_the_load_leaves_it_to_others() -> None:
    """Who waits for the same model gets it."""
    async with staged() as stage:
        asked, other = stage.ask(A), stage.ask(A, caller="bob")
        await turns()
        await asked.cancel()
        stage.backend.worker("a@1.0.0").ready()
        await other.got()


async def test_a_cancel_that_comes_with_the_lease_gives_it_back() -> None:
    """A lease that was granted to one who is already cancelled is free at once."""
    async with staged() as stage:
        await stage.loaded(A)
        holder = stage.ask(A)
        await holder.got()
        late, other = stage.ask(A, caller="bob"), stage.ask(A, caller="eve")
        await turns()
        holder.task.cancel()
        late.task.cancel()
        await other.got()
        assert late.task.cancelled()
        assert stage.runtime.figures().leases == 1


async def test_waiting_ends_at_the_deadline() -> None:
    """The request is refused with a time to come again; the load goes on for the next one."""
    async with staged() as stage:
        asked = stage.ask(A, timeout_s=3.0)
        await turns()
        await stage.advance(3.0)
        with pytest.raises(QueueTimeout) as refused:
            await asked.got()
        assert refused.value.retry_after
        stage.backend.worker("a@1.0.0").ready()
        await turns()
        assert stage.states() == {"a": "ready"}
        assert [outcome for _, outcome, _ in stage.counted.waits] == ["QUEUE_TIMEOUT"]


async def test_what_never_fits_is_refused_at_once() -> None:
    """No worker is started for it."""
    async with staged() as stage:
        with pytest.raises(DoesNotFit):
            await stage.ask(claim("huge", 151)).got()
        assert stage.backend.workers == []


async def test_a_drain_waits_for_leases() -> None:
    """No new leases, the running one ends well, then the worker leaves, and `unload` returns; who waits loads anew."""
    async with staged() as stage:
        await stage.loaded(A)
        asked = stage.ask(A)
        lease = await asked.got()
        stream = lease.run(HELLO)
        unloading = asyncio.ensure_future(stage.runtime.unload(A.unit.id))
        await turns()
        assert stage.states() == {"a": "draining"}
        waiting = stage.ask(A, caller="bob")
        await turns()
        assert not unloading.done()
        assert not waiting.has_it
        stage.backend.worker("a@1.0.0").answer("well")
        assert isinstance((await read(stream))[-1], Done)
        await asked.done()
        await asyncio.wait_for(unloading, 30)
        assert stage.counted.left == [("fake", Left.COMMANDED)]
        await turns()
        assert len(stage.backend.workers) == 2
        stage.backend.worker("a@1.0.0").ready()
        await waiting.got()


async def test_a_forced_unload_ends_runs() -> None:
    """The stream gives what had arrived, then raises; the worker is killed without grace."""
    async with staged() as stage:
        await stage.loaded(A)
        asked = stage.ask(A)
        lease = await asked.got()
        stream = lease.run(HELLO)
        worker = stage.backend.worker("a@1.0.0")
        worker.tell(Text(delta="early"))
        await turns()
        await asyncio.wait_for(stage.runtime.unload(A.unit.id, force=True), 30)
        assert worker.stops[0] == 0.0
        assert stage.states() == {}
        assert await anext(stream) == Text(delta="early")
        with pytest.raises(ModelUnloaded):
            await anext(stream)
        with pytest.raises(ModelUnloaded):
            await read(lease.run(HELLO))
        await asked.done()
        assert stage.runtime.figures().leases == 0


async def test_unloading_what_is_not_there_returns_at_once() -> None:
    """There is nothing to wait for."""
    async with staged() as stage:
        await asyncio.wait_for(stage.runtime.unload(A.unit.id), 30)


async def test_a_failed_load_is_told_to_all_who_wait_and_starts_a_cooldown() -> None:
    """300 s during which it is not tried; cleared by hand it is loaded again."""
    async with staged() as stage:
        first, second = stage.ask(A), stage.ask(A, caller="bob")
        await turns()
        stage.backend.worker("a@1.0.0").exit(LoadFailed("The file is broken.", hint="Pull it again."))
        for asked in (first, second):
            with pytest.raises(LoadFailed, match="broken") as failed:
                await asked.got()
            assert failed.value.hint == "Pull it again."
        assert stage.runtime.cooldown(A.unit.id) == 300
        with pytest.raises(CandidateInCooldown):
            await stage.ask(A).got()
        assert stage.counted.loads == [("fake", "LOAD_FAILED", 0.0)]
        stage.runtime.clear_cooldown(A.unit.id)
        await stage.loaded(A)
        assert stage.runtime.cooldown(A.unit.id) == 0


async def test_a_backend_that_cannot_start_a_worker_fails_the_load() -> None:
    """Its reason is what the request gets."""
    async with staged() as stage:
        stage.backend.refusal = LoadFailed("No more processes.")
        with pytest.raises(LoadFailed, match="No more processes"):
            await stage.ask(A).got()
        assert stage.states() == {}


async def test_two_cards_have_budgets_of_their_own() -> None:
    """Two models go to two cards without evicting each other; the third evicts on one of them alone."""
    async with staged(devices=(*CARDS, CPU)) as stage:
        a, b, c = (claim(name, 90, kind=DeviceKind.CUDA) for name in "abc")
        await stage.loaded(a, b)
        assert {worker.spec.device for worker in stage.backend.alive} == {"cuda:0", "cuda:1"}
        await stage.loaded(c)
        assert stage.states() == {"b": "ready", "c": "ready"}
        assert stage.runtime.figures().bytes == {"cuda:0": 90, "cuda:1": 90, "cpu": 0}


async def test_a_set_is_given_whole_or_not_at_all() -> None:
    """A conversation gets its models together; while one is busy the other stays free for others."""
    async with staged(limits=Limits(cores=8)) as stage:
        a, b = claim("a", 50), claim("b", 50)
        await stage.loaded(a, b)
        busy = stage.ask(b, caller="bob")
        await busy.got()
        both = stage.ask(a, b)
        single = stage.ask(a, caller="eve")
        await single.got()
        await single.done()
        assert not both.has_it
        await busy.done()
        lease = await both.got()
        streams = [lease.run(HELLO, unit=number) for number in (0, 1)]
        for name, stream in zip(("a@1.0.0", "b@1.0.0"), streams, strict=True):
            stage.backend.worker(name).answer(name)
            assert (await read(stream))[0] == Text(delta=name)


async def test_overlapping_sets_never_deadlock() -> None:
    """{a,b}, {b,c} and {c,a}, with room for one set, asked for again and again: each is served every time."""
    async with staged(limits=Limits(cores=8, patience_s=1.0)) as stage:
        a, b, c = (claim(name, 60) for name in "abc")
        stage.backend.on_spawn = lambda worker: worker.ready()
        served = dict.fromkeys(("ann", "bob", "eve"), 0)

        async def talk(caller: str, *claims: object) -> None:
            for _ in range(10):
                async with stage.runtime.lease(claims, caller=caller, timeout_s=1e6) as lease:  # type: ignore[arg-type]
                    assert len(lease.devices) == 2
                    assert stage.runtime.figures().bytes["cpu"] <= 150
                    await turns(3)
                    served[caller] += 1

        talks = asyncio.gather(talk("ann", a, b), talk("bob", b, c), talk("eve", c, a))
        async with asyncio.timeout(60):
            while not talks.done():
                await stage.advance(0.5)
        await talks
        assert served == {"ann": 10, "bob": 10, "eve": 10}


async def test_versions_that_share_weights_share_a_worker() -> None:
    """The second version needs no load, and both names are told."""
    async with staged(max_runs=2) as stage:
        await stage.loaded(A)
        other = claim("a")
        other = type(A)(unit=other.unit, engine=type(A.engine)(engine="fake", name="tuned@2.0.0"))
        await stage.ask(other).got()
        (loaded,) = stage.runtime.loaded()
        assert loaded.names == ("a@1.0.0", "tuned@2.0.0")
        assert (loaded.in_flight, loaded.pid, loaded.engine, loaded.device) == (1, 1000, "fake", "cpu")
        assert (loaded.bytes, loaded.threads, loaded.pinned) == (100, 1, False)
        assert loaded.last_use == stage.clock.now()
        assert loaded.expires is None


async def test_as_many_leases_run_as_the_worker_takes() -> None:
    """The worker says how many; one more waits."""
    async with staged(max_runs=3) as stage:
        await stage.loaded(A)
        asked = [stage.ask(A, caller=str(number)) for number in range(4)]
        await turns()
        assert [one.has_it for one in asked] == [True, True, True, False]
        await asked[1].done()
        await asked[3].got()


async def test_close_ends_everything() -> None:
    """Who waits and who comes later is refused, runs raise, workers and backend are gone."""
    async with staged() as stage:
        await stage.loaded(A)
        holder = stage.ask(A)
        stream = (await holder.got()).run(HELLO)
        waiting, loading = stage.ask(A, caller="bob"), stage.ask(claim("s", 40), caller="eve")
        await turns()
        assert len(stage.backend.alive) == 2
        async with asyncio.timeout(30):
            await stage.runtime.close()
        assert stage.backend.alive == []
        assert stage.backend.is_closed
        for asked in (waiting, loading):
            with pytest.raises(Unavailable):
                await asked.got()
        with pytest.raises(ModelUnloaded):
            await anext(stream)
        await holder.done()
        with pytest.raises(Unavailable):
            await stage.ask(A).got()
        assert stage.runtime.figures().leases == 0


async def test_the_clock_of_the_machine_needs_no_help() -> None:
    """With the real clock a keep_alive of a moment ends by itself: nobody calls `tick`."""
    from serai.clock import SystemClock
    from support.runtime_stage import opened
    from support.scripted_backend import ScriptedBackend

    backend = ScriptedBackend()
    gone = asyncio.Event()
    backend.on_spawn = lambda worker: worker.ready()
    backend.on_gone = lambda worker: gone.set()
    async with opened(backend, SystemClock()) as runtime:
        async with runtime.lease([C], caller="ann", timeout_s=30, keep_alive=0.05):
            pass
        async with asyncio.timeout(30):
            await gone.wait()
