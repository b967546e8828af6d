"""Workers shot in every state, and three hundred loads: what is told, and what is left behind."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serai.clock import SystemClock
from serai.engines.tasks import Generate
from serai.errors import WorkerCrashed
from serai.events import Text
from serai.registry.errors import CandidateInCooldown
from serai.runtime.backends.local import LocalBackend
from serai.runtime.lease import Claim
from serai.runtime.model import UnitState
from serai.runtime.runtime import Runtime
from support.runtime_stage import claim, opened, read
from support.waiting import eventually
from support.workers import children, fork_servers, is_alive, open_descriptors

pytestmark = [pytest.mark.anyio, pytest.mark.fault]

WORDS = Generate(prompt="one two three")
MIB = 2**20


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with opened(LocalBackend(clock=SystemClock()), SystemClock(), oom_kills=lambda: 0) as one:
        yield one


async def pid_of(runtime: Runtime, state: UnitState) -> int:
    """Return the process of the one worker when it is in this state."""

    async def is_so() -> bool:
        return any(loaded.state is state and loaded.pid is not None for loaded in runtime.loaded())

    await eventually(is_so)
    pid = runtime.loaded()[0].pid
    assert pid is not None
    return pid


async def has_recovered(runtime: Runtime, pid: int, wanted: Claim) -> None:
    """Check that the dead worker has left nothing, and that the unit works again after its cooldown."""

    async def is_free() -> bool:
        return runtime.figures().bytes == {"cpu": 0} and not is_alive(pid)

    await eventually(is_free)
    assert runtime.check_integrity() == ()
    assert 290 < runtime.cooldown(wanted.unit.id) <= 300
    with pytest.raises(CandidateInCooldown) as refused:
        await answer(runtime, wanted)
    assert refused.value.retry_after
    runtime.clear_cooldown(wanted.unit.id)
    assert await answer(runtime, wanted) == ["one", " two", " three"]


async def answer(runtime: Runtime, wanted: Claim) -> list[str]:
    async with runtime.lease([wanted], caller="next", timeout_s=60) as lease:
        return [event.delta for event in await read(lease.run(WORDS)) if isinstance(event, Text)]


async def test_a_worker_shot_while_it_loads(runtime: Runtime, tmp_path: Path) -> None:
    """Who waits is told; the next load is a new one."""
    gate = tmp_path / "gate"
    wanted = claim("a", 64 * MIB, options={"load_gate": str(gate)})
    asking = asyncio.create_task(answer(runtime, wanted))
    pid = await pid_of(runtime, UnitState.LOADING)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(WorkerCrashed, match="signal 9 while it loaded"):
        await asyncio.wait_for(asking, 60)
    gate.touch()
    await has_recovered(runtime, pid, wanted)


async def test_a_worker_shot_while_idle(runtime: Runtime) -> None:
    """Nobody is told, for nobody asks; the books are right and a cooldown begins."""
    wanted = claim("a", 64 * MIB)
    await answer(runtime, wanted)
    pid = await pid_of(runtime, UnitState.READY)
    os.kill(pid, signal.SIGKILL)
    await has_recovered(runtime, pid, wanted)


async def test_a_worker_shot_with_three_runs(runtime: Runtime, tmp_path: Path) -> None:
    """Each of the three is told the reason; another model's run beside them is not disturbed."""
    gate = tmp_path / "gate"
    wanted = claim("a", 64 * MIB, options={"step_gate": str(gate), "max_runs": 3})
    other = claim("b", 64 * MIB, options={"step_gate": str(gate)})
    running = asyncio.Semaphore(0)

    async def run(one: Claim, caller: str) -> int:
        async with runtime.lease([one], caller=caller, timeout_s=60) as lease:
            stream = lease.run(WORDS)
            running.release()
            return len(await read(stream))

    three = [asyncio.create_task(run(wanted, str(number))) for number in range(3)]
    async with asyncio.timeout(60):
        for _ in three:
            await running.acquire()
        beside = asyncio.create_task(run(other, "beside"))
        await running.acquire()
    pid = next(loaded.pid for loaded in runtime.loaded() if loaded.names == ("a@1.0.0",))
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    ends = await asyncio.wait_for(asyncio.gather(*three, return_exceptions=True), 60)
    assert [type(end) for end in ends] == [WorkerCrashed] * 3
    assert not beside.done()
    gate.touch()
    assert await asyncio.wait_for(beside, 60) == 4
    await runtime.unload(other.unit.id)
    await has_recovered(runtime, pid, wanted)


@pytest.mark.timeout(600)
async def test_three_hundred_loads_leave_nothing_behind(runtime: Runtime) -> None:
    """After as many loads, runs and unloads there are as many processes and descriptors as after one."""
    wanted = claim("a", 16 * MIB, options={"bytes": MIB})

    async def cycle(number: int) -> None:
        async with runtime.lease([wanted], caller="ann", timeout_s=60, keep_alive=0) as lease:
            stream = lease.run(WORDS)
            if number % 3:
                await read(stream)

        async def is_gone() -> bool:
            return runtime.loaded() == ()

        await eventually(is_gone)

    def look() -> tuple[int, list[int]]:
        """Count descriptors, which shared memory is as well (memfd), and the children of this process and of theirs."""
        families = [children(os.getpid()), *(children(server) for server in fork_servers())]
        return open_descriptors(), [len(family) for family in families]

    await cycle(1)
    before = look()
    for number in range(300):
        await cycle(number)
    descriptors, families = look()
    assert descriptors <= before[0]  # something from before the first look may have gone since
    assert families == before[1]
