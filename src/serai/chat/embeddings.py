"""Vectors of texts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from serai.auth.limits import Limiter
from serai.auth.policy import Caller
from serai.chat.chats import Serves
from serai.chat.reply import Answer
from serai.engines.base import EngineInfo
from serai.engines.tasks import AnyTask, Array, Embed
from serai.errors import InternalError, InvalidInput
from serai.events import Done, Failed
from serai.registry.plan import Request
from serai.registry.snapshot import Candidate
from serai.serving.call import Call
from serai.serving.errors import error_of

MAX_TEXTS = 2048
TASK = "embedding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Embeddings:
    """A vector for each text: little-endian float32, `dimensions` numbers each."""

    vectors: tuple[bytes, ...]
    dimensions: int
    prompt_tokens: int
    load_s: float
    """How long a model was loaded for it."""
    headers: Mapping[str, str]

    def numbers(self, index: int) -> list[float]:
        """Return one vector as numbers."""
        return list(memoryview(self.vectors[index]).cast("f"))


class Embedder:
    """Turns texts into vectors, by models of the task `embedding`."""

    def __init__(self, serving: Serves, limiter: Limiter) -> None:
        self._serving = serving
        self._limiter = limiter

    async def embed(
        self,
        model: str,
        texts: tuple[str, ...],
        caller: Caller,
        *,
        timeout_s: float,
        dimensions: int | None = None,
        truncate: bool = True,
        keep_alive: float | None = None,
    ) -> Embeddings:
        """Return the vectors; `dimensions` and `truncate` as in `Embed`.

        Raises InvalidInput, what serving raises, and what the model failed of.
        """
        if not 1 <= len(texts) <= MAX_TEXTS or not all(texts):
            raise InvalidInput.at("input", f"has 1 to {MAX_TEXTS} texts, none of them empty")
        await self._limiter.check_tokens(caller)

        def task(candidate: Candidate, engine: EngineInfo) -> AnyTask:
            return Embed(texts=texts, dimensions=dimensions, truncate=truncate)

        answer = await self._serving.open(
            Call(
                request=Request(model=model, task=TASK, client_key=caller.user_id),
                task=task,
                caller=caller.limit_id,
                owner=caller.user_id,
                timeout_s=timeout_s,
                keep_alive=keep_alive,
            )
        )
        try:
            result = await _result(answer)
        finally:
            await answer.aclose()
        found = _vectors(result, len(texts), answer)
        await self._limiter.spend_tokens(caller, found.prompt_tokens)
        if dimensions not in (None, found.dimensions):  # another server may not know of such a thing
            raise InvalidInput.at("dimensions", f"must be {found.dimensions}, which is what this model gives")
        return found


async def _result(answer: Answer) -> Mapping[str, Any]:
    while True:
        event = await anext(answer)
        if isinstance(event, Done):
            return event.result
        if isinstance(event, Failed):
            raise answer.error or error_of(event)


def _vectors(result: Mapping[str, Any], count: int, answer: Answer) -> Embeddings:
    array = msgspec.convert(msgspec.to_builtins(result.get("embeddings"), builtin_types=(bytes,)), Array)
    if array.dtype != "float32" or len(array.shape) != 2 or array.shape[0] != count:
        raise InternalError("A model returned vectors of another shape than asked for.")
    size = array.shape[1] * 4
    usage = result.get("usage") or {}
    return Embeddings(
        vectors=tuple(array.data[number * size : (number + 1) * size] for number in range(count)),
        dimensions=array.shape[1],
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        load_s=answer.load_s,
        headers=dict(answer.headers()),
    )
