"""Converting embedding models: what is refused, before anything heavy is read. How well: see the engines' tests."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from serai.pulls.conversion import Message, Refused, Request
from support.llm_models import child_environment

pytestmark = pytest.mark.timeout(300)

BERT = {"architectures": ["BertModel"], "model_type": "bert"}
STEPS = [{"path": kind, "type": f"models.{kind}"} for kind in ("Transformer", "Pooling", "Dense")]


def refusal(folder: Path, target: Path) -> Refused:
    """Run the program on a folder that it must refuse."""
    asked = Request(source=str(folder), target=str(target), quantization="fp32", task="embedding")
    done = subprocess.run(
        [sys.executable, "-m", "serai.pulls.conversion", msgspec.json.encode(asked).decode()],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 1, done.stderr[-2000:]
    last = msgspec.json.decode(done.stdout.splitlines()[-1], type=Message)
    assert isinstance(last, Refused)
    return last


@pytest.mark.parametrize(
    ("documents", "words"),
    [
        ({"config": {"architectures": ["LlamaForCausalLM"]}}, "LlamaForCausalLM"),
        ({"config": {**BERT, "auto_map": {"AutoModel": "modeling.Own"}}}, "BertModel"),
        ({"config": {**BERT, "position_embedding_type": "relative_key"}}, "relative positions"),
        ({"config": BERT, "tokenizer": None}, "tokenizer.json"),
        ({"config": BERT, "modules": STEPS}, "Dense"),
    ],
    ids=["a language model", "code of its own", "relative positions", "no tokenizer", "a further step"],
)
def test_what_cannot_be_converted_is_named(documents: dict[str, Any], words: str, tmp_path: Path) -> None:
    """And leaves nothing behind."""
    folder = tmp_path / "source"
    folder.mkdir()
    for name, document in {"tokenizer": {}, **documents}.items():
        if document is not None:
            (folder / f"{name}.json").write_text(json.dumps(document))
    assert words in refusal(folder, tmp_path / "target").message
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
