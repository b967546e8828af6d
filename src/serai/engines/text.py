"""From tokens to text as they come: whole characters only, stop texts cut off exactly.

`Answer` is what the engines of language models share: it takes the tokens of one answer and gives its events.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec

from serai.errors import InvalidInput
from serai.events import Text

_BROKEN = "\ufffd"
_LONGEST_CHARACTER = 3
"""How many replacement characters an unfinished character may show as: its bytes but the last."""
_PATIENCE_TOKENS = 8
"""After so many tokens without a whole character the bytes are no text at all, and are told as such."""

Decode = Callable[[Sequence[int]], str]


class FastTokenizer(Protocol):
    """What is used of `tokenizers.Tokenizer`. Nothing blocks."""

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Any:
        """Return an object whose `ids` are the tokens."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of tokens."""

    def get_vocab_size(self, with_added_tokens: bool) -> int:
        """Return how many tokens there are."""

    def get_vocab(self, with_added_tokens: bool) -> Mapping[str, int]:
        """Return the tokens, as they are written, and their numbers."""


class Detokenizer:
    """Turns tokens into text one by one, holding back what may be half a character.

    A token's text can depend on the tokens before it (a leading blank, a character of several tokens), so
    each is decoded together with those of the piece before, and what is new is the difference.
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._prefix = 0
        self._read = 0
        self._told = 0

    def push(self, token: int) -> str:
        """Return the text that is certain with this token, which may be none."""
        self._ids.append(token)
        new = self._new_text()
        held = len(new) - len(new.rstrip(_BROKEN))
        if len(self._ids) - self._read > _PATIENCE_TOKENS:
            held = min(held, _LONGEST_CHARACTER)
        stable = new[: len(new) - held]
        text = stable[self._told :]
        self._told = max(self._told, len(stable))
        if not held:
            self._prefix, self._read, self._told = self._read, len(self._ids), 0
            self._forget()
        return text

    def flush(self) -> str:
        """Return what was held back, without half a character at the end."""
        return self._new_text().rstrip(_BROKEN)[self._told :]

    def _new_text(self) -> str:
        known = self._decode(self._ids[self._prefix : self._read])
        return self._decode(self._ids[self._prefix :])[len(known) :]

    def _forget(self) -> None:
        del self._ids[: self._prefix]
        self._read -= self._prefix
        self._prefix = 0


class StopTexts:
    """Lets text through up to the first stop text, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""
        self.is_hit = False

    def push(self, text: str) -> str:
        """Return the text that is certainly before any stop text. After a hit nothing more comes."""
        if self.is_hit:
            return ""
        if not self._stops:
            return text
        self._held += text
        found = [at for at in (self._held.find(stop) for stop in self._stops) if at >= 0]
        if found:
            self.is_hit = True
            return self._release(min(found))
        return self._release(len(self._held) - self._suspicious())

    def flush(self) -> str:
        """Return what was held back: no stop text came of it."""
        return "" if self.is_hit else self._release(len(self._held))

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        return text

    def _suspicious(self) -> int:
        """Return the length of the longest end of the text that is the beginning of a stop text."""
        longest = max(map(len, self._stops)) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnToken:
    """A token that was drawn, with what is told of its likelihood, if it was asked for."""

    id: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


class Answer:
    """One answer of a run: takes tokens, gives `Text` events, knows when it is over and why."""

    def __init__(
        self,
        *,
        index: int,
        decode: Decode,
        stops: Sequence[str],
        end_ids: frozenset[int],
        max_tokens: int,
        has_logprobs: bool = False,
    ) -> None:
        self.index = index
        self.tokens: list[int] = []
        self.finish_reason = ""
        """'' while it goes on; then stop or length."""
        self._decode = decode
        self._detokenizer = Detokenizer(decode)
        self._stops = StopTexts(stops)
        self._end_ids = end_ids
        self._max_tokens = max_tokens
        self._logprobs: list[tuple[int, dict[str, Any]]] | None = [] if has_logprobs else None
        self._seen = 0
        self._told = 0

    def push(self, drawn: DrawnToken) -> Text | None:
        """Take the next token; return what is new to tell. Tokens after the end are ignored."""
        if self.finish_reason:
            return None
        self.tokens.append(drawn.id)
        if drawn.id in self._end_ids:
            return self.finish("stop")
        if self._logprobs is not None:
            self._logprobs.append((self._seen, self._likelihood(drawn)))
        text = self._detokenizer.push(drawn.id)
        self._seen += len(text)
        told = self._stops.push(text)
        if self._stops.is_hit:
            self.finish_reason = "stop"
        elif len(self.tokens) >= self._max_tokens:
            return self.finish("length", before=told)
        return self._event(told)

    def finish(self, reason: str, before: str = "") -> Text | None:
        """End the answer and return what was held back: a stop text that it completes is cut off, too."""
        rest = self._stops.push(self._detokenizer.flush())
        self.finish_reason = "stop" if self._stops.is_hit else reason
        return self._event(before + rest + self._stops.flush(), is_last=not self._stops.is_hit)

    def _event(self, text: str, *, is_last: bool = False) -> Text | None:
        self._told += len(text)
        if self._logprobs is None:
            return Text(delta=text, index=self.index) if text else None
        cut = len(self._logprobs) if is_last else sum(start < self._told for start, _ in self._logprobs)
        entries = [entry for _, entry in self._logprobs[:cut]]
        del self._logprobs[:cut]
        if not text and not entries:
            return None
        return Text(delta=text, index=self.index, logprobs=entries)

    def _likelihood(self, drawn: DrawnToken) -> dict[str, Any]:
        top = [{"token": self._decode((token,)), "logprob": logprob} for token, logprob in drawn.top]
        return {"token": self._decode((drawn.id,)), "logprob": drawn.logprob, "top": top}


def load_tokenizer(path: str) -> FastTokenizer:
    """Return the tokenizer that a tokenizer.json describes. Raises LoadFailed."""
    from tokenizers import Tokenizer

    from serai.errors import LoadFailed

    try:
        tokenizer = Tokenizer.from_file(path)
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise LoadFailed(f"The model's tokenizer.json cannot be read: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer  # type: ignore[no-any-return, unused-ignore]


def encode(tokenizer: FastTokenizer, prompt: str, *, has_special_tokens: bool, vocabulary: int) -> list[int]:
    """Return the tokens of a prompt. Raises InvalidInput for one without any, or with one the model lacks."""
    ids = list(tokenizer.encode(prompt, add_special_tokens=not has_special_tokens).ids)
    if not ids:
        raise InvalidInput.at("prompt", "must hold something", hint="Send at least one character.")
    if max(ids) >= vocabulary:
        raise InvalidInput.at("prompt", "holds a token that the model does not have")
    return ids


def answer_bound(*, prompt_tokens: int, context_tokens: int, max_tokens: int | None) -> int:
    """Return how many tokens an answer may have. Raises InvalidInput for a prompt that leaves no room."""
    room = context_tokens - prompt_tokens
    if room < 1:
        raise InvalidInput(
            f"The prompt has {prompt_tokens} tokens; the context of the model as it is loaded holds {context_tokens}.",
            hint="Shorten the prompt or the conversation's history.",
            details=[{"field": "prompt", "problem": "too long", "tokens": prompt_tokens, "context": context_tokens}],
        )
    return room if max_tokens is None else min(room, max_tokens)


def usage_of(prompt_tokens: int, answers: Sequence[Answer], cached_tokens: int) -> Mapping[str, int]:
    """Return the member `usage` of `Done`: an end token that was drawn counts as one."""
    completion = sum(len(answer.tokens) for answer in answers)
    return {"prompt_tokens": prompt_tokens, "completion_tokens": completion, "cached_tokens": cached_tokens}


class Timings(msgspec.Struct):
    """When a run began, told its first token, and its last; seconds of a monotonic clock."""

    began: float
    first: float | None = None

    def result(self, now: float) -> dict[str, float]:
        """Return the member `timings` of `Done`."""
        first = now if self.first is None else self.first
        return {"prompt_s": first - self.began, "generation_s": now - first}
