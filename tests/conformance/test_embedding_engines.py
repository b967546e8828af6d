"""What every engine of embedding models promises, each in a process of its own: vectors equal to transformers' own."""

import base64
import json
import math
import shutil
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from serai.engines.tasks import Embed, Generate
from serai.errors import InvalidInput
from serai.events import Failed
from support.embed_models import (
    COUNTS,
    FORMS,
    PASSAGE,
    POOLINGS,
    QUERY,
    TEXTS,
    UNNORMALIZED,
    WIDTH,
    cosine,
    embed_folder,
    expected,
)
from support.engine_driver import Driver, EngineError
from support.llm_models import SENTENCES

OPENVINO = "serai.engines.language.openvino_embed:OpenvinoEmbed"
TRANSFORMERS = "serai.engines.language.transformers_embed:TransformersEmbed"
EQUAL = 0.9999
CASES = [(family, form) for family in POOLINGS for form in FORMS] + [("bert", "hf"), ("qwen3", "hf")]
pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Vectors:
    """What a run came to."""

    vectors: list[list[float]]
    tokens: int


def embed(driver: Driver, texts: Sequence[str], **fields: Any) -> Vectors:
    run = driver.begin(Embed(texts=tuple(texts), **fields))
    return result_of(driver, run)


def result_of(driver: Driver, run: int) -> Vectors:
    outcome = driver.finish(run)[run]
    document = outcome.result["embeddings"]
    assert document["dtype"] == "float32"
    numbers = array("f", base64.b64decode(document["data"]))
    count, width = document["shape"]
    rows = [list(numbers[at * width : (at + 1) * width]) for at in range(count)]
    return Vectors(rows, outcome.usage["prompt_tokens"])


def refusal(driver: Driver, **fields: Any) -> str:
    """Return the words with which a task is refused, at its start or in a step."""
    try:
        run = driver.begin(Embed(**fields))
    except EngineError as error:
        code, message = error.code, error.message
    else:
        final = driver.finish(run)[run].final
        assert isinstance(final, Failed)
        code, message = final.code, final.message
    assert code == InvalidInput.code
    return message


def least(found: Sequence[Sequence[float]], wanted: Sequence[Sequence[float]]) -> float:
    return min(cosine(one, other) for one, other in zip(found, wanted, strict=True))


@pytest.fixture(scope="module", params=["openvino-embed", "transformers-embed"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    """A tiny BERT in each engine, with batches of a few texts."""
    is_openvino = request.param == "openvino-embed"
    folder = embed_folder(tmp_path_factory, "bert", "fp32" if is_openvino else "hf")
    with Driver(OPENVINO if is_openvino else TRANSFORMERS) as driver:
        facts = driver.load(folder, engine=request.param, options={"batch_tokens": 64}).facts
        assert (facts["dimensions"], facts["context_tokens"], facts["pooling"]) == (WIDTH, COUNTS, "mean")
        yield driver


@pytest.mark.parametrize(("family", "form"), CASES, ids=["-".join(case) for case in CASES])
def test_vectors_are_those_of_transformers(family: str, form: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever the shape, the pooling and the precision: each text in a batch has the vector that torch gives it."""
    name = "transformers-embed" if form == "hf" else "openvino-embed"
    wanted = expected(tmp_path_factory, family, TEXTS)
    folder = embed_folder(tmp_path_factory, family, form)
    with Driver(TRANSFORMERS if form == "hf" else OPENVINO) as driver:
        facts = driver.load(folder, engine=name, options={"batch_tokens": 96}).facts
        assert facts["pooling"] == POOLINGS[family]
        found = embed(driver, TEXTS).vectors
    assert least(found, wanted) > (0.99 if form == "int8" else EQUAL)
    lengths = [math.hypot(*vector) for vector in found]
    if family == UNNORMALIZED:
        assert max(lengths) > 1.5
    else:
        assert lengths == pytest.approx([1.0] * len(TEXTS), abs=1e-5)
    # The vectors tell texts apart: else a cosine near 1 would say nothing.
    assert max(cosine(wanted[0], other) for other in wanted[1:-1]) < 0.99


def test_neither_company_nor_order_matters(engine: Driver) -> None:
    """A text's vector is the same alone, among longer ones, and wherever it stands."""
    alone = [embed(engine, [text]).vectors[0] for text in TEXTS]
    together = embed(engine, TEXTS).vectors
    backwards = embed(engine, TEXTS[::-1]).vectors[::-1]
    assert least(together, alone) > 0.999999
    assert least(backwards, alone) > 0.999999


def test_two_runs_take_turns(engine: Driver) -> None:
    """Each gets its own vectors, and neither waits for the other's end."""
    first, second = engine.begin(Embed(texts=TEXTS * 3)), engine.begin(Embed(texts=TEXTS[:2]))
    order = []
    while len(order) < 2:
        order += [(run, event) for run, event in engine.step()]
    assert [run for run, _ in order] == [second, first]
    assert least(embed(engine, TEXTS[:2]).vectors, embed(engine, TEXTS).vectors[:2]) > 0.999999


def test_a_long_text_is_cut_or_refused(engine: Driver) -> None:
    """What is beyond the context does not count, in the usage either; with `truncate` off it is an error."""
    long = f"{SENTENCES[0]} " * 20
    found = embed(engine, [long, f"{long} and something else"])
    assert found.vectors[0] == pytest.approx(found.vectors[1], abs=1e-6)
    assert found.tokens == 2 * COUNTS
    assert f"number 1 has more than {COUNTS} tokens" in refusal(engine, texts=("short", long), truncate=False)
    assert embed(engine, ["short"], truncate=False).tokens < COUNTS


def test_usage_counts_tokens_and_no_padding(engine: Driver) -> None:
    """The sum over texts that are asked for alone is what they count together."""
    assert embed(engine, TEXTS).tokens == sum(embed(engine, [text]).tokens for text in TEXTS)


def test_fewer_dimensions_are_the_first_ones_at_length_one(engine: Driver) -> None:
    """As Matryoshka models are made; more than the model has are refused by name."""
    whole, cut = embed(engine, TEXTS).vectors, embed(engine, TEXTS, dimensions=16).vectors
    for long, short in zip(whole, cut, strict=True):
        length = math.hypot(*long[:16])
        assert short == pytest.approx([number / length for number in long[:16]], abs=1e-6)
    assert refusal(engine, texts=("a",), dimensions=WIDTH + 1).endswith(
        f"must be 1 to {WIDTH}, which is what this model gives"
    )


def test_a_cancelled_run_leaves_the_others_alone(engine: Driver) -> None:
    """After the cancel nothing comes of it, and the next run is served."""
    gone = engine.begin(Embed(texts=TEXTS * 20))
    for _ in range(3):
        assert engine.step() == []
    engine.cancel(gone)
    stays = engine.begin(Embed(texts=TEXTS))
    assert len(result_of(engine, stays).vectors) == len(TEXTS)
    assert engine.look("_turns.__len__()") == 0


def test_other_tasks_are_refused_by_name(engine: Driver) -> None:
    """It says what it can do."""
    with pytest.raises(EngineError, match="turns texts into vectors"):
        engine.begin(Generate(prompt="hello"))


def changed(source: Path, target: Path, **documents: Any) -> Path:
    """Return a copy of a folder with other JSON files; None removes one."""
    shutil.copytree(source, target)
    for name, document in documents.items():
        path = target / name.replace("__", "/")
        path.unlink() if document is None else path.write_text(json.dumps(document))
    return target


def test_without_modules_the_mean_is_taken(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """And brought to length 1; an option says otherwise."""
    source = embed_folder(tmp_path_factory, "distilbert", "fp32")
    folder = changed(source, tmp_path / "plain", **{"modules.json": None})
    with Driver(OPENVINO) as driver:
        facts = driver.load(folder, engine="openvino-embed").facts
        assert (facts["pooling"], facts["normalized"]) == ("mean", True)
        mean = embed(driver, ["short"]).vectors[0]
    with Driver(OPENVINO) as driver:
        assert driver.load(folder, engine="openvino-embed", options={"pooling": "max"}).facts["pooling"] == "max"
        most = embed(driver, ["short"]).vectors[0]
    assert math.hypot(*mean) == pytest.approx(1.0, abs=1e-5)
    assert cosine(mean, most) < 0.99
    assert cosine(most, expected(tmp_path_factory, "distilbert", ["short"])[0]) > EQUAL


def test_a_default_prompt_goes_before_each_text(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """As the repository says; the vector is that of the prompt and the text."""
    source = embed_folder(tmp_path_factory, "bert", "fp32")
    prompts = {"prompts": {"query": PASSAGE, "other": "x"}, "default_prompt_name": "query"}
    folder = changed(source, tmp_path / "prompted", **{"config_sentence_transformers.json": prompts})
    with Driver(OPENVINO) as driver:
        driver.load(folder, engine="openvino-embed")
        found = embed(driver, [QUERY]).vectors
    assert least(found, expected(tmp_path_factory, "bert", [PASSAGE + QUERY])) > EQUAL


DENSE = [{"type": f"sentence_transformers.models.{kind}", "path": kind} for kind in ("Transformer", "Pooling", "Dense")]


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ({"modules.json": DENSE}, "Transformer, Pooling, Dense"),
        ({"1_Pooling__config.json": {"pooling_mode": "attention"}}, "attention"),
        ({"1_Pooling__config.json": {"pooling_mode_mean_tokens": False}}, "not said"),
        ({"modules.json": {}}, "modules.json is not what it should be"),
        ({"tokenizer.json": {}}, "tokenizer.json cannot be read"),
    ],
    ids=["a further step", "an unknown pooling", "no pooling", "damaged", "no tokenizer"],
)
def test_what_cannot_be_done_as_it_says_is_not_loaded(
    documents: dict[str, Any], words: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A step that no engine here makes is named; no vector is made without it."""
    folder = changed(embed_folder(tmp_path_factory, "bert", "fp32"), tmp_path / "changed", **documents)
    with Driver(OPENVINO) as driver, pytest.raises(EngineError, match=words) as refused:
        driver.load(folder, engine="openvino-embed")
    assert refused.value.code == "LOAD_FAILED"
