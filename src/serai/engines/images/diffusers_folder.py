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
_MAX_LEVELS = 8
_UNUSED = "safety_checker"
_FILE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1}
_PACKED = {
    "StableDiffusion3": 2,
    "StableDiffusion": 1,
    "Kolors": 1,
    "LatentConsistencyModel": 1,
    "Chroma": 2,
    "Flux": 2,
    "HiDreamImage": 2,
    "Lumina2": 2,
    "ZImage": 2,
}
"""How many latents in each direction are one for the denoiser, by how the pipeline is called: the first that fits."""
_DISTILLED = ("Flux", "LatentConsistencyModel")
"""How pipelines are called whose guidance is built into their weights: they heed no negative prompt."""
_QUANTIZED_BYTES = {"nf4": 0.57, "int8": 1.05, "fp8": 1.02}
"""Of a parameter with its scales; some small layers stay wider."""


class _VaeConfig(msgspec.Struct, frozen=True):
    block_out_channels: tuple[int, ...] = ()


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


def size_step(folder: Path, index: Mapping[str, Any]) -> int | None:
    """Return what the sides of pictures are multiples of; None where the folder of that kind does not tell."""
    name = str(index.get("_class_name"))
    packed = next((side for beginning, side in _PACKED.items() if name.startswith(beginning)), None)
    try:
        config = msgspec.json.decode((folder / "vae" / "config.json").read_bytes(), type=_VaeConfig)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    levels = len(config.block_out_channels)
    return packed * 2 ** (levels - 1) if packed is not None and 1 <= levels <= _MAX_LEVELS else None


def heeds_negative_prompt(index: Mapping[str, Any]) -> bool:
    """Say whether a pipeline does, or is of a kind that nothing is known of."""
    return not str(index.get("_class_name")).startswith(_DISTILLED)


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
