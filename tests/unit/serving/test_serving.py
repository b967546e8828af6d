"""Calls that go well, how they wait, how they end early, and what is known of them."""

import asyncio
from pathlib import Path

import pytest

from serai.clock import ManualClock
from serai.errors import Cancelled, DeadlineExceeded, InvalidInput, LoadFailed, Unavailable
from serai.events import Event, Failed, Loading, Queued, Text
from serai.registry import releases
from serai.registry.decision import Reason
from serai.registry.errors import LicenceRefused, ModelNotFound, ModelNotPulled, NoCandidate
from serai.registry.plan import Request
from serai.registry.source import HubSource
from serai.registry.version import Status
from serai.runtime.errors import QueueTimeout
from serai.runtime.model import Limits
from serai.serving.errors import ServiceQueueFull
from serai.storage.database import Database
from support.scripted_backend import ScriptedBackend, turns
from unit.serving.stage import Stage, call, chain_of, done, staged, text_of

pytestmark = pytest.mark.anyio
PATIENT_S = 30


async def test_a_call_is_answered_by_the_binding(stage: Stage) -> None:
    """A service's binding answers; decision, engine and headers say so."""
    stage.fake("m")
    stage.service("m@1.0.0")
    answer, events = await stage.ask()
    assert done(events)
    assert text_of(events) == "one two three four"
    assert chain_of(answer) == ["m@1.0.0 served"]
    assert answer.decision.reason is Reason.BOUND
    assert answer.engine == "fake"
    assert "names it" in answer.why_engine
    assert answer.headers() == {"X-Serai-Model": "m@1.0.0", "X-Serai-Reason": "bound", "X-Serai-Decision": answer.id}
    assert answer.error is None
    assert not stage.serving.answers


async def test_loading_is_told_under_the_name_of_who_answers(stage: Stage) -> None:
    """The first call sees the load, the second one does not."""
    stage.fake("m")
    _, first = await stage.ask(None, "m")
    _, second = await stage.ask(None, "m")
    told = [event for event in first if isinstance(event, Loading)]
    assert told
    assert {(event.model, event.version) for event in told} == {("m", "1.0.0")}
    assert not any(isinstance(event, Loading) for event in second)


async def test_a_task_is_made_for_who_answers(stage: Stage) -> None:
    """Templates differ by model, so the task is asked with candidate and engine; it may be asked for in a coroutine."""
    from serai.engines.tasks import AnyTask, Generate

    asked = []

    async def make(candidate: object, engine: object) -> AnyTask:
        asked.append((candidate.name, engine.name))  # type: ignore[attr-defined]
        return Generate(prompt="for m")

    stage.fake("m")
    _, events = await stage.ask(None, "m", task=make)
    assert text_of(events) == "for m"
    assert asked == [("m@1.0.0", "fake")]


async def test_what_nobody_can_answer_is_raised(stage: Stage) -> None:
    """Unknown models and bad input never become an answer, nor a row."""

    def refuse(*_: object) -> None:
        raise InvalidInput.at("messages", "is empty")

    stage.fake("m")
    with pytest.raises(ModelNotFound):
        await stage.open(None, "nobody")
    with pytest.raises(InvalidInput, match="messages"):
        await stage.open(None, "m", task=refuse)
    assert await stage.rows() == []


async def test_a_model_that_is_not_here_names_the_remedy(stage: Stage) -> None:
    """Weights that were never pulled, and those that were lost, are 404 with the call that brings them."""
    stage.desk.model("m", source=HubSource(repo="owner/m"), status=Status.ACTIVE)
    with pytest.raises(ModelNotPulled) as caught:
        await stage.open(None, "m@1.0.0")
    assert caught.value.hint == 'POST /pull {"model": "owner/m"}'


async def test_a_licence_that_refuses_is_passed_over(sqlite: Database, tmp_path: Path) -> None:
    """A candidate whose licence forbids the deployment is skipped, and the decision says why."""
    async with staged(sqlite, tmp_path) as stage:
        stage.desk.model("ours", engine="fake", licence="CC-BY-NC-4.0")
        stage.fake("free")
        stage.service("ours@1.0.0", "free@1.0.0")
    async with staged(sqlite, tmp_path, deployment="commercial") as stage:
        answer, events = await stage.ask()
        assert done(events)
        assert chain_of(answer) == ["ours@1.0.0 skipped", "free@1.0.0 served"]
        assert answer.decision.reason is Reason.FALLBACK_UNAVAILABLE
        assert "licence" in str(answer.decision.chain[0].error)
        assert answer.headers()["X-Serai-Fallback"] == "ours@1.0.0=skipped"


async def test_a_deprecated_version_warns(stage: Stage) -> None:
    """It answers, with a warning in the decision and the headers of RFC 9745."""
    stage.fake("m", "1.0.0", "1.1.0")
    stage.service("m@1.0.0")
    stage.desk.do(releases.deprecate, "m", "1.0.0", force=True)
    answer, events = await stage.ask()
    assert done(events)
    assert any("deprecated" in warning for warning in answer.decision.warnings)
    assert answer.headers()["Deprecation"].startswith("@")


async def test_started_returns_at_the_first_output_or_in_time(sqlite: Database, tmp_path: Path) -> None:
    """Headers wait for output, not for positions and loads; and not for ever."""
    async with staged(sqlite, tmp_path) as stage:
        gate = tmp_path / "gate"
        stage.fake("m", step_gate=str(gate))
        async with await stage.open(None, "m") as answer:
            await answer.started(0.01)
            assert not answer.has_output
            waiting = asyncio.create_task(answer.started(PATIENT_S))
            gate.touch()
            await waiting
            assert answer.has_output
            assert done([event async for event in answer])


async def test_events_come_in_batches_where_they_are_there(stage: Stage) -> None:
    """`ready` gives what is there without waiting, in order, and nothing twice."""
    stage.fake("m")
    answer = await stage.open(None, "m")
    await answer.over()
    first = await anext(answer)
    events: list[Event] = [first, *answer.ready()]
    assert done(events)
    assert answer.ready() == []
    assert [event async for event in answer] == []


async def test_a_run_is_fed(sqlite: Database, tmp_path: Path) -> None:
    """What is fed before the run began and while it goes on reaches it, in order."""
    backend = ScriptedBackend()
    async with staged(sqlite, tmp_path, backend=backend) as stage:
        stage.fake("m")
        async with await stage.open(None, "m") as answer:
            answer.feed({"text": "early"})
            await turns()
            worker = backend.worker("m@1.0.0")
            worker.ready(1)
            await turns()
            answer.feed({"text": "late"})
            assert [feed.message for feed in worker.feeds()] == [{"text": "early"}, {"text": "late"}]


# Waiting, and its bounds


async def test_a_service_answers_no_more_calls_at_once_than_it_may(sqlite: Database, tmp_path: Path) -> None:
    """One runs, one waits and hears its position, the third is refused with Retry-After; then the next may come."""
    async with staged(sqlite, tmp_path) as stage:
        gate = tmp_path / "gate"
        stage.fake("m", step_gate=str(gate), max_runs=8)
        stage.service("m@1.0.0", concurrency=1, queue_length=1)
        first = await stage.open()
        second = await stage.open()
        with pytest.raises(ServiceQueueFull) as caught:
            await stage.open()
        assert caught.value.retry_after
        assert await anext(second) == Queued(position=1)
        gate.touch()
        assert done([event async for event in first])
        assert done([event async for event in second])
        _, events = await stage.ask()
        assert done(events)


async def test_who_waits_for_a_service_gives_its_turn_back(sqlite: Database, tmp_path: Path) -> None:
    """A client that leaves the line makes room for the next."""
    async with staged(sqlite, tmp_path) as stage:
        gate = tmp_path / "gate"
        stage.fake("m", step_gate=str(gate))
        stage.service("m@1.0.0", concurrency=1, queue_length=1)
        first = await stage.open()
        second = await stage.open()
        await second.aclose()
        third = await stage.open()
        gate.touch()
        assert done([event async for event in first])
        assert done([event async for event in third])


async def test_the_line_of_a_service_ends_at_the_deadline(sqlite: Database, tmp_path: Path) -> None:
    """Who did not get in within the time of its call is told to come again."""
    async with staged(sqlite, tmp_path) as stage:
        stage.fake("m", step_gate=str(tmp_path / "never"))
        stage.service("m@1.0.0", concurrency=1)
        async with await stage.open():
            answer, events = await stage.ask(timeout_s=0.05)
        assert isinstance(answer.error, QueueTimeout)
        assert isinstance(events[-1], Failed)
        assert answer.error.retry_after


async def test_a_deadline_ends_the_answer_with_what_there_is(sqlite: Database, tmp_path: Path) -> None:
    """What was generated stays with the reader; the end is DEADLINE_EXCEEDED; the worker is idle again."""
    backend = ScriptedBackend()
    backend.on_spawn = lambda worker: worker.ready(1)
    backend.on_run = lambda worker, run: worker.tell(Text(delta="half"))
    async with staged(sqlite, tmp_path, backend=backend) as stage:
        stage.fake("m")
        stage.service("m@1.0.0", "m", timeout_s=0.3)
        answer, events = await stage.ask(timeout_s=1000)
        assert text_of(events) == "half"
        assert isinstance(events[-1], Failed)
        assert events[-1].code == "DEADLINE_EXCEEDED"
        assert isinstance(answer.error, DeadlineExceeded)
        assert chain_of(answer) == ["m@1.0.0 failed"]
        assert backend.worker("m@1.0.0").cancels()
        assert [one.in_flight for one in stage.runtime.loaded()] == [0]


async def test_a_deadline_is_shared_by_the_chain(sqlite: Database, tmp_path: Path) -> None:
    """What the first candidate used up, the second one does not have; and with no time left nobody is tried."""
    backend, clock = ScriptedBackend(), ManualClock()
    async with staged(sqlite, tmp_path, backend=backend, clock=clock, limits=Limits(cores=2, patience_s=1e6)) as stage:
        stage.fake("a")
        stage.fake("b")
        stage.service("a@1.0.0", "b@1.0.0")
        answer = await stage.open(timeout_s=10)
        await turns()
        clock.advance(6)
        backend.worker("a@1.0.0").exit(LoadFailed("It does not load."))
        await turns()
        assert answer.decision.model == "b"
        clock.advance(5)
        stage.runtime.tick()
        events = [event async for event in answer]
        assert isinstance(events[-1], Failed)
        assert isinstance(answer.error, QueueTimeout)
        assert chain_of(answer) == ["a@1.0.0 failed", "b@1.0.0 skipped"]


# Ends that were not planned


@pytest.mark.parametrize("stage_of_life", ["before", "in line", "loading", "queued", "running"])
async def test_a_client_that_leaves_stops_the_work(sqlite: Database, tmp_path: Path, stage_of_life: str) -> None:
    """Whenever it leaves: nothing runs or waits for it any more, no other candidate is tried, the row says so."""
    backend = ScriptedBackend()
    async with staged(sqlite, tmp_path, backend=backend) as stage:
        stage.fake("m")
        stage.fake("other")
        stage.service("m@1.0.0", "other@1.0.0", concurrency=1 if stage_of_life == "in line" else None)
        others = []
        if stage_of_life in ("in line", "queued"):
            others.append(await stage.open())
            await turns()
            backend.worker("m@1.0.0").ready(1)
            await turns()
        answer = await stage.open()
        if stage_of_life != "before":
            await turns()
        if stage_of_life == "running":
            backend.worker("m@1.0.0").ready(1)
            await turns()
            backend.worker("m@1.0.0").tell(Text(delta="half"))
            await answer.started(PATIENT_S)
        await answer.aclose()
        for other in others:
            backend.worker("m@1.0.0").answer("whole")
            assert done([event async for event in other])
        assert isinstance(answer.error, Cancelled)
        assert not stage.serving.answers
        assert stage.runtime.figures().leases == stage.runtime.figures().waiting == 0
        if stage_of_life == "running":
            assert len(backend.worker("m@1.0.0").cancels()) == 1
        (row,) = [row for row in await stage.rows() if row.id == answer.id]
        assert row.document["outcome"] == "cancelled"
        assert [link["model"] for link in row.document["chain"]] == ["m"]
        assert stage.figure("serai_fallbacks_total") == 0


async def test_a_call_that_is_abandoned_while_it_is_opened_leaves_nothing(stage: Stage) -> None:
    """A client that leaves while its task is being made gives its place back."""
    begun, never = asyncio.Event(), asyncio.Event()

    async def make(*_: object) -> object:
        begun.set()
        await never.wait()
        raise AssertionError

    stage.fake("m")
    stage.service("m@1.0.0", concurrency=1, queue_length=0)
    opening = asyncio.create_task(stage.open(task=make))
    await begun.wait()
    opening.cancel()
    await asyncio.wait([opening])
    _, events = await stage.ask()
    assert done(events)
    assert len(await stage.rows()) == 1


async def test_a_server_that_stops_says_so(sqlite: Database, tmp_path: Path) -> None:
    """Open answers end with UNAVAILABLE, new calls are refused, and every decision is stored."""
    async with staged(sqlite, tmp_path) as stage:
        stage.fake("m", step_gate=str(tmp_path / "never"))
        answer = await stage.open(None, "m")
        rows = await stage.rows()
        events = [event async for event in answer]
        assert isinstance(events[-1], Failed)
        assert events[-1].code == "UNAVAILABLE"
        assert [row.id for row in rows] == [answer.id]
        with pytest.raises(Unavailable):
            await stage.open(None, "m")


async def test_a_slow_reader_holds_the_work_up_and_loses_nothing(sqlite: Database, tmp_path: Path) -> None:
    """Far more than the bound comes through whole, in order."""
    async with staged(sqlite, tmp_path) as stage:
        stage.fake("m", tokens=40_000)
        answer = await stage.open(None, "m")
        await answer.started(PATIENT_S)
        events = [event async for event in answer]
        words = text_of(events).split()
        assert len(words) == 40_000
        assert words[:5] == ["one", "two", "three", "four", "one"]
        assert done(events)


async def test_the_policy_chooses_where_only_a_task_is_named(stage: Stage) -> None:
    """A request with a task alone is answered by the policy's choice; with nobody to choose it is refused."""
    with pytest.raises(NoCandidate):
        await stage.serving.open(call(request=Request(task="chat")))
    stage.fake("m")
    answer, events = await stage.ask(request=Request(task="chat"))
    assert done(events)
    assert answer.decision.reason is Reason.AUTO_POLICY


async def test_a_licence_that_refuses_the_named_model_is_an_error(sqlite: Database, tmp_path: Path) -> None:
    """A bare model has no chain."""
    async with staged(sqlite, tmp_path, deployment="commercial") as stage:
        stage.desk.model("m", engine="fake", licence="CC-BY-NC-4.0")
        with pytest.raises(LicenceRefused):
            await stage.open(None, "m")
