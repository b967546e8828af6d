"""The engine `diffusers` on tiny pipelines: bytes, batches, adapters, pictures from pictures, and what is refused."""

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serai.engines.base import AdapterUse
from serai.engines.tasks import Array
from serai.events import Done, Event, Failed, Media, Progress
from support.diffusers_reference import drawn
from support.engine_driver import EngineError
from support.image_models import LORAS, SIDE, made
from support.picture_driver import (
    DIFFUSERS,
    OTHER,
    PROMPT,
    Drawer,
    difference,
    gradient,
    pixels,
    psnr,
    result,
    right_half,
)

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    names = ["sd", "kontext", "sd-loras", "kontext-loras"]
    return dict(zip(names, made(tmp_path_factory, names), strict=True))


@pytest.fixture(scope="module")
def sd(folders: dict[str, Path]) -> Iterator[Drawer]:
    with Drawer(DIFFUSERS) as drawer:
        drawer.load(folders["sd"], engine="diffusers", options={"max_runs": 8, "max_adapters": 2})
        yield drawer


@pytest.fixture(scope="module")
def kontext(folders: dict[str, Path]) -> Iterator[Drawer]:
    with Drawer(DIFFUSERS) as drawer:
        drawer.load(folders["kontext"], engine="diffusers")
        yield drawer


@pytest.fixture(scope="module")
def loader(folders: dict[str, Path]) -> Iterator[Drawer]:
    """An engine that is loaded again and again."""
    with Drawer(DIFFUSERS) as drawer:
        yield drawer


def loras(folders: dict[str, Path], name: str = "sd") -> tuple[AdapterUse, AdapterUse]:
    first, second = (
        AdapterUse(id=f"sha256:{file}", path=str(folders[f"{name}-loras"] / file), name=file.partition(".")[0])
        for file in LORAS
    )
    return first, second


@pytest.fixture(scope="module")
def reference(folders: dict[str, Path]) -> dict[str, bytes]:
    """What diffusers draws, by name."""
    image, mask = [SIDE, SIDE, gradient().data], [SIDE, SIDE, right_half().data]
    size = {"width": SIDE, "height": SIDE}
    four = {"folder": folders["sd"], "prompt": PROMPT, "guidance_scale": 5.0, "num_inference_steps": 4, "seed": 9}
    two = {**four, **size, "num_inference_steps": 2, "seed": 3}
    first, second = loras(folders)
    edit = {**two, "folder": folders["kontext"], "guidance_scale": 3.5, "max_sequence_length": 64}
    edit |= {"max_area": SIDE * SIDE, "_auto_resize": False}
    calls = {
        "text": {**four, **size},
        "negative": {**four, "width": SIDE, "height": 96, "negative_prompt": OTHER},
        "changed": {**four, "kind": "image", "image": image, "strength": 0.6},
        "painted": {**four, **size, "kind": "inpaint", "image": image, "mask_image": mask, "strength": 0.8},
        "first adapter": {**two, "adapters": [(first.path, 1.0)]},
        "both adapters": {**two, "adapters": [(first.path, 0.5), (second.path, 0.75)]},
        "kontext": edit,
        "edited": {**edit, "image": image},
    }
    return dict(zip(calls, drawn(list(calls.values())), strict=True))


def test_a_picture_is_the_one_that_diffusers_draws(sd: Drawer, reference: dict[str, bytes]) -> None:
    """From the same seed come the same bytes as from a plain call, for every kind of task."""
    source, mask = gradient(), right_half()
    same: dict[str, Any] = {"steps": 4, "seed": 9, "reproducible": True}
    assert sd.draw(**same) == [reference["text"]]
    assert sd.draw(**same, height=96, negative_prompt=OTHER) == [reference["negative"]]
    assert sd.draw(**same, source=source, strength=0.6) == [reference["changed"]]
    (kept,) = sd.draw(**same, source=source, mask=mask, strength=0.8)
    left = [n for n in range(len(kept)) if n // 3 % SIDE < SIDE // 2]
    right = [n for n in range(len(kept)) if n // 3 % SIDE >= SIDE // 2]
    assert all(kept[n] == source.data[n] for n in left), "what is not masked stays to the last bit"
    assert all(kept[n] == reference["painted"][n] for n in right)
    assert difference(kept, source.data) > 5


def test_bytes_do_not_depend_on_how_many_there_are(sd: Drawer) -> None:
    """A reproducible run gives the same bytes again, and picture i is the one of seed + i."""
    three = sd.begin(images=3, seed=20, reproducible=True)
    told = sd.all_of(three)[three]
    pictures = pixels(told)
    assert result(told)["seeds"] == [20, 21, 22]
    assert result(told)["batched"] is False
    assert pictures == [sd.draw(seed=seed, reproducible=True)[0] for seed in (20, 21, 22)]
    assert len(set(pictures)) == 3


def test_progress_and_previews_are_told(sd: Drawer) -> None:
    """There is one progress for each step of each picture, and a small WebP after every so many steps."""
    run = sd.begin(images=2, steps=4, preview_steps=2, reproducible=True)
    events = sd.all_of(run)[run]
    steps = [event for event in events if isinstance(event, Progress)]
    assert [(event.done, event.total, event.unit, event.stage) for event in steps] == [
        (step, 4, "steps", "generating") for _ in range(2) for step in range(1, 5)
    ]
    assert [event.detail for event in steps] == [{"image": n // 4, "images": 2} for n in range(8)]
    assert [event.fraction for event in steps] == [n / 8 for n in range(1, 9)]
    previews = [event for event in events if isinstance(event, Media) and event.name == "preview"]
    assert [event.index for event in previews] == [0, 1]
    opened = Image.open(io.BytesIO(previews[0].data))
    assert (opened.format, opened.size) == ("WEBP", (SIDE, SIDE))
    assert len(set(opened.convert("RGB").tobytes())) > 8
    done = result(events)
    assert done["steps"] == 4
    assert done["device"] == "cpu"
    assert set(done["timings"]) == {"prompt_s", "denoising_s", "decoding_s"}
    assert all(seconds > 0 for seconds in done["timings"].values())


def test_image_to_image_makes_its_share_of_the_steps(sd: Drawer) -> None:
    """With a strength of a half, half the steps are made, and said to be all of them."""
    run = sd.begin(steps=4, strength=0.5, source=gradient(40, 24))
    events = sd.all_of(run)[run]
    assert [(event.done, event.total) for event in events if isinstance(event, Progress)] == [(1, 2), (2, 2)]
    assert len(pixels(events)[0]) == SIDE * SIDE * 3


def test_less_than_a_step_is_one_step(sd: Drawer) -> None:
    """However little of a picture is to be forgotten, as with the other engines; no other share is touched."""
    one = sd.draw(source=gradient(), steps=4, strength=0.25, reproducible=True)
    run = sd.begin(source=gradient(), steps=4, strength=0.1, reproducible=True)
    told = sd.all_of(run)[run]
    assert [(event.done, event.total) for event in told if isinstance(event, Progress)] == [(1, 1)]
    assert pixels(told) == one
    assert len(sd.draw(source=gradient(), mask=right_half(), steps=49, strength=0.01)) == 1


def test_runs_that_are_alike_share_a_batch(sd: Drawer) -> None:
    """Prompts of any text with the same settings are drawn together, and agree with themselves alone."""
    alone = [sd.draw(PROMPT, seed=5, reproducible=True)[0], *sd.draw(OTHER, images=2, seed=7, reproducible=True)]
    one, two = sd.begin(PROMPT, seed=5), sd.begin(OTHER, images=2, seed=7)
    told = sd.all_of(one, two)
    together = pixels(told[one]) + pixels(told[two])
    assert all(psnr(a, b) >= 50 for a, b in zip(alone, together, strict=True))
    assert result(told[one])["batched"]
    assert result(told[two])["batched"]
    assert sum(isinstance(event, Progress) for event in told[two]) == 2, "both pictures of a run in one call"


def test_runs_that_differ_take_turns(sd: Drawer) -> None:
    """A run of few steps does not wait for the end of one of many, and neither disturbs the other."""
    alone = sd.draw(steps=6, seed=1, reproducible=True), sd.draw(steps=2, seed=2, source=gradient(), reproducible=True)
    many = sd.begin(steps=6, seed=1, reproducible=True)
    sd.step()
    few = sd.begin(steps=2, seed=2, source=gradient(), reproducible=True)
    told: dict[int, list[Event]] = {many: [], few: []}
    order = []
    while len(order) < 2:
        for run, event in sd.step():
            told[run].append(event)
            if isinstance(event, Done):
                order.append(run)
    assert order == [few, many]
    assert (pixels(told[many]), pixels(told[few])) == alone


def test_cancelling_ends_the_call_within_a_step(sd: Drawer) -> None:
    """After a cancel nothing more is told or computed, the call is gone, and the next run is right."""
    expected = sd.draw(seed=4, reproducible=True)
    run = sd.begin(steps=50, seed=8)
    assert len(sd.step()) == 1
    assert sd.look("_turns.__len__()") == 1
    sd.cancel(run)
    assert sd.look("_turns.__len__()") == 0
    assert sd.step() == []
    assert sd.draw(seed=4, reproducible=True) == expected


def test_cancelling_one_of_a_batch_leaves_the_other(sd: Drawer) -> None:
    """Of two runs that share a call, the one that goes on gets its picture, the other no event."""
    expected = sd.draw(OTHER, seed=6, reproducible=True)
    gone, stays = sd.begin(PROMPT, seed=5, steps=2), sd.begin(OTHER, seed=6, steps=2)
    assert {run for run, _ in sd.step()} == {gone, stays}
    sd.cancel(gone)
    told = [entry for _ in range(2) for entry in sd.step()]
    assert {run for run, _ in told} == {stays}
    assert psnr(pixels([event for _, event in told])[0], expected[0]) >= 50


def test_adapters_are_laid_over_and_taken_off(
    sd: Drawer, folders: dict[str, Path], reference: dict[str, bytes]
) -> None:
    """A scale of 0 is the base to the bit, each adapter changes the picture as in diffusers, and back again."""
    first, second = loras(folders)
    base = sd.draw(reproducible=True)
    by_first, by_both = reference["first adapter"], reference["both adapters"]

    def with_scales(**scales: float) -> list[bytes]:
        return sd.draw(adapters=(first, second), adapter_scales=scales, reproducible=True)

    assert with_scales(first=0, second=0) == base
    assert with_scales(first=1, second=0) == [by_first]
    assert difference(by_first, base[0]) > 2
    (by_second,) = with_scales(first=0, second=1)
    assert difference(by_second, base[0]) > 2
    assert by_second != by_first
    assert with_scales(first=0.5, second=0.75) == [by_both]
    assert sd.draw(reproducible=True) == base
    assert with_scales(second=0) == [by_first], "one that is not named keeps its own scale"


def test_runs_with_different_adapters_go_on_together(sd: Drawer, folders: dict[str, Path]) -> None:
    """The mix is switched from step to step."""
    first, second = loras(folders)
    runs = {name: sd.begin(adapters=mix, seed=3) for name, mix in (("none", ()), ("1", (first,)), ("2", (second,)))}
    told = sd.all_of(*runs.values())
    drawn_together = {name: pixels(told[run])[0] for name, run in runs.items()}
    for name, mix in (("none", ()), ("1", (first,)), ("2", (second,))):
        assert drawn_together[name] == sd.draw(adapters=mix, seed=3, reproducible=True)[0]
        assert result(told[runs[name]])["batched"] is False


def test_adapters_over_the_bound_are_dropped(sd: Drawer, folders: dict[str, Path], tmp_path: Path) -> None:
    """The one used longest ago goes; when all have gone, the base draws its own bytes again."""
    first, second = loras(folders)
    copied = tmp_path / "lora"
    copied.mkdir()
    (copied / LORAS[1]).write_bytes(Path(second.path).read_bytes())
    third = AdapterUse(id="third", path=str(copied), name="third")
    base = sd.draw(reproducible=True)
    sd.draw(adapters=(first,))
    sd.draw(adapters=(second,))
    assert sd.draw(adapters=(third,), reproducible=True) == sd.draw(adapters=(second,), reproducible=True)
    assert sd.look("_adapters.loaded") == ["third", second.id]
    assert sd.draw(reproducible=True) == base
    sd.look("_adapters.clear()")
    assert sd.look("_adapters.loaded") == []
    assert sd.draw(reproducible=True) == base
    with pytest.raises(EngineError, match="keeps 2 at once"):
        sd.begin(adapters=(first, second, third))


def test_bad_adapters_end_their_run_alone(sd: Drawer, folders: dict[str, Path], tmp_path: Path) -> None:
    """What is no adapter of this model is said, names no path, and leaves nothing behind."""
    first, _ = loras(folders)
    expected = sd.draw(adapters=(first,), reproducible=True)
    noise, text = tmp_path / "noise.safetensors", tmp_path / "adapter.bin"
    noise.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!")
    text.write_text("no weights")
    foreign, _ = loras(folders, "kontext")
    running = sd.begin(adapters=(first,), reproducible=True)
    sd.step()
    for path in (
        noise,
        text,
        tmp_path,
        tmp_path / "missing.safetensors",
        Path(foreign.path),
        reshaped(first, tmp_path),
    ):
        use = AdapterUse(id=str(path), path=str(path), name="bad")
        with pytest.raises(EngineError, match="'bad' does not fit the model") as raised:
            sd.begin(adapters=(use,))
        assert raised.value.code == "LOAD_FAILED"
        assert str(tmp_path) not in raised.value.message
    with pytest.raises(EngineError, match="unknown adapter 'other'") as raised:
        sd.begin(adapters=(first,), adapter_scales={"other": 1.0})
    assert raised.value.code == "INVALID_INPUT"
    assert pixels(sd.all_of(running)[running]) == expected
    assert sd.draw(adapters=(first,), reproducible=True) == expected


def reshaped(use: AdapterUse, folder: Path) -> Path:
    """Return a file like an adapter's, in which the layers of a larger model are changed."""
    data = Path(use.path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for name, entry in header.items():
        if name != "__metadata__":
            entry["shape"] = entry["shape"][::-1]
    encoded = json.dumps(header).encode()
    path = folder / "larger.safetensors"
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data[8 + length :])
    return path


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"width": 60}, "width"),
        ({"height": 0}, "height"),
        ({"images": 0}, "images"),
        ({"steps": 0}, "steps"),
        ({"mask": right_half()}, "mask"),
        ({"source": gradient(), "mask": right_half(32)}, "mask"),
        ({"source": right_half()}, "source"),
        ({"source": Array(dtype="uint8", shape=(8, 8, 3), data=b"short")}, "source"),
        ({"source": Array(dtype="float32", shape=(1, 1, 3), data=bytes(12))}, "source"),
        ({"max_sequence_length": 77}, "max_sequence_length"),
    ],
)
def test_what_cannot_be_drawn_is_refused(sd: Drawer, fields: dict[str, Any], field: str) -> None:
    """The field at fault is named, before anything is computed."""
    with pytest.raises(EngineError) as raised:
        sd.begin(**fields)
    assert raised.value.code == "INVALID_INPUT"
    assert raised.value.details[0]["field"] == field


def test_kontext_draws_and_edits(kontext: Drawer, reference: dict[str, bytes]) -> None:
    """From text and from a picture come the bytes that diffusers draws; the source makes a difference."""
    source = gradient()
    same: dict[str, Any] = {"guidance_scale": 3.5, "max_sequence_length": 64, "reproducible": True}
    assert kontext.draw(**same) == [reference["kontext"]]
    assert kontext.draw(**same, source=source) == [reference["edited"]]
    assert difference(reference["kontext"], reference["edited"]) > 2
    (large,) = kontext.draw(**same, source=gradient(200, 100))
    assert len(large) == SIDE * SIDE * 3


def test_kontext_paints_what_is_masked(kontext: Drawer) -> None:
    """With a mask the rest of the picture stays."""
    source = gradient()
    (painted,) = kontext.draw(source=source, mask=right_half(), strength=1.0, steps=2)
    left = [n for n in range(len(painted)) if n // 3 % SIDE < SIDE // 2]
    assert all(painted[n] == source.data[n] for n in left)
    assert painted != source.data


def test_kontext_previews_and_batches(kontext: Drawer) -> None:
    """Packed latents give previews, too, and pictures in one call agree with those drawn alone."""
    alone = kontext.draw(images=2, reproducible=True, steps=3)
    run = kontext.begin(images=2, steps=3, preview_steps=1)
    events = kontext.all_of(run)[run]
    assert all(psnr(a, b) >= 50 for a, b in zip(alone, pixels(events), strict=True))
    previews = [event for event in events if isinstance(event, Media) and event.name == "preview"]
    assert [event.index for event in previews] == [0, 1, 0, 1]
    assert Image.open(io.BytesIO(previews[0].data)).size == (SIDE, SIDE)


def test_kontext_takes_adapters_and_says_what_it_does_not(kontext: Drawer, folders: dict[str, Path]) -> None:
    """Adapters of its transformer act; a negative prompt and sides of 8 pixels more are refused."""
    first, second = loras(folders, "kontext")
    base = kontext.draw(reproducible=True)
    assert kontext.draw(adapters=(first, second), adapter_scales={"first": 0, "second": 0}, reproducible=True) == base
    for use in (first, second):
        assert difference(kontext.draw(adapters=(use,), reproducible=True)[0], base[0]) > 2
    assert kontext.draw(reproducible=True) == base
    for fields, field in (({"negative_prompt": "fog"}, "negative_prompt"), ({"width": SIDE + 8}, "width")):
        with pytest.raises(EngineError) as raised:
            kontext.begin(**fields)
        assert raised.value.details[0]["field"] == field


def test_a_call_that_fails_ends_its_run_alone(sd: Drawer) -> None:
    """More steps than the schedule has make the library fail: the run is told so, and others go on."""
    expected = sd.draw(seed=4, reproducible=True)
    running, failing = sd.begin(seed=4, reproducible=True), sd.begin(steps=1001)
    told = sd.all_of(running, failing)
    assert pixels(told[running]) == expected
    last = told[failing][-1]
    assert isinstance(last, Failed)
    assert (last.code, last.message) == ("ENGINE_FAILED", "The image pipeline failed (ValueError).")
    assert sd.draw(seed=4, reproducible=True) == expected


def test_what_fails_beside_the_pipeline_ends_its_run_alone(folders: dict[str, Path]) -> None:
    """A preview that cannot be made is the end of its run; where memory runs out, it is that of the engine."""
    with Drawer("support.failing_diffusers:FailingDiffusers") as failing:
        failing.load(folders["sd"], engine="diffusers")
        expected = failing.draw(seed=4, reproducible=True)
        good, bad = failing.begin(seed=4, reproducible=True), failing.begin("a defect", preview_steps=1)
        told = failing.all_of(good, bad)
        assert pixels(told[good]) == expected
        last = told[bad][-1]
        assert isinstance(last, Failed)
        assert (last.code, last.message) == ("ENGINE_FAILED", "The image pipeline failed (ValueError).")
        with pytest.raises(EngineError) as raised:
            failing.draw("no memory", preview_steps=1)
        assert raised.value.code == "MemoryError"


def index_with(folder: Path, target: Path, **changes: Any) -> Path:
    """Return a copy of a model whose model_index.json is changed."""
    shutil.copytree(folder, target)
    path = target / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "MyOwnPipeline"}, "is none of diffusers"),
        ({"_class_name": ["pipeline", "MyOwnPipeline"]}, "is none of diffusers"),
        ({"_class_name": "PixArtSigmaPipeline"}, "cannot be stopped between its steps"),
        ({"unet": ["os", "system"]}, "would run code"),
        ({"unet": ["mine", "Network"]}, "would run code"),
        ({"../outside": ["diffusers", "AutoencoderKL"]}, "cannot be one"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, "cannot load"),
    ],
)
def test_a_folder_that_is_no_pipeline_of_the_library_is_refused(
    loader: Drawer, folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """What would run foreign code, or cannot be run in steps, is said; no path is."""
    with pytest.raises(EngineError, match=message) as raised:
        loader.load(index_with(folders["sd"], tmp_path / "model", **changes), engine="diffusers")
    assert raised.value.code == "LOAD_FAILED"
    assert str(tmp_path) not in raised.value.message


def test_what_needs_cuda_is_said(loader: Drawer, folders: dict[str, Path], tmp_path: Path) -> None:
    """Quantizing, offloading and devices that are not there are refused with what to do."""
    for fields, message in (
        ({"options": {"quantize": "nf4"}}, "needs CUDA"),
        ({"options": {"offload": "model"}}, "CUDA device"),
        ({"device": "cuda:0"}, "no CUDA device"),
    ):
        if "device" in fields and shutil.which("nvidia-smi"):
            continue
        with pytest.raises(EngineError, match=message) as raised:
            loader.load(folders["sd"], engine="diffusers", **fields)
        assert raised.value.code == "LOAD_FAILED"
    with pytest.raises(EngineError, match="There is no model_index"):
        loader.load(tmp_path, engine="diffusers")


def test_an_inpainting_checkpoint_paints_alone(loader: Drawer, folders: dict[str, Path], tmp_path: Path) -> None:
    """A pipeline that is saved as an inpainting one asks for a picture and a mask."""
    folder = index_with(folders["sd"], tmp_path / "model", _class_name="StableDiffusionInpaintPipeline")
    assert loader.load(folder, engine="diffusers").facts["kinds"] == ["inpaint"]
    for fields, field in (({}, "source"), ({"source": gradient()}, "mask")):
        with pytest.raises(EngineError) as raised:
            loader.begin(**fields)
        assert raised.value.details[0]["field"] == field
    (painted,) = loader.draw(source=gradient(), mask=right_half())
    assert painted[:30] == gradient().data[:30]
