"""What only OpenVINO GenAI needs: grammars tried elsewhere, caches per owner, blocks that come back, profiles."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from serai.engines.language.openvino_llm_memory import OVERHEAD_BYTES, Sizes, estimate_bytes, plan_cache
from serai.engines.options import OpenvinoLlmOptions
from serai.engines.tasks import Grammar
from serai.errors import OutOfMemory
from serai.events import Failed
from support.engine_driver import Driver, EngineError, Outcome
from support.llm_models import FAMILIES, made
from support.llm_reference import greedy_texts
from support.waiting import wait_until

TARGET = "serai.engines.language.openvino_llm:OpenvinoLlm"
EXACT: dict[str, Any] = {"precision": "f32", "cache_precision": "f32", "cache_tokens": 4096}
PROMPTS = ("Hello سلام 🙂", "x", "The quick brown fox " * 10, 'JSON looks like {"a": ' * 12)
BROKEN = "\ufffd"
METRICS = "_main.target.get_metrics()"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", "ب", "🙂"]}, "maxItems": 3},
        "home": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "home"],
}
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory, ["llama/fp32"])[0]


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Driver]:
    with Driver(TARGET) as driver:
        driver.load(folder, engine="openvino-genai", options=EXACT)
        yield driver


@pytest.fixture(scope="module")
def said_by_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[str, int]]]:
    """Return what transformers' generate answers to `PROMPTS`, for each family."""
    folders = made(tmp_path_factory, [f"{family}/{form}" for form in ("hf", "fp32") for family in FAMILIES])
    return dict(zip(FAMILIES, greedy_texts(folders[: len(FAMILIES)], PROMPTS, 40), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_says_what_torch_says(
    tmp_path_factory: pytest.TempPathFactory, said_by_torch: dict[str, list[tuple[str, int]]], family: str
) -> None:
    """The likeliest tokens of each family's exported network are those of transformers' generate, token for token."""
    with Driver(TARGET) as driver:
        driver.load(made(tmp_path_factory, [f"{family}/fp32"])[0], engine="openvino-genai", options=EXACT)
        outcomes = [driver.answer(prompt, temperature=0, max_tokens=40) for prompt in PROMPTS]
    # Half a character at the end is told by the one and not by the other.
    told = [(one.text().rstrip(BROKEN), one.usage["completion_tokens"]) for one in outcomes]
    assert told == [(text.rstrip(BROKEN), count) for text, count in said_by_torch[family]]
    assert len({text for text, _ in told}) > 2


def used(engine: Driver) -> float:
    """Return the share of the cache that was in use after the last step."""
    return float(engine.look(f"{METRICS}.cache_usage"))


def test_a_cancelled_run_frees_its_blocks(folder: Path) -> None:
    """Within two steps, also when it was the last one and nobody would step the pipeline again."""
    with Driver(TARGET) as driver:
        driver.load(folder, engine="openvino-genai", options={**EXACT, "prefix_cache": False, "cache_tokens": 512})
        stays = driver.start("stays", temperature=0, max_tokens=200)
        goes = [driver.start("word " * 40, temperature=0, max_tokens=200) for _ in range(2)]
        for _ in range(6):
            driver.step()
        full = used(driver)
        for run in goes:
            driver.cancel(run)
        driver.step()
        driver.step()
        assert used(driver) < full / 2
        driver.cancel(stays)
        assert driver.look("_main.target.has_non_finished_requests()") is False
        assert driver.answer("word " * 90, max_tokens=3).usage["completion_tokens"] == 3


def test_more_runs_than_the_cache_holds_all_end(folder: Path) -> None:
    """GenAI sets runs aside and takes them up again; each has the answer that it has alone."""
    with Driver(TARGET) as driver:
        driver.load(folder, engine="openvino-genai", options={**EXACT, "cache_tokens": 640, "context_tokens": 300})
        prompts = [f"{number} word " * 30 for number in range(6)]
        alone = [driver.answer(prompt, temperature=0, max_tokens=100).text() for prompt in prompts]
        runs = [driver.start(prompt, temperature=0, max_tokens=100) for prompt in prompts]
        outcomes = driver.finish(*runs)
    assert [outcomes[run].text() for run in runs] == alone


def test_json_follows_its_schema_and_comes_to_an_end(engine: Driver) -> None:
    """Random weights answer with valid JSON of the schema, not with blanks for ever."""
    schema = Grammar(kind="json_schema", value=json.dumps(PERSON))
    runs = [engine.start("person", grammar=schema, seed=seed, max_tokens=300) for seed in range(6)]
    outcomes = engine.finish(*runs)
    ended = [outcome for outcome in outcomes.values() if outcome.reason == "stop"]
    assert len(ended) >= 4
    for outcome in ended:
        assert jsonschema_rs.is_valid(PERSON, json.loads(outcome.text()))


def test_regular_expressions_and_free_runs_go_together(engine: Driver) -> None:
    """A grammar binds its own run alone."""
    free_alone = engine.answer("free", temperature=0, max_tokens=20).text()
    bound = engine.start("bound", grammar=Grammar(kind="regex", value="[0-9]{4}-[a-f]{2}"), seed=1)
    free = engine.start("free", temperature=0, max_tokens=20)
    outcomes = engine.finish(bound, free)
    assert re.fullmatch("[0-9]{4}-[a-f]{2}", outcomes[bound].text())
    assert outcomes[free].text() == free_alone


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("regex", "[a-"),
        ("regex", "(" * 3000),
        ("regex", "(((a{90}){90}){90})"),
        ("regex", "(a|aa|aaa){1,900}b{900}" * 9),
    ],
)
def test_a_wrong_grammar_hurts_nobody_else(engine: Driver, kind: Any, value: str) -> None:
    """It fails its own run, as the caller's mistake, while another run goes on; and so does the second attempt."""
    alone = engine.answer("others", temperature=0, max_tokens=60).text()
    other = engine.start("others", temperature=0, max_tokens=60)
    wrong = engine.start("wrong", grammar=Grammar(kind=kind, value=value), max_tokens=5)
    outcomes = engine.finish(other, wrong)
    assert outcomes[other].text() == alone
    final = outcomes[wrong].final
    if isinstance(final, Failed):
        assert final.code == "INVALID_INPUT"
        with pytest.raises(EngineError, match="grammar"):
            engine.start("wrong", grammar=Grammar(kind=kind, value=value))


@pytest.mark.parametrize(
    ("kind", "value", "field"),
    [
        ("regex", "a" * 70_000, "grammar"),
        ("json_schema", '{"type": "string", "pattern": "a"}', "json_schema"),
        ("json_schema", "{", "json_schema"),
    ],
)
def test_what_is_no_grammar_is_refused_at_once(engine: Driver, kind: Any, value: str, field: str) -> None:
    """Before it is tried, naming the field."""
    with pytest.raises(EngineError, match=field) as caught:
        engine.start("x", grammar=Grammar(kind=kind, value=value))
    assert caught.value.code == "INVALID_INPUT"


@pytest.mark.parametrize(
    ("value", "problem"), [('root ::= root "a" | "b"', "begins with itself"), ("root ::= no", "no rule")]
)
def test_rules_without_an_end_are_found_by_the_program(engine: Driver, value: str, problem: str) -> None:
    """Reading them may take long, so the batch does not wait for it; they are never compiled."""
    final = engine.answer("x", grammar=Grammar(kind="ebnf", value=value)).final
    assert isinstance(final, Failed)
    assert (final.code, final.message.partition(":")[0]) == ("INVALID_INPUT", "grammar")
    assert problem in final.message


def test_a_run_can_be_cancelled_while_its_grammar_is_tried(engine: Driver) -> None:
    """Nothing comes of it."""
    run = engine.start("x", grammar=Grammar(kind="regex", value="never tried [a-z]"))
    engine.cancel(run)
    assert engine.step() == []
    assert engine.answer("after", max_tokens=2).usage["completion_tokens"] == 2


def is_running(pid: int) -> bool:
    """Say whether a process runs; one that nobody has collected yet does not."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except FileNotFoundError:
        return False


def test_the_program_that_tries_grammars_ends_with_its_engine(folder: Path, tmp_path: Path) -> None:
    """Also where the engine's process is killed, and nothing is left in the folder for temporary files."""
    with Driver(TARGET, TMPDIR=str(tmp_path)) as driver:
        driver.load(folder, engine="openvino-genai", options=EXACT)
        driver.answer("x", grammar=Grammar(kind="regex", value="[0-9]"), max_tokens=2)
        child = int(driver.look("_grammars._process.pid"))
        assert is_running(child)
        assert list(tmp_path.iterdir()) == []
    wait_until(lambda: not is_running(child), seconds=60)


@pytest.mark.parametrize(("field", "value"), [("logit_bias", {3: 1.0}), ("logprobs", 2)])
def test_what_genai_cannot_do_is_refused_by_name(engine: Driver, field: str, value: Any) -> None:
    """Never dropped: the field is named."""
    with pytest.raises(EngineError, match="top_logprobs" if field == "logprobs" else field) as caught:
        engine.start("x", **{field: value})
    assert caught.value.code == "INVALID_INPUT"


def test_penalties_that_would_do_the_reverse_are_refused(folder: Path, tmp_path: Path) -> None:
    """GenAI raises negative logits by them; a model whose likely tokens have such logits is marked by the exporter."""
    marked = Path(shutil.copytree(folder, tmp_path / "marked"))
    note = json.loads((marked / "serai_export.json").read_text())
    assert note["has_raw_penalties"] is True
    (marked / "serai_export.json").write_text(json.dumps(note | {"has_raw_penalties": False}))
    with Driver(TARGET) as driver:
        driver.load(marked, engine="openvino-genai", options=EXACT)
        for field in ("presence_penalty", "frequency_penalty"):
            with pytest.raises(EngineError, match=field):
                driver.start("x", **{field: 0.5})
        assert driver.answer("x", max_tokens=2, repetition_penalty=1.2).usage["completion_tokens"] == 2


def test_a_network_from_elsewhere_runs_without_the_prefix_cache(folder: Path, tmp_path: Path) -> None:
    """Without our exporter's note nothing is shared between prompts, and all else works."""
    foreign = Path(shutil.copytree(folder, tmp_path / "foreign"))
    (foreign / "serai_export.json").unlink()
    with Driver(TARGET) as driver:
        assert driver.load(foreign, engine="openvino-genai", options=EXACT).facts["prefix_cache"] is False
        prompt = "A story that is told twice. " * 15
        first, one = prefill_steps(driver, prompt, cache_key="owner")
        again, two = prefill_steps(driver, prompt, cache_key="owner")
    assert first == again
    assert one.text() == two.text()
    assert two.usage["cached_tokens"] == 0


def prefill_steps(engine: Driver, prompt: str, **fields: Any) -> tuple[int, Outcome]:
    """Return how many steps pass until the first token, and the outcome."""
    run, outcome, steps = engine.start(prompt, temperature=0, max_tokens=3, **fields), Outcome(), 0
    while outcome.final is None:
        events = engine.step()
        steps += not outcome.texts
        for _, event in events:
            outcome.add(event)
    assert run > 0
    return steps, outcome


def test_a_prompt_is_taken_from_the_cache_for_its_owner_alone(engine: Driver) -> None:
    """The second time the owner waits fewer steps, which is told as cached tokens; anybody else waits as if first."""
    prompt = "A long story about a fox, told twice. " * 12
    first, told_first = prefill_steps(engine, prompt, cache_key="owner")
    again, told_again = prefill_steps(engine, prompt, cache_key="owner")
    stranger, told_stranger = prefill_steps(engine, prompt, cache_key="stranger")
    nobody, told_nobody = prefill_steps(engine, prompt)
    nobody_again, _ = prefill_steps(engine, prompt)
    assert again < first == stranger == nobody == nobody_again
    assert told_first.usage["cached_tokens"] == told_stranger.usage["cached_tokens"] == 0
    assert told_nobody.usage["cached_tokens"] == 0
    assert told_again.usage["cached_tokens"] > 64
    assert told_first.text() == told_again.text() == told_stranger.text() == told_nobody.text()


def test_a_repetition_penalty_shares_no_prompt_either(engine: Driver) -> None:
    """These runs have a pipeline without a cache: the same answers, and the same number of steps each time."""
    prompt = "Another long story about a fox, told twice. " * 10
    first, one = prefill_steps(engine, prompt, cache_key="owner", repetition_penalty=1.3)
    again, two = prefill_steps(engine, prompt, cache_key="owner", repetition_penalty=1.3)
    assert first == again
    assert one.text() == two.text()
    assert two.usage["cached_tokens"] == 0


def test_an_answer_goes_on_from_the_cache(engine: Driver) -> None:
    """The next turn of a conversation has the prompt and the answer before it in the cache."""
    prompt = "Turn one of a talk. " * 10
    answer = engine.answer(prompt, temperature=0, max_tokens=40, cache_key="talker")
    turn = engine.answer(prompt + answer.text() + " and turn two", max_tokens=3, cache_key="talker")
    assert turn.usage["cached_tokens"] >= 96


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp16"])
def test_each_profile_loads_and_answers(tmp_path_factory: pytest.TempPathFactory, quantization: str) -> None:
    """Compressed networks run with the properties of their profile, and tell their precision."""
    folders = made(tmp_path_factory, [f"llama/{one}" for one in ("int8", "int4", "fp16")])
    folder = folders[("int8", "int4", "fp16").index(quantization)]
    with Driver(TARGET) as driver:
        facts = driver.load(folder, engine="openvino-genai").facts
        outcome = driver.answer("Hello", temperature=0, max_tokens=10)
    assert facts["quantization"] == quantization
    assert facts["precision"] == ("f32" if quantization == "int4" else facts["precision"])
    assert facts["precision"] in {"f32", "bf16"}
    assert outcome.usage["completion_tokens"] == 10


def test_the_cache_is_as_large_as_the_memory_allows(folder: Path) -> None:
    """What was reserved bounds it; less than the weights is refused; the context is never longer than the cache."""
    reserved = estimate_bytes(folder, OpenvinoLlmOptions())
    with Driver(TARGET) as driver:
        facts = driver.load(folder, engine="openvino-genai", memory_bytes=reserved).facts
        assert facts["cache_tokens"] == 16 * 1024
    with Driver(TARGET) as driver:
        with pytest.raises(EngineError) as caught:
            driver.load(folder, engine="openvino-genai", memory_bytes=1024 * 1024)
        assert caught.value.code == "OUT_OF_MEMORY"
        facts = driver.load(folder, engine="openvino-genai", options={"cache_tokens": 512}).facts
        assert facts["context_tokens"] < 512


def test_where_memory_is_short_prefixes_go_first() -> None:
    """Enough for three copies of the weights: prefixes are cached; for two: not, and the cache has what is left."""
    sizes = Sizes(weights=10**9, token=1000, can_share=True)
    options = OpenvinoLlmOptions()
    for copies, has_cache in ((3, True), (2, False)):
        reserved = OVERHEAD_BYTES + copies * 10**9 + 32_000_000
        assert plan_cache(sizes, reserved, options) == (1000, has_cache)
    assert plan_cache(sizes, OVERHEAD_BYTES + 10**9, options) == (64, False)
    assert plan_cache(sizes, 0, options)[1]
    with pytest.raises(OutOfMemory):
        plan_cache(sizes, 10**9, options)
