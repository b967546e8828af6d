"""What the files of a model say of themselves, read without loading it."""

from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from serai.engines.footprint import Weights

_MAX_HEADER_BYTES = 32 * 1024 * 1024
_MAX_CONFIG_BYTES = 4 * 1024 * 1024
_PARTS = ("transformer", "unet", "vae", "vae_decoder")
"""Folders of an image pipeline whose sizes say what a picture takes."""


class _Tensor(msgspec.Struct):
    dtype: str
    data_offsets: tuple[int, int]


def weights_in(folder: Path) -> Weights:
    """Read the sizes, the headers and the configuration below `folder`. Blocks; damaged headers count as absent."""
    files: dict[str, int] = {}
    tensors: Counter[str] = Counter()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if not path.is_file() or relative.startswith("adapters/"):
            continue
        files[relative] = path.stat().st_size
        if path.suffix == ".safetensors":
            tensors.update(_tensors_in(path, files[relative]))
    return Weights(files=files, tensors=dict(tensors), config=_config_of(folder))


def _tensors_in(path: Path, size: int) -> Counter[str]:
    """Return the bytes of a file's tensors by type. The format: a length of 8 bytes, then so much JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(_MAX_HEADER_BYTES, size):
            return Counter()
        header = file.read(length)
    found: Counter[str] = Counter()
    try:
        for name, entry in msgspec.json.decode(header, type=dict[str, msgspec.Raw]).items():
            if name != "__metadata__":
                tensor = msgspec.json.decode(entry, type=_Tensor)
                found[tensor.dtype] += max(tensor.data_offsets[1] - tensor.data_offsets[0], 0)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Counter()
    return found if found.total() <= size else Counter()


def _config_of(folder: Path) -> dict[str, Any]:
    """Return the configuration of a model, or of each part of a pipeline."""
    if not (folder / "model_index.json").is_file():
        return _config_in(folder / "config.json")
    return {part: config for part in _PARTS if (config := _config_in(folder / part / "config.json"))}


def _config_in(path: Path) -> dict[str, Any]:
    """Return the part of config.json that describes the language model."""
    if not path.is_file() or path.stat().st_size > _MAX_CONFIG_BYTES:
        return {}
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    inner = config.get("text_config")
    return inner if isinstance(inner, dict) else config
