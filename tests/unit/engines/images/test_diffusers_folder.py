"""What is decided of a folder before it is loaded."""

import json
from pathlib import Path

import pytest

from serai.engines.images.diffusers_folder import ROOM_BYTES, choose_offload, component_bytes, read_index, variant
from serai.errors import LoadFailed

GIB = 2**30


def safetensors(path: Path, **tensors: tuple[str, int]) -> None:
    """Write a file with tensors of a type and a number of bytes; only its header says anything."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header, at = {}, 0
    for name, (dtype, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": [size], "data_offsets": [at, at + size]}
        at += size
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + bytes(at))


@pytest.mark.parametrize(
    ("memory", "offload"),
    [
        (0, "none"),
        (ROOM_BYTES + 10 * GIB, "none"),
        (ROOM_BYTES + 10 * GIB - 1, "model"),
        (ROOM_BYTES + 6 * GIB, "model"),
        (ROOM_BYTES + 6 * GIB - 1, "sequential"),
        (1, "sequential"),
    ],
)
def test_weights_are_offloaded_as_far_as_memory_is_short(memory: int, offload: str) -> None:
    """All stay if all fit, one at a time if the largest fits, else layer by layer."""
    assert choose_offload({"transformer": 6 * GIB, "text_encoder": 4 * GIB}, memory) == offload


def test_components_are_measured_by_their_headers(tmp_path: Path) -> None:
    """Parameters count in the type that they are loaded in; quantizing counts for the denoiser alone."""
    safetensors(tmp_path / "unet" / "a.safetensors", one=("F32", 4000), two=("F16", 200))
    safetensors(tmp_path / "vae" / "a.safetensors", one=("BF16", 100))
    safetensors(tmp_path / "safety_checker" / "a.safetensors", one=("F32", 4000))
    index = {name: ["diffusers", "X"] for name in ("unet", "vae", "safety_checker", "scheduler")}
    assert component_bytes(tmp_path, index, item_bytes=2, quantize="") == {"unet": 2200, "vae": 100}
    assert component_bytes(tmp_path, index, item_bytes=4, quantize="nf4") == {"unet": 627, "vae": 200}


def test_a_suffix_is_used_where_no_file_lacks_it(tmp_path: Path) -> None:
    """A folder of half-precision files alone is read as such."""
    safetensors(tmp_path / "unet" / "model.fp16.safetensors")
    assert variant(tmp_path) == {"variant": "fp16"}
    safetensors(tmp_path / "vae" / "model.safetensors")
    assert variant(tmp_path) == {}


@pytest.mark.parametrize("text", ["[]", "{", '{"a": ["../x", "Y"]}', '{"a.b": ["x", "Y"]}', "x" * (2**20 + 1)])
def test_an_index_that_cannot_be_one_is_refused(tmp_path: Path, text: str) -> None:
    """The reason is said without a path."""
    (tmp_path / "model_index.json").write_text(text)
    with pytest.raises(LoadFailed, match=r"^model_index\.json") as raised:
        read_index(tmp_path)
    assert str(tmp_path) not in raised.value.message
