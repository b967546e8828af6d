"""The seam behind which workers live: one suite, for processes and for threads of this one."""

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from serai.engines.errors import EngineMissing, EngineUnknown
from serai.errors import InvalidInput, LoadFailed, SeraiError, TooLarge
from serai.events import Done, Failed, Text
from serai.runtime.backends.base import Backend
from serai.runtime.errors import WorkerGone
from serai.runtime.worker import frames
from serai.runtime.worker.messages import Cancel, Exit, Feed, Loading, Stats, Stop, Told
from support.workers import Heard, backend_of, loaded, spec

pytestmark = pytest.mark.anyio

MIB = 2**20


@pytest.fixture(params=["inline", "local", "local-uvloop"])
def place(request: pytest.FixtureRequest) -> str:
    value: str = request.param
    return value


@pytest.fixture
def kind(place: str) -> str:
    return place.partition("-")[0]


@pytest.fixture
def anyio_backend(place: str) -> tuple[str, dict[str, Any]]:
    """The server's event loop is one or the other."""
    return "asyncio", {"use_uvloop": place.endswith("-uvloop")}


@pytest.fixture
async def backend(kind: str, anyio_backend: tuple[str, dict[str, Any]]) -> AsyncIterator[Backend]:
    async with backend_of(kind) as made:
        yield made


async def test_a_worker_loads_runs_and_stops(backend: Backend, kind: str) -> None:
    """Ready comes once, each run ends with Done, Stop brings Exit without a code, then receive raises for ever."""
    heard = await loaded(backend, max_runs=3)
    ready = await heard.ready()
    assert ready.max_runs == 3
    assert (heard.worker.pid is None) == (kind == "inline")
    assert heard.worker.pid in (None, ready.facts["pid"])
    assert (ready.bytes > MIB) == (kind == "local")
    assert await heard.ask(1, do="echo", what={"a": [1, 2.5, None, b"bytes", "س"]}) == {
        "body": {"a": [1, 2.5, None, b"bytes", "س"]}
    }
    heard.worker.send(Stop())
    for _ in range(3):
        gone = await heard.gone()
        assert gone.status == (None if kind == "inline" else 0)
    assert heard.messages[-1] == Exit()
    assert sum(isinstance(message, Exit) for message in heard.messages) == 1
    heard.run(9, do="wait")  # nobody is there; nothing happens
    await heard.worker.stop(0)


async def test_events_of_several_runs_keep_their_order(backend: Backend) -> None:
    """Runs go on side by side; of each every event comes once and in order."""
    heard = await loaded(backend)
    for run in range(1, 6):
        heard.run(run, do="count", to=500, batch=run)
    for run in range(1, 6):
        assert isinstance(await heard.end(run), Done)
        *texts, _ = heard.events(run)
        assert [text.delta for text in texts if isinstance(text, Text)] == [f"{number} " for number in range(500)]
    await heard.worker.stop(10)


async def test_large_payloads_go_both_ways(backend: Backend) -> None:
    """50 MiB in and out, between small ones, arrive whole and in order."""
    heard = await loaded(backend)
    what = bytes(range(256)) * (50 * MIB // 256)
    for run, body in enumerate((b"small", what, b"small", bytes(frames.INLINE_BYTES), what[: 3 * MIB]), start=1):
        heard.run(run, do="echo", what=body)
    for run, body in enumerate((b"small", what, b"small", bytes(frames.INLINE_BYTES), what[: 3 * MIB]), start=1):
        last = await heard.end(run)
        assert isinstance(last, Done)
        assert last.result["body"] == body
    await heard.worker.stop(10)


@pytest.mark.parametrize("size", range(frames.INLINE_BYTES - 80, frames.INLINE_BYTES + 20, 7))
async def test_payloads_around_the_bound_of_what_is_on_the_stream(backend: Backend, size: int) -> None:
    """Whether a payload is on the stream or in a file nobody can tell from outside."""
    heard = await loaded(backend)
    for run in (1, 2, 3):
        heard.run(run, do="echo", what=b"z" * size)
    for run in (1, 2, 3):
        assert await heard.end(run) == Done(result={"body": b"z" * size})


async def test_what_is_larger_than_any_frame_is_refused(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an error of who sends it, and the worker goes on."""
    heard = await loaded(backend)
    monkeypatch.setattr(frames, "MAX_BYTES", 1000)
    with pytest.raises(TooLarge):
        heard.run(1, do="echo", what=bytes(1000))
    assert await heard.ask(2, do="echo", what=1) == {"body": 1}


async def test_a_cancelled_run_says_nothing_more(backend: Backend) -> None:
    """After Cancel the others go on, the place is free, and what is said of an unknown run is ignored."""
    heard = await loaded(backend, max_runs=2)
    heard.run(1, do="count", to=10**9)
    heard.run(2, do="talk")
    await heard.until(lambda: len(heard.events(1)) > 10)
    heard.worker.send(Cancel(run=1))
    heard.worker.send(Cancel(run=77))
    heard.worker.send(Feed(run=77, message={"say": "x"}))
    heard.worker.send(Feed(run=2, message={"say": "mark"}))
    await heard.until(lambda: heard.events(2))
    at = heard.messages.index(Told(2, Text(delta="mark")))
    assert await heard.ask(3, do="echo", what=1) == {"body": 1}
    heard.worker.send(Feed(run=2, message={"say": "end"}))
    assert isinstance(await heard.end(2), Done)
    assert not any(isinstance(told, Told) and told.run == 1 for told in heard.messages[at:])


async def test_a_run_is_fed(backend: Backend) -> None:
    """What is fed reaches the run in order; a refusal ends that run alone."""
    heard = await loaded(backend)
    heard.run(1, do="talk")
    heard.run(2, do="talk")
    for number in range(100):
        heard.worker.send(Feed(run=1, message={"say": str(number)}))
    heard.worker.send(Feed(run=2, message={"refuse": True}))
    heard.worker.send(Feed(run=1, message={"say": "end"}))
    assert await heard.end(2) == Failed(
        code="ENGINE_FAILED",
        message="It is refused.",
        hint="The server's models.log has the details under this request_id.",
    )
    await heard.end(1)
    assert [event.delta for event in heard.events(1) if isinstance(event, Text)] == [str(one) for one in range(100)]


async def test_a_refused_run_is_an_event_of_that_run(backend: Backend) -> None:
    """A SeraiError from start, and a run too many, fail that run; the worker goes on."""
    heard = await loaded(backend, max_runs=1)
    heard.run(1, do="refuse")
    assert await heard.end(1) == Failed(code="INVALID_INPUT", message="It is refused.")
    heard.run(2, do="wait")
    heard.run(3, do="wait")
    last = await heard.end(3)
    assert isinstance(last, Failed)
    assert last.code == "INTERNAL_ERROR"
    assert heard.events(2) == []


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("raise", "LOAD_FAILED"),
        ("refuse", "LOAD_FAILED"),
        ("memory", "OUT_OF_MEMORY"),
    ],
)
async def test_a_failed_load_says_why(backend: Backend, kind: str, how: str, code: str) -> None:
    """Exit holds the code and a remedy, never what a library says of this machine; then the worker is gone."""
    heard = Heard(await backend.spawn(spec(load=how)))
    gone = await heard.gone()
    (last,) = heard.messages
    assert isinstance(last, Exit)
    assert last.code == code
    assert last.hint
    assert "/etc" not in last.message
    if how == "refuse":
        assert (last.message, last.hint) == ("It cannot be loaded.", "Do something else.")
    assert gone.status == (None if kind == "inline" else 1)


async def test_an_engine_that_cannot_be_imported_is_a_failed_load(backend: Backend) -> None:
    """Its module is missing or broken: the load fails, nothing else."""
    heard = Heard(await backend.spawn(spec("unloadable")))
    await heard.gone()
    (last,) = heard.messages
    assert isinstance(last, Exit)
    assert last.code == "LOAD_FAILED"


@pytest.mark.parametrize(
    ("does", "code"),
    [
        ("raise", "WORKER_CRASHED"),
        ("memory", "OUT_OF_MEMORY"),
        ("break_start", "WORKER_CRASHED"),
        ("unencodable", "WORKER_CRASHED"),
        ("leave", "WORKER_CRASHED"),
    ],
)
async def test_a_broken_engine_is_the_end_of_its_worker(backend: Backend, kind: str, does: str, code: str) -> None:
    """What an engine raises but an error of a run ends all its runs, and the reason comes before the end."""
    heard = await loaded(backend)
    heard.run(1, do="wait")
    heard.run(2, do=does)
    gone = await heard.gone()
    last = heard.messages[-1]
    assert isinstance(last, Exit)
    assert last.code == code
    assert "/etc" not in last.message
    assert gone.status == (None if kind == "inline" else 1)


async def test_a_worker_with_runs_gives_signs_of_life(backend: Backend, kind: str) -> None:
    """Stats come while there are runs, with the memory, the runs and the steps; steps grow."""
    heard = await loaded(backend, bytes=20 * MIB)
    heard.run(1, do="wait")
    await heard.until(lambda: sum(isinstance(message, Stats) for message in heard.messages) == 2)
    first, second = (message for message in heard.messages if isinstance(message, Stats))
    assert first.runs == 1
    assert second.steps > first.steps
    assert (second.bytes > 20 * MIB) == (kind == "local")


async def test_an_engine_with_an_allocator_of_its_own_is_believed(backend: Backend) -> None:
    """Ready has what the load came to; Stats have what the allocator says then."""
    heard = await loaded(backend, own_bytes=5 * MIB)
    assert (await heard.ready()).bytes == 5 * MIB
    heard.run(1, do="wait")
    await heard.until(lambda: any(isinstance(message, Stats) for message in heard.messages))
    assert next(message for message in heard.messages if isinstance(message, Stats)).bytes == 5 * MIB + 1


async def test_a_load_that_reports_can_be_stopped(backend: Backend, kind: str) -> None:
    """Loading tells how far it is; Stop is heard there, without any kill."""
    heard = Heard(await backend.spawn(spec(load="report")))
    await heard.until(lambda: heard.messages)
    assert heard.messages[0] == Loading(fraction=0.5)
    heard.worker.send(Stop())
    gone = await heard.gone()
    assert heard.messages[-1] == Exit()
    assert gone.status == (None if kind == "inline" else 0)


async def test_what_is_sent_before_the_load_is_over_is_done_after_it(backend: Backend) -> None:
    """Messages wait for the engine."""
    heard = Heard(await backend.spawn(spec()))
    heard.run(1, do="echo", what="early")
    assert await heard.end(1) == Done(result={"body": "early"})


async def test_a_cancelled_receive_loses_nothing(backend: Backend) -> None:
    """Reading is cut off again and again, also within large payloads; all of it arrives."""
    heard = await loaded(backend)
    heard.run(1, do="count", to=2000)
    heard.run(2, do="give", bytes=30 * MIB)
    messages: list[Any] = []
    with anyio.fail_after(60):
        while sum(isinstance(told, Told) and isinstance(told.event, Done) for told in messages) < 2:
            with anyio.move_on_after(0.001):
                messages += await heard.worker.receive()
            if len(messages) % 2:  # else a slow machine might never get through
                messages += await heard.worker.receive() if not _over(messages) else ()
    texts = [told.event.delta for told in messages if isinstance(told, Told) and isinstance(told.event, Text)]
    assert texts == [f"{number} " for number in range(2000)]


def _over(messages: list[Any]) -> bool:
    return sum(isinstance(told, Told) and isinstance(told.event, Done) for told in messages) == 2


async def test_stop_and_receive_go_together(backend: Backend) -> None:
    """Stop may be called by several, while somebody receives; each returns when the worker is gone."""
    heard = await loaded(backend)
    heard.run(1, do="count", to=10**9)
    gone: list[WorkerGone] = []

    async def receive() -> None:
        gone.append(await heard.gone())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        await anyio.lowlevel.checkpoint()
        for _ in range(3):
            tasks.start_soon(heard.worker.stop, 30)
    assert len(gone) == 1
    with pytest.raises(WorkerGone):
        await heard.worker.receive()


async def test_a_fast_engine_waits_for_a_slow_reader(backend: Backend) -> None:
    """Nobody reads, so the worker is held back: little is on its way, and all of it arrives later, in order."""
    heard = await loaded(backend)
    heard.run(1, do="count", to=20_000, batch=100)
    heard.run(2, do="talk")
    heard.worker.send(Feed(run=2, message={"say": "here"}))
    await heard.until(lambda: heard.events(2))
    assert isinstance(await heard.end(1), Done)
    assert len(heard.events(1)) == 20_001


@pytest.mark.parametrize(
    ("engine", "options", "threads", "error"),
    [
        ("no_such_engine", {}, 1, EngineUnknown),
        ("missing", {}, 1, EngineMissing),
        ("elsewhere", {}, 1, LoadFailed),
        ("scripted", {"unknown": 1}, 1, InvalidInput),
        ("scripted", {}, 0, LoadFailed),
        ("scripted", {}, -1, LoadFailed),
        ("scripted", {}, 4096, LoadFailed),
    ],
)
async def test_what_cannot_end_well_is_not_begun(
    backend: Backend, engine: str, options: dict[str, Any], threads: int, error: type[SeraiError]
) -> None:
    """An unknown engine or option, a missing library, and threads that there are not, are refused with a hint."""
    with pytest.raises(error) as refused:
        await backend.spawn(spec(engine, threads=threads, **options))
    if engine != "elsewhere":
        assert refused.value.hint


async def test_a_closed_backend_ends_all_and_starts_nothing(kind: str) -> None:
    """Its workers are gone, whatever they do, and another one is refused."""
    async with backend_of(kind) as backend:
        idle = await loaded(backend)
        busy = await loaded(backend)
        busy.run(1, do="count", to=10**9)
        await busy.until(lambda: busy.events(1))
    for heard in (idle, busy):
        with pytest.raises(WorkerGone):
            await heard.worker.receive()
    with pytest.raises(LoadFailed):
        await backend.spawn(spec())
