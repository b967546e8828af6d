"""What a folder of diffusers says of itself, and so how it can be loaded. Nothing of it is loaded here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from serai.engines.weights import weights_in
from serai.errors import LoadFailed

Offload = Literal["none", "model", "sequential"]

DENOISERS = ("transformer", "unet")
"""Names of the component that makes the steps."""
ROOM_BYTES = 3 * 2**30
"""For what is computed beside the weights: the autoencoder at 1024 × 1024 in bfloat16 is the most of it."""

_INDEX = "model_index.json"
_MAX_INDEX_BYTES = 1024 * 1024
_UNUSED = "safety_checker"
_FILE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}
_QUANTIZED_BYTES = {"nf4": 0.57, "int8": 1.05, "fp8": 1.02}
"""Of a parameter with its scales; some small layers stay wider."""


def read_index(folder: Path) -> dict[str, Any]:
    """Return the folder's model_index.json. Raises LoadFailed."""
    path = folder / _INDEX
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise LoadFailed(f"{_INDEX} is too large.")
        index = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError:
        raise LoadFailed(f"There is no {_INDEX}.", hint="The model is a folder as diffusers saves it.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise LoadFailed(f"{_INDEX} is not JSON.") from None
    if not all(part.isidentifier() for name, pair in components(index).items() for part in (name, *pair)):
        raise LoadFailed(f"{_INDEX} names a component that cannot be one.")
    return index


def components(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return library and class by component, without those that are left out."""
    return {
        name: (str(entry[0]), str(entry[1]))
        for name, entry in index.items()
        if not name.startswith("_") and isinstance(entry, list) and len(entry) == 2 and entry[1] is not None
    }


def component_bytes(folder: Path, index: Mapping[str, Any], *, item_bytes: int, quantize: str) -> dict[str, int]:
    """Return what each component's weights will take in memory, by the headers of their files."""
    sizes = {}
    for name in (name for name in components(index) if name != _UNUSED and (folder / name).is_dir()):
        tensors = weights_in(folder / name).tensors
        parameters = sum(size // _FILE_BYTES.get(dtype, 4) for dtype, size in tensors.items())
        each = _QUANTIZED_BYTES[quantize] if quantize and name in DENOISERS else item_bytes
        if parameters:
            sizes[name] = int(parameters * each)
    return sizes


def choose_offload(sizes: Mapping[str, int], memory_bytes: int) -> Offload:
    """Return what has to be offloaded for components of such sizes to fit. 0 of memory: no bound."""
    room = memory_bytes - ROOM_BYTES
    if not memory_bytes or sum(sizes.values()) <= room:
        return "none"
    return "model" if max(sizes.values(), default=0) <= room else "sequential"


def variant(folder: Path) -> dict[str, str]:
    """Return the suffix of the weights' files, where there are none without one."""
    names = [path.name for path in folder.glob("*/*.safetensors")]
    return {"variant": "fp16"} if names and all(".fp16." in name for name in names) else {}
