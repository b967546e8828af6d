"""Prompts to tokens, without keeping the batch waiting: long ones in a thread of their own."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from serai.engines.text import FastTokenizer, encode
from serai.errors import InvalidInput

_AT_ONCE = 20_000
"""Characters of a prompt that is encoded where it is asked for, in a few milliseconds."""
_SAMPLE = "a b  c\n\n  d\te"
"""Of which a tokenizer that drops or joins blanks gives something else back."""


class Prompts:
    """Encodes for one engine. The library lets other threads run meanwhile."""

    def __init__(self, tokenizer: FastTokenizer, *, vocabulary: int, context_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._vocabulary = vocabulary
        self._context = context_tokens
        self._most = _most_characters(tokenizer, context_tokens)
        self._thread: ThreadPoolExecutor | None = None

    def begin(self, text: str, *, has_special_tokens: bool) -> "Future[list[int]]":
        """Return the tokens to be; of a short prompt they are there. Raises InvalidInput.

        The future raises InvalidInput, too. A prompt that cannot fit into the context is refused unread.
        """
        if self._most is not None and len(text) > self._most:
            raise InvalidInput(
                f"The prompt has {len(text)} characters; the context of the model as it is loaded holds "
                f"{self._context} tokens.",
                hint="Shorten the prompt or the conversation's history.",
                details=[{"field": "prompt", "problem": "too long", "context": self._context}],
            )
        if len(text) > _AT_ONCE:
            self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="prompts")
            return self._thread.submit(self._encode, text, has_special_tokens)
        done: Future[list[int]] = Future()
        done.set_result(self._encode(text, has_special_tokens))
        return done

    def close(self) -> None:
        """Forget what waits; what is being encoded goes on to its end."""
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def _encode(self, text: str, has_special_tokens: bool) -> list[int]:
        return encode(self._tokenizer, text, has_special_tokens=has_special_tokens, vocabulary=self._vocabulary)


def wait_for_any(futures: Sequence["Future[Any]"], seconds: float) -> None:
    """Return when one of them is done, or after the time."""
    wait(futures, seconds, return_when="FIRST_COMPLETED")


def _most_characters(tokenizer: FastTokenizer, context_tokens: int) -> int | None:
    """Return how many characters can fit at most: so many of the longest token; None if blanks may be dropped."""
    ids = tokenizer.encode(_SAMPLE, add_special_tokens=False).ids
    if tokenizer.decode(ids, skip_special_tokens=True) != _SAMPLE:
        return None
    return context_tokens * max(map(len, tokenizer.get_vocab(with_added_tokens=True)))
