"""The engine `openvino-image`: it draws what diffusers draws, the same each time, for many at once."""

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from serai.engines.base import AdapterUse, EngineSpec, Run
from serai.engines.images.openvino_image import OpenvinoImage
from serai.engines.tasks import Array, Generate, GenerateImage
from serai.errors import InvalidInput, LoadFailed, SeraiError
from serai.events import Done, Event, Failed, Media, Progress
from support.image_ir import image_ir
from support.image_models import LORAS, made
from support.image_reference import drawn_by_diffusers

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
pytestmark = pytest.mark.timeout(900)
NUMBERS = count(1)
FOX = {"prompt": "The quick brown fox", "width": 64, "height": 64, "steps": 4, "guidance_scale": 5.0, "seed": 7}
MOST_STEPS = 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return image_ir(tmp_path_factory)


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> tuple[AdapterUse, ...]:
    (found,) = made(tmp_path_factory, ["sd-loras"])
    return tuple(AdapterUse(id=f"digest {name}", path=str(found / name), name=name.split(".")[0]) for name in LORAS)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Pixels:
    """A picture of 72 × 64."""
    colours = np.random.default_rng(5).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(colours).resize((72, 64), Image.Resampling.BICUBIC))


def loaded(folder: Path, **options: Any) -> OpenvinoImage:
    engine = OpenvinoImage()
    spec = EngineSpec(engine="openvino-image", name="tiny@1", folder=str(folder), options=options, threads=1)
    engine.load(spec, lambda _: None)
    return engine


@pytest.fixture(scope="module")
def engine(folder: Path) -> OpenvinoImage:
    return loaded(folder)


@pytest.fixture(autouse=True)
def _nothing_is_left(engine: OpenvinoImage) -> Iterator[None]:
    """No run is left over by the test before."""
    yield
    assert list(engine.step()) == []


def begun(engine: OpenvinoImage, adapters: Sequence[AdapterUse] = (), **members: Any) -> int:
    number = next(NUMBERS)
    engine.start(Run(id=number, task=GenerateImage(**{**FOX, **members}), adapters=tuple(adapters)))
    return number


def ended(engine: OpenvinoImage, *runs: int) -> dict[int, list[Event]]:
    """Step until these runs are over; return the events of each."""
    told: dict[int, list[Event]] = {run: [] for run in runs}
    for _ in range(MOST_STEPS):
        for run, event in engine.step():
            told[run].append(event)
        if all(events and isinstance(events[-1], Done | Failed) for events in told.values()):
            return told
    raise AssertionError(told)


def pictures(events: Sequence[Event]) -> list[Pixels]:
    """Return the pictures among the events, which come in order and before the end."""
    assert isinstance(events[-1], Done), events[-1]
    found = [event for event in events if isinstance(event, Media) and event.name == "picture"]
    assert [event.index for event in found] == list(range(len(found)))
    return [read_ppm(event.data) for event in found]


def read_ppm(data: bytes) -> Pixels:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PPM"
        return np.asarray(image)


def drawn(engine: OpenvinoImage, adapters: Sequence[AdapterUse] = (), **members: Any) -> list[Pixels]:
    run = begun(engine, adapters, **members)
    return pictures(ended(engine, run)[run])


def array(pixels: np.ndarray[Any, Any]) -> Array:
    return Array(dtype=str(pixels.dtype), shape=pixels.shape, data=pixels.tobytes())


def psnr(one: Pixels, other: Pixels) -> float:
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(np.inf if not error else 10 * np.log10(255**2 / error))


def test_it_draws_what_diffusers_draws(
    engine: OpenvinoImage, loras: Sequence[AdapterUse], source: Pixels, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Of the same noise, to 2 in 255: with and without guidance, odd sizes, adapters mixed, from a picture, PLMS."""
    scratch = tmp_path_factory.mktemp("reference")
    np.save(scratch / "source.npy", source)
    base = {**FOX, "guidance": 5.0}
    first, second = (use.path for use in loras)
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, {}),
        ({"guidance": 1.0}, {"guidance_scale": 1.0, "negative_prompt": "is not heard"}),
        ({"negative_prompt": "dog", "width": 104, "height": 72},) * 2,
        ({"loras": [(first, 1.0)]}, {"adapters": loras[:1]}),
        (
            {"loras": [(first, 0.5), (second, 0.7)]},
            {"adapters": loras, "adapter_scales": {"first": 0.5, "second": 0.7}},
        ),
        (
            {"source": str(scratch / "source.npy"), "strength": 0.6, "width": 72},
            {"source": array(source), "strength": 0.6, "width": 72},
        ),
    ]
    expected = drawn_by_diffusers(made(tmp_path_factory, ["sd"])[0], scratch, [{**base, **one} for one, _ in cases])
    assert len({picture.tobytes() for picture in expected}) == len(cases)
    for (_, members), picture in zip(cases, expected, strict=True):
        (found,) = drawn(engine, **members)
        assert found.shape == picture.shape
        assert np.abs(found.astype(int) - picture).max() <= 2


def test_the_same_task_gives_the_same_bytes(engine: OpenvinoImage, folder: Path) -> None:
    """In another engine, among other runs, and as one of three: picture i is the one of seed + i."""
    alone = drawn(engine, reproducible=True, images=3)
    assert len({picture.tobytes() for picture in alone}) == 3
    for index in range(3):
        assert np.array_equal(drawn(engine, reproducible=True, seed=7 + index)[0], alone[index])
    other = loaded(folder)
    others = [begun(other, prompt=f"other {number}", images=2) for number in range(2)]
    run = begun(other, reproducible=True, images=3)
    told = ended(other, run, *others)
    assert all(np.array_equal(one, two) for one, two in zip(pictures(told[run]), alone, strict=True))
    assert told[run][-1].result["batched"] is False  # type: ignore[union-attr]
    other.close()


def test_runs_that_share_steps_are_as_good_as_alone(engine: OpenvinoImage) -> None:
    """Three runs of other steps, guidance and prompts in one batch agree with themselves alone to 50 dB and more."""
    tasks: list[dict[str, Any]] = [
        {"steps": 6, "images": 2},
        {"prompt": "a dog", "negative_prompt": "fox", "guidance_scale": 2.0},
        {"prompt": "a book", "guidance_scale": 1.0, "steps": 3, "seed": 99},
    ]
    alone = [drawn(engine, **task) for task in tasks]
    runs = [begun(engine, **task) for task in tasks]
    told = ended(engine, *runs)
    for run, task, expected in zip(runs, tasks, alone, strict=True):
        found = pictures(told[run])
        assert min(psnr(one, two) for one, two in zip(found, expected, strict=True)) >= 50
        result = told[run][-1].result  # type: ignore[union-attr]
        assert result["batched"] is True
        assert result["steps"] == task.get("steps", 4)
        assert result["seeds"] == [task.get("seed", 7) + index for index in range(task.get("images", 1))]
        assert set(result["timings"]) == {"prompt_s", "denoising_s", "decoding_s"}
        assert result["device"] == "cpu"


def test_progress_and_previews_are_told_while_it_draws(engine: OpenvinoImage) -> None:
    """Every step of every picture, forwards; small WebP pictures that come ever nearer to the last."""
    run = begun(engine, images=2, steps=5, preview_steps=2, width=128, height=64, guidance_scale=1.0)
    events = ended(engine, run)[run]
    steps = [event for event in events if isinstance(event, Progress)]
    assert {event.stage for event in steps} == {"generating"}
    for index in range(2):
        assert [event.done for event in steps if event.detail == {"image": index, "images": 2}] == [1, 2, 3, 4, 5]
    fractions = [event.fraction for event in steps]
    assert fractions == sorted(fractions)  # type: ignore[type-var]
    assert fractions[-1] == 1.0
    previews = [event for event in events if isinstance(event, Media) and event.name == "preview"]
    assert sorted(event.index for event in previews) == [0, 0, 1, 1]
    last = pictures(events)[0].astype(float)
    far = []
    for event in (one for one in previews if one.index == 0):
        assert event.media_type == "image/webp"
        with Image.open(io.BytesIO(event.data)) as image:
            assert (image.format, image.size) == ("WEBP", (128, 64))
            far.append(np.abs(np.asarray(image.convert("RGB")).astype(float).mean((0, 1)) - last.mean((0, 1))).max())
    assert far[-1] < 40


def test_a_cancelled_run_is_gone_within_a_step(engine: OpenvinoImage) -> None:
    """Also in the middle of a shared batch: no further event of it, and the others end as they would have."""
    expected = drawn(engine, prompt="stays")
    stays, goes = begun(engine, prompt="stays"), begun(engine, prompt="goes", images=8, steps=500)
    while not any(run == goes and isinstance(event, Progress) for run, event in engine.step()):
        pass
    engine.cancel(goes)
    assert [making.run for making in engine._makings] == [stays]
    told = ended(engine, stays)
    assert psnr(pictures(told[stays])[0], expected[0]) >= 50
    engine.cancel(12345)


def test_nobody_waits_for_a_long_run(engine: OpenvinoImage) -> None:
    """Runs that cannot share a batch take turns: the short one ends long before the long one."""
    long = begun(engine, steps=300, reproducible=True)
    short = begun(engine, steps=2, width=72)
    events = []
    while not any(run == short and isinstance(event, Done) for run, event in events):
        events += engine.step()
    assert sum(run == long and isinstance(event, Progress) for run, event in events) <= 8
    engine.cancel(long)


@pytest.mark.parametrize(("quantization", "precision"), [("fp32", ""), ("int8", ""), ("fp32", "bf16")])
def test_without_adapters_nothing_of_them_is_left(
    tmp_path_factory: pytest.TempPathFactory, loras: Sequence[AdapterUse], quantization: Any, precision: str
) -> None:
    """Before the first adapter, after it, at scale 0 and between: bit for bit the base model's picture."""
    engine = loaded(image_ir(tmp_path_factory, quantization), precision=precision)
    fixed: dict[str, Any] = {"reproducible": True, "width": 72, "steps": 2}
    base = drawn(engine, **fixed)[0].tobytes()
    one, again = (drawn(engine, loras[:1], **fixed)[0].tobytes() for _ in range(2))
    other = drawn(engine, loras[1:], **fixed)[0].tobytes()
    none = drawn(engine, loras, adapter_scales={"first": 0.0, "second": 0.0}, **fixed)[0].tobytes()
    both = drawn(engine, loras, **fixed)[0].tobytes()
    told = [begun(engine, loras[:1], **fixed), begun(engine, **fixed)]
    mixed = ended(engine, *told)
    assert one == again == pictures(mixed[told[0]])[0].tobytes()
    assert base == none == pictures(mixed[told[1]])[0].tobytes() == drawn(engine, **fixed)[0].tobytes()
    assert len({base, one, other, both}) == 4


def test_the_masked_part_alone_is_painted_anew(engine: OpenvinoImage, source: Pixels) -> None:
    """Where the mask is black the source stays to the last bit; where it is white something else comes."""
    mask = np.zeros((64, 72), np.uint8)
    mask[16:48, 24:56] = 255
    for strength in (0.7, 1.0):
        (found,) = drawn(engine, source=array(source), mask=array(mask), strength=strength, width=72)
        assert np.array_equal(found[mask == 0], source[mask == 0])
        assert np.abs(found[mask == 255].astype(int) - source[mask == 255]).mean() > 5


def test_a_source_of_another_size_is_scaled(engine: OpenvinoImage, source: Pixels) -> None:
    """The picture has the size that was asked for."""
    mask = np.full((10, 20), 255, np.uint8)
    (found,) = drawn(engine, source=array(source), mask=array(mask), strength=0.5, width=96, height=80)
    assert found.shape == (80, 96, 3)


def test_a_long_prompt_is_cut_off_and_says_so(engine: OpenvinoImage) -> None:
    """The result tells how many tokens had no room; what is beyond them changes nothing."""
    words = "fox " * 40
    runs = [begun(engine, prompt=words + more, reproducible=True, steps=1) for more in ("", "dog")]
    told = ended(engine, *runs)
    assert pictures(told[runs[0]])[0].tobytes() == pictures(told[runs[1]])[0].tobytes()
    lost = [told[run][-1].result["truncated"]["prompt"] for run in runs]  # type: ignore[union-attr]
    assert 0 < lost[0] < lost[1]
    short, long = (drawn(engine, prompt="fox dog book", max_sequence_length=most, steps=1) for most in (3, 20))
    assert not np.array_equal(short[0], long[0])


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"width": 60}, "width"),
        ({"height": 0}, "height"),
        ({"height": -64}, "height"),
        ({"width": 64_000}, "width"),
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "steps"),
        ({"images": 0}, "images"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"strength": 0.0}, "strength"),
        ({"mask": Array(dtype="uint8", shape=(1, 1), data=b"x")}, "mask"),
        ({"source": Array(dtype="uint8", shape=(1, 1, 3), data=b"x")}, "source"),
        ({"source": Array(dtype="uint8", shape=(1, 1), data=b"x")}, "source"),
        ({"source": Array(dtype="uint8", shape=(0, 1, 3), data=b"")}, "source"),
        ({"source": Array(dtype="uint8", shape=(-1, -1, 3), data=b"xyz")}, "source"),
        ({"source": Array(dtype="float32", shape=(1, 1, 3), data=b"x" * 12)}, "source"),
        ({"adapter_scales": {"unheard": 1.0}}, "adapter_scales"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_its_field(
    engine: OpenvinoImage, members: dict[str, Any], field: str
) -> None:
    """Before anything is computed, and without harm to others."""
    with pytest.raises(InvalidInput) as refused:
        begun(engine, **members)
    assert refused.value.details[0]["field"] == field  # type: ignore[index,call-overload]
    assert engine._makings == []


def test_steps_are_as_many_as_the_schedule_has_times(folder: Path, tmp_path: Path) -> None:
    """A thousand with an offset would go past the last time: refused with the bound, before anything is computed."""
    offset = Path(shutil.copytree(folder, tmp_path / "offset"))
    path = offset / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"timestep_spacing": "leading", "steps_offset": 1}))
    other = loaded(offset)
    for steps, most in ((1000, 999), (1001, 999), (0, 999)):
        with pytest.raises(InvalidInput, match=f"^steps: must be from 1 to {most}, not {steps}"):
            begun(other, steps=steps)
    other.close()


def test_a_defect_in_one_run_ends_that_alone(engine: OpenvinoImage, capfd: pytest.CaptureFixture[str]) -> None:
    """Also among runs that share a step: the others go on to the pictures that they would have drawn anyway."""
    alone = drawn(engine, prompt="a dog", reproducible=True)
    broken, shares, waits = begun(engine), begun(engine), begun(engine, prompt="a dog", reproducible=True)
    while not engine._makings[0].pictures or not engine._makings[-1].pictures:
        engine.step()
    making = next(one for one in engine._makings if one.run == broken)
    making.pictures[0].sampler.alphas = making.pictures[0].sampler.alphas[:1]
    told = ended(engine, broken, shares, waits)
    failed = told[broken][-1]
    assert isinstance(failed, Failed)
    assert (failed.code, failed.message) == ("INTERNAL_ERROR", "The work failed through a defect.")
    assert "IndexError" in capfd.readouterr().err
    assert len(pictures(told[shares])) == 1
    assert np.array_equal(pictures(told[waits])[0], alone[0])


def test_other_tasks_and_wrong_adapters_end_their_own_run(engine: OpenvinoImage, tmp_path: Path) -> None:
    """A text is not drawn; an adapter that fits nothing says so; nothing can be fed."""
    with pytest.raises(InvalidInput):
        engine.start(Run(id=1, task=Generate(prompt="x")))
    (tmp_path / "wrong.safetensors").write_bytes(b"nonsense")
    for path in (tmp_path / "wrong.safetensors", tmp_path / "missing.safetensors"):
        with pytest.raises(LoadFailed, match="wrong one"):
            begun(engine, [AdapterUse(id=str(path), path=str(path), name="wrong one")])
    with pytest.raises(InvalidInput):
        engine.feed(1, {})


def test_a_pipeline_from_elsewhere_is_drawn_with(engine: OpenvinoImage, folder: Path, tmp_path: Path) -> None:
    """Without our note, with the older tokenizer's files and no encoder: the same picture, sizes in larger steps."""
    foreign = Path(shutil.copytree(folder, tmp_path / "foreign"))
    shutil.rmtree(foreign / "vae_encoder")
    (foreign / "serai_pipeline.json").unlink()
    (foreign / "tokenizer" / "tokenizer.json").unlink()
    other = loaded(foreign)
    assert np.array_equal(drawn(other, reproducible=True)[0], drawn(engine, reproducible=True)[0])
    with pytest.raises(InvalidInput, match="multiple of 16"):
        begun(other, width=72)
    with pytest.raises(InvalidInput, match="encoder"):
        begun(other, source=Array(dtype="uint8", shape=(1, 1, 3), data=b"xyz"))


def spoiled(folder: Path, path: str, **members: Any) -> None:
    file = folder / path
    file.write_text(json.dumps(json.loads(file.read_text()) | members))


def test_folders_that_are_no_such_pipeline_are_refused(folder: Path, tmp_path: Path) -> None:
    """With what is wrong, and without the folder's path."""

    def refusal(change: Any) -> str:
        copy = Path(shutil.copytree(folder, tmp_path / "copy"))
        change(copy)
        with pytest.raises(SeraiError) as refused:
            loaded(copy)
        shutil.rmtree(copy)
        assert str(tmp_path) not in refused.value.message
        return refused.value.message

    assert "model_index.json" in refusal(lambda copy: (copy / "model_index.json").unlink())
    assert "9 channels" in refusal(lambda copy: spoiled(copy, "unet/config.json", in_channels=9))
    assert "LCMScheduler" in refusal(
        lambda copy: spoiled(copy, "scheduler/scheduler_config.json", _class_name="LCMScheduler")
    )
    assert "unet/openvino_model.xml" in refusal(lambda copy: (copy / "unet" / "openvino_model.xml").unlink())
    assert "unet/openvino_model.xml" in refusal(lambda copy: (copy / "unet" / "openvino_model.xml").write_text("no"))
    assert "takes sample" in refusal(
        lambda copy: [shutil.copy(copy / f"vae_encoder/openvino_model.{end}", copy / "unet") for end in ("xml", "bin")]
    )
    assert "tokenizer" in refusal(lambda copy: shutil.rmtree(copy / "tokenizer"))
    with pytest.raises(LoadFailed, match="cuda"):
        OpenvinoImage().load(EngineSpec(engine="openvino-image", name="x", folder=str(folder), device="cuda:0"), print)
