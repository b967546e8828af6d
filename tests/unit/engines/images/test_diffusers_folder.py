"""What is decided of a folder before it is loaded."""

import ast
import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from serai.engines.images.diffusers_folder import (
    ROOM_BYTES,
    choose_offload,
    component_bytes,
    heeds_negative_prompt,
    read_index,
    size_step,
    variant,
)
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


def pipelines() -> Iterator[tuple[str, dict[str, str], str]]:
    """Yield the image pipelines of the library that is installed: class, its call's defaults, its module's source.

    They are read and not imported, which would take long.
    """
    found = find_spec("diffusers")
    assert found is not None
    assert found.origin is not None
    for path in sorted(Path(found.origin).parent.glob("pipelines/*/pipeline_*.py")):
        source = path.read_text()
        for kind in (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)):
            for call in (node for node in kind.body if isinstance(node, ast.FunctionDef) and node.name == "__call__"):
                names = [argument.arg for argument in call.args.args]
                defaults = dict(zip(names[::-1], map(ast.unparse, call.args.defaults[::-1]), strict=False))
                if {"prompt", "callback_on_step_end"} <= {*names} and "Control" not in kind.name:
                    yield kind.name, {**dict.fromkeys(names, ""), **defaults}, source


def test_kinds_are_known_by_their_names(tmp_path: Path) -> None:
    """Sides are multiples of what the library reduces by; those that heed no negative prompt have no use for it."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [128, 256, 512, 512]}))
    steps, deaf = {}, set()
    for name, defaults, source in pipelines():
        index = {"_class_name": name}
        step = size_step(tmp_path, index)
        if step is not None and (reduced := re.findall(r"image_processor = \w+\(\s*vae_scale_factor=([^,)]*)", source)):
            steps[name] = step
            is_packed = "self.vae_scale_factor * 2" in reduced or "self.vae_scale_factor * self.patch_size" in source
            assert step == (16 if is_packed else 8), name
        heeds = "negative_prompt" in defaults and float(defaults.get("true_cfg_scale", "4")) > 1
        if not heeds_negative_prompt(index):
            deaf.add(name)
            assert not heeds, name
    assert {"StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline", "ZImagePipeline"} <= steps.keys()
    assert {"FluxPipeline", "FluxKontextPipeline", "Flux2Pipeline", "LatentConsistencyModelPipeline"} <= deaf


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"block_out_channels": "no"}', None])
def test_a_folder_that_tells_no_sides_says_none(tmp_path: Path, config: str | None) -> None:
    """Without a configuration, with another one, and of a kind that is not known."""
    (tmp_path / "vae").mkdir()
    if config is not None:
        (tmp_path / "vae" / "config.json").write_text(config)
    assert size_step(tmp_path, {"_class_name": "FluxPipeline"}) is None
    (tmp_path / "vae" / "config.json").write_text(json.dumps({"block_out_channels": [8, 8]}))
    assert size_step(tmp_path, {"_class_name": "FluxPipeline"}) == 4
    assert size_step(tmp_path, {"_class_name": "AnotherPipeline"}) is None
    assert size_step(tmp_path, {}) is None
