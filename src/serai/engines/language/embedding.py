"""What the engines of embedding models share: tokens in padded batches, pooling, cutting to fewer dimensions.

Texts of like length stand in one batch. Padding is masked in the network and left out of the pooling, so a
text's vector does not depend on what it is asked for with, but for the last bits of the arithmetic.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from serai.engines.base import Run
from serai.engines.language.embedding_folder import EmbeddingShape
from serai.engines.options import EmbedOptions
from serai.engines.stepwise import Stepwise, Turns
from serai.engines.tasks import Array, Embed
from serai.engines.text import load_tokenizer
from serai.errors import EngineFailed, InvalidInput
from serai.events import Done

Numbers = np.ndarray[Any, Any]
_TEXTS_PER_STEP = 64
"""So many are turned into tokens before another run has its turn."""
_MAX_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Texts of one call of the network, each batch × length, int64; `mask` is 1 where there is a token."""

    ids: Numbers
    mask: Numbers
    type_ids: Numbers


class Embedding(Stepwise):
    """The base of engines whose network gives a hidden state for each token."""

    def __init__(self) -> None:
        super().__init__()
        self._shape = EmbeddingShape()
        self._tokenizer: Any = None
        self._batch_tokens = 0
        self._width = 0
        """Of the model's own vectors; known from the warm-up on."""

    def begin(self, run: Run) -> Turns:
        """Check the task and return its steps: tokens, then batch after batch."""
        task = run.task
        if not isinstance(task, Embed):
            raise InvalidInput.at("task", "must be embed: this model turns texts into vectors")
        if run.adapters:
            raise EngineFailed("Embedding models take no adapters.")
        if task.dimensions is not None and not 1 <= task.dimensions <= self._width:
            raise InvalidInput.at("dimensions", f"must be 1 to {self._width}, which is what this model gives")
        return self._steps(task)

    def _hidden(self, batch: Batch) -> Generator[None, None, Numbers]:
        """Return the hidden states, batch × length × width, float32; each yield is a step that waits."""
        raise NotImplementedError

    def _prepare(self, folder: Path, options: EmbedOptions) -> None:
        """Read how `folder` embeds, and its tokenizer. Raises LoadFailed."""
        shape = EmbeddingShape.read(folder)
        if options.pooling:
            shape = replace(shape, pooling=(options.pooling,))
        if options.context_tokens:
            shape = replace(shape, context_tokens=min(options.context_tokens, shape.context_tokens))
        self._shape, self._batch_tokens = shape, options.batch_tokens
        tokenizer: Any = load_tokenizer(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(max_length=shape.context_tokens)
        self._tokenizer = tokenizer

    def _facts(self) -> dict[str, Any]:
        """Return what `Footprint.facts` tells of the vectors."""
        shape = self._shape
        return {
            "context_tokens": shape.context_tokens,
            "dimensions": self._width,
            "pooling": "+".join(shape.pooling),
            "normalized": shape.normalizes,
        }

    def _warm_up(self) -> None:
        """Embed one text: the first run allocates what later ones use, and tells how wide vectors are."""
        rows = [self._tokens("warm up", 0, Embed(texts=("warm up",)))]
        hidden = _result_of(self._hidden(self._padded(rows)))
        self._width = hidden.shape[2] * len(self._shape.pooling)

    def _steps(self, task: Embed) -> Turns:
        rows = []
        for number, text in enumerate(task.texts):
            rows.append(self._tokens(text, number, task))
            if number % _TEXTS_PER_STEP == _TEXTS_PER_STEP - 1:
                yield None
        vectors = np.empty((len(rows), self._width), np.float32)
        for members in _batches([len(row.ids) for row in rows], self._batch_tokens):
            batch = self._padded([rows[member] for member in members])
            hidden = yield from self._hidden(batch)
            vectors[members] = pooled(hidden, batch.mask, self._shape.pooling)
            yield None
        if task.dimensions is not None:
            vectors = vectors[:, : task.dimensions]
        if self._shape.normalizes or (task.dimensions or self._width) < self._width:
            vectors = normalized(vectors)
        told = Array(dtype="float32", shape=vectors.shape, data=np.ascontiguousarray(vectors, "<f4").tobytes())
        tokens = sum(len(row.ids) for row in rows)
        yield Done(result={"embeddings": told.document, "usage": {"prompt_tokens": tokens}})

    def _tokens(self, text: str, number: int, task: Embed) -> Any:
        """Return the tokens of a text. Raises InvalidInput for none, for too many, for one the model lacks."""
        text = self._shape.prompt + text
        row = self._tokenizer.encode(text.lower() if self._shape.is_lower else text)
        if row.overflowing and not task.truncate:
            limit = self._shape.context_tokens
            raise InvalidInput.at("input", f"number {number} has more than {limit} tokens, which is what counts here")
        if not row.ids:
            raise InvalidInput.at("input", f"number {number} holds nothing that the model reads")
        if self._shape.vocabulary and max(row.ids) >= self._shape.vocabulary:
            raise InvalidInput.at("input", f"number {number} holds a token that the model does not have")
        return row

    def _padded(self, rows: Sequence[Any]) -> Batch:
        shape = (len(rows), max(len(row.ids) for row in rows))
        ids, mask = np.full(shape, self._shape.pad_id, np.int64), np.zeros(shape, np.int64)
        types = np.zeros(shape, np.int64)
        for number, row in enumerate(rows):
            length = len(row.ids)
            ids[number, :length], types[number, :length], mask[number, :length] = row.ids, row.type_ids, 1
        return Batch(ids=ids, mask=mask, type_ids=types)


def _result_of(turns: Generator[None, None, Numbers]) -> Numbers:
    while True:
        try:
            next(turns)
        except StopIteration as end:
            hidden: Numbers = end.value
            return hidden


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield the places of texts that go together: of like length, at most `batch_tokens` with their padding."""
    members: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):  # so the newest member is the longest
        if members and ((len(members) + 1) * lengths[place] > batch_tokens or len(members) == _MAX_BATCH):
            yield members
            members = []
        members.append(place)
    yield members


def pooled(hidden: Numbers, mask: Numbers, pooling: Sequence[str]) -> Numbers:
    """Return a vector for each row of `hidden` (batch × length × width), float32; padding stands at the end.

    As sentence-transformers has it: several poolings are put side by side.
    """
    weights = mask[:, :, None].astype(np.float32)
    return np.concatenate([_POOL[name](hidden, weights) for name in pooling], axis=1)


def _mean(hidden: Numbers, weights: Numbers) -> Numbers:
    return np.asarray((hidden * weights).sum(axis=1) / weights.sum(axis=1))


def _weighted_mean(hidden: Numbers, weights: Numbers) -> Numbers:
    return _mean(hidden, weights * np.arange(1, hidden.shape[1] + 1, dtype=np.float32)[None, :, None])


def _last(hidden: Numbers, weights: Numbers) -> Numbers:
    places = weights.sum(axis=(1, 2)).astype(np.int64) - 1
    return np.asarray(hidden[np.arange(len(hidden)), places])


_POOL: dict[str, Callable[[Numbers, Numbers], Numbers]] = {
    "cls": lambda hidden, _: np.asarray(hidden[:, 0]),
    "max": lambda hidden, weights: np.asarray(np.where(weights > 0, hidden, -np.inf).max(axis=1)),
    "mean": _mean,
    "mean_sqrt_len_tokens": lambda hidden, weights: _mean(hidden, weights) * np.sqrt(weights.sum(axis=1)),
    "weightedmean": _weighted_mean,
    "lasttoken": _last,
}


def normalized(vectors: Numbers) -> Numbers:
    """Return the vectors at length 1; one without length stays as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0))
