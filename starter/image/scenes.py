"""The world that the starter image draws: flat coloured shapes on a plain background, and how a scene is painted."""

import math
import random
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from PIL import Image, ImageDraw

SIZE = 128
OVERSAMPLING = 4

Rgb = tuple[int, int, int]
Style = Literal["plain", "outline", "pastel"]
Layout = Literal["one", "pair", "count"]
Outline = list[tuple[float, float]]

COLOURS: Mapping[str, Rgb] = {
    "red": (215, 35, 40),
    "orange": (245, 135, 20),
    "yellow": (250, 220, 50),
    "green": (35, 155, 65),
    "cyan": (60, 200, 215),
    "blue": (35, 80, 215),
    "purple": (125, 50, 175),
    "pink": (245, 130, 185),
}
BACKGROUNDS: Mapping[str, Rgb] = {
    "white": (255, 255, 255),
    "black": (12, 12, 12),
    "grey": (150, 150, 150),
    "brown": (105, 70, 40),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
OUTER_SHAPES = ("circle", "square", "triangle", "diamond", "heart")
"""What another shape finds room in."""
RADII: Mapping[str, tuple[int, int]] = {"small": (14, 17), "medium": (22, 27), "large": (34, 40)}
RELATIONS = ("left of", "right of", "above", "below", "inside")
PLACES: Mapping[str, tuple[int, int]] = {
    "top left": (-1, -1),
    "top": (0, -1),
    "top right": (1, -1),
    "left": (-1, 0),
    "middle": (0, 0),
    "right": (1, 0),
    "bottom left": (-1, 1),
    "bottom": (0, 1),
    "bottom right": (1, 1),
}
HELD_OUT_SHARE = 10
"""One of so many scenes, by what is drawn, is never trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """A shape with its centre and radius in pixels of a picture of SIZE × SIZE."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """What is drawn. Of a pair the first thing stands in `relation` to the second."""

    layout: Layout
    things: tuple[Thing, ...]
    background: str
    relation: str = ""
    size: str = ""
    """Of a single thing; a key of RADII."""
    place: str = ""
    """Of a single thing; a key of PLACES."""

    def key(self) -> str:
        """Return what is drawn in words, without where exactly and on what."""
        named = [f"{thing.colour} {thing.shape}" for thing in self.things]
        if self.layout == "pair":
            return f"{named[0]} {self.relation} {named[1]}"
        return f"{len(named)} {named[0]} {self.size}".strip()

    def held_out(self) -> bool:
        """Return whether the scene is kept for the evaluation."""
        return zlib.crc32(self.key().encode()) % HELD_OUT_SHARE == 0


def draw_scene(rng: random.Random, layout: Layout | None = None, *, held_out: bool = False) -> Scene:
    """Return a scene by chance that is held out from training, or is not."""
    while True:
        kind = layout or rng.choices(("one", "pair", "count"), (42, 48, 10))[0]
        scene = _LAYOUTS[kind](rng)
        if scene.held_out() == held_out:
            return scene


def _background(rng: random.Random) -> str:
    return "white" if rng.random() < 0.5 else rng.choice(tuple(BACKGROUNDS))


def _one(rng: random.Random) -> Scene:
    size = rng.choice(tuple(RADII))
    radius = rng.uniform(*RADII[size])
    place = rng.choice(tuple(PLACES)) if rng.random() < 0.4 else "middle"
    across, down = PLACES[place]
    room = SIZE / 2 - radius * 1.1 - 4
    shift = min(room, 36)
    x = SIZE / 2 + across * shift + rng.uniform(-3, 3)
    y = SIZE / 2 + down * shift + rng.uniform(-3, 3)
    thing = Thing(shape=rng.choice(SHAPES), colour=rng.choice(tuple(COLOURS)), x=x, y=y, radius=radius)
    return Scene(layout="one", things=(thing,), background=_background(rng), size=size, place=place)


def _pair(rng: random.Random) -> Scene:
    relation = rng.choice(RELATIONS)
    colours = rng.sample(tuple(COLOURS), 2)
    if relation == "inside":
        return _nested(rng, colours)
    first, second = rng.uniform(17, 25), rng.uniform(17, 25)
    gap = rng.uniform(58, 68) / 2
    along = rng.uniform(-4, 4)
    off_first, off_second = rng.uniform(-7, 7), rng.uniform(-7, 7)
    sign = -1 if relation in ("left of", "above") else 1
    level = relation in ("left of", "right of")
    middle = SIZE / 2
    places = [(middle + along + sign * gap, middle + off_first), (middle + along - sign * gap, middle + off_second)]
    if not level:
        places = [(y, x) for x, y in places]
    things = tuple(
        Thing(shape=rng.choice(SHAPES), colour=colour, x=x, y=y, radius=radius)
        for colour, (x, y), radius in zip(colours, places, (first, second), strict=True)
    )
    return Scene(layout="pair", things=things, background=_background(rng), relation=relation)


def _nested(rng: random.Random, colours: list[str]) -> Scene:
    outer_shape = rng.choice(OUTER_SHAPES)
    x, y = SIZE / 2 + rng.uniform(-4, 4), SIZE / 2 + rng.uniform(-4, 4)
    outer = Thing(shape=outer_shape, colour=colours[1], x=x, y=y, radius=rng.uniform(47, 52))
    drop = 12 if outer_shape == "triangle" else 0
    inner = Thing(shape=rng.choice(SHAPES), colour=colours[0], x=x, y=y + drop, radius=rng.uniform(15, 19))
    return Scene(layout="pair", things=(inner, outer), background=_background(rng), relation="inside")


def _count(rng: random.Random) -> Scene:
    number = rng.choice((2, 3, 4))
    shape, colour = rng.choice(SHAPES), rng.choice(tuple(COLOURS))
    middle = SIZE / 2
    if number == 2:
        places, radius = [(middle - 30, middle), (middle + 30, middle)], rng.uniform(17, 22)
    elif number == 3:
        places, radius = [(middle - 41, middle), (middle, middle), (middle + 41, middle)], rng.uniform(14, 17)
    else:
        places = [(middle + a, middle + b) for b in (-30, 30) for a in (-30, 30)]
        radius = rng.uniform(15, 20)
    things = tuple(
        Thing(shape=shape, colour=colour, x=x + rng.uniform(-2, 2), y=y + rng.uniform(-3, 3), radius=radius)
        for x, y in places
    )
    return Scene(layout="count", things=things, background=_background(rng))


_LAYOUTS: Mapping[str, Callable[[random.Random], Scene]] = {"one": _one, "pair": _pair, "count": _count}


def outline(shape: str, scale: float = 1.0) -> list[Outline]:
    """Return the closed curves of a shape of radius 1 round (0, 0), y downwards; a second one is a hole."""
    if shape == "circle":
        curves = [_around(48, lambda _: 1.0)]
    elif shape == "ring":
        curves = [_around(48, lambda _: 1.05), _around(48, lambda _: 0.55)]
    elif shape == "square":
        curves = [[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]]
    elif shape == "diamond":
        curves = [[(0, -1.15), (0.85, 0), (0, 1.15), (-0.85, 0)]]
    elif shape == "triangle":
        curves = [[(0, -1.05), (1.1, 0.85), (-1.1, 0.85)]]
    elif shape == "cross":
        arm, end = 0.36, 1.05
        quarter = [(arm, -end), (arm, -arm), (end, -arm)]
        curves = [[_turned(x, y, turn) for turn in range(4) for x, y in quarter]]
    elif shape == "star":
        curves = [_around(10, lambda number: 1.15 if number % 2 == 0 else 0.5)]
    elif shape == "heart":
        curves = [[_heart(2 * math.pi * number / 48) for number in range(48)]]
    else:
        raise ValueError(shape)
    return [[(x * scale, y * scale) for x, y in curve] for curve in curves]


def _around(corners: int, distance: Callable[[int], float]) -> Outline:
    angles = [2 * math.pi * number / corners for number in range(corners)]
    return [(distance(n) * math.sin(angle), -distance(n) * math.cos(angle)) for n, angle in enumerate(angles)]


def _turned(x: float, y: float, quarters: int) -> tuple[float, float]:
    for _ in range(quarters):
        x, y = -y, x
    return x, y


def _heart(angle: float) -> tuple[float, float]:
    y = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
    return math.sin(angle) ** 3 * 1.1, -(y + 2.5) / 14.5


def near(colour: Rgb, rng: random.Random | None, by: int = 6) -> Rgb:
    """Return a colour that looks the same; without chance the colour itself."""
    if rng is None:
        return colour
    red, green, blue = (max(0, min(255, channel + rng.randint(-by, by))) for channel in colour)
    return red, green, blue


def pale(colour: Rgb) -> Rgb:
    """Return the colour in pastel."""
    red, green, blue = (round(channel + (255 - channel) * 0.55) for channel in colour)
    return red, green, blue


def paint(scene: Scene, *, style: Style = "plain", rng: random.Random | None = None, size: int = SIZE) -> Image.Image:
    """Return the scene as RGB; `rng` varies the tones a little."""
    tone: Callable[[Rgb], Rgb] = pale if style == "pastel" else (lambda colour: colour)
    ground = tone(BACKGROUNDS[scene.background])
    side = size * OVERSAMPLING
    canvas = Image.new("RGB", (side, side), ground)
    draw = ImageDraw.Draw(canvas)
    factor = side / SIZE
    for thing in sorted(scene.things, key=lambda one: -one.radius):
        fill = near(tone(COLOURS[thing.colour]), rng)
        curves = [
            [((thing.x + x) * factor, (thing.y + y) * factor) for x, y in curve]
            for curve in outline(thing.shape, thing.radius)
        ]
        if style == "outline":
            for curve in curves:
                draw.line([*curve, *curve[:2]], fill=fill, width=round(4 * factor), joint="curve")
        elif len(curves) == 1:
            draw.polygon(curves[0], fill=fill)
        else:
            canvas.paste(fill, mask=_mask(side, curves))
    return canvas.reduce(OVERSAMPLING)


def _mask(side: int, curves: list[Outline]) -> Image.Image:
    """Return the first curve without the others, so that what lies below shows through the hole."""
    mask = Image.new("L", (side, side), 0)
    draw = ImageDraw.Draw(mask)
    draw.polygon(curves[0], fill=255)
    for hole in curves[1:]:
        draw.polygon(hole, fill=0)
    return mask
