"""What the starter image learns, and what it is judged by: scenes, captions, tokens, and the checker of pictures."""

import itertools
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

ROOT = Path(__file__).parents[3]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from starter.image import captions, checker, scenes  # noqa: E402
from starter.image.scenes import Scene, Thing  # noqa: E402

NUMBER = 120


def drawn(number: int, *, held_out: bool = False) -> list[Scene]:
    rng = random.Random(f"{held_out}:{number}")
    return [scenes.draw_scene(rng, held_out=held_out) for _ in range(number)]


def pair(relation: str, first: Thing, second: Thing) -> Scene:
    return Scene(layout="pair", things=(first, second), background="white", relation=relation)


def test_checker_knows_true_pictures() -> None:
    """At least 99 of 100 pictures of a scene are judged right, blurred ones too, and so is the background."""
    rng = random.Random(5)
    some = drawn(NUMBER)
    sharp = [checker.judge(scenes.paint(scene, rng=rng), scene) for scene in some]
    soft = [checker.judge(scenes.paint(scene, rng=rng).filter(ImageFilter.GaussianBlur(0.8)), scene) for scene in some]
    assert sum(verdict.right and verdict.background for verdict in sharp) >= 0.99 * NUMBER
    assert sum(verdict.right for verdict in soft) >= 0.97 * NUMBER


def test_checker_refuses_pictures_of_other_scenes() -> None:
    """No picture of one scene is taken for another scene."""
    some = drawn(NUMBER)
    for scene, other in itertools.pairwise(some):
        if scene.key() != other.key():
            assert not checker.judge(scenes.paint(scene), other).right


@pytest.mark.parametrize("background", scenes.BACKGROUNDS)
@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_checker_tells_each_shape_in_each_colour(shape: str, background: str) -> None:
    """Each shape is known in each colour on each background, at the smallest size, and as nothing else."""
    for colour in scenes.COLOURS:
        thing = Thing(shape=shape, colour=colour, x=60, y=66, radius=15)
        picture = scenes.paint(Scene(layout="one", things=(thing,), background=background))
        ground, found = checker.look(picture)
        assert ground == background
        assert [(one.colour, one.shape) for one in found] == [(colour, shape)]


def test_checker_asks_for_the_relation() -> None:
    """The same two things with their places exchanged are right things in the wrong relation."""
    left = Thing(shape="star", colour="red", x=32, y=64, radius=20)
    right = Thing(shape="ring", colour="blue", x=96, y=64, radius=20)
    verdict = checker.judge(scenes.paint(pair("left of", left, right)), pair("right of", left, right))
    assert verdict.things
    assert not verdict.right
    assert checker.judge(scenes.paint(pair("left of", left, right)), pair("left of", left, right)).right


def test_checker_refuses_what_is_no_shape() -> None:
    """Noise, an empty picture and one thing too many are refused."""
    scene = Scene(
        layout="one", things=(Thing(shape="square", colour="red", x=40, y=40, radius=20),), background="white"
    )
    more = Scene(
        layout="count", things=(*scene.things, Thing(shape="heart", colour="red", x=96, y=90, radius=20)),
        background="white",
    )  # fmt: skip
    noise = np.random.default_rng(1).integers(0, 256, (128, 128, 3), np.uint8)
    for picture in (Image.fromarray(noise), Image.new("RGB", (128, 128), (255, 255, 255)), scenes.paint(more)):
        assert not checker.judge(picture, scene).right


def test_held_out_scenes_are_not_trained_on() -> None:
    """What is drawn in held-out scenes and what in scenes for training never meet."""
    learned = {scene.key() for scene in drawn(2000)}
    judged = {scene.key() for scene in drawn(300, held_out=True)}
    assert len(judged) > 100
    assert not learned & judged


def test_captions_name_what_is_asked() -> None:
    """A whole caption names each colour and shape of the scene, and no other colour as that of a thing."""
    rng = random.Random(3)
    for scene in drawn(400):
        text = captions.caption(scene, rng, whole=True).lower()
        for thing in scene.things:
            assert any(word in text for word in captions.COLOUR_WORDS.get(thing.colour, (thing.colour,)))
            assert any(word in text for word in captions.SHAPE_WORDS.get(thing.shape, (thing.shape,)))
        others = set(scenes.COLOURS) - {thing.colour for thing in scene.things}
        assert not any(f" {other} " in f" {text} " for other in others)


def test_nested_relation_is_said_by_both_orders() -> None:
    """A pair is described from either thing; the words agree with what is drawn."""
    rng = random.Random(4)
    left = Thing(shape="star", colour="red", x=32, y=64, radius=20)
    right = Thing(shape="heart", colour="blue", x=96, y=64, radius=20)
    scene = pair("left of", left, right)
    texts = [captions.caption(scene, rng, whole=True).lower() for _ in range(200)]
    for text in texts:
        red_first = text.index("red") < text.index("blue")
        if " of " in text.replace("a picture of ", "").replace("an image of ", "").replace("a drawing of ", "").replace(
            "an illustration of ", ""
        ):
            assert ("left" in text) == red_first
    assert any(text.index("blue") < text.index("red") for text in texts)


def test_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    """The tokenizer gives the ids that CLIPTokenizer gives from the saved files, cut and filled up alike."""
    from starter.image import tokens

    words = tokens.Words(tokens.padded(tokens.make_tokenizer(1, captions=2000)))
    folder = tokens.save_tokenizer(words, tmp_path)
    from transformers import CLIPTokenizer

    reference = CLIPTokenizer.from_pretrained(folder)
    rng = random.Random(6)
    texts = [captions.caption(scene, rng, held_out=True) for scene in drawn(200)]
    for text in [*texts, "", "Ünknown wörds 💥", "circle " * 60]:
        wanted = reference(text, padding="max_length", max_length=tokens.LONGEST, truncation=True).input_ids
        assert words.rows([text])[0] == wanted
