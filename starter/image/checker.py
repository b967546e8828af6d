"""Judges a picture: which coloured shapes stand where, found by colour and outline alone, without any network.

A pixel counts to the nearest colour that is present; a colour is present where a patch of it has an inside. Each patch
is compared with the drawn shapes, both stretched to one box.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from starter.image.scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, outline

Mask = NDArray[np.bool_]
BOX = 40
LEAST_LIKENESS = 0.75
LEAST_CORE = 16
"""Pixels of a patch that have only their own colour round them."""
LEAST_SIDE = 12
NESTED_SHARE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A patch: its colour, its likeliest shape and how alike it is (intersection over union), its box."""

    colour: str
    shape: str
    likeness: float
    box: tuple[int, int, int, int]
    """Left, top, right, bottom."""
    filled: float
    """Share of the outline's area that has the patch's colour."""

    @property
    def middle(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What of a scene a picture got right."""

    things: bool
    """Each thing is there in shape and colour, and nothing else."""
    relation: bool
    """Of a pair; true for other scenes."""
    background: bool

    @property
    def right(self) -> bool:
        return self.things and self.relation


def judge(picture: Image.Image, scene: Scene, tones: Mapping[str, tuple[int, int, int]] | None = None) -> Verdict:
    """Return what the picture got right of the scene."""
    ground, found = look(picture, tones)
    wanted = sorted((thing.colour, thing.shape) for thing in scene.things)
    things = sorted((one.colour, one.shape) for one in found) == wanted
    relation = True
    if scene.layout == "pair":
        relation = things and _stands(scene.relation, *_ordered(found, scene))
    return Verdict(things=things, relation=relation, background=ground == scene.background)


def _ordered(found: Sequence[Found], scene: Scene) -> tuple[Found, Found]:
    first, second = found
    thing = scene.things[0]
    return (first, second) if (first.colour, first.shape) == (thing.colour, thing.shape) else (second, first)


def _stands(relation: str, first: Found, second: Found) -> bool:
    (x, y), (other_x, other_y) = first.middle, second.middle
    left, top, right, bottom = first.box
    if relation == "inside":
        return second.box[0] < left and second.box[1] < top and right < second.box[2] and bottom < second.box[3]
    across, down = x - other_x, y - other_y
    if relation in ("left of", "right of"):
        return abs(across) > abs(down) and (across < 0) == (relation == "left of")
    return abs(down) > abs(across) and (down < 0) == (relation == "above")


def look(
    picture: Image.Image, tones: Mapping[str, tuple[int, int, int]] | None = None
) -> tuple[str, tuple[Found, ...]]:
    """Return the name of the background and the patches, from left to right; `tones` replace the usual colours."""
    palette = {**COLOURS, **BACKGROUNDS, **(tones or {})}
    names = list(palette)
    pixels = np.asarray(picture.convert("RGB"), np.float32)
    distance = np.stack([((pixels - np.array(palette[name], np.float32)) ** 2).sum(-1) for name in names])
    nearest = distance.argmin(0)
    edge = np.concatenate([nearest[0], nearest[-1], nearest[:, 0], nearest[:, -1]])
    ground = int(np.bincount(edge, minlength=len(names)).argmax())
    present = [n for n in range(len(names)) if n == ground or _has_core(nearest == n)]
    # The blurred edge between two colours may look like a third one: only colours that are present take pixels.
    nearest = np.array(present)[distance[present].argmin(0)]
    patches = [
        (names[number], patch)
        for number in present
        if number != ground
        for patch in _patches(nearest == number)
        if _core(patch).sum() >= LEAST_CORE and min(_size(patch)) >= LEAST_SIDE
    ]
    patches = [one for one in patches if not _shows_through(one, patches)]
    found = [_recognise(name, patch, [other for n, other in patches if n != name]) for name, patch in patches]
    return names[ground], tuple(sorted(found, key=lambda one: one.middle))


def _shows_through(one: tuple[str, Mask], patches: Sequence[tuple[str, Mask]]) -> bool:
    """Return whether a patch is the colour of a large one, seen through the hole of a ring upon it."""
    name, patch = one
    for between, ring in patches:
        if between != name and _lies_in(patch, ring):
            return any(below == name and _lies_in(ring, large) for below, large in patches)
    return False


def _lies_in(patch: Mask, other: Mask) -> bool:
    left, top, right, bottom = _bounds(other)
    inner = _bounds(patch)
    if not (left < inner[0] and top < inner[1] and inner[2] < right and inner[3] < bottom):
        return False
    return bool((patch & without_holes(other)).sum() > NESTED_SHARE * patch.sum())


def _core(mask: Mask) -> Mask:
    """Return the pixels whose neighbours belong to the mask too."""
    core = mask.copy()
    core[1:] &= mask[:-1]
    core[:-1] &= mask[1:]
    core[:, 1:] &= mask[:, :-1]
    core[:, :-1] &= mask[:, 1:]
    return core


def _has_core(mask: Mask) -> bool:
    return bool(_core(_core(mask)).sum() >= LEAST_CORE)


def _patches(mask: Mask) -> list[Mask]:
    """Return the connected parts (by sides) of the mask, by spreading the least number of each part."""
    numbers = np.where(mask, np.arange(1, mask.size + 1).reshape(mask.shape), 0)
    while True:
        before = numbers
        for axis in (0, 1):
            for backwards in (False, True):
                numbers = _spread(numbers, mask, axis, backwards)
        if np.array_equal(before, numbers):
            break
    return [numbers == number for number in np.unique(numbers[mask])]


def _spread(numbers: NDArray[np.int64], mask: Mask, axis: int, backwards: bool) -> NDArray[np.int64]:
    """Return the numbers after the largest of each unbroken run has been carried along one direction."""
    way = np.moveaxis(numbers, axis, 0)
    there = np.moveaxis(mask, axis, 0)
    if backwards:
        way, there = way[::-1], there[::-1]
    way = way.copy()
    for line in range(1, len(way)):
        way[line] = np.where(there[line], np.maximum(way[line], way[line - 1] * there[line - 1]), 0)
    if backwards:
        way = way[::-1]
    return np.moveaxis(way, 0, axis)


def _bounds(mask: Mask) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _size(mask: Mask) -> tuple[int, int]:
    left, top, right, bottom = _bounds(mask)
    return right - left, bottom - top


def _boxed(mask: Mask) -> Mask:
    cut = Image.fromarray(mask).crop(_bounds(mask)).convert("L")
    return np.asarray(cut.resize((BOX, BOX), Image.Resampling.BOX)) > 127


def without_holes(mask: Mask) -> Mask:
    """Return the mask with all that it encloses."""
    framed = np.pad(~mask, 1, constant_values=True)
    outside = next(patch for patch in _patches(framed) if patch[0, 0])
    inner: Mask = ~outside[1:-1, 1:-1]
    return inner


@cache
def _drawn() -> Mapping[str, tuple[Mask, float]]:
    """Return each shape in a box of BOX × BOX, and its width over its height."""
    shapes = {}
    for shape in SHAPES:
        picture = Image.new("1", (400, 400))
        draw = ImageDraw.Draw(picture)
        for number, curve in enumerate(outline(shape, 160)):
            draw.polygon([(200 + x, 200 + y) for x, y in curve], fill=1 - number)
        mask = np.asarray(picture)
        width, height = _size(mask)
        shapes[shape] = (_boxed(mask), width / height)
    return shapes


def _recognise(colour: str, patch: Mask, others: Sequence[Mask]) -> Found:
    filled = without_holes(patch)
    whole = patch
    for other in others:
        if (other & filled & ~patch).sum() > NESTED_SHARE * other.sum():  # it lies upon the patch: no hole of it
            whole = filled
    width, height = _size(patch)
    best, likeness = "", 0.0
    boxed = _boxed(whole)
    for shape, (drawn, ratio) in _drawn().items():
        stretched = (width / height) / ratio
        alike = float((boxed & drawn).sum() / (boxed | drawn).sum())
        if 0.72 < stretched < 1.39 and alike > likeness:
            best, likeness = shape, alike
    shape = best if likeness >= LEAST_LIKENESS else ""
    return Found(
        colour=colour, shape=shape, likeness=likeness, box=_bounds(patch), filled=float(patch.sum() / filled.sum())
    )
