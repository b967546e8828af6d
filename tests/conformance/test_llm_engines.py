"""What every engine of language models promises, each in a process of its own, on a tiny Llama."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from serai.events import Failed
from support.engine_driver import Driver, EngineError, Outcome
from support.llm_models import CHAT_TEMPLATE, CONTEXT_TOKENS, END, START, made

PROMPT = "The quick brown fox 🙂 سلام"
EXACT = {"precision": "f32", "cache_precision": "f32", "cache_tokens": 8192}


@dataclass(frozen=True)
class Setup:
    """An engine, the form of model it reads, and options under which it computes exactly."""

    name: str
    target: str
    form: str
    options: dict[str, Any] = field(default_factory=dict)


SETUPS = (
    Setup("openvino-genai", "serai.engines.language.openvino_llm:OpenvinoLlm", "fp32", EXACT),
    Setup("transformers", "serai.engines.language.transformers_llm:TransformersLlm", "hf"),
)
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module", params=SETUPS, ids=lambda setup: setup.name)
def setup(request: pytest.FixtureRequest) -> Setup:
    chosen: Setup = request.param
    return chosen


@pytest.fixture(scope="module")
def folder(setup: Setup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory, ["llama/hf", "llama/fp32"])[setup.form == "fp32"]


@pytest.fixture(scope="module")
def engine(setup: Setup, folder: Path) -> Iterator[Driver]:
    with Driver(setup.target) as driver:
        facts = driver.load(folder, engine=setup.name, options=setup.options).facts
        assert facts["context_tokens"] == CONTEXT_TOKENS
        yield driver


@pytest.fixture(autouse=True)
def _nothing_is_left(engine: Driver) -> Iterator[None]:
    """No run is left over by the test before."""
    yield
    assert engine.look("_runs.__len__()") == 0


def told(engine: Driver, **fields: Any) -> Outcome:
    return engine.answer(PROMPT, **{"temperature": 0, "max_tokens": 24, **fields})


def test_the_whole_is_the_sum_of_its_pieces(engine: Driver) -> None:
    """Text comes in several pieces without a broken character, and `Done` is the last event."""
    outcome = told(engine)
    assert len(outcome.texts) > 5
    assert outcome.usage["completion_tokens"] == 24
    assert outcome.usage["prompt_tokens"] > 5
    assert outcome.reason == "length"
    timings = outcome.result["timings"]
    assert timings["prompt_s"] >= 0
    assert timings["generation_s"] > 0


def test_the_likeliest_tokens_repeat(engine: Driver) -> None:
    """Temperature 0 gives one answer, whatever the seed."""
    assert len({told(engine, seed=seed).text() for seed in (1, 2, None)}) == 1


def test_a_seed_repeats_and_none_differs(engine: Driver) -> None:
    """One seed, one text; another seed, or none, another text."""
    one, again, other = (told(engine, temperature=1, seed=seed).text() for seed in (3, 3, 4))
    assert one == again != other
    assert told(engine, temperature=1).text() != told(engine, temperature=1).text()


def test_a_batch_does_not_mix_its_runs(engine: Driver) -> None:
    """Eight prompts of different lengths and settings answer together as each does alone."""
    settings: list[dict[str, Any]] = [
        {"temperature": 0.5 + number / 10, "top_p": 0.95, "top_k": 50 * (number % 2), "seed": number, "max_tokens": 20}
        for number in range(8)
    ]
    prompts = [f"{PROMPT} " * (number + 1) for number in range(8)]
    alone = [engine.answer(prompt, **each).text() for prompt, each in zip(prompts, settings, strict=True)]
    runs = [engine.start(prompt, **each) for prompt, each in zip(prompts, settings, strict=True)]
    together = engine.finish(*runs)
    assert [together[run].text() for run in runs] == alone
    assert len(set(alone)) == 8


def test_eight_at_once_are_one_batch(engine: Driver) -> None:
    """Eight answers of 40 tokens take far fewer steps than 320."""
    runs = [engine.start(f"{PROMPT} {number}", temperature=0, max_tokens=40) for number in range(8)]
    outcomes: dict[int, Outcome] = {run: Outcome() for run in runs}
    steps = 0
    while any(outcome.final is None for outcome in outcomes.values()):
        steps += 1
        for run, event in engine.step():
            outcomes[run].add(event)
    assert steps < 70


def test_a_run_joins_others_that_go_on(engine: Driver) -> None:
    """A later run changes nothing for an earlier one, and gets what it would get alone."""
    first_alone, late_alone = told(engine).text(), engine.answer("late", temperature=0, max_tokens=10).text()
    first = engine.start(PROMPT, temperature=0, max_tokens=24)
    outcome = Outcome()
    for _ in range(5):
        for _run, event in engine.step():
            outcome.add(event)
    late = engine.start("late", temperature=0, max_tokens=10)
    both = {first: outcome, late: Outcome()}
    while any(one.final is None for one in both.values()):
        for run, event in engine.step():
            both[run].add(event)
    assert (both[first].text(), both[late].text()) == (first_alone, late_alone)


def test_a_cancelled_run_says_nothing_more(engine: Driver) -> None:
    """After the cancel there is no event of it, and others go on as if it had never been."""
    alone = told(engine).text()
    stays, goes = engine.start(PROMPT, temperature=0, max_tokens=24), engine.start("gone", max_tokens=400)
    outcome = Outcome()
    for _ in range(4):
        for run, event in engine.step():
            if run == stays:
                outcome.add(event)
    engine.cancel(goes)
    while outcome.final is None:
        for run, event in engine.step():
            assert run == stays
            outcome.add(event)
    assert outcome.text() == alone
    engine.cancel(goes)  # once more is harmless


def test_a_run_can_be_cancelled_before_its_first_step(engine: Driver) -> None:
    """Nothing comes of it, and the engine is idle."""
    engine.cancel(engine.start(PROMPT))
    assert engine.step() == []


def test_stop_texts_across_tokens(engine: Driver) -> None:
    """The answer ends before the stop text, to the letter, and is shorter in tokens."""
    whole = told(engine, max_tokens=30)
    text = whole.text()
    stop = text[len(text) // 2 - 2 : len(text) // 2 + 2]
    cut = told(engine, max_tokens=30, stop=("not there at all", stop))
    assert cut.text() == text[: text.index(stop)]
    assert cut.reason == "stop"
    assert cut.usage["completion_tokens"] < 30


def test_an_end_token_ends_the_answer(engine: Driver) -> None:
    """Over many seeds some answer ends by itself: reason stop, fewer tokens, nothing of the end token in the text."""
    runs = [engine.start(PROMPT, seed=seed, max_tokens=300) for seed in range(12)]
    ended = [one for one in engine.finish(*runs).values() if one.reason == "stop"]
    assert ended
    for outcome in ended:
        assert outcome.usage["completion_tokens"] < 300
        assert END not in outcome.text()


def test_several_answers_to_one_prompt(engine: Driver) -> None:
    """n answers differ, are told apart by their index, and are counted together."""
    outcome = engine.answer(PROMPT, n=3, seed=5, max_tokens=10)
    assert len({outcome.text(index) for index in range(3)}) == 3
    assert set(outcome.result["finish_reasons"]) <= {"length", "stop"}
    assert len(outcome.result["finish_reasons"]) == 3
    assert 20 < outcome.usage["completion_tokens"] <= 30
    assert outcome.text(0) == engine.answer(PROMPT, seed=5, max_tokens=10).text()


def test_likelihoods_of_the_drawn_tokens(engine: Driver) -> None:
    """Each token has its logarithm told with its text; the sum of all is that of the answer."""
    outcome = told(engine, logprobs=0)
    entries = [entry for event in outcome.texts if isinstance(event.logprobs, list) for entry in event.logprobs]
    assert len(entries) == 24
    assert all(entry["logprob"] <= 0 for entry in entries)
    assert all(not isinstance(event.logprobs, list) for event in told(engine).texts)


def test_penalties_keep_an_answer_from_repeating(engine: Driver) -> None:
    """Each of the three penalties makes the answer say more different things."""
    words = "jj jj jj jj " * 10
    plain = engine.answer(words, temperature=0, max_tokens=60)
    for penalty in ({"presence_penalty": 2.0}, {"frequency_penalty": 2.0}, {"repetition_penalty": 1.8}):
        other = engine.answer(words, temperature=0, max_tokens=60, **penalty)
        assert len(set(other.text())) > len(set(plain.text()))


def test_the_strictest_sampling_is_the_likeliest_token(engine: Driver) -> None:
    """top_k 1, a tiny top_p and min_p 1 each leave one token to draw."""
    likeliest = told(engine).text()
    for narrow in ({"top_k": 1}, {"top_p": 0.0001}, {"min_p": 1.0}):
        assert told(engine, temperature=1, seed=1, **narrow).text() == likeliest


def test_a_prompt_beyond_the_context_is_refused(engine: Driver) -> None:
    """Before anything is computed, with both figures; one that just fits is answered within what is left."""
    with pytest.raises(EngineError, match=str(CONTEXT_TOKENS)) as caught:
        engine.start("word " * 2000)
    assert caught.value.code == "INVALID_INPUT"
    fits = engine.answer("a" * (CONTEXT_TOKENS - 40))
    assert fits.usage["prompt_tokens"] + fits.usage["completion_tokens"] <= CONTEXT_TOKENS


def test_an_empty_prompt_is_refused(engine: Driver) -> None:
    """There is nothing to go on from."""
    with pytest.raises(EngineError, match="prompt") as caught:
        engine.start("")
    assert caught.value.code == "INVALID_INPUT"


def test_special_tokens_are_put_before_a_plain_prompt_alone(engine: Driver) -> None:
    """A rendered template has them already; a plain text gets what the tokenizer puts before it."""
    plain = told(engine, max_tokens=1, has_special_tokens=False)
    rendered = told(engine, max_tokens=1, has_special_tokens=True)
    assert plain.usage["prompt_tokens"] == rendered.usage["prompt_tokens"] + 1
    assert START in CHAT_TEMPLATE
    chat = engine.answer(f"{START}user\nHello{END}\n{START}assistant\n", max_tokens=1)
    assert chat.usage["prompt_tokens"] < 25


def test_other_tasks_and_messages_are_refused(engine: Driver) -> None:
    """An engine says what it does not do."""
    run = {"id": 999, "task": {"type": "embed", "texts": ["a"]}, "adapters": []}
    with pytest.raises(EngineError) as caught:
        engine.ask("start", run=run)
    assert caught.value.code == "INVALID_INPUT"


def test_unknown_options_and_missing_folders_are_refused(setup: Setup, folder: Path, tmp_path: Path) -> None:
    """With a code that says whose mistake it is, and without the folder's path."""
    with Driver(setup.target) as driver:
        with pytest.raises(EngineError) as unknown:
            driver.load(folder, engine=setup.name, options={"nothing": 1})
        with pytest.raises(EngineError) as missing:
            driver.load(tmp_path / "none", engine=setup.name)
    assert unknown.value.code == "INVALID_INPUT"
    assert missing.value.code == "LOAD_FAILED"
    assert str(tmp_path) not in missing.value.message


def test_a_prompt_that_cannot_fit_is_refused_at_once(engine: Driver) -> None:
    """Two million letters are not read to find out that they are too many; the batch goes on."""
    going = engine.start(PROMPT, temperature=0, max_tokens=24)
    with pytest.raises(EngineError, match="2000000 characters"):
        engine.start("x " * 1_000_000)
    assert engine.finish(going)[going].text() == told(engine).text()


def test_a_long_prompt_is_encoded_beside_the_batch(setup: Setup, folder: Path, tmp_path: Path) -> None:
    """A tokenizer that drops blanks may make a short prompt of a long text: it is answered as the short one is."""
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "tokenizer.json"
    described = json.loads(path.read_bytes())
    described["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": ""}
    path.write_text(json.dumps(described), "utf-8")
    with Driver(setup.target) as driver:
        driver.load(tmp_path / "model", engine=setup.name, options=setup.options)
        short = driver.answer("Thequickbrownfox", temperature=0, max_tokens=24)
        long, empty = (
            driver.start(" " * 50_000 + text, temperature=0, max_tokens=24) for text in ("Thequickbrownfox", "")
        )
        cancelled = driver.start(" " * 50_000 + "Thequickbrownfox", temperature=0)
        driver.cancel(cancelled)
        outcomes = driver.finish(long, empty)
        assert outcomes[long].text() == short.text()
        assert outcomes[long].usage == short.usage
        assert isinstance(outcomes[empty].final, Failed)
        assert "must hold something" in outcomes[empty].final.message
