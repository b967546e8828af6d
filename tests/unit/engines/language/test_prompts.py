"""Prompts to tokens: short ones at once, long ones beside the batch, impossible ones not at all."""

import threading
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from serai.engines.language.prompts import Prompts
from serai.errors import InvalidInput

BYTES = {char: number for number, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}


def exact() -> Tokenizer:
    """Return a tokenizer of bytes, which keeps every blank; its longest token has two letters."""
    tokenizer = Tokenizer(models.BPE(vocab={**BYTES, "ab": len(BYTES)}, merges=[("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def careless() -> Tokenizer:
    """Return a tokenizer that drops blanks."""
    tokenizer = exact()
    tokenizer.normalizer = normalizers.Replace(" ", "")
    return tokenizer


class Watched:
    """A tokenizer that says in which thread it was asked, and waits there until it may go on."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.threads: list[str] = []
        self.may_go_on = threading.Event()

    def encode(self, text: str, *, add_special_tokens: bool) -> Any:
        self.threads.append(threading.current_thread().name)
        if threading.current_thread() is not threading.main_thread():
            assert self.may_go_on.wait(60)
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def decode(self, ids: Any, *, skip_special_tokens: bool) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))

    def get_vocab(self, with_added_tokens: bool) -> dict[str, int]:
        return dict(self._tokenizer.get_vocab(with_added_tokens))

    def get_vocab_size(self, with_added_tokens: bool) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens))


def test_a_short_prompt_is_there_at_once() -> None:
    """Nothing is gained by another thread."""
    prompts = Prompts(exact(), vocabulary=1000, context_tokens=100)
    assert prompts.begin("ab", has_special_tokens=False).result(0) == [len(BYTES)]


def test_a_long_prompt_is_encoded_beside_others() -> None:
    """While one of a million letters is read, a short one is there at once; both come out right."""
    tokenizer = Watched(exact())
    prompts = Prompts(tokenizer, vocabulary=1000, context_tokens=10**6)
    long = prompts.begin("ab" * 500_000, has_special_tokens=False)
    assert not long.done()
    assert prompts.begin("ab", has_special_tokens=False).done()
    tokenizer.may_go_on.set()
    assert long.result(60) == [len(BYTES)] * 500_000
    assert sum(name.startswith("prompts") for name in tokenizer.threads) == 1
    prompts.close()


def test_what_cannot_fit_is_refused_unread() -> None:
    """100 tokens of at most two letters hold 200 letters; nothing longer is encoded at all."""
    tokenizer = Watched(exact())
    prompts = Prompts(tokenizer, vocabulary=1000, context_tokens=100)
    before = len(tokenizer.threads)
    with pytest.raises(InvalidInput, match="201 characters"):
        prompts.begin("a" * 201, has_special_tokens=False)
    assert len(tokenizer.threads) == before
    assert len(prompts.begin("ab" * 100, has_special_tokens=False).result(0)) == 100


def test_a_tokenizer_that_drops_blanks_refuses_nothing_by_length() -> None:
    """A thousand blanks may be no token at all."""
    prompts = Prompts(careless(), vocabulary=1000, context_tokens=3)
    assert prompts.begin(" " * 1000 + "ab", has_special_tokens=False).result(0) == [len(BYTES)]


def test_a_wrong_prompt_says_so_wherever_it_is_read() -> None:
    """An empty one at once; one with a token that the model lacks when it is read."""
    prompts = Prompts(careless(), vocabulary=10, context_tokens=10**6)
    with pytest.raises(InvalidInput):
        prompts.begin(" ", has_special_tokens=False)
    with pytest.raises(InvalidInput):
        prompts.begin("ab" * 50_000, has_special_tokens=False).result(60)
    prompts.close()
