"""An engine that draws, in a process of its own, and what is asked of the pictures that it gives."""

import io
import json
import math
from typing import Any

import msgspec
from PIL import Image

from serai.engines.base import AdapterUse, Run
from serai.engines.tasks import Array, GenerateImage
from serai.events import Done, Event, Failed, Media
from support.engine_driver import Driver
from support.image_models import SIDE

DIFFUSERS = "serai.engines.images.diffusers_image:DiffusersImage"
PROMPT = "a quick brown fox over the city"
OTHER = "چند کلمهٔ دیگر and a lazy dog"


class Drawer(Driver):
    """The engine in a process of its own, asked for pictures."""

    def begin(self, prompt: str = PROMPT, *, adapters: tuple[AdapterUse, ...] = (), **fields: Any) -> int:
        self._next += 1
        settings = {"width": SIDE, "height": SIDE, "steps": 2, "guidance_scale": 5.0, "seed": 3, **fields}
        run = Run(id=self._next, task=GenerateImage(prompt=prompt, **settings), adapters=adapters)
        self.ask("start", run=json.loads(msgspec.json.encode(run)))
        return self._next

    def all_of(self, *runs: int) -> dict[int, list[Event]]:
        """Step until these runs are over; return their events."""
        events: dict[int, list[Event]] = {run: [] for run in runs}
        while not all(told and isinstance(told[-1], Done | Failed) for told in events.values()):
            for run, event in self.step():
                if run in events:
                    events[run].append(event)
        return events

    def draw(self, prompt: str = PROMPT, **fields: Any) -> list[bytes]:
        """Return the RGB bytes of a run's pictures."""
        run = self.begin(prompt, **fields)
        return pixels(self.all_of(run)[run])


def pixels(events: list[Event]) -> list[bytes]:
    assert isinstance(events[-1], Done), events[-1]
    pictures = [event for event in events if isinstance(event, Media) and event.name == "picture"]
    assert [event.index for event in pictures] == list(range(len(pictures)))
    return [Image.open(io.BytesIO(event.data)).tobytes() for event in pictures]


def result(events: list[Event]) -> dict[str, Any]:
    assert isinstance(events[-1], Done), events[-1]
    return events[-1].result


def psnr(one: bytes, other: bytes) -> float:
    error = sum((a - b) ** 2 for a, b in zip(one, other, strict=True)) / len(one)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def difference(one: bytes, other: bytes) -> float:
    return sum(abs(a - b) for a, b in zip(one, other, strict=True)) / len(one)


def gradient(width: int = SIDE, height: int = SIDE) -> Array:
    data = bytes(value for y in range(height) for x in range(width) for value in (x * 255 // width, y * 2 % 256, 90))
    return Array(dtype="uint8", shape=(height, width, 3), data=data)


def right_half(width: int = SIDE, height: int = SIDE) -> Array:
    row = bytes(255 if x >= width // 2 else 0 for x in range(width))
    return Array(dtype="uint8", shape=(height, width), data=row * height)
