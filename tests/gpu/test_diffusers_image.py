"""The engine `diffusers` on a CUDA device, on tiny pipelines: the same promises as on a CPU, and its memory."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from serai.engines.base import AdapterUse
from support.image_models import LORAS, made
from support.picture_driver import DIFFUSERS, OTHER, Drawer, difference, gradient, psnr, right_half

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

GIB = 2**30
PACKAGES = {"nf4": "bitsandbytes", "int8": "torchao", "fp8": "torchao"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ["sd", "kontext", "sd-loras", "kontext-loras"]
    return dict(zip(names, made(tmp_path_factory, names), strict=True))


@pytest.fixture(scope="module")
def sd(folders: dict[str, Path]) -> Iterator[Drawer]:
    with Drawer(DIFFUSERS) as drawer:
        footprint = drawer.load(folders["sd"], engine="diffusers", device="cuda:0", memory_bytes=8 * GIB)
        assert footprint.bytes is not None
        assert 0 < footprint.bytes < 8 * GIB
        assert (footprint.facts["dtype"], footprint.facts["offload"]) == ("bfloat16", "none")
        yield drawer


def test_the_same_seed_gives_the_same_bytes(sd: Drawer) -> None:
    """Alone and among others, for each kind of task."""
    for fields in ({}, {"source": gradient()}, {"source": gradient(), "mask": right_half()}):
        first = sd.draw(reproducible=True, **fields)
        assert sd.draw(reproducible=True, images=2, **fields)[:1] == first
        assert difference(first[0], sd.draw(OTHER, reproducible=True, seed=77, **fields)[0]) > 1


def test_it_draws_what_a_cpu_draws(folders: dict[str, Path]) -> None:
    """The noise is the same on every device, so in float32 the picture is the same to the eye."""
    pictures = []
    for device in ("cpu", "cuda:0"):
        with Drawer(DIFFUSERS) as drawer:
            drawer.load(folders["sd"], engine="diffusers", device=device, options={"dtype": "float32"})
            pictures += drawer.draw(reproducible=True)
    assert psnr(*pictures) >= 40


def test_a_cancelled_run_leaves_no_memory(sd: Drawer) -> None:
    """What is held after a cancel is what was held before, within 90 % of what was reserved for the engine."""
    sd.draw(images=4)
    held = sd.look("allocated_bytes()")
    for _ in range(5):
        run = sd.begin(images=4, steps=50)
        sd.step()
        sd.cancel(run)
    assert sd.look("allocated_bytes()") <= held
    assert held < 0.9 * 8 * GIB


@pytest.mark.parametrize("name", ["sd", "kontext"])
@pytest.mark.parametrize("quantize", PACKAGES)
def test_the_denoiser_is_quantized_while_it_is_loaded(folders: dict[str, Path], name: str, quantize: str) -> None:
    """Pictures repeat, adapters act, and a scale of 0 is the base to the bit."""
    if find_spec(PACKAGES[quantize]) is None:
        pytest.skip(f"{PACKAGES[quantize]} is not installed")
    lora = AdapterUse(id="first", path=str(folders[f"{name}-loras"] / LORAS[0]), name="first")
    with Drawer(DIFFUSERS) as drawer:
        options = {"quantize": quantize}
        facts = drawer.load(folders[name], engine="diffusers", device="cuda:0", options=options).facts
        assert facts["precision"] == quantize
        base = drawer.draw(reproducible=True)
        assert drawer.draw(reproducible=True) == base
        assert drawer.draw(reproducible=True, adapters=(lora,), adapter_scales={"first": 0}) == base
        assert difference(drawer.draw(reproducible=True, adapters=(lora,))[0], base[0]) > 1
        assert drawer.draw(reproducible=True) == base


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloaded_weights_draw_the_same(folders: dict[str, Path], sd: Drawer, offload: str) -> None:
    """Where weights wait makes no difference, not after a cancel, and not with adapters."""
    lora = AdapterUse(id="first", path=str(folders["sd-loras"] / LORAS[0]), name="first")
    expected = sd.draw(reproducible=True), sd.draw(reproducible=True, adapters=(lora,))
    with Drawer(DIFFUSERS) as drawer:
        options = {"offload": offload}
        assert (
            drawer.load(folders["sd"], engine="diffusers", device="cuda:0", options=options).facts["offload"] == offload
        )
        cancelled = drawer.begin(steps=20)
        drawer.step()
        drawer.cancel(cancelled)
        drawn = drawer.draw(reproducible=True), drawer.draw(reproducible=True, adapters=(lora,))
        assert all(psnr(one[0], other[0]) >= 50 for one, other in zip(expected, drawn, strict=True))
        one, two = drawer.begin(steps=4, reproducible=True), drawer.begin(steps=2, reproducible=True, source=gradient())
        assert len(drawer.all_of(one, two)) == 2


def test_little_memory_means_offloading(folders: dict[str, Path]) -> None:
    """With less than the weights and their room need, they are offloaded unasked, and the bound is kept."""
    with Drawer(DIFFUSERS) as drawer:
        footprint = drawer.load(folders["sd"], engine="diffusers", device="cuda:0", memory_bytes=GIB)
        assert footprint.facts["offload"] == "sequential"
        drawer.draw()
        assert drawer.look("allocated_bytes()") <= GIB
