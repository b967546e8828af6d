"""The starter image as it ships: its size, its card, and that it draws what it is asked for."""

import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

STARTERS = ROOT / "src" / "serai" / "starters"
CARD = ROOT / "src" / "serai" / "registry" / "cards" / "starter-image.toml"
FOLDERS = ("starter-image", "starter-image-outline", "starter-image-pastel")
MOST_BYTES = 14 * 10**6


@pytest.fixture(scope="module")
def engine() -> Any:
    from serai.engines.base import EngineSpec
    from serai.engines.images.openvino_image import OpenvinoImage

    loaded = OpenvinoImage()
    spec = EngineSpec(engine="openvino-image", name="starter-image", folder=str(STARTERS / FOLDERS[0]), threads=1)
    loaded.load(spec, lambda share: None)
    return loaded


def drawn(
    engine: Any, prompts: Sequence[str], *, negative: str = "", style: str = "", scale: float = 1.0
) -> list[bytes]:
    """Return the pictures of some prompts as the engine gives them."""
    from serai.engines.base import AdapterUse, Run
    from serai.engines.tasks import GenerateImage
    from serai.events import Done, Failed, Media

    adapters = (AdapterUse(id=style, path=str(STARTERS / f"starter-image-{style}"), scale=scale),) if style else ()
    pictures: dict[int, bytes] = {}
    waiting = set(range(len(prompts)))
    for number, prompt in enumerate(prompts):
        task = GenerateImage(
            prompt=prompt, negative_prompt=negative, width=128, height=128, steps=20, guidance_scale=6.0, seed=number
        )
        engine.start(Run(id=number, task=task, adapters=adapters))
    while waiting:
        for run, event in engine.step():
            assert not isinstance(event, Failed), event
            if isinstance(event, Media):
                pictures[run] = event.data
            if isinstance(event, Done):
                waiting.discard(run)
    return [pictures[number] for number in range(len(prompts))]


def opened(data: bytes) -> Image.Image:
    from io import BytesIO

    return Image.open(BytesIO(data))


def test_all_that_ships_is_small() -> None:
    """The pipeline and its styles stay below what a package may carry."""
    files = [path for folder in FOLDERS for path in (STARTERS / folder).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES


def test_card_lists_the_files_that_ship() -> None:
    """Each file of the folder is in the card with its size and digest, and no other."""
    told = {entry["path"]: entry for entry in tomllib.loads(CARD.read_text("utf-8"))["versions"][0]["files"]}
    folder = STARTERS / FOLDERS[0]
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert told.keys() == found.keys()
    for name, path in found.items():
        assert told[name]["size"] == path.stat().st_size
        assert told[name]["sha256"] == sha256(path.read_bytes()).hexdigest()


def test_registry_takes_the_card() -> None:
    """The registry reads the card as an active version with two styles that are off."""
    from serai.registry.source import PackageSource

    version = tomllib.loads(CARD.read_text("utf-8"))["versions"][0]
    assert version["engine"] == "openvino-image"
    assert {entry["id"]: entry["scale"] for entry in version["adapters"]} == {"outline": 0.0, "pastel": 0.0}
    sources = [PackageSource(name=entry["source"]["name"]) for entry in version["adapters"]]
    assert all((STARTERS / source.name / "pytorch_lora_weights.safetensors").is_file() for source in sources)


def test_draws_what_it_is_asked_for(engine: Any) -> None:
    """Of eight plain captions at least six give exactly the thing that was asked for."""
    from starter.image.checker import look

    asked = [(colour, shape) for colour in ("red", "blue", "green", "yellow") for shape in ("circle", "square")]
    pictures = drawn(engine, [f"a large {colour} {shape} on a white background" for colour, shape in asked])
    right = [
        [(one.colour, one.shape) for one in look(opened(data))[1]] == [wanted]
        for data, wanted in zip(pictures, asked, strict=True)
    ]
    assert sum(right) >= 6


def test_negative_prompt_keeps_a_colour_away(engine: Any) -> None:
    """The colour that shapes of no named colour have most often is rarer once the negative prompt names it."""
    from starter.image.checker import look

    def colours(negative: str) -> Counter[str]:
        pictures = drawn(engine, ["a large shape"] * 8, negative=negative)
        return Counter(colour for data in pictures for colour in {one.colour for one in look(opened(data))[1]})

    colour, times = colours("").most_common(1)[0]
    assert colours(colour)[colour] < times


@pytest.mark.parametrize("style", ["outline", "pastel"])
def test_style_changes_the_picture_and_nothing_at_zero(engine: Any, style: str) -> None:
    """A style at scale 0 leaves every byte as it is; at scale 1 the picture is another one."""
    prompt = ["a large blue square on a white background"]
    plain = drawn(engine, prompt)
    assert drawn(engine, prompt, style=style, scale=0.0) == plain
    assert drawn(engine, prompt, style=style) != plain
