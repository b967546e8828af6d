"""How much memory a language model takes with OpenVINO, before and while it is loaded. Imports no library."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from serai.engines.language.openvino_llm_folder import MODEL, read_export, read_json
from serai.engines.language.openvino_llm_salt import BLOCK_TOKENS
from serai.engines.options import OpenvinoLlmOptions
from serai.errors import OutOfMemory

OVERHEAD_BYTES = 256 * 1024 * 1024
"""What the process takes beside weights and cache."""
_USUAL_CACHE_TOKENS = 16 * 1024
_UNBOUND_CACHE_TOKENS = 32 * 1024
"""Tokens in the cache where no memory bound is given; it is taken as it fills."""
_MOST_CACHE_TOKENS = 512 * 1024
_FEWEST_CACHE_TOKENS = 2048


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a model's memory from its folder."""

    weights: int
    """Bytes of the weights' file: they are mapped once, and held once more in the order that is fast."""
    token: int
    """Bytes of a token in the cache."""
    can_share: bool
    """Whether prefixes can be cached; then a second pipeline may be needed, with weights of its own."""


def sizes_of(folder: Path, options: OpenvinoLlmOptions) -> Sizes:
    """Return the sizes of the model in a folder. Raises LoadFailed, OSError."""
    return Sizes(
        weights=(folder / MODEL).with_suffix(".bin").stat().st_size,
        token=bytes_per_token(read_json(folder / "config.json"), options.cache_precision),
        can_share=options.prefix_cache and read_export(folder).salt_bits > 0,
    )


def estimate_bytes(folder: Path, options: OpenvinoLlmOptions) -> int:
    """Return what is best reserved for a model: all that it may need, and a cache of a usual size."""
    sizes = sizes_of(folder, options)
    tokens = options.cache_tokens or _USUAL_CACHE_TOKENS
    return OVERHEAD_BYTES + _copies(sizes) * sizes.weights + tokens * sizes.token


def plan_cache(sizes: Sizes, reserved: int, options: OpenvinoLlmOptions) -> tuple[int, bool]:
    """Return how many blocks the cache has, and whether prefixes are cached, so that all fits what was reserved.

    `reserved` 0: no bound. Where it is short, first the prefixes go. Raises OutOfMemory if not even the
    weights fit.
    """
    if options.cache_tokens or not reserved:
        return max(1, (options.cache_tokens or _UNBOUND_CACHE_TOKENS) // BLOCK_TOKENS), sizes.can_share
    if reserved < OVERHEAD_BYTES + sizes.weights:
        raise OutOfMemory("The memory that was reserved for the model does not hold its weights.")
    free = reserved - OVERHEAD_BYTES - _copies(sizes) * sizes.weights
    if sizes.can_share and free < _FEWEST_CACHE_TOKENS * sizes.token:
        return plan_cache(msgspec.structs.replace(sizes, can_share=False), reserved, options)
    tokens = min(max(free // sizes.token, _FEWEST_CACHE_TOKENS), _MOST_CACHE_TOKENS)
    return int(tokens // BLOCK_TOKENS), sizes.can_share


def bytes_per_token(config: Mapping[str, Any], cache_precision: str) -> int:
    """Return what the keys and values of a token take in the cache; those of 8 bits have scales."""
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 0)
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 0)
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 0)
    size = int(config.get("head_dim") or (hidden // heads if heads else 0))
    keys = int(config.get("num_key_value_heads") or heads)
    each = size + 8 if cache_precision == "u8" else size * (4 if cache_precision == "f32" else 2)
    return max(1, 2 * layers * keys * each)


def _copies(sizes: Sizes) -> int:
    return 3 if sizes.can_share else 2
