"""How people ask for a scene: many phrasings, which leave out what they do not care about."""

import random
from collections.abc import Mapping, Sequence

from starter.image.scenes import Scene, Thing

OPENINGS = (
    "", "", "", "", "", "a picture of ", "an image of ", "a drawing of ", "draw ", "show me ", "please draw ", "paint ",
    "i want ", "there is ", "generate ", "an illustration of ",
)  # fmt: skip
HELD_OUT_OPENINGS = ("make a picture with ", "could you draw ", "i would like to see ", "a simple image showing ")
COLOUR_WORDS: Mapping[str, Sequence[str]] = {
    "purple": ("purple", "purple", "violet"),
    "cyan": ("cyan", "cyan", "turquoise"),
}
SHAPE_WORDS: Mapping[str, Sequence[str]] = {
    "circle": ("circle", "circle", "circle", "disc", "dot"),
    "square": ("square", "square", "square", "box"),
    "ring": ("ring", "ring", "hoop"),
    "cross": ("cross", "cross", "plus sign"),
    "diamond": ("diamond", "diamond", "rhombus"),
}
SIZE_WORDS: Mapping[str, Sequence[str]] = {
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "medium sized"),
    "large": ("large", "big", "huge"),
}
GROUND_WORDS: Mapping[str, Sequence[str]] = {"grey": ("grey", "gray")}
GROUNDS = (
    "on a {} background",
    "on {}",
    "with a {} background",
    "against a {} background",
    "in front of a {} background",
)
HELD_OUT_GROUNDS = ("the background is {}", "over a {} background")
RELATION_WORDS: Mapping[str, Sequence[str]] = {
    "left of": ("left of", "to the left of", "on the left of", "on the left side of"),
    "right of": ("right of", "to the right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "on top of", "higher than"),
    "below": ("below", "under", "beneath", "underneath"),
    "inside": ("inside", "in", "within", "inside of"),
}
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
SIDES: Mapping[str, tuple[str, str]] = {
    "left of": ("on the left", "on the right"),
    "right of": ("on the right", "on the left"),
    "above": ("at the top", "at the bottom"),
    "below": ("at the bottom", "at the top"),
}
PLACE_WORDS: Mapping[str, Sequence[str]] = {
    "middle": ("in the middle", "in the centre", "in the center"),
    "left": ("on the left", "at the left", "on the left side"),
    "right": ("on the right", "at the right", "on the right side"),
    "top": ("at the top", "in the upper part"),
    "bottom": ("at the bottom", "in the lower part"),
    "top left": ("in the top left corner", "at the top left", "in the upper left corner"),
    "top right": ("in the top right corner", "at the top right", "in the upper right corner"),
    "bottom left": ("in the bottom left corner", "at the bottom left", "in the lower left corner"),
    "bottom right": ("in the bottom right corner", "at the bottom right", "in the lower right corner"),
}
NUMBER_WORDS: Mapping[int, Sequence[str]] = {2: ("two", "2", "a pair of"), 3: ("three", "3"), 4: ("four", "4")}


def caption(scene: Scene, rng: random.Random, *, held_out: bool = False, whole: bool = False) -> str:
    """Return a phrasing of the scene.

    `held_out` ones are never trained on; `whole` ones leave out no colour, shape or relation.
    """
    if scene.layout == "one":
        said = _one(scene, rng, whole)
    elif scene.layout == "count":
        said = _count(scene, rng)
    else:
        said = _pair(scene, rng, whole)
    opening = rng.choice(HELD_OUT_OPENINGS if held_out else OPENINGS)
    text = opening + said
    if rng.random() < (0.35 if scene.background == "white" else 0.8):
        ground = rng.choice(GROUND_WORDS.get(scene.background, (scene.background,)))
        joint = ", " if rng.random() < 0.2 else " "
        text += joint + rng.choice(HELD_OUT_GROUNDS if held_out and rng.random() < 0.5 else GROUNDS).format(ground)
    if rng.random() < 0.2:
        text = text.capitalize()
    return text + ("." if rng.random() < 0.15 else "")


def _named(thing: Thing, rng: random.Random, *, size: str = "", colour: bool = True, shape: bool = True) -> str:
    words = []
    if size:
        words.append(rng.choice(SIZE_WORDS[size]))
    if colour:
        words.append(rng.choice(COLOUR_WORDS.get(thing.colour, (thing.colour,))))
    words.append(rng.choice(SHAPE_WORDS.get(thing.shape, (thing.shape,))) if shape else "shape")
    said = " ".join(words)
    if rng.random() < 0.08:
        return said
    return ("an " if said[0] in "aeiou" else "a ") + said


def _one(scene: Scene, rng: random.Random, whole: bool) -> str:
    chance = 1.0 if whole else rng.random()
    said = _named(
        scene.things[0],
        rng,
        size=scene.size if rng.random() < 0.4 else "",
        colour=chance > 0.06,
        shape=not 0.06 <= chance < 0.12,
    )
    if rng.random() < (0.1 if scene.place == "middle" else 0.85):
        said += " " + rng.choice(PLACE_WORDS[scene.place])
    return said


def _pair(scene: Scene, rng: random.Random, whole: bool) -> str:
    first, second = (_named(thing, rng) for thing in scene.things)
    chance = rng.random()
    if scene.relation == "inside":
        if chance < 0.25:
            return f"{second} {rng.choice(('containing', 'with', 'around'))} {first}" + (
                " inside" if chance < 0.1 else ""
            )
        return f"{first} {rng.choice(RELATION_WORDS['inside'])} {second}"
    if chance < 0.2:
        mine, other = SIDES[scene.relation]
        joint = rng.choice((" and ", ", "))
        return f"{first} {mine}{joint}{second} {other}"
    if chance < 0.27 and not whole:
        return (
            f"{first} {rng.choice(('and', 'next to', 'beside', 'with'))} {second}"
            if rng.random() < 0.5
            else (f"{second} and {first}")
        )
    if chance < 0.45:
        first, second = second, first
        return f"{first} {rng.choice(RELATION_WORDS[OPPOSITES[scene.relation]])} {second}"
    return f"{first} {rng.choice(RELATION_WORDS[scene.relation])} {second}"


def _count(scene: Scene, rng: random.Random) -> str:
    thing = scene.things[0]
    colour = rng.choice(COLOUR_WORDS.get(thing.colour, (thing.colour,)))
    plural = {"box": "boxes", "cross": "crosses", "rhombus": "rhombuses"}
    shape = rng.choice(SHAPE_WORDS.get(thing.shape, (thing.shape,)))
    return f"{rng.choice(NUMBER_WORDS[len(scene.things)])} {colour} {plural.get(shape, shape + 's')}"
