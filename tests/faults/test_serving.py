"""Real workers that crash, hang or are shot walk the chain, and leave nothing behind."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from serai.clock import SystemClock
from serai.errors import WorkerCrashed
from serai.events import Failed
from serai.registry.decision import Reason
from serai.runtime.backends.local import LocalBackend
from serai.runtime.workers import Pace
from serai.storage.database import Database
from support.waiting import eventually
from unit.serving.stage import Stage, chain_of, done, staged, text_of

pytestmark = [pytest.mark.anyio, pytest.mark.fault]

FAILURES = {
    "load_crash": ("crash", {}),
    "crash": ("crash", {}),
    "load_hang": ("load_error", {"load_timeout_s": 5.0}),
    "hang": ("timeout", {"silence_s": 1.0}),
    "step": ("crash", {}),
    "load_oom": ("out_of_memory", {}),
}


@pytest.mark.parametrize("fail", FAILURES)
async def test_whatever_happens_to_a_worker_the_next_candidate_answers(
    database: Database, tmp_path: Path, fail: str
) -> None:
    """The reason is in the decision and the metrics; the worker is gone; what fell over is left alone."""
    failure, pace = FAILURES[fail]
    backend = LocalBackend(clock=SystemClock())
    async with staged(database, tmp_path, backend=backend, pace=Pace(grace_s=1.0, **pace)) as stage:
        stage.fake("good")
        stage.fake("bad", fail=fail)
        stage.service("bad@1.0.0", "good@1.0.0")
        _, events = await stage.ask(None, "good")
        assert done(events), "the one to fall back to is sound"
        answer, events = await stage.ask()
        assert done(events)
        assert text_of(events) == "one two three four"
        assert chain_of(answer) == ["bad@1.0.0 failed", "good@1.0.0 served"]
        assert answer.decision.reason is Reason.FALLBACK_ERROR
        assert stage.figure("serai_fallbacks_total", failure=failure) == 1

        async def only_the_good_one_is_loaded() -> bool:
            return [one.names for one in stage.runtime.loaded()] == [("good@1.0.0",)]

        await eventually(only_the_good_one_is_loaded)
        second, events = await stage.ask()
        assert done(events)
        again = "failed" if fail == "hang" else "skipped"  # one hang is no reason to do without it
        assert chain_of(second) == [f"bad@1.0.0 {again}", "good@1.0.0 served"]


async def test_a_worker_that_is_shot_ends_its_answers(database: Database, tmp_path: Path) -> None:
    """kill -9 in the midst of three answers: each ends with an error, none falls back, the next call is answered."""
    backend = LocalBackend(clock=SystemClock())
    gate = tmp_path / "gate"
    async with staged(database, tmp_path, backend=backend) as stage:
        stage.fake("m", tokens=1_000_000)
        stage.fake("other", step_gate=str(gate))
        stage.service("m@1.0.0", "other@1.0.0")
        answers = [await stage.open() for _ in range(3)]
        for answer in answers:
            await answer.started(60)
            assert answer.has_output
        pid = only_pid(stage)
        os.kill(pid, signal.SIGKILL)
        for answer in answers:
            last = [event async for event in answer][-1]
            assert isinstance(last, Failed)
            assert isinstance(answer.error, WorkerCrashed)
            assert chain_of(answer) == ["m@1.0.0 failed"]

        async def it_is_gone() -> bool:
            return is_gone(pid)

        await eventually(it_is_gone)
        gate.touch()
        answer, events = await stage.ask()
        assert done(events)
        assert answer.decision.model == "other"
        rows = await stage.rows()
        assert sorted(row.document["outcome"] for row in rows) == ["failed", "failed", "failed", "served"]


async def test_a_client_that_leaves_stops_a_real_run(database: Database, tmp_path: Path) -> None:
    """The worker is idle at once, and takes the next run."""
    backend = LocalBackend(clock=SystemClock())
    async with staged(database, tmp_path, backend=backend) as stage:
        stage.fake("m", tokens=1_000_000, max_runs=1)
        async with await stage.open(None, "m") as answer:
            await answer.started(60)
        assert [one.in_flight for one in stage.runtime.loaded()] == [0]
        async with await stage.open(None, "m") as answer:
            await answer.started(60)
            assert answer.has_output
        async with asyncio.timeout(60):
            await stage.serving.unload("m")
        assert stage.runtime.loaded() == ()


def only_pid(stage: Stage) -> int:
    (one,) = stage.runtime.loaded()
    assert one.pid is not None
    return one.pid


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()
