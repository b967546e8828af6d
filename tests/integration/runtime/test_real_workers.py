"""The run loop over real workers, as threads and as processes, with the fake engine."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serai.clock import SystemClock
from serai.engines.tasks import Generate, Sampling
from serai.errors import LoadFailed, OutOfMemory, WorkerCrashed, WorkerHung
from serai.events import Done, Loading, Text
from serai.runtime.backends.base import Backend
from serai.runtime.backends.inline import InlineBackend
from serai.runtime.backends.local import LocalBackend
from serai.runtime.runtime import Runtime
from serai.runtime.workers import Pace
from support.runtime_stage import claim, opened, read
from support.waiting import eventually
from support.workers import is_alive

pytestmark = pytest.mark.anyio

WORDS = Generate(prompt="one two three")
MIB = 2**20


@pytest.fixture(params=[InlineBackend, LocalBackend])
def backend(request: pytest.FixtureRequest) -> Backend:
    made: Backend = request.param(clock=SystemClock())
    return made


@pytest.fixture
async def runtime(backend: Backend) -> AsyncIterator[Runtime]:
    async with opened(backend, SystemClock()) as one:
        yield one


async def test_a_lease_answers(runtime: Runtime) -> None:
    """Load, run, events, facts, and what is told of the worker."""
    told: list[object] = []
    wanted = claim("a", 64 * MIB, options={"load_s": 0.05})
    async with runtime.lease([wanted], caller="ann", timeout_s=60, watch=told.append) as lease:
        events = await read(lease.run(WORDS))
        assert lease.facts[0]["device"] == "cpu"
    assert [event.delta for event in events if isinstance(event, Text)] == ["one", " two", " three"]
    assert isinstance(events[-1], Done)
    fractions = [event.fraction for event in told if isinstance(event, Loading)]
    assert fractions[0] == 0.0
    assert fractions[-1] == 1.0
    assert fractions == sorted(fraction for fraction in fractions if fraction is not None)
    (loaded,) = runtime.loaded()
    assert loaded.names == ("a@1.0.0",)
    assert loaded.bytes >= 64 * MIB


async def test_a_load_that_waits_delays_nobody(runtime: Runtime, tmp_path: Path) -> None:
    """A's answers come while B's load stands still; then B is loaded, too."""
    gate = tmp_path / "gate"
    a, b = claim("a", 64 * MIB), claim("b", 64 * MIB, options={"load_gate": str(gate)})

    async def ask_b() -> None:
        async with runtime.lease([b], caller="bob", timeout_s=60):
            pass

    asking = asyncio.create_task(ask_b())
    for _ in range(20):
        async with runtime.lease([a], caller="ann", timeout_s=60) as lease:
            assert len(await read(lease.run(WORDS))) == 4
    assert not asking.done()
    gate.touch()
    async with asyncio.timeout(60):
        await asking


async def test_several_leases_share_one_batch(runtime: Runtime) -> None:
    """As many runs go on as the engine said; their answers do not mix."""
    wanted = claim("a", 64 * MIB, options={"max_runs": 4})

    async def ask(number: int) -> list[str]:
        async with runtime.lease([wanted], caller=str(number), timeout_s=60) as lease:
            stream = lease.run(Generate(prompt=f"n{number}", sampling=Sampling(n=3)))
            return [event.delta for event in await read(stream) if isinstance(event, Text)]

    answers = await asyncio.gather(*(ask(number) for number in range(12)))
    assert answers == [[f"n{number}"] * 3 for number in range(12)]
    assert len(runtime.loaded()) == 1


async def test_a_cancelled_run_leaves_a_usable_worker(runtime: Runtime, tmp_path: Path) -> None:
    """A run that stands still is closed; the next lease on the same worker answers once it can."""
    gate = tmp_path / "gate"
    wanted = claim("a", 64 * MIB, options={"step_gate": str(gate), "max_runs": 1})
    async with runtime.lease([wanted], caller="ann", timeout_s=60) as lease:
        await lease.run(WORDS).aclose()
    gate.touch()
    async with runtime.lease([wanted], caller="bob", timeout_s=60) as lease:
        assert len(await read(lease.run(WORDS))) == 4


@pytest.mark.parametrize(
    ("fail", "error"), [("load", LoadFailed), ("load_oom", OutOfMemory), ("step", WorkerCrashed), ("oom", OutOfMemory)]
)
async def test_failures_are_told_as_what_they_are(runtime: Runtime, fail: str, error: type[Exception]) -> None:
    """Of a load to who waits, of a step to who reads; a cooldown follows, and the memory is free."""
    wanted = claim("a", 64 * MIB, options={"fail": fail})
    with pytest.raises(error):
        async with runtime.lease([wanted], caller="ann", timeout_s=60) as lease:
            await read(lease.run(WORDS))
    await eventually(lambda: _is_empty(runtime))
    assert runtime.cooldown(wanted.unit.id) > 200
    assert runtime.check_integrity() == ()


@pytest.mark.parametrize(("fail", "error"), [("load_crash", WorkerCrashed), ("crash", WorkerCrashed)])
async def test_a_process_that_dies_is_a_crash(fail: str, error: type[Exception]) -> None:
    """Killed by SIGKILL that was not the kernel's for memory."""
    async with opened(LocalBackend(clock=SystemClock()), SystemClock(), oom_kills=lambda: 0) as runtime:
        wanted = claim("a", 64 * MIB, options={"fail": fail})
        with pytest.raises(error, match="signal 9"):
            async with runtime.lease([wanted], caller="ann", timeout_s=60) as lease:
                await read(lease.run(WORDS))


async def test_a_step_that_never_returns_is_ended() -> None:
    """The watchdog kills the process, the run gets the reason, and a new worker takes its place at the next request."""
    async with opened(LocalBackend(clock=SystemClock()), SystemClock(), pace=Pace(silence_s=0.5)) as runtime:
        wanted = claim("a", 64 * MIB, options={"fail": "hang"})
        for _ in range(2):
            with pytest.raises(WorkerHung):
                async with runtime.lease([wanted], caller="ann", timeout_s=60) as lease:
                    await read(lease.run(WORDS))
            await eventually(lambda: _is_empty(runtime))


async def test_a_load_that_never_returns_is_ended() -> None:
    """The load fails after its time, and the process is gone."""
    async with opened(LocalBackend(clock=SystemClock()), SystemClock(), pace=Pace(load_timeout_s=1.0)) as runtime:
        wanted = claim("a", 64 * MIB, options={"fail": "load_hang"})
        with pytest.raises(LoadFailed, match="within 1 s"):
            async with runtime.lease([wanted], caller="ann", timeout_s=60):
                pass
        await eventually(lambda: _is_empty(runtime))


async def test_a_cancel_during_the_load_ends_the_process(tmp_path: Path) -> None:
    """The worker that loads for nobody is gone, and nothing of it is left."""
    async with opened(LocalBackend(clock=SystemClock()), SystemClock()) as runtime:
        wanted = claim("a", 64 * MIB, options={"load_gate": str(tmp_path / "never")})
        begun = asyncio.Event()

        async def ask() -> None:
            def watch(event: object) -> None:
                if isinstance(event, Loading) and runtime.loaded() and runtime.loaded()[0].pid is not None:
                    begun.set()

            async with runtime.lease([wanted], caller="ann", timeout_s=60, watch=watch):
                pass

        asking = asyncio.create_task(ask())
        async with asyncio.timeout(60):
            await begun.wait()
        pid = runtime.loaded()[0].pid
        assert pid is not None
        asking.cancel()
        await eventually(lambda: _is_empty(runtime))
        assert not is_alive(pid)
        assert runtime.cooldown(wanted.unit.id) == 0


async def _is_empty(runtime: Runtime) -> bool:
    return runtime.loaded() == () and set(runtime.figures().bytes.values()) == {0}
