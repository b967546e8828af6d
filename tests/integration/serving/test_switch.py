"""A switch loads, moves, lets go; and drops nothing."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from serai.events import Event, Loading
from serai.registry import bindings, releases, store
from serai.registry.errors import ServiceNotFound
from serai.serving.answer import Answer
from serai.serving.errors import PreloadFailed
from serai.serving.switch import rollback_targets, switch_target
from serai.storage.database import Database
from support.registry import ANN
from unit.serving.stage import Stage, done, staged

pytestmark = pytest.mark.anyio
PATIENT_S = 60.0
PER_SECOND = 50


def version(stage: Stage, number: str, **options: object) -> None:
    """Release a version of m whose weights are of its own: other options are another unit."""
    stage.desk.do(releases.create_version, "m", number, {"engine_options": {"max_runs": 16, **options}})


def commit(
    stage: Stage, command: Callable[..., object], *args: object, **values: object
) -> Callable[[], Awaitable[object]]:
    """Return what commits a change as a route does."""

    async def run() -> object:
        return await stage.desk.database.run(stage.desk.registry.write, command, ANN, stage.desk.now, *args, **values)

    return run


async def switch(stage: Stage, number: str, **values: object) -> None:
    snapshot = await stage.desk.registry.current()
    to = switch_target(snapshot, "s", version=number, alias=None)
    change = commit(stage, bindings.switch_version, "s", model=None, version=number, alias=None)
    await stage.serving.switches.switch("s", [to], change, timeout_s=PATIENT_S, **values)


async def rollback(stage: Stage) -> None:
    snapshot = await stage.desk.registry.current()
    current = snapshot.service("s").revision
    history = await stage.desk.database.read(store.revisions, "s")
    to = rollback_targets(snapshot, current, history)
    await stage.serving.switches.switch("s", to, commit(stage, bindings.rollback, "s"), timeout_s=PATIENT_S)


def loaded(stage: Stage) -> set[str]:
    return {name for one in stage.runtime.loaded() for name in one.names}


@pytest.fixture
def two(stage: Stage) -> Stage:
    """A service on m@1.0.0, with m@2.0.0 beside it."""
    stage.fake("m", "1.0.0", max_runs=16, step_s=0.001)
    version(stage, "2.0.0", step_s=0.001, load_s=0.05)
    stage.service("m@1.0.0")
    return stage


async def test_no_request_fails_while_a_service_is_switched_and_rolled_back(two: Stage) -> None:
    """Under a stream of requests each one is answered whole, by one version or the other."""
    answers: list[tuple[Answer, list[Event]]] = []
    came, enough = asyncio.Condition(), asyncio.Event()

    async def one() -> None:
        answer, events = await two.ask(timeout_s=PATIENT_S)
        answers.append((answer, events))
        async with came:
            came.notify_all()

    async def stream() -> None:
        async with asyncio.TaskGroup() as group:
            while not enough.is_set():
                group.create_task(one())
                await asyncio.sleep(1 / PER_SECOND)

    async def answered(count: int, number: str) -> None:
        """Return when so many more answers came from a version."""
        begin = len(answers)
        async with came:
            await came.wait_for(lambda: sum(one.decision.version == number for one, _ in answers[begin:]) >= count)

    async with asyncio.timeout(2 * PATIENT_S):
        requests = asyncio.create_task(stream())
        await answered(20, "1.0.0")
        await switch(two, "2.0.0")
        await answered(20, "2.0.0")
        await rollback(two)
        await answered(20, "1.0.0")
        enough.set()
        await requests
        await two.serving.switches.drained()
    assert all(done(events) for _, events in answers)
    assert {answer.decision.version for answer, _ in answers} == {"1.0.0", "2.0.0"}
    assert two.figure("serai_fallbacks_total") == 0
    assert loaded(two) == {"m@1.0.0"}


async def test_the_new_version_is_loaded_before_traffic_moves(two: Stage) -> None:
    """When the change is committed, what it leads to is in memory."""
    await two.ask()
    seen: list[set[str]] = []
    snapshot = await two.desk.registry.current()
    change = commit(two, bindings.switch_version, "s", model=None, version="2.0.0", alias=None)

    async def look() -> object:
        seen.append(loaded(two))
        return await change()

    to = switch_target(snapshot, "s", version="2.0.0", alias=None)
    await two.serving.switches.switch("s", [to], look, timeout_s=PATIENT_S)
    assert seen == [{"m@1.0.0", "m@2.0.0"}]
    await two.serving.switches.drained()
    assert loaded(two) == {"m@2.0.0"}


async def test_a_cold_service_is_switched_cold(two: Stage) -> None:
    """What is not in memory needs no replacement there, unless somebody asks for it."""
    await switch(two, "2.0.0")
    assert loaded(two) == set()
    await rollback(two)
    await switch(two, "2.0.0", preload=True)
    assert loaded(two) == {"m@2.0.0"}


async def test_a_version_that_does_not_load_is_not_switched_to(two: Stage) -> None:
    """The service is as it was, keeps its version in memory, and the error says both."""
    version(two, "3.0.0", fail="load")
    await two.ask()
    with pytest.raises(PreloadFailed, match=r"m@3.0.0 could not be loaded, so s still answers with m@1.0.0") as caught:
        await switch(two, "3.0.0")
    assert isinstance(caught.value.details, dict)
    assert caught.value.details["code"] == "LOAD_FAILED"
    assert two.desk.bound("s") == ("m@1.0.0",)
    assert loaded(two) == {"m@1.0.0"}
    answer, events = await two.ask()
    assert done(events)
    assert answer.decision.version == "1.0.0"


async def test_a_refused_change_leaves_the_old_version_in_memory(two: Stage) -> None:
    """What the registry refuses after the preload changes nothing but what is loaded."""
    await two.ask()

    async def refuse() -> None:
        raise ServiceNotFound("It is gone.")

    with pytest.raises(ServiceNotFound):
        await two.serving.switches.switch("s", ["m@2.0.0"], refuse, timeout_s=PATIENT_S)
    await two.serving.switches.drained()
    assert loaded(two) >= {"m@1.0.0"}


async def test_an_answer_that_began_before_ends_on_the_old_version(database: Database, tmp_path: Path) -> None:
    """The old version stays until its last answer is over, and then leaves."""
    gate = tmp_path / "gate"
    async with staged(database, tmp_path) as stage:
        stage.fake("m", "1.0.0", step_gate=str(gate))
        version(stage, "2.0.0")
        stage.service("m@1.0.0")
        async with await stage.open() as answer:
            async for event in answer:
                if isinstance(event, Loading) and event.fraction == 1.0:
                    break
            await switch(stage, "2.0.0", preload=True)
            later, events = await stage.ask()
            assert later.decision.version == "2.0.0"
            assert done(events)
            assert loaded(stage) == {"m@1.0.0", "m@2.0.0"}
            gate.touch()
            assert done([event async for event in answer])
            assert answer.decision.version == "1.0.0"
        await stage.serving.switches.drained()
        assert loaded(stage) == {"m@2.0.0"}


@pytest.mark.parametrize("why", ["another service", "a chain", "the same unit"])
async def test_what_somebody_else_uses_stays(two: Stage, why: str) -> None:
    """A version that another service is bound to or falls back on, or whose unit another version shares."""
    if why == "another service":
        two.service("m@1.0.0", id_="t")
    elif why == "a chain":
        two.service("m@2.0.0", "m@1.0.0", id_="t")
    else:
        two.desk.do(releases.create_version, "m", "1.0.1", {}, based_on="1.0.0")
        two.service("m@1.0.1", id_="t")
    await two.ask()
    await switch(two, "2.0.0")
    await two.serving.switches.drained()
    assert loaded(two) >= {"m@1.0.0", "m@2.0.0"}


async def test_an_unknown_service_is_not_switched(two: Stage) -> None:
    """Nothing is loaded, and nothing is committed."""

    async def never() -> None:
        pytest.fail("nothing is to be committed")

    with pytest.raises(ServiceNotFound):
        await two.serving.switches.switch("nobody", ["m@2.0.0"], never, timeout_s=PATIENT_S)
    assert loaded(two) == set()
