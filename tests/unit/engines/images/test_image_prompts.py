"""Prompts become rows of tokens as CLIP's own tokenizer makes them, cut off and filled up to one length."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serai.engines.images.image_prompts import PromptTokens
from serai.errors import LoadFailed
from support.image_models import CLIP_TOKENS, made
from support.llm_models import child_environment

TEXTS = (
    "",
    "The quick  BROWN\tfox's dog, and 123 4th!",
    "سلام دنیا 🙂 é",
    "<|endoftext|> a <|startoftext|>b",
    "word " * 60,
)
REFERENCE = """
import json, sys
from transformers import CLIPTokenizer
tokenizer = CLIPTokenizer.from_pretrained(sys.argv[1], local_files_only=True)
rows = [tokenizer(text, padding="max_length", truncation=True).input_ids for text in json.loads(sys.argv[2])]
print(json.dumps(rows))
"""


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory, ["sd"])[0] / "tokenizer"


@pytest.mark.timeout(600)
def test_rows_are_those_of_clips_own_tokenizer(tokenizer: Path, tmp_path: Path) -> None:
    """From tokenizer.json, and from vocab.json with merges.txt alone, as older pipelines have them."""
    command = [sys.executable, "-c", REFERENCE, str(tokenizer), json.dumps(TEXTS)]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = json.loads(done.stdout)
    older = Path(shutil.copytree(tokenizer, tmp_path / "older"))
    (older / "tokenizer.json").unlink()
    for folder in (tokenizer, older):
        prompts = PromptTokens(folder)
        assert [prompts.encode(text)[0] for text in TEXTS] == expected
        assert [bool(prompts.encode(text)[1]) for text in TEXTS] == [False] * 4 + [True]


def test_fewer_tokens_count_if_fewer_are_asked_for(tokenizer: Path) -> None:
    """The row keeps its length; a text encoder with fewer positions shortens it."""
    row, lost = PromptTokens(tokenizer).encode("one two three four", 4)
    full, none = PromptTokens(tokenizer).encode("one two three four")
    assert len(row) == len(full) == CLIP_TOKENS
    assert row[:3] == full[:3]
    assert lost > none == 0
    assert len(PromptTokens(tokenizer, most=10).encode("x" * 500)[0]) == 10


def test_tokenizers_that_are_none_are_refused(tokenizer: Path, tmp_path: Path) -> None:
    """No files, no JSON, special tokens that it does not have; without the folder's path."""
    with pytest.raises(LoadFailed, match="vocab"):
        PromptTokens(tmp_path)
    copy = Path(shutil.copytree(tokenizer, tmp_path / "copy"))
    (copy / "tokenizer_config.json").write_text('{"bos_token": {"content": "<none>"}}')
    with pytest.raises(LoadFailed, match="<none>"):
        PromptTokens(copy)
    (copy / "tokenizer_config.json").write_text("[")
    with pytest.raises(LoadFailed, match="tokenizer_config") as refused:
        PromptTokens(copy)
    assert str(tmp_path) not in refused.value.message
    (copy / "tokenizer_config.json").unlink()
    (copy / "tokenizer.json").unlink()
    (copy / "merges.txt").write_text("nothing of the kind is known\n")
    with pytest.raises(LoadFailed, match="cannot be read"):
        PromptTokens(copy)
