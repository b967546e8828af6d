"""What fails walks the chain, engine by engine and candidate by candidate; what must not, does not."""

import asyncio
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from serai.auth.secrets import SecretNotFound
from serai.clock import ManualClock
from serai.engines.base import Run
from serai.engines.catalogue import CATALOGUE
from serai.errors import ConfigurationError, EngineFailed, InvalidInput, LoadFailed, OutOfMemory, SeraiError, WorkerHung
from serai.events import Failed
from serai.outbound import OutboundSecret
from serai.registry.decision import Reason
from serai.registry.errors import CandidateInCooldown
from serai.registry.failure import FIRST_COOLDOWN_S
from serai.registry.source import File, HubSource
from serai.runtime.model import Limits
from serai.runtime.workers import Pace
from serai.serving.circuit import Bounds, Circuits
from serai.serving.errors import error_of
from serai.storage.database import Database
from support.scripted_backend import ScriptedBackend, ScriptedWorker, turns
from support.upstream import Upstream, chunk, event, reply, streams
from unit.serving.stage import Stage, chain_of, done, staged, text_of

pytestmark = pytest.mark.anyio
PATIENT_S = 30


# The fake engine's ways to fail, in a thread: what the failure is called, and where it happens.
FAKE_FAILURES = {
    "load": ("load_error", "LOAD_FAILED"),
    "load_oom": ("out_of_memory", "OUT_OF_MEMORY"),
    "start": ("load_error", "ENGINE_FAILED"),
    "run": ("load_error", "ENGINE_FAILED"),
    "oom": ("out_of_memory", "OUT_OF_MEMORY"),
    "step": ("crash", "WORKER_CRASHED"),
}


@pytest.mark.parametrize("fail", FAKE_FAILURES)
async def test_a_failure_of_the_engine_walks_the_chain(stage: Stage, fail: str) -> None:
    """The next candidate answers; decision, row, metrics, log and headers name who failed and of what."""
    failure, code = FAKE_FAILURES[fail]
    stage.fake("bad", fail=fail)
    stage.fake("good")
    stage.service("bad@1.0.0", "good@1.0.0")
    with capture_logs() as logs:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(0))
        answer, events = await stage.ask()
    assert done(events)
    assert text_of(events) == "one two three four"
    assert chain_of(answer) == ["bad@1.0.0 failed", "good@1.0.0 served"]
    assert answer.decision.reason is Reason.FALLBACK_ERROR
    assert answer.decision.chain[0].error
    assert answer.headers()["X-Serai-Fallback"] == "bad@1.0.0=failed"
    assert stage.figure("serai_fallbacks_total", failure=failure) == 1
    assert stage.figure("serai_decisions_total", reason="fallback_error", outcome="served") == 1
    (told,) = [line for line in logs if line["event"] == "fallback"]
    assert (told["candidate"], told["next"], told["failure"]) == ("bad@1.0.0", "good@1.0.0", failure)
    assert told["code"] == code
    assert "one two" not in str(logs)
    (row,) = await stage.rows()
    assert (row.id, row.service_id, row.model_id, row.version) == (answer.id, "s", "good", "1.0.0")
    assert row.document["chain"][0]["outcome"] == "failed"


LAST_WORDS: dict[str, tuple[Callable[[ScriptedWorker], None], str]] = {
    "killed while loading": (lambda worker: worker.leave(-9), "crash"),
    "killed while running": (lambda worker: (worker.ready(1), worker.leave(-11))[0], "crash"),  # type: ignore[func-returns-value]
    "out of memory": (lambda worker: worker.exit(OutOfMemory("It is too large.")), "out_of_memory"),
    "nonsense": (lambda worker: worker.exit(EngineFailed("What is this?")), "load_error"),
}


@pytest.mark.parametrize("what", LAST_WORDS)
async def test_a_lost_worker_walks_the_chain(sqlite: Database, tmp_path: Path, what: str) -> None:
    """However a worker ends before its first output, the next candidate answers."""
    end, failure = LAST_WORDS[what]
    backend = ScriptedBackend()

    def play(worker: ScriptedWorker) -> None:
        if worker.name == "bad@1.0.0":
            end(worker)
        else:
            worker.ready(1)

    backend.on_spawn = play
    backend.on_run = lambda worker, run: worker.answer("fine")
    async with staged(sqlite, tmp_path, backend=backend) as stage:
        stage.fake("bad")
        stage.fake("good")
        stage.service("bad@1.0.0", "good@1.0.0")
        answer, events = await stage.ask()
        assert text_of(events) == "fine"
        assert chain_of(answer) == ["bad@1.0.0 failed", "good@1.0.0 served"]
        assert stage.figure("serai_fallbacks_total", failure=failure) == 1


async def test_a_hung_worker_walks_the_chain(sqlite: Database, tmp_path: Path) -> None:
    """Silence for longer than a sound worker is silent counts as a failure, and the next candidate answers."""
    backend, clock, hangs = ScriptedBackend(), ManualClock(), asyncio.Event()

    def play(worker: ScriptedWorker, run: Run) -> None:
        if worker.name == "good@1.0.0":
            worker.answer("fine")
        else:
            hangs.set()

    backend.on_spawn = lambda worker: worker.ready(1)
    backend.on_run = play
    async with staged(sqlite, tmp_path, backend=backend, clock=clock) as stage:
        stage.fake("bad")
        stage.fake("good")
        stage.service("bad@1.0.0", "good@1.0.0")
        answer = await stage.open(timeout_s=1e6)
        await hangs.wait()
        clock.advance(10 * Pace().load_timeout_s)
        stage.runtime.tick()
        assert text_of([event async for event in answer]) == "fine"
        assert chain_of(answer) == ["bad@1.0.0 failed", "good@1.0.0 served"]
        assert stage.figure("serai_fallbacks_total", failure="timeout") == 1


IR = File(path="model.xml", size=1, sha256="0" * 64)
SAFETENSORS = File(path="model.safetensors", size=1, sha256="1" * 64)
BOTH = (IR, SAFETENSORS)
CANNOT_BE_TRIED: dict[str, dict[str, Any]] = {
    "not pulled": {"source": HubSource(repo="owner/bad"), "engine": "fake"},
    "lost from the disk": {
        "source": HubSource(repo="owner/bad"),
        "files": (File(path="m.xml", size=1, sha256="0" * 64),),
    },
    "of an unknown engine": {"engine": "abacus"},
    "with wrong options": {"engine": "fake", "engine_options": {"wheels": 4}},
    "of an engine without its packages": {
        "engine": "transformers",
        "files": (File(path="m.safetensors", size=1, sha256="0" * 64),),
    },
    "too large for the machine": {"engine": "fake", "engine_options": {"bytes": 2**30}},
}


@pytest.mark.parametrize("what", CANNOT_BE_TRIED)
async def test_what_cannot_be_tried_is_passed_over(sqlite: Database, tmp_path: Path, what: str) -> None:
    """A candidate that this machine cannot run is skipped, and the reason says that it was never tried."""
    budget = 200 * 2**20
    async with staged(sqlite, tmp_path, missing={"transformers": ("torch",)}, budget=budget) as stage:
        stage.desk.model("bad", **CANNOT_BE_TRIED[what])
        stage.fake("good")
        stage.service("bad@1.0.0", "good@1.0.0")
        answer, events = await stage.ask()
        assert done(events)
        assert chain_of(answer) == ["bad@1.0.0 skipped", "good@1.0.0 served"]
        assert answer.decision.reason is Reason.FALLBACK_UNAVAILABLE


@pytest.mark.parametrize("fail", ["invalid"])
async def test_a_mistake_of_the_caller_never_falls_back(stage: Stage, fail: str) -> None:
    """What the engine refuses as bad input is told at once: it would be wrong for every candidate."""
    stage.fake("bad", fail=fail)
    stage.fake("good")
    stage.service("bad@1.0.0", "good@1.0.0")
    answer, events = await stage.ask()
    assert isinstance(events[-1], Failed)
    assert events[-1].code == "INVALID_INPUT"
    assert isinstance(answer.error, InvalidInput)
    assert chain_of(answer) == ["bad@1.0.0 failed"]
    assert stage.figure("serai_fallbacks_total") == 0


@pytest.mark.parametrize("fail", ["run", "oom", "step"])
async def test_nothing_falls_back_after_the_first_output(stage: Stage, fail: str) -> None:
    """What was told stays told; the answer ends with what went wrong."""
    stage.fake("bad", fail=fail, fail_after=2)
    stage.fake("good")
    stage.service("bad@1.0.0", "good@1.0.0")
    answer, events = await stage.ask()
    assert text_of(events) == "one two"
    assert isinstance(events[-1], Failed)
    assert chain_of(answer) == ["bad@1.0.0 failed"]
    assert answer.decision.reason is Reason.BOUND
    assert stage.figure("serai_fallbacks_total") == 0
    assert stage.figure("serai_decisions_total", reason="bound", outcome="failed") == 1


async def test_a_bare_model_has_no_chain(stage: Stage) -> None:
    """Its failure is the answer, with the error that a response is made from."""
    stage.fake("bad", fail="load")
    answer, events = await stage.ask(None, "bad")
    assert isinstance(events[-1], Failed)
    assert isinstance(answer.error, LoadFailed)
    assert answer.error.hint == events[-1].hint
    with pytest.raises(CandidateInCooldown) as caught:
        await stage.open(None, "bad")
    assert 0 < (caught.value.retry_after or 0) <= FIRST_COOLDOWN_S


async def test_what_failed_to_load_is_left_alone_until_somebody_clears_it(stage: Stage) -> None:
    """The second call does not try it; after an admin's word the third one does."""
    stage.fake("bad", fail="load")
    stage.fake("good")
    stage.service("bad@1.0.0", "good@1.0.0")
    await stage.ask()
    second, _ = await stage.ask()
    assert chain_of(second) == ["bad@1.0.0 skipped", "good@1.0.0 served"]
    assert "left alone" in str(second.decision.chain[0].error)
    await stage.serving.clear_cooldown("bad")
    third, _ = await stage.ask()
    assert chain_of(third) == ["bad@1.0.0 failed", "good@1.0.0 served"]


async def test_an_open_circuit_never_blocks_what_is_loaded(sqlite: Database, tmp_path: Path) -> None:
    """A version whose runs failed is asked again as soon as it is in memory, whatever its circuit says."""
    backend = ScriptedBackend()
    backend.on_spawn = lambda worker: worker.ready(1)
    backend.on_run = lambda worker, run: (
        worker.exit(OutOfMemory("Once.")) if worker.number == 0 else worker.answer("fine")
    )
    async with staged(sqlite, tmp_path, backend=backend, circuits=Circuits(Bounds(failures=1))) as stage:
        stage.fake("m")
        stage.fake("other")
        stage.service("m@1.0.0", "other@1.0.0")
        first, _ = await stage.ask()
        assert chain_of(first) == ["m@1.0.0 failed", "other@1.0.0 served"]
        second, _ = await stage.ask()
        assert chain_of(second) == ["m@1.0.0 skipped", "other@1.0.0 served"]
        (unit,) = stage.serving.residency._standing._failing["m", "1.0.0"]
        stage.runtime.clear_cooldown(unit)  # the circuit is still open
        await stage.serving.preload("m", timeout_s=PATIENT_S)
        third, _ = await stage.ask()
        assert chain_of(third) == ["m@1.0.0 served"]


async def test_everybody_failed(stage: Stage) -> None:
    """The last error is the answer; the decision has the whole chain."""
    for name in ("a", "b", "c"):
        stage.fake(name, fail="load")
    stage.service("a@1.0.0", "b@1.0.0", "c@1.0.0")
    answer, events = await stage.ask()
    assert isinstance(events[-1], Failed)
    assert chain_of(answer) == ["a@1.0.0 failed", "b@1.0.0 failed", "c@1.0.0 failed"]
    assert stage.figure("serai_fallbacks_total", failure="load_error") == 2
    with pytest.raises(CandidateInCooldown):
        await stage.open()


async def test_nobody_can_be_tried(stage: Stage) -> None:
    """Where the whole chain lacks something, the call is refused with the last one's remedy, and is on record."""
    stage.desk.model("a", engine="abacus")
    stage.desk.model("b", engine="slide-rule")
    stage.service("a@1.0.0", "b@1.0.0")
    with pytest.raises(LoadFailed, match="slide-rule"):
        await stage.open()
    (row,) = await stage.rows()
    assert [link["outcome"] for link in row.document["chain"]] == ["skipped", "skipped"]
    assert row.document["outcome"] == "failed"


async def test_a_defect_is_no_answer(stage: Stage) -> None:
    """A task that cannot be made for a candidate through a defect of ours is told as such, and logged."""

    def broken(*_: object) -> None:
        raise KeyError("template")

    stage.fake("m")
    with capture_logs() as logs, pytest.raises(KeyError):
        await stage.open(None, "m", task=broken)
    assert any(line["event"] == "candidate_defect" for line in logs)


# Engines of one candidate


def disguised(**options: dict[str, Any]) -> dict[str, Any]:
    """Return the catalogue with the fake engine in place of these."""
    fake = CATALOGUE["fake"]
    return {
        **CATALOGUE,
        **{
            name.replace("_", "-"): replace(fake, name=name.replace("_", "-"), target=f"unit.serving.engines:{target}")
            for name, target in options.items()
        },
    }


@pytest.fixture
def both(tmp_path: Path) -> dict[str, Any]:
    """A version that two engines can run, with its files."""
    folder = tmp_path / "models" / "m" / "1.0.0"
    folder.mkdir(parents=True)
    for file in BOTH:
        (folder / file.path).write_bytes(b"x")
    return {"source": HubSource(repo="owner/m"), "files": BOTH}


@pytest.mark.parametrize("target", ["Unloadable", "Killed"])
async def test_an_engine_that_cannot_load_falls_to_the_next(
    sqlite: Database, tmp_path: Path, both: dict[str, Any], target: str
) -> None:
    """The same candidate is loaded by another engine before another candidate is tried, and it says so."""
    catalogue = disguised(openvino_genai=target, transformers="Plain")
    async with staged(sqlite, tmp_path, catalogue=catalogue) as stage:
        stage.desk.model("m", **both)
        stage.fake("other")
        stage.service("m@1.0.0", "other@1.0.0")
        for _ in range(2):  # the second time, the first engine is in cooldown
            answer, events = await stage.ask()
            assert done(events)
            assert answer.engine == "transformers"
            assert chain_of(answer) == ["m@1.0.0 served"]
            assert answer.decision.reason is Reason.BOUND
            (warning,) = answer.decision.warnings
            assert "openvino-genai" in warning
            assert "transformers" in warning
        assert stage.figure("serai_engine_fallbacks_total", engine="openvino-genai") == 2
        assert stage.figure("serai_fallbacks_total") == 0


async def test_an_engine_whose_runs_fail_is_the_candidates_failure(
    sqlite: Database, tmp_path: Path, both: dict[str, Any]
) -> None:
    """What was loaded and then fails is not loaded again with another engine."""
    catalogue = disguised(openvino_genai="Failing", transformers="Plain")
    async with staged(sqlite, tmp_path, catalogue=catalogue) as stage:
        stage.desk.model("m", **both)
        stage.fake("other")
        stage.service("m@1.0.0", "other@1.0.0")
        answer, events = await stage.ask()
        assert done(events)
        assert chain_of(answer) == ["m@1.0.0 failed", "other@1.0.0 served"]


async def test_a_call_that_needs_what_an_engine_lacks_goes_to_one_that_can(
    sqlite: Database, tmp_path: Path, both: dict[str, Any]
) -> None:
    """Or is refused, naming it; it is never dropped."""
    catalogue = disguised(openvino_genai="Plain", transformers="Plain")
    async with staged(sqlite, tmp_path, catalogue=catalogue) as stage:
        stage.desk.model("m", **both)
        usual, _ = await stage.ask(None, "m")
        able, _ = await stage.ask(None, "m", needs=frozenset({"logit_bias"}))
        assert (usual.engine, able.engine) == ("openvino-genai", "transformers")
        with pytest.raises(InvalidInput, match="telepathy"):
            await stage.open(None, "m", needs=frozenset({"telepathy"}))


# Other servers


REMOTE = {
    "it fails": (reply(500, {"error": {"message": "oh"}}), "remote_5xx"),
    "it is overloaded": (reply(529, {}), "remote_5xx"),
    "it has had enough": (reply(429, {}, retry_after="7"), "remote_429"),
    "it does not know us": (reply(401, {}), "remote_5xx"),
    "it is something else": (reply(200, b"<html>"), "remote_5xx"),
    "it closes": (b"", "remote_5xx"),
}


@pytest.mark.parametrize("what", REMOTE)
async def test_a_failure_of_another_server_walks_the_chain(stage: Stage, what: str) -> None:
    """Whatever another server does before its first output, the next candidate answers."""
    behaviour, failure = REMOTE[what]
    async with Upstream() as upstream:
        upstream.behave("/chat/completions", behaviour or streams(cut=True))
        stage.remote("far", upstream.endpoint)
        stage.fake("near")
        stage.service("far@1.0.0", "near@1.0.0")
        answer, events = await stage.ask()
    assert done(events)
    assert answer.engine == "fake"
    assert chain_of(answer) == ["far@1.0.0 failed", "near@1.0.0 served"]
    assert stage.figure("serai_fallbacks_total", failure=failure) == 1


async def test_another_server_answers(stage: Stage) -> None:
    """Its events are the answer's, and it takes no memory here."""
    async with Upstream() as upstream:
        stage.remote("far", upstream.endpoint)
        stage.service("far@1.0.0")
        answer, events = await stage.ask()
    assert done(events)
    assert text_of(events) == "one two three four"
    assert answer.engine == "remote"
    assert stage.runtime.loaded() == ()


async def test_a_refusal_of_another_server_is_the_callers(stage: Stage) -> None:
    """Its 400 is a 400 here, and does not fall back."""
    async with Upstream() as upstream:
        upstream.behave("/chat/completions", reply(400, {"error": {"message": "no such role", "param": "messages"}}))
        stage.remote("far", upstream.endpoint)
        stage.fake("near")
        stage.service("far@1.0.0", "near@1.0.0")
        answer, _ = await stage.ask()
    assert isinstance(answer.error, InvalidInput)
    assert chain_of(answer) == ["far@1.0.0 failed"]


async def test_another_server_that_breaks_off_ends_the_answer(stage: Stage) -> None:
    """After the first output nothing else answers."""
    async with Upstream() as upstream:
        upstream.behave("/chat/completions", streams(chunk("half"), cut=True))
        stage.remote("far", upstream.endpoint)
        stage.fake("near")
        stage.service("far@1.0.0", "near@1.0.0")
        answer, events = await stage.ask()
    assert text_of(events) == "half"
    assert isinstance(events[-1], Failed)
    assert events[-1].code == "REMOTE_FAILED"
    assert chain_of(answer) == ["far@1.0.0 failed"]


async def test_a_client_that_leaves_hangs_up_on_the_other_server(stage: Stage) -> None:
    """The connection is closed, so that the other server stops as well."""

    async def half(asked: Any, writer: asyncio.StreamWriter) -> None:
        from support.upstream import STREAM_HEAD, framed

        writer.write(STREAM_HEAD + framed(event(chunk("half"))))
        await asyncio.Event().wait()

    async with Upstream() as upstream:
        upstream.behave("/chat/completions", half)
        stage.remote("far", upstream.endpoint)
        async with await stage.open(None, "far") as answer:
            await answer.started(PATIENT_S)
            assert answer.has_output
        async with asyncio.timeout(PATIENT_S):
            await upstream.gone.wait()


async def test_another_server_takes_no_messages(stage: Stage) -> None:
    """What cannot be handed on is refused, never dropped; before the run began it ends the call."""
    async with Upstream() as upstream:
        stage.remote("far", upstream.endpoint)
        async with await stage.open(None, "far") as answer:
            await answer.over()
            with pytest.raises(InvalidInput):
                answer.feed({"text": "more"})
        async with await stage.open(None, "far") as answer:
            answer.feed({"text": "more"})
            await answer.over()
            assert isinstance(answer.error, InvalidInput)
        assert len(upstream.requests) == 1


async def test_what_was_fed_reaches_who_answers_in_the_end(sqlite: Database, tmp_path: Path) -> None:
    """A message that the first candidate took with it when it failed is handed to the second one again."""
    backend, begun = ScriptedBackend(), asyncio.Event()
    backend.on_spawn = lambda worker: worker.ready(1)
    backend.on_run = lambda worker, run: begun.set()
    async with staged(sqlite, tmp_path, backend=backend) as stage:
        stage.fake("bad")
        stage.fake("good")
        stage.service("bad@1.0.0", "good@1.0.0")
        async with await stage.open() as answer:
            await begun.wait()
            begun.clear()
            answer.feed({"text": "more"})
            assert [feed.message for feed in backend.worker("bad@1.0.0").feeds()] == [{"text": "more"}]
            backend.worker("bad@1.0.0").exit(EngineFailed("It fell over."))
            await begun.wait()
            await turns()
            assert [feed.message for feed in backend.worker("good@1.0.0").feeds()] == [{"text": "more"}]


async def test_a_missing_key_of_another_server_is_no_mistake_of_the_caller(stage: Stage) -> None:
    """A secret that is gone makes the candidate fail, and the next answers."""
    stage.remote("far", "http://127.0.0.1:9/v1", secret="gone")
    stage.fake("near")
    stage.service("far@1.0.0", "near@1.0.0")
    answer, events = await stage.ask()
    assert done(events)
    assert chain_of(answer) == ["far@1.0.0 failed", "near@1.0.0 served"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SecretNotFound("There is no secret key."), "There is no secret key "),
        (InvalidInput.at("value", "is wrong"), "The secret key .* cannot be sent"),
        (ConfigurationError("It cannot be decrypted."), "The secret key .* cannot be read"),
    ],
)
async def test_what_is_wrong_with_a_secret_is_told(
    sqlite: Database, tmp_path: Path, error: SeraiError, words: str
) -> None:
    """One that is not there, one that no header can carry, one that cannot be decrypted."""

    async def reveal(name: str) -> OutboundSecret:
        raise error

    async with staged(sqlite, tmp_path, reveal=reveal) as stage:
        stage.remote("far", "http://127.0.0.1:9/v1", secret="key")
        answer, _ = await stage.ask(service=None, model="far")
    assert answer.error is not None
    assert re.match(words, answer.error.message)


async def test_a_server_that_fails_again_and_again_is_left_alone(sqlite: Database, tmp_path: Path) -> None:
    """Its circuit opens after some failures; later one call tries it, and its success closes the circuit."""
    clock = ManualClock()
    async with Upstream() as upstream, staged(sqlite, tmp_path, clock=clock, limits=Limits(cores=2)) as stage:
        upstream.behave("/chat/completions", reply(503, {}))
        stage.remote("far", upstream.endpoint)
        stage.fake("near")
        stage.service("far@1.0.0", "near@1.0.0")
        for _ in range(Bounds().failures):
            answer, _ = await stage.ask()
            assert chain_of(answer)[0] == "far@1.0.0 failed"
        asked = len(upstream.requests)
        answer, _ = await stage.ask()
        assert chain_of(answer) == ["far@1.0.0 skipped", "near@1.0.0 served"]
        assert len(upstream.requests) == asked
        assert stage.figure("serai_circuits_open") == 1
        clock.advance(Bounds().first_s)
        upstream.behave("/chat/completions", streams(chunk("back"), chunk(finish="stop")))
        answer, events = await stage.ask()
        assert text_of(events) == "back"
        assert stage.figure("serai_circuits_open") == 0


# Codes


def test_a_code_becomes_the_error_that_it_is_of() -> None:
    """What a worker told by its code is the same class again; an unknown code is a failure of the engine."""
    known: list[SeraiError] = [
        InvalidInput("a"),
        InvalidInput.at("task", "is wrong"),
        OutOfMemory("b", hint="c"),
        WorkerHung("d"),
        LoadFailed("e"),
    ]
    for error in known:
        again = error_of(Failed.of(error))
        assert type(again) is type(error)
        assert (again.message, again.hint, again.details) == (error.message, error.hint, error.details)
    assert type(error_of(Failed(code="WHAT", message="?"))) is EngineFailed
