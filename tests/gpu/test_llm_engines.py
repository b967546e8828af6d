"""The engines of language models on a CUDA device, on tiny models: the same promises as on a CPU."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from support.engine_driver import Driver
from support.llm_models import hf_folder

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

ENGINES = {
    "vllm": "serai.engines.language.vllm_llm:VllmLlm",
    "transformers": "serai.engines.language.transformers_llm:TransformersLlm",
}


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    if find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    with Driver(ENGINES[request.param]) as driver:
        options = {"enforce_eager": True, "memory_fraction": 0.2} if request.param == "vllm" else {}
        driver.load(hf_folder(tmp_path_factory, "llama"), engine=request.param, device="cuda:0", options=options)
        yield driver


def test_answers_are_bounded_and_repeat_with_their_seed(engine: Driver) -> None:
    """The same seed gives the same text; the length, the reason and the counts are told."""
    first, second = (engine.answer("Hello", max_tokens=12, seed=7) for _ in range(2))
    assert first.text() == second.text()
    assert first.usage["completion_tokens"] <= 12
    assert first.reason in {"stop", "length"}


def test_several_at_once_and_a_cancelled_one(engine: Driver) -> None:
    """Eight runs go on together, and the end of one by its client does not disturb the others."""
    runs = [engine.start(f"Number {number}", max_tokens=20, seed=number) for number in range(8)]
    engine.step()
    engine.cancel(runs[3])
    outcomes = engine.finish(*(run for run in runs if run != runs[3]))
    assert all(outcome.reason in {"stop", "length"} for outcome in outcomes.values())


def test_stop_texts_are_cut_off(engine: Driver) -> None:
    """A stop text ends the answer and is no part of it."""
    whole = engine.answer("The quick brown fox", max_tokens=30, temperature=0).text()
    stop = whole[5:8]
    cut = engine.answer("The quick brown fox", max_tokens=30, temperature=0, stop=(stop,))
    assert cut.text() == whole[: whole.index(stop)]
    assert cut.reason == "stop"


def test_four_bits(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    """A model is quantized to NF4 while it is loaded, where bitsandbytes is installed."""
    if find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    with Driver(ENGINES["transformers"]) as driver:
        folder = hf_folder(tmp_path_factory, "llama")
        facts = driver.load(folder, engine="transformers", device="cuda:0", options={"load_in_4bit": True}).facts
        assert facts["precision"] == "nf4"
        assert driver.answer("Hello", max_tokens=4).usage["completion_tokens"] >= 1
