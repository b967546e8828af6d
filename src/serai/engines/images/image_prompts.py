"""Prompts as CLIP's text encoder takes them: so many tokens and no more, from the files of a tokenizer's folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from serai.engines.text import FastTokenizer, load_tokenizer
from serai.errors import LoadFailed

_MAX_BYTES = 64 * 1024 * 1024
_START, _END = "<|startoftext|>", "<|endoftext|>"
_USUAL_TOKENS = 77
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""How CLIP cuts a text: https://github.com/openai/CLIP, simple_tokenizer.py."""


class PromptTokens:
    """Turns prompts into rows of `tokens` ids: begin, text, end, and filling up to the length."""

    def __init__(self, folder: Path, *, most: int | None = None) -> None:
        """`most`: positions of the text encoder, where they are known. Raises LoadFailed."""
        says = {**_object(folder / "special_tokens_map.json"), **_object(folder / "tokenizer_config.json")}
        self._tokenizer = _tokenizer(folder)
        self._start = self._id(_token(says, "bos_token", _START))
        self._end = self._id(_token(says, "eos_token", _END))
        self._filling = self._id(_token(says, "pad_token", _END))
        length = says.get("model_max_length")
        stated = length if isinstance(length, int) and 2 < length <= 4096 else most or _USUAL_TOKENS
        self.tokens = min(stated, most or stated)
        """The length of every row."""

    def encode(self, text: str, most: int | None = None) -> tuple[list[int], int]:
        """Return a row, and how many of the text's tokens it has no room for. `most`: tokens that count, ends too."""
        ids = list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        room = max(min(most or self.tokens, self.tokens) - 2, 0)
        row = [self._start, *ids[:room], self._end]
        return row + [self._filling] * (self.tokens - len(row)), max(len(ids) - room, 0)

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)  # type: ignore[attr-defined]
        if found is None:
            raise LoadFailed(f"The pipeline's tokenizer has no {token}.")
        return int(found)


def _tokenizer(folder: Path) -> FastTokenizer:
    """Return the tokenizer of tokenizer.json, else one of vocab.json and merges.txt, as older pipelines have them."""
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(str(folder / "tokenizer.json"))
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not vocabulary.is_file() or not merges.is_file():
        raise LoadFailed("The pipeline has neither tokenizer/tokenizer.json nor vocab.json and merges.txt.")
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    ways = {"unk_token": _END, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>"}
    try:
        model = models.BPE.from_file(str(vocabulary), str(merges), **ways)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise LoadFailed(f"The pipeline's vocab.json and merges.txt cannot be read: {error}") from None
    tokenizer: Any = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in (_START, _END)])
    return tokenizer  # type: ignore[no-any-return]


def _token(says: Mapping[str, Any], name: str, otherwise: str) -> str:
    value = says.get(name)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else otherwise


def _object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} where there is none. Raises LoadFailed."""
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise LoadFailed(f"The pipeline's {path.name} is larger than such a file can be.")
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise LoadFailed(f"The pipeline's {path.name} is not what it should be.") from error
