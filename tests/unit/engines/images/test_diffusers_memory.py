"""The engine `diffusers` where memory is short: tiles for large pictures, and what is told when there is none left."""

import json
import subprocess
import sys

import pytest

from support.image_models import made
from support.llm_models import child_environment

pytestmark = pytest.mark.timeout(600)

BEGINNING = """
import json, resource, sys
from serai.engines.images import diffusers_batch
from serai.engines.images.diffusers_image import DiffusersImage
from serai.engines.base import EngineSpec, Run
from serai.engines.tasks import GenerateImage
from serai.events import Done, Media

engine = DiffusersImage()
engine.load(EngineSpec(engine="diffusers", name="tiny", folder=sys.argv[1]), lambda fraction: None)

def picture(number, side):
    task = GenerateImage(prompt="a fox", width=side, height=side, steps=1, guidance_scale=1.0, seed=1)
    engine.start(Run(id=number, task=task))
    events = []
    while not (events and isinstance(events[-1], Done)):
        events += [event for _, event in engine.step()]
    return next(event.data for event in events if isinstance(event, Media))
"""
TILES = """
side = 192
whole = picture(1, side)
diffusers_batch.TILED_PIXELS = side * side
tiled = picture(2, side)
smaller = picture(3, side - 64)
diffusers_batch.TILED_PIXELS = side * side + 1
again = picture(4, side)
error = sum((a - b) ** 2 for a, b in zip(whole, tiled, strict=True)) / len(whole)
print(json.dumps({"differs": whole != tiled, "again": whole == again, "error": error}))
"""
SHORTAGE = """
picture(1, 64)
pages = int(open("/proc/self/statm").read().split()[0])
room = pages * resource.getpagesize() + 48 * 2**20
most = resource.getrlimit(resource.RLIMIT_AS)[1]
resource.setrlimit(resource.RLIMIT_AS, (room, most))
try:
    picture(2, 640)
except MemoryError:
    told = "MemoryError"
resource.setrlimit(resource.RLIMIT_AS, (most, most))
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(made(tmp_path_factory, ["sd"])[0])


def said(program: str, folder: str) -> object:
    """Return what the program prints last, run on a pipeline in a process of its own."""
    command = [sys.executable, "-c", BEGINNING + program, folder]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_large_picture_is_decoded_in_tiles(folder: str) -> None:
    """It is nearly the one that is decoded whole; a smaller one after it is decoded whole again."""
    found = said(TILES, folder)
    assert isinstance(found, dict)
    assert found["differs"]
    assert found["again"]
    assert found["error"] < 255**2 / 10**1.8  # 18 dB: random weights norm each tile by itself


def test_a_picture_that_does_not_fit_is_told_as_memory(folder: str) -> None:
    """What the library says in words of its own is a MemoryError, which the runtime takes for what it is."""
    assert said(SHORTAGE, folder) == "MemoryError"
