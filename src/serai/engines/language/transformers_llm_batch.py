"""A batch that answers join and leave between steps: their keys and values side by side, padded on the left."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer: (rows, heads, tokens, size)."""


class Batch:
    """Rows in the order of joining. One row's numbers change nothing for another's.

    A model whose layers keep something else than all keys and values (windows, recurrent states) cannot be
    padded; its rows are computed one after another, each with a cache of its own.
    """

    def __init__(self, model: Any, device: str) -> None:
        self._model = model
        self._device = device
        self._lengths: list[int] = []
        """Tokens of each row that are in the cache."""
        self._layers: Layers = []
        self._caches: list[Any] = []
        self._is_shared = True

    def __len__(self) -> int:
        return len(self._lengths)

    def join(self, prompt: Sequence[int]) -> torch.Tensor:
        """Compute a prompt as a new, last row; return its logits (vocabulary,)."""
        cache: Any = DynamicCache(config=self._model.config)
        logits = self._forward([list(prompt)], cache)[0]
        if not self._lengths:
            self._is_shared = all(type(layer) is DynamicLayer for layer in cache.layers)
        if self._is_shared:
            self._append([(layer.keys, layer.values) for layer in cache.layers], len(prompt))
        else:
            self._caches.append(cache)
        self._lengths.append(len(prompt))
        return logits

    def step(self, tokens: Sequence[int]) -> torch.Tensor:
        """Compute one more token of each row; return logits (rows, vocabulary)."""
        if not self._is_shared:
            rows = [
                self._forward([[token]], cache, [length])
                for token, cache, length in zip(tokens, self._caches, self._lengths, strict=True)
            ]
            logits = torch.cat(rows)
        else:
            cache = _cache_of(self._layers)
            logits = self._forward([[token] for token in tokens], cache, self._lengths)
            self._layers = [(layer.keys, layer.values) for layer in cache.layers]
        self._lengths = [length + 1 for length in self._lengths]
        return logits

    def leave(self, rows: Sequence[int]) -> None:
        """Remove rows, and the padding that only they needed."""
        stay = [row for row in range(len(self._lengths)) if row not in rows]
        self._lengths = [self._lengths[row] for row in stay]
        if not self._is_shared:
            self._caches = [self._caches[row] for row in stay]
            return
        longest = max(self._lengths, default=0)
        index = torch.tensor(stay, device=self._device, dtype=torch.long)
        self._layers = [
            (_last(keys[index], longest), _last(values[index], longest)) for keys, values in self._layers if stay
        ]

    def _append(self, layers: Layers, length: int) -> None:
        if not self._layers:
            self._layers = layers
            return
        longest = max(*self._lengths, length)
        self._layers = [
            (_joined(old[0], new[0], longest), _joined(old[1], new[1], longest))
            for old, new in zip(self._layers, layers, strict=True)
        ]

    def _forward(self, ids: list[list[int]], cache: Any, past: Sequence[int] | None = None) -> torch.Tensor:
        """Return the logits after the last token of each row. `past`: how many tokens each row has behind it."""
        tokens = torch.tensor(ids, device=self._device)
        behind = torch.tensor(past or [0] * len(ids), device=self._device)[:, None]
        new = tokens.shape[1]
        positions = behind + torch.arange(new, device=self._device)[None]
        total = int(behind.max()) + new
        mask = (torch.arange(total, device=self._device)[None] >= total - new - behind).long()
        with torch.inference_mode():
            output = self._model(
                input_ids=tokens,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: torch.Tensor = output.logits[:, -1]
        return logits


def _cache_of(layers: Layers) -> Any:
    made: list[Any] = []
    for keys, values in layers:
        layer = cast("Any", DynamicLayer)()
        layer.keys, layer.values, layer.dtype, layer.device = keys, values, keys.dtype, keys.device
        layer.is_initialized = True
        made.append(layer)
    return Cache(layers=made)


def _joined(old: torch.Tensor, new: torch.Tensor, length: int) -> torch.Tensor:
    return torch.cat([_padded(old, length), _padded(new, length)])


def _padded(states: torch.Tensor, length: int) -> torch.Tensor:
    missing = length - states.shape[2]
    return torch.nn.functional.pad(states, (0, 0, missing, 0)) if missing else states


def _last(states: torch.Tensor, length: int) -> torch.Tensor:
    return states[:, :, states.shape[2] - length :].contiguous()
