"""Adapters as files: every way of writing them is read alike, and what fits no layer is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save, save_file

from serai.engines.base import AdapterUse
from serai.engines.images.image_adapters import canonical, combined, read_adapter
from serai.errors import LoadFailed

LAYER = ("unet", "mid_block_attn1_to_q")
TEXT = ("text_encoder", "encoder_layers_0_self_attn_q_proj")
SHAPES = {LAYER: (6, 5), TEXT: (4, 4)}
DRAWN = np.random.default_rng(1)
DOWN, UP = (DRAWN.standard_normal(shape).astype(np.float32) for shape in ((3, 5), (6, 3)))


def use(path: Path) -> AdapterUse:
    return AdapterUse(id="digest", path=str(path), name="mine")


def delta(path: Path, layer: tuple[str, str] = LAYER) -> np.ndarray[Any, Any]:
    """Return the matrix that is added to a layer."""
    pair = read_adapter(use(path), SHAPES)[layer]
    return np.asarray(pair.up @ pair.down)


def written(folder: Path, tensors: dict[str, Any], **metadata: str) -> Path:
    path = folder / "adapter.safetensors"
    save_file({key: np.asarray(value) for key, value in tensors.items()}, path, metadata=metadata or None)
    return path


@pytest.mark.parametrize(
    ("module", "down", "up"),
    [
        ("unet.mid_block.attn1.to_q", "lora_A.weight", "lora_B.weight"),
        ("unet.mid_block.attn1.to_q", "lora_A.default.weight", "lora_B.default.weight"),
        ("unet.mid_block.attn1.to_q", "lora.down.weight", "lora.up.weight"),
        ("base_model.model.mid_block.attn1.to_q", "lora_A.weight", "lora_B.weight"),
        ("base_model.model.unet.mid_block.attn1.to_q", "lora_A.weight", "lora_B.weight"),
        ("lora_unet_mid_block_attn1_to_q", "lora_down.weight", "lora_up.weight"),
    ],
)
def test_every_way_of_writing_is_read_alike(tmp_path: Path, module: str, down: str, up: str) -> None:
    """Without an alpha the product itself is added."""
    path = written(tmp_path, {f"{module}.{down}": DOWN, f"{module}.{up}": UP})
    assert np.allclose(delta(path), UP @ DOWN, atol=1e-6)
    assert np.array_equal(delta(tmp_path), delta(path))


def test_alpha_over_rank_is_the_strength(tmp_path: Path) -> None:
    """Of kohya's scripts a tensor for each layer, of PEFT a number in the metadata or in a file beside."""
    keys = ("lora_unet_mid_block_attn1_to_q.lora_down.weight", "lora_unet_mid_block_attn1_to_q.lora_up.weight")
    alpha = {"lora_unet_mid_block_attn1_to_q.alpha": np.float32(6)}
    single_pixels = {keys[0]: DOWN[:, :, None, None], keys[1]: UP[:, :, None, None]}
    assert np.allclose(delta(written(tmp_path, single_pixels | alpha)), 2 * UP @ DOWN, atol=1e-6)
    plain = {"unet.mid_block.attn1.to_q.lora_A.weight": DOWN, "unet.mid_block.attn1.to_q.lora_B.weight": UP}
    settings = {"unet.lora_alpha": 12, "unet.r": 3, "unet.use_dora": False, "unet.alpha_pattern": {}}
    path = written(tmp_path, plain, lora_adapter_metadata=json.dumps(settings))
    assert np.allclose(delta(path), 4 * UP @ DOWN, atol=1e-6)
    path = written(tmp_path, plain)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 1.5, "r": 3}))
    assert np.allclose(delta(path), 0.5 * UP @ DOWN, atol=1e-6)


def test_numbers_of_16_bits_are_read(tmp_path: Path) -> None:
    """Half precision, and the upper halves of float32."""
    down, up = "unet.mid_block.attn1.to_q.lora_A.weight", "unet.mid_block.attn1.to_q.lora_B.weight"
    path = written(tmp_path, {down: DOWN.astype(np.float16), up: UP.astype(np.float16)})
    assert np.allclose(delta(path), UP @ DOWN, atol=0.01)
    halves = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in ((down, DOWN), (up, UP))}
    path.write_bytes(save(halves).replace(b'"U16"', b'"BF16"').replace(b"{", b"{", 1))
    if b'"BF16"' in path.read_bytes():
        data = path.read_bytes()
        length = data.index(b"}}") + 2 - 8
        header = data[8 : 8 + length]
        path.write_bytes(len(header).to_bytes(8, "little") + header + data[-(DOWN.size + UP.size) * 2 :])
    assert np.allclose(delta(path), UP @ DOWN, atol=0.1)


def test_the_text_encoder_is_changed_too(tmp_path: Path) -> None:
    """With and without the 'text_model' that libraries put before its layers."""
    for module in ("lora_te_text_model_encoder_layers_0_self_attn_q_proj", "lora_te_encoder_layers_0_self_attn_q_proj"):
        pair = {f"{module}.lora_down.weight": np.ones((1, 4), "f4"), f"{module}.lora_up.weight": np.ones((4, 1), "f4")}
        assert np.array_equal(delta(written(tmp_path, pair), TEXT), np.ones((4, 4)))
    assert canonical("text_encoder", "text_model.encoder.layers.0.self_attn.q_proj") == TEXT


def test_several_adapters_lie_beside_each_other(tmp_path: Path) -> None:
    """The sum of their products at their scales; a layer that none of them has stays as it is."""
    path = written(
        tmp_path, {"unet.mid_block.attn1.to_q.lora_A.weight": DOWN, "unet.mid_block.attn1.to_q.lora_B.weight": UP}
    )
    adapter = read_adapter(use(path), SHAPES)
    pair = combined([(adapter, 0.5), (adapter, -2.0)], LAYER)
    assert pair is not None
    assert np.allclose(pair.up @ pair.down, -1.5 * UP @ DOWN, atol=1e-5)
    assert combined([(adapter, 1.0)], TEXT) is None


def keyed(key: str) -> dict[str, Any]:
    return {key: np.ones((1, 5), "f4")}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (keyed("unet.other.to_q.lora_A.weight"), "no layer"),
        (keyed("something.lora_A.weight"), "no layer"),
        (keyed("unet.mid_block.attn1.to_q.hada_w1_a"), "of no kind"),
        (keyed("unet.mid_block.attn1.to_q.lora_A.weight"), "two matrices"),
        ({"unet.mid_block.attn1.to_q.alpha": np.ones(1, "f4")}, "two matrices"),
        ({}, "no matrices"),
        (
            {"unet.mid_block.attn1.to_q.lora_A.weight": DOWN[:, :4], "unet.mid_block.attn1.to_q.lora_B.weight": UP},
            "the layer is",
        ),
        (
            {"unet.mid_block.attn1.to_q.lora_A.weight": DOWN[:2], "unet.mid_block.attn1.to_q.lora_B.weight": UP},
            "the layer is",
        ),
        (
            {"unet.mid_block.attn1.to_q.lora_A.weight": DOWN * np.nan, "unet.mid_block.attn1.to_q.lora_B.weight": UP},
            "numbers",
        ),
        (
            {
                "unet.mid_block.attn1.to_q.lora_A.weight": np.ones((3, 5, 3, 3), "f4"),
                "unet.mid_block.attn1.to_q.lora_B.weight": UP,
            },
            "shape",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, tensors: dict[str, Any], words: str) -> None:
    """Saying what, and not where the file lies: an adapter applied in part makes other pictures than it should."""
    with pytest.raises(LoadFailed, match=words) as refused:
        read_adapter(use(written(tmp_path, tensors)), SHAPES)
    assert "mine" in refused.value.message
    assert str(tmp_path) not in refused.value.message


def test_kinds_that_are_not_known_are_refused(tmp_path: Path) -> None:
    """DoRA and the like; files that are none; folders with several."""
    plain = {"unet.mid_block.attn1.to_q.lora_A.weight": DOWN, "unet.mid_block.attn1.to_q.lora_B.weight": UP}
    path = written(tmp_path, plain, lora_adapter_metadata=json.dumps({"unet.use_dora": True}))
    with pytest.raises(LoadFailed, match="DoRA"):
        read_adapter(use(path), SHAPES)
    for text in ("[]", '{"unet.r": "many"}', "[" * 3000):
        with pytest.raises(LoadFailed, match="cannot be read"):
            read_adapter(use(written(tmp_path, plain, lora_adapter_metadata=text)), SHAPES)
    (tmp_path / "second.safetensors").write_bytes(b"")
    with pytest.raises(LoadFailed, match="one safetensors file"):
        read_adapter(use(tmp_path), SHAPES)
    with pytest.raises(LoadFailed, match="cannot be read"):
        read_adapter(use(tmp_path / "second.safetensors"), SHAPES)
