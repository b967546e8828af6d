"""Pictures of the engine without a model: what they depend on, and how they are told."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from serai.clock import ManualClock
from serai.engines.base import AdapterUse, EngineSpec, Run
from serai.engines.fake import Fake
from serai.engines.tasks import Array, GenerateImage
from serai.errors import InvalidInput
from serai.events import Done, Event, Failed, Media, Progress


def a_task(**values: Any) -> GenerateImage:
    return GenerateImage(
        **({"prompt": "a fox", "width": 32, "height": 16, "steps": 4, "guidance_scale": 1.0, "seed": 5} | values)
    )


def drawn(task: GenerateImage, *adapters: AdapterUse) -> list[Event]:
    engine = Fake(ManualClock())
    engine.load(EngineSpec(engine="fake", name="fake@1.0.0"), lambda _: None)
    engine.start(Run(id=1, task=task, adapters=adapters))
    events: list[Event] = []
    while not events or not isinstance(events[-1], Done | Failed):
        events += [event for _, event in engine.step()]
    return events


def pictures(events: list[Event]) -> list[bytes]:
    return [event.data for event in events if isinstance(event, Media) and event.name == "picture"]


def test_each_step_and_each_picture_is_told() -> None:
    """Steps of each picture, previews at their steps, the picture as P6 of its size, the seeds at the end."""
    events = drawn(a_task(images=2, preview_steps=2))
    steps = [event for event in events if isinstance(event, Progress)]
    assert [(event.done, event.total, (event.detail or {})["image"]) for event in steps] == [
        (step, 4, image) for image in range(2) for step in range(1, 5)
    ]
    previews = [event for event in events if isinstance(event, Media) and event.name == "preview"]
    assert [event.index for event in previews] == [0, 1]
    assert Image.open(io.BytesIO(previews[0].data)).format == "WEBP"
    assert all(data.startswith(b"P6\n32 16\n255\n") and len(data) == 13 + 32 * 16 * 3 for data in pictures(events))
    last = events[-1]
    assert isinstance(last, Done)
    assert (last.result["seeds"], last.result["device"], last.result["batched"]) == ([5, 6], "cpu", False)


def test_the_same_task_draws_the_same(tmp_path: Path) -> None:
    """Everything that is asked for changes the picture; an adapter of scale 0, and previews, do not."""
    file = tmp_path / "lora"
    file.write_bytes(b"x")
    adapter = AdapterUse(id="sha", path=str(file), scale=0.5, name="soft")
    (base,) = pictures(drawn(a_task()))
    for task in (a_task(preview_steps=1), a_task(reproducible=True)):
        assert pictures(drawn(task)) == [base]
    assert pictures(drawn(a_task(adapter_scales={"soft": 0.0}), adapter)) == [base]
    others = [
        pictures(drawn(a_task(**change)))[0]
        for change in ({"prompt": "b"}, {"seed": 6}, {"steps": 3}, {"guidance_scale": 2.0}, {"negative_prompt": "c"})
    ]
    others += [pictures(drawn(a_task(adapter_scales=scales), adapter))[0] for scales in ({}, {"soft": 1.0})]
    assert len({base, *others}) == len(others) + 1
    assert pictures(drawn(a_task(images=2)))[1] == pictures(drawn(a_task(seed=6)))[0]


def test_a_mask_says_where_it_draws() -> None:
    """Black stays as the source is; without a mask the source shines through."""
    source = Array(dtype="uint8", shape=(16, 32, 3), data=bytes([9]) * 16 * 32 * 3)
    black = Array(dtype="uint8", shape=(16, 32), data=bytes(16 * 32))
    (kept,) = pictures(drawn(a_task(source=source, mask=black)))
    assert kept[13:] == source.data
    (changed,) = pictures(drawn(a_task(source=source)))
    assert changed[13:] != source.data
    for wrong in ({"mask": black}, {"source": black}, {"source": source, "mask": source}):
        with pytest.raises(InvalidInput):
            drawn(a_task(**wrong))
