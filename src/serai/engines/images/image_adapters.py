"""Adapters (LoRA) of image pipelines, read from safetensors: for each layer two narrow matrices.

    layer(x) + scale × alpha / rank × (x · downᵀ) · upᵀ

| written by | keys | alpha |
|---|---|---|
| diffusers, PEFT | `unet.….to_q.lora_A.weight`, `….lora_B.weight`; `….lora.down.weight`, `….up.weight` | metadata |
| kohya's scripts | `lora_unet_…_to_q.lora_down.weight`, `….lora_up.weight`, `lora_te_…` | `….alpha` |

A key that no layer takes is an error: an adapter that is applied in part makes other pictures than it should.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, deserialize

from serai.engines.base import AdapterUse
from serai.errors import LoadFailed

Matrix = NDArray[Any]
Layer = tuple[str, str]
"""The part of the pipeline (unet, text_encoder), and the layer's path in it with '_' for '.'."""
Shapes = Mapping[Layer, tuple[int, int]]
"""What comes out of a layer and what goes in, by layer."""

_MAX_BYTES = 4 * 2**30
_KEY = re.compile(r"(.+?)\.(lora_A|lora_B|lora\.down|lora\.up|lora_down|lora_up)(?:\.default)?\.weight")
_ALPHA = re.compile(r"(.+)\.alpha")
_PREFIXES = {
    "unet.": "unet",
    "lora_unet_": "unet",
    "text_encoder.": "text_encoder",
    "lora_te_": "text_encoder",
    "base_model.model.": "unet",
}
_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
_METADATA = "lora_adapter_metadata"


class _Settings(msgspec.Struct, frozen=True):
    """What PEFT notes of an adapter, as far as it changes how it acts."""

    lora_alpha: float | None = None
    r: int = 0
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool = False
    use_dora: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """What an adapter adds to a layer. `down`: rank × in; `up`: out × rank, with alpha / rank in it; both float32.

    Two are equal only if they are one: that is how a network sees whether it computes with the right ones.
    """

    down: Matrix
    up: Matrix


Adapter = Mapping[Layer, Pair]


def read_adapter(use: AdapterUse, shapes: Shapes) -> Adapter:
    """Return an adapter's matrices by layer. Raises LoadFailed for a file that does not fit these layers."""
    name = use.name or use.id
    path = _file_of(use)
    settings, tensors = _read(path, name)
    halves: dict[str, dict[str, Matrix]] = {}
    for key, tensor in tensors.items():
        module, half = _place(key, name)
        halves.setdefault(module, {})[half] = tensor
    adapter = {}
    for module, found in halves.items():
        layer = _layer(module, shapes, name)
        if not {"down", "up"} <= found.keys():
            raise _misfit(name, f"{module} has no two matrices")
        adapter[layer] = _pair(found, shapes[layer], settings.get(layer[0], _Settings()), f"{name}: {module}")
    if not adapter:
        raise _misfit(name, "it holds no matrices")
    return adapter


def combined(adapters: Sequence[tuple[Adapter, float]], layer: Layer) -> Pair | None:
    """Return what several adapters add to a layer together: their ranks beside each other, their scales in `up`."""
    found = [(adapter[layer], scale) for adapter, scale in adapters if layer in adapter]
    if not found:
        return None
    down = np.concatenate([pair.down for pair, _ in found], axis=0)
    up = np.concatenate([pair.up * np.float32(scale) for pair, scale in found], axis=1)
    return Pair(down=down, up=up)


def canonical(part: str, module: str) -> Layer:
    """Return the name by which a layer is found, whoever writes its path, and with '.' or '_'."""
    plain = module.replace(".", "_")
    return part, plain.removeprefix("text_model_") if part == "text_encoder" else plain


def _file_of(use: AdapterUse) -> Path:
    path = Path(use.path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file() or files[0].stat().st_size > _MAX_BYTES:
        raise _misfit(use.name or use.id, "it is not one safetensors file")
    return files[0]


def _read(path: Path, name: str) -> tuple[dict[str, _Settings], dict[str, Matrix]]:
    """Return what the file says of each part's adapter, and its tensors as float32."""
    data = path.read_bytes()
    try:
        tensors = {key: _array(entry) for key, entry in deserialize(data)}  # type: ignore[no-untyped-call]
        header = msgspec.json.decode(data[8 : 8 + int.from_bytes(data[:8], "little")], type=dict[str, msgspec.Raw])
        metadata = msgspec.json.decode(header.get("__metadata__", b"{}"), type=dict[str, str])
        said = msgspec.json.decode(metadata.get(_METADATA, "{}"), type=dict[str, Any])
        beside = path.with_name("adapter_config.json")
        if not said and beside.is_file():
            said = {f"unet.{key}": value for key, value in msgspec.json.decode(beside.read_bytes()).items()}
        parts = {key.partition(".")[0] for key in said}
        settings = {part: msgspec.convert(_of_part(said, part), _Settings) for part in parts}
    except (SafetensorError, msgspec.MsgspecError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise LoadFailed(f"The adapter {name} cannot be read: it is damaged, or no safetensors file.") from error
    for one in settings.values():
        if one.use_dora or one.use_rslora or one.alpha_pattern:
            raise _misfit(name, "DoRA, rank-stabilised and per-layer alphas are not known here")
    return settings, tensors


def _of_part(said: Mapping[str, Any], part: str) -> dict[str, Any]:
    return {key.removeprefix(f"{part}."): value for key, value in said.items() if key.startswith(f"{part}.")}


def _array(entry: Mapping[str, Any]) -> Matrix:
    data, shape, dtype = entry["data"], entry["shape"], entry["dtype"]
    if dtype == "BF16":  # the upper half of a float32, which numpy has no name for
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
    return np.frombuffer(data, _DTYPES[dtype]).astype(np.float32).reshape(shape)


def _place(key: str, name: str) -> tuple[str, str]:
    """Return the module that a key is of, and what of it: down, up or alpha."""
    found = _KEY.fullmatch(key)
    if found is not None:
        return found[1], "down" if found[2] in ("lora_A", "lora.down", "lora_down") else "up"
    alpha = _ALPHA.fullmatch(key)
    if alpha is not None:
        return alpha[1], "alpha"
    raise _misfit(name, f"its key {key[:120]!r} is of no kind that is known")


def _layer(module: str, shapes: Shapes, name: str) -> Layer:
    for prefix, part in _PREFIXES.items():
        if module.startswith(prefix):
            layer = canonical(part, module.removeprefix(prefix).removeprefix(f"{part}."))
            if layer in shapes:
                return layer
    raise _misfit(name, f"the model has no layer {module[:120]!r} that adapters can be added to")


def _pair(found: Mapping[str, Matrix], shape: tuple[int, int], settings: _Settings, name: str) -> Pair:
    down, up = (_flat(found[half], name) for half in ("down", "up"))
    rank = down.shape[0]
    if (up.shape[0], down.shape[1]) != shape or up.shape[1] != rank or rank < 1:
        raise _misfit(name, f"its matrices are {up.shape} and {down.shape}, and the layer is {shape}")
    alpha = float(rank if settings.lora_alpha is None else settings.lora_alpha * rank / (settings.r or rank))
    if "alpha" in found:
        if found["alpha"].size != 1:
            raise _misfit(name, "its alpha is not one number")
        alpha = float(found["alpha"].reshape(-1)[0])
    if not all(np.isfinite(one).all() for one in (down, up)):
        raise _misfit(name, "it holds numbers that are none")
    return Pair(down=np.ascontiguousarray(down), up=np.ascontiguousarray(up * np.float32(alpha / rank)))


def _flat(matrix: Matrix, name: str) -> Matrix:
    """Return a matrix; that of a convolution over single pixels is one, too."""
    if matrix.ndim == 4 and matrix.shape[2:] == (1, 1):
        return matrix[:, :, 0, 0]
    if matrix.ndim != 2:
        raise _misfit(name, f"its matrix has the shape {matrix.shape}")
    return matrix


def _misfit(name: str, why: str) -> LoadFailed:
    return LoadFailed(
        f"The adapter {name} does not fit the model: {why}.",
        hint="Adapters are LoRA files in safetensors, made for this very base model.",
    )
