"""Tiny embedding models of the real shapes, with random weights and real tokenizers, made as `llm_models` does.

One process makes all of them, and what transformers itself says of `TEXTS`: importing torch takes longest.

    folder = embed_folder(factory, "bert")            as from a hub: safetensors, tokenizer, pooling
    folder = embed_folder(factory, "bert", "int8")    the same, converted for OpenVINO
    expected(factory, "bert", texts)                  the vectors of some of `TEXTS`, pooled by torch
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.llm_models import SENTENCES, child_environment

POOLINGS = {"bert": "mean", "xlm-roberta": "cls", "mpnet": "mean", "distilbert": "max", "qwen3": "lasttoken"}
"""The families, and how each repository says that it pools."""
WIDTH, CONTEXT_TOKENS = 64, 48
UNNORMALIZED = "distilbert"
MODULE = "sentence_transformers.models."
_MEMBERS = {
    "mean": "pooling_mode_mean_tokens",
    "cls": "pooling_mode_cls_token",
    "max": "pooling_mode_max_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
FORMS = ("fp32", "fp16", "int8")
QUERY, PASSAGE = "brown fox", "quick: "
TEXTS = (*SENTENCES, "short", "a b c", PASSAGE + QUERY, f"{SENTENCES[0]} " * 8)
"""Of different lengths, the last one longer than what counts."""
COUNTS = CONTEXT_TOKENS - 16
"""The tokens that count, as sentence_bert_config.json says."""
_TIMEOUT_S = 900
_EXPECTED = "expected.json"


def embed_folder(factory: pytest.TempPathFactory, family: str, form: str = "hf") -> Path:
    """Return the folder of a family in a form: hf, or one of `FORMS`."""
    return _made(factory) / family / form


def expected(factory: pytest.TempPathFactory, family: str, texts: Sequence[str]) -> list[list[float]]:
    """Return vectors by transformers and torch alone, one text at a time, so without padding."""
    vectors = json.loads((_made(factory) / family / _EXPECTED).read_text())
    return [vectors[text] for text in texts]


def files_of(folder: Path) -> dict[str, bytes]:
    """Return a folder's files as a hub's repository holds them."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    dot = sum(a * b for a, b in zip(one, other, strict=True))
    lengths = (sum(a * a for a in each) ** 0.5 for each in (one, other))
    return dot / (next(lengths) * next(lengths))


def _made(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of all models; whoever comes first makes them."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "embed-models"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "done").exists():
            command = [sys.executable, "-m", "support.embed_models", str(root)]
            done = subprocess.run(
                command, env=child_environment(), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
            assert done.returncode == 0, done.stderr[-4000:]
            (root / "done").touch()
    return root


def _save_tokenizer(folder: Path, family: str) -> int:
    """Train and save a tokenizer of the family's kind; return the size of its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    begin, end, pad, unknown = (
        ("[CLS]", "[SEP]", "[PAD]", "[UNK]") if "bert" in family else ("<s>", "</s>", "<pad>", "<unk>")
    )
    special = [begin, pad, end, unknown]  # the padding is 1, as RoBERTa's
    alphabet = {"show_progress": False, "special_tokens": special, "vocab_size": 480}
    if family in ("xlm-roberta", "qwen3"):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **alphabet)
    else:
        tokenizer = Tokenizer(models.WordPiece(unk_token=unknown))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(**alphabet)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    pieces = [(token, tokenizer.token_to_id(token)) for token in (begin, end)]
    single = f"$A {end}" if family == "qwen3" else f"{begin} $A {end}"
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=pieces)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        cls_token=begin,
        sep_token=end,
        eos_token=end,
        pad_token=pad,
        unk_token=unknown,
        model_max_length=CONTEXT_TOKENS,
    )
    wrapped.save_pretrained(folder)
    return int(tokenizer.get_vocab_size())


def _configuration(family: str, vocabulary: int) -> Any:
    import transformers

    given = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "pad_token_id": 1,
        "max_position_embeddings": CONTEXT_TOKENS + 2,
        "initializer_range": 0.2,
    }
    match family:
        case "bert":
            return transformers.BertConfig(**given)
        case "xlm-roberta":
            return transformers.XLMRobertaConfig(**given, type_vocab_size=1)
        case "mpnet":
            return transformers.MPNetConfig(**given)
        case "distilbert":
            return transformers.DistilBertConfig(
                vocab_size=vocabulary,
                dim=WIDTH,
                n_layers=2,
                n_heads=4,
                hidden_dim=128,
                pad_token_id=1,
                max_position_embeddings=CONTEXT_TOKENS,
                initializer_range=0.2,
            )
        case _:
            return transformers.Qwen3Config(**given, num_key_value_heads=2, head_dim=16)


def _save_model(folder: Path, family: str) -> None:
    """Make and save a model: two layers, random weights that are the same each time, and how it pools."""
    import torch
    import transformers

    torch.manual_seed(list(POOLINGS).index(family) + 11)
    torch.set_num_threads(1)
    config = _configuration(family, _save_tokenizer(folder, family))
    # As on hubs: an encoder under the name of what it was trained as, a decoder with its head.
    kind = {"mpnet": transformers.AutoModelForMaskedLM, "qwen3": transformers.AutoModelForCausalLM}
    model = kind.get(family, transformers.AutoModel).from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and norms are trained, too: zeros would hide what is left out
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    steps = ["Transformer", "Pooling", *([] if family == UNNORMALIZED else ["Normalize"])]
    modules = [
        {"idx": at, "name": str(at), "path": "" if at == 0 else f"{at}_{step}", "type": f"{MODULE}{step}"}
        for at, step in enumerate(steps)
    ]
    pooling = {
        "word_embedding_dimension": WIDTH,
        **{member: name == POOLINGS[family] for name, member in _MEMBERS.items()},
    }
    documents: Mapping[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling,
        "sentence_bert_config.json": {"max_seq_length": CONTEXT_TOKENS - 16, "do_lower_case": False},
    }
    for name, document in documents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(document))


def _make(root: Path) -> None:
    from serai.engines.quiet import quieten

    quieten()
    from serai.pulls.conversion.export import convert

    for family in POOLINGS:
        source = root / family / "hf"
        source.mkdir(parents=True)
        _save_model(source, family)
        (root / family / _EXPECTED).write_text(json.dumps(_expect(source, family)))
        for form in FORMS:
            convert(source, root / family / form, quantization=form, report=lambda *_: None, task="embedding")  # type: ignore[arg-type]


def _expect(folder: Path, family: str) -> dict[str, list[float]]:
    import torch
    import transformers

    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    vectors = {}
    for text in TEXTS:
        row = tokenizer(text, truncation=True, max_length=COUNTS, return_tensors="pt")
        with torch.inference_mode():
            given = {name: row[name] for name in ("input_ids", "attention_mask")}
            hidden = model(**given).last_hidden_state[0]
        pools = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.max(0).values, "lasttoken": hidden[-1]}
        vector = pools[POOLINGS[family]]
        vectors[text] = (vector if family == UNNORMALIZED else vector / vector.norm()).tolist()
    return vectors


if __name__ == "__main__":
    _make(Path(sys.argv[1]))
