"""How workers are lost: what their runs are told, what becomes of the unit, and what is counted."""

import asyncio

import pytest

from serai.errors import InternalError, LoadFailed, OutOfMemory, SeraiError, WorkerCrashed, WorkerHung
from serai.events import Text
from serai.registry.errors import CandidateInCooldown
from serai.runtime.lease import Stream
from serai.runtime.workers import Pace
from support.runtime_stage import HELLO, A, Stage, claim, read, staged
from support.scripted_backend import turns

pytestmark = pytest.mark.anyio


async def three_runs(stage: Stage) -> list[Stream]:
    """Return the streams of three runs that go on, on one worker."""
    await stage.loaded(A)
    return [(await stage.ask(A, caller=str(number)).got()).run(HELLO) for number in range(3)]


@pytest.mark.parametrize(
    ("status", "how"),
    [(-9, "killed by signal 9"), (-11, "killed by signal 11"), (3, "status 3"), (None, "ended while")],
)
async def test_a_crash_fails_its_runs_and_nothing_else(status: int | None, how: str) -> None:
    """Three runs read what had come, then the reason; memory is free, a cooldown begins, other models go on."""
    async with staged(max_runs=3) as stage:
        await stage.loaded(claim("s", 40))
        streams = await three_runs(stage)
        worker = stage.backend.worker("a@1.0.0")
        worker.tell(Text(delta="last"), run=2)
        worker.leave(status)
        assert await anext(streams[1]) == Text(delta="last")
        for stream in streams:
            with pytest.raises(WorkerCrashed, match=how):
                await read(stream)
            with pytest.raises(WorkerCrashed):
                await anext(stream)
        assert stage.states() == {"s": "ready"}
        assert stage.runtime.figures().bytes == {"cpu": 40}
        assert stage.runtime.cooldown(A.unit.id) == 300
        with pytest.raises(CandidateInCooldown):
            await stage.ask(A).got()
        await stage.ask(claim("s", 40)).got()
        await stage.advance(300)
        again = stage.ask(A, caller="eve")
        await turns()
        stage.backend.worker("a@1.0.0").ready()
        await again.got()
        assert stage.counted.lost == [("fake", "WORKER_CRASHED")]


async def test_a_crash_while_idle_unloads_and_starts_a_cooldown() -> None:
    """It may well crash again; what is loaded beside it is not touched."""
    async with staged() as stage:
        await stage.loaded(A)
        stage.backend.workers[0].leave(-6)
        await turns()
        assert stage.states() == {}
        assert stage.runtime.cooldown(A.unit.id) == 300


async def test_a_crash_while_loading_is_told_to_who_waits() -> None:
    """The load has failed; the cooldown doubles with each failure."""
    async with staged() as stage:
        for cooldown in (300, 600):
            asked = stage.ask(A)
            await turns()
            stage.backend.worker("a@1.0.0").leave(-9)
            with pytest.raises(WorkerCrashed, match="while it loaded"):
                await asked.got()
            assert stage.runtime.cooldown(A.unit.id) == cooldown
            await stage.advance(cooldown)


@pytest.mark.parametrize(
    ("counts", "error"), [((3, 4), OutOfMemory), ((3, 3), WorkerCrashed), ((None, None), WorkerCrashed)]
)
async def test_a_kill_for_memory_is_known_by_the_kernels_count(
    counts: tuple[int | None, int | None], error: type[SeraiError]
) -> None:
    """SIGKILL that was not ours is out of memory if the kernel has killed since the start, else a crash."""
    told = iter(counts)
    async with staged(oom_kills=lambda: next(told)) as stage:
        await stage.loaded(A)
        stream = (await stage.ask(A).got()).run(HELLO)
        stage.backend.workers[0].leave(-9)
        with pytest.raises(error):
            await read(stream)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (OutOfMemory("No room.", hint="Less."), OutOfMemory),
        (WorkerCrashed("It broke (RuntimeError)."), WorkerCrashed),
        (InternalError("Odd."), WorkerCrashed),
    ],
)
async def test_the_last_word_of_a_worker_is_the_reason(said: SeraiError, expected: type[SeraiError]) -> None:
    """Its message and hint reach the runs; what it is depends on its code."""
    async with staged() as stage:
        await stage.loaded(A)
        stream = (await stage.ask(A).got()).run(HELLO)
        stage.backend.workers[0].exit(said)
        with pytest.raises(expected) as lost:
            await read(stream)
        assert type(lost.value) is expected
        assert lost.value.message == said.message


async def test_a_worker_that_ends_by_itself_has_crashed() -> None:
    """An orderly `Exit` that nobody asked for is none."""
    from serai.runtime.worker.messages import Exit

    async with staged() as stage:
        await stage.loaded(A)
        stage.backend.workers[0].say(Exit())
        await turns()
        assert stage.backend.workers[0].stops == [5.0]
        assert stage.states() == {}
        assert stage.counted.lost == [("fake", "WORKER_CRASHED")]


async def test_a_silent_worker_is_killed() -> None:
    """With runs and without a word for `silence_s` it is hung; any word in between is a sign of life."""
    async with staged(pace=Pace(silence_s=10.0)) as stage:
        await stage.loaded(A)
        await stage.advance(100)
        stream = (await stage.ask(A).got()).run(HELLO)
        waiting = stage.ask(A, caller="bob")
        worker = stage.backend.workers[0]
        for _ in range(5):
            await stage.advance(9)
            worker.stats(10)
            await turns()
        await stage.advance(9.9)
        assert not worker.is_gone
        await stage.advance(0.1)
        assert worker.stops[0] == 0.0
        with pytest.raises(WorkerHung):
            await read(stream)
        assert stage.counted.lost == [("fake", "WORKER_HUNG")]
        assert stage.runtime.cooldown(A.unit.id) == 0
        stage.backend.worker("a@1.0.0").ready()
        await waiting.got()


async def test_a_server_that_slept_blames_nobody() -> None:
    """Words that came while the server itself stood still are read before a worker is said to be silent."""
    async with staged(pace=Pace(silence_s=10.0)) as stage:
        await stage.loaded(A)
        stream = (await stage.ask(A).got()).run(HELLO)
        worker = stage.backend.workers[0]
        stage.clock.advance(1000)
        worker.tell(Text(delta="x"))
        stage.runtime.tick()
        assert await anext(stream) == Text(delta="x")
        stage.runtime.tick()
        await turns()
        assert not worker.is_gone


async def test_a_crash_while_draining_ends_the_drain() -> None:
    """The run fails, the call to unload returns, and who waited for the next load is told of the crash."""
    async with staged() as stage:
        await stage.loaded(A)
        stream = (await stage.ask(A).got()).run(HELLO)
        unloading = asyncio.ensure_future(stage.runtime.unload(A.unit.id))
        waiting = stage.ask(A, caller="bob")
        await turns()
        assert stage.states() == {"a": "draining"}
        stage.backend.workers[0].leave(-11)
        await asyncio.wait_for(unloading, 30)
        with pytest.raises(WorkerCrashed):
            await read(stream)
        with pytest.raises(WorkerCrashed):
            await waiting.got()


async def test_a_death_on_the_way_out_is_no_crash() -> None:
    """A worker that was told to stop may end as it likes."""
    async with staged(leaves_at_once=False) as stage:
        await stage.loaded(A)
        unloading = asyncio.ensure_future(stage.runtime.unload(A.unit.id))
        await turns()
        stage.backend.workers[0].leave(-11)
        await asyncio.wait_for(unloading, 30)
        assert stage.counted.lost == []
        assert stage.runtime.cooldown(A.unit.id) == 0


async def test_a_run_that_is_over_expects_no_words() -> None:
    """An idle worker may be silent for ever."""
    async with staged(pace=Pace(silence_s=10.0)) as stage:
        await stage.loaded(A, keep_alive=-1)
        asked = stage.ask(A, keep_alive=-1)
        lease = await asked.got()
        stream = lease.run(HELLO)
        stage.backend.workers[0].answer()
        await read(stream)
        await stage.advance(1000)
        await asked.done()
        await stage.advance(1000)
        assert stage.states() == {"a": "ready"}


@pytest.mark.parametrize("is_spawned", [True, False])
async def test_a_load_that_takes_too_long_fails(is_spawned: bool) -> None:
    """Signs of progress do not help; the worker, or the attempt to start one, is ended."""
    async with staged(pace=Pace(load_timeout_s=60.0)) as stage:
        gate = stage.backend.spawn_gate = asyncio.Event()
        if is_spawned:
            gate.set()
        asked = stage.ask(A)
        await turns()
        if is_spawned:
            stage.backend.workers[0].loading(0.9)
        await stage.advance(59)
        assert not asked.task.done()
        await stage.advance(1)
        with pytest.raises(LoadFailed, match="within 60 s"):
            await asked.got()
        assert [worker.stops[0] for worker in stage.backend.workers] == ([0.0] if is_spawned else [])
        assert stage.runtime.cooldown(A.unit.id) == 300
        assert stage.counted.loads == [("fake", "LOAD_FAILED", 60.0)]


async def test_memory_counts_until_the_worker_is_really_gone() -> None:
    """A killed worker that takes its time keeps its place; the next load waits for it, its runs do not."""
    async with staged(pace=Pace(silence_s=10.0), leaves_at_once=False) as stage:
        await stage.loaded(A)
        stream = (await stage.ask(A).got()).run(HELLO)
        other = stage.ask(claim("b"), caller="bob")
        await stage.advance(10)
        with pytest.raises(WorkerHung):
            await read(stream)
        assert stage.runtime.figures().bytes == {"cpu": 100}
        assert len(stage.backend.workers) == 1
        stage.backend.workers[0].leave(-9)
        await turns()
        stage.backend.worker("b@1.0.0").ready()
        await other.got()


async def test_a_growing_worker_pushes_out_what_is_idle() -> None:
    """What it says of its memory counts once it passes what was reserved for it, and is remembered."""
    async with staged() as stage:
        await stage.loaded(claim("s", 40))
        asked = stage.ask(A)
        await turns()
        worker = stage.backend.worker("a@1.0.0")
        worker.ready(90)
        await asked.got()
        assert stage.runtime.figures().bytes == {"cpu": 140}
        worker.stats(99)
        await turns()
        assert stage.runtime.figures().bytes == {"cpu": 140}
        worker.stats(120)
        await turns()
        assert stage.runtime.figures().bytes == {"cpu": 120}
        assert stage.states() == {"a": "ready"}
        await asked.done()
        await stage.runtime.unload(A.unit.id)
        await stage.loaded(A)
        assert stage.backend.worker("a@1.0.0").spec.memory_bytes == 120
