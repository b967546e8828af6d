"""What the engine transformers can do and others cannot: bias, alternatives, adapters; and what it refuses."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from serai.engines.base import AdapterUse
from serai.engines.tasks import Grammar
from support.engine_driver import Driver, EngineError
from support.llm_models import child_environment, hf_folder

TARGET = "serai.engines.language.transformers_llm:TransformersLlm"
pytestmark = pytest.mark.timeout(600)
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="NOT TESTED: peft is not installed")

MAKE_ADAPTERS = """
import sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM
for seed in (1, 2):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(f"{sys.argv[2]}/{seed}")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_folder(tmp_path_factory, "llama")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Driver]:
    with Driver(TARGET) as driver:
        driver.load(folder, engine="transformers")
        yield driver


@pytest.fixture(scope="module")
def adapters(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[AdapterUse, AdapterUse]:
    root = tmp_path_factory.mktemp("adapters")
    command = [sys.executable, "-c", MAKE_ADAPTERS, str(folder), str(root)]
    subprocess.run(command, env=child_environment(), check=True, capture_output=True, timeout=300)
    first, second = (AdapterUse(id=f"digest{seed}", path=str(root / str(seed))) for seed in (1, 2))
    return first, second


def test_alternatives_are_told_in_their_order(engine: Driver) -> None:
    """Of so many tokens as were asked for, the likeliest first; the one that was taken is the first of them."""
    outcome = engine.answer("Hello", temperature=0, max_tokens=6, logprobs=3)
    entries = [entry for event in outcome.texts if isinstance(event.logprobs, list) for entry in event.logprobs]
    assert len(entries) == 6
    for entry in entries:
        ranks = [other["logprob"] for other in entry["top"]]
        assert len(ranks) == 3
        assert ranks == sorted(ranks, reverse=True)
        assert entry["top"][0] == {"token": entry["token"], "logprob": entry["logprob"]}


def test_a_bias_decides_what_is_drawn(engine: Driver) -> None:
    """A large one makes a token certain; a token that the model lacks is refused."""
    plain = engine.answer("Hello", temperature=0, max_tokens=5, logprobs=0).text()
    forced = engine.answer("Hello", temperature=1, max_tokens=5, logit_bias={40: 100.0}).text()
    assert forced != plain
    assert len(set(forced)) == 1
    with pytest.raises(EngineError, match="logit_bias"):
        engine.start("Hello", logit_bias={100_000: 1.0})


def test_a_grammar_is_refused_by_name(engine: Driver) -> None:
    """Never dropped."""
    with pytest.raises(EngineError, match="grammar"):
        engine.start("Hello", grammar=Grammar(kind="regex", value="[0-9]"))


@needs_peft
def test_adapters_go_by_run(engine: Driver, adapters: tuple[AdapterUse, AdapterUse]) -> None:
    """Runs with different adapters, mixes, scales and none go on together, each as it does alone."""
    first, second = adapters
    half = AdapterUse(id=first.id, path=first.path, scale=0.5)
    none = AdapterUse(id=first.id, path=first.path, scale=0.0)
    mixes = [(), (first,), (second,), (half,), (first, second), (none,), ()]
    alone = [engine.answer("Hello", temperature=0, max_tokens=16, adapters=mix).text() for mix in mixes]
    runs = [engine.start("Hello", temperature=0, max_tokens=16, adapters=mix) for mix in mixes]
    outcomes = engine.finish(*runs)
    assert [outcomes[run].text() for run in runs] == alone
    assert alone[0] == alone[5] == alone[6]
    assert len(set(alone[:5])) == 5


@needs_peft
def test_a_folder_that_is_no_adapter_fails_its_run_alone(engine: Driver, tmp_path: Path) -> None:
    """The error says what is missing; the model goes on as before."""
    before = engine.answer("Hello", temperature=0, max_tokens=8).text()
    with pytest.raises(EngineError, match="adapter_config") as caught:
        engine.start("Hello", adapters=[AdapterUse(id="none", path=str(tmp_path))])
    assert caught.value.code == "LOAD_FAILED"
    assert engine.answer("Hello", temperature=0, max_tokens=8).text() == before


def test_four_bits_need_cuda(folder: Path) -> None:
    """On a CPU the reason is said, with what to use instead."""
    with Driver(TARGET) as driver, pytest.raises(EngineError, match="CUDA") as caught:
        driver.load(folder, engine="transformers", options={"load_in_4bit": True})
    assert caught.value.code == "LOAD_FAILED"


def test_pickles_and_code_of_the_folder_are_not_read(folder: Path, tmp_path: Path) -> None:
    """Weights that are no safetensors, and a class of the folder's own, are refused."""
    pickled = Path(shutil.copytree(folder, tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    coded = Path(shutil.copytree(folder, tmp_path / "coded"))
    config = json.loads((coded / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "own.py").write_text("raise SystemExit('this was run')\n")
    for wrong in (pickled, coded):
        with Driver(TARGET) as driver, pytest.raises(EngineError) as caught:
            driver.load(wrong, engine="transformers")
        assert caught.value.code == "LOAD_FAILED"
        assert str(tmp_path) not in caught.value.message
