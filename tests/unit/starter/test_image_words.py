"""What the text encoder of the starter image learns to tell: of the whole picture, and of each of its parts."""

import random
import sys
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).parents[3]
sys.path[:0] = [str(ROOT)]

pytest.importorskip("torch")
from starter.image import train_words  # noqa: E402 - needs the path
from starter.image.scenes import Scene, Thing, draw_scene  # noqa: E402 - keeps the imports together


def shown(scene: Scene) -> list[str]:
    colours, shapes = train_words.CELL_FIELDS
    return [f"{colours[colour]} {shapes[shape]}" for colour, shape in train_words.cells(scene)]


def thing(colour: str, shape: str, x: float, y: float, radius: float) -> Thing:
    return Thing(shape=shape, colour=colour, x=x, y=y, radius=radius)


def test_each_part_tells_what_is_seen_in_its_middle() -> None:
    """Row by row; of two things one within the other, the inner one; where nothing is, nothing."""
    nothing = "none none"
    pair = (thing("red", "star", 33, 64, 20), thing("blue", "ring", 95, 64, 20))
    beside = Scene(layout="pair", things=pair, background="white", relation="left of")
    assert shown(beside) == [*[nothing] * 3, "red star", nothing, "blue ring", *[nothing] * 3]
    pair = (thing("pink", "heart", 64, 64, 16), thing("green", "circle", 64, 64, 50))
    nested = Scene(layout="pair", things=pair, background="white", relation="inside")
    outer, inner = "green circle", "pink heart"
    assert shown(nested) == [nothing, outer, nothing, outer, inner, outer, nothing, outer, nothing]


@pytest.mark.parametrize("layout", ["one", "pair"])
def test_hardly_a_thing_is_overlooked(layout: Literal["one", "pair"]) -> None:
    """Nearly all stand in the middle of one part at least, so that the words can tell of them."""
    rng = random.Random(5)
    some = [draw_scene(rng, layout) for _ in range(500)]
    seen = [f"{one.colour} {one.shape}" in shown(scene) for scene in some for one in scene.things]
    assert sum(seen) >= 0.97 * len(seen)


def test_the_classes_of_a_scene_are_those_of_the_fields() -> None:
    """Each number that is to be learned is the number of a class."""
    rng = random.Random(6)
    for _ in range(200):
        told = train_words.facts(draw_scene(rng))
        assert all(0 <= one < len(names) for one, names in zip(told, train_words.FIELDS, strict=True))
