"""Tiny language models of the real architectures, with random weights, real tokenizers and real templates.

They are made once per test session by a process of their own, so that no test process holds torch. Test
processes that run side by side share them: whoever comes first makes them, the others wait at the lock.

    def test_something(tiny_llama_ir: Path) -> None: ...
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

FAMILIES = ("gpt2", "opt", "llama", "qwen3")
CONTEXT_TOKENS = 512
PLAIN = "<|endoftext|>"
START, END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "A service names a model; the registry decides which version of it answers.",
    "سلام دنیا! این یک جملهٔ آزمایشی است که با نویسه‌های فارسی نوشته شده است.",
    "چند کلمهٔ دیگر: کتاب، خانه، شهر، درخت و آسمان آبی.",
    "Emoji take several bytes each: 🙂 🚀 👩‍👩‍👧 🎉, and so do é, ß and 漢字.",
    'JSON looks like {"name": "value", "numbers": [1, 2.5, -3e4], "truth": true, "nothing": null}.',
)

_TIMEOUT_S = 600


def hf_folder(factory: pytest.TempPathFactory, family: str) -> Path:
    """Return a folder as Hugging Face's: safetensors, configuration, tokenizer, template."""
    return made(factory, [f"{family}/hf"])[0]


def ir_folder(factory: pytest.TempPathFactory, family: str, quantization: str = "fp32") -> Path:
    """Return the same model converted to OpenVINO's form."""
    return made(factory, [f"{family}/{quantization}"])[0]


def made(factory: pytest.TempPathFactory, names: Sequence[str]) -> list[Path]:
    """Return the folders of `names` ('llama/hf', 'llama/int8'), making at once all that are missing."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "llm-models"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [name for name in names if not (root / name / "config.json").exists()]
        if missing:
            command = [sys.executable, "-m", "support.llm_models", str(root), *missing]
            done = subprocess.run(
                command, env=child_environment(), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
            assert done.returncode == 0, done.stderr[-4000:]
    return [root / name for name in names]


def child_environment() -> dict[str, str]:
    """Return the environment of a process that computes: one thread, no hub, this folder importable."""
    tests = str(Path(__file__).parents[1])
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": tests, "PYTHONUTF8": "1"}


@pytest.fixture(scope="session")
def tiny_llama_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Llama as it comes from a hub."""
    return hf_folder(tmp_path_factory, "llama")


@pytest.fixture(scope="session")
def tiny_llama_ir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same tiny Llama for OpenVINO, in fp32: equal to torch token for token."""
    return ir_folder(tmp_path_factory, "llama")


def _save_tokenizer(folder: Path, family: str) -> int:
    """Train and save a byte-level BPE tokenizer; return the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=[PLAIN, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    if family in {"llama", "opt"}:
        pieces = [("<|endoftext|>", tokenizer.token_to_id(PLAIN))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{PLAIN} $A", special_tokens=pieces)
    template = CHAT_TEMPLATE if family in {"llama", "qwen3"} else None
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=PLAIN,
        eos_token=END,
        pad_token=PLAIN,
        chat_template=template,
        model_max_length=CONTEXT_TOKENS,
    )
    wrapped.save_pretrained(folder)
    return tokenizer.get_vocab_size()


def _save_model(folder: Path, family: str) -> None:
    """Make and save a model of a family: two layers, random weights that are the same each time."""
    import torch
    import transformers

    torch.manual_seed(FAMILIES.index(family) + 7)
    torch.set_num_threads(1)
    vocabulary = _save_tokenizer(folder, family) + 5
    grouped = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": CONTEXT_TOKENS,
    }
    token_ids = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
    # Wide enough that the likeliest next token differs from place to place, as with a trained model.
    scale = {"initializer_range": 0.15}
    config: transformers.PretrainedConfig = {
        "gpt2": lambda: transformers.GPT2Config(
            n_positions=CONTEXT_TOKENS, n_embd=64, n_layer=2, n_head=4, **token_ids, **scale
        ),
        "opt": lambda: transformers.OPTConfig(
            hidden_size=64,
            word_embed_proj_dim=64,
            ffn_dim=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT_TOKENS,
            init_std=0.15,
            **token_ids,
        ),
        "llama": lambda: transformers.LlamaConfig(**grouped, **token_ids, **scale),
        "qwen3": lambda: transformers.Qwen3Config(**grouped, **token_ids, **scale, tie_word_embeddings=True),
    }[family]()
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = [2, 0]
    model.save_pretrained(folder)


def _make(root: Path, names: Sequence[str]) -> None:
    from serai.engines.quiet import quieten

    quieten()
    from serai.pulls.conversion.export import convert

    for name in names:
        family, _, form = name.partition("/")
        source = root / family / "hf"
        if not (source / "config.json").exists():
            source.mkdir(parents=True)
            _save_model(source, family)
        if form != "hf":
            convert(source, root / family / form, quantization=form, report=lambda _stage, _fraction: None)
    json.dump({"made": list(names)}, sys.stdout)


if __name__ == "__main__":
    _make(Path(sys.argv[1]), sys.argv[2:])
