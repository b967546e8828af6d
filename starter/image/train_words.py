"""The stage before the denoiser's: the text encoder learns alone to tell what a caption asks for.

From the state behind a caption's last word a head tells the layout, the background and both things, in the order of
the picture and not of the words. And the last nine states, which are those of the padding, tell what each ninth of the
picture shows: attention from a place of the picture then finds what belongs there. Learned by way of pictures alone,
things came in the right shapes and colours, and in every second pair in each other's place.

The head learns on beside the denoiser, so that the states keep their meaning, and is thrown away.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Linear, Module
from torch.nn.functional import cross_entropy
from transformers import CLIPTextModel

from starter.image.captions import caption
from starter.image.checkpoints import Run
from starter.image.networks import TEXT_WIDTH
from starter.image.progress import Log, rate_at
from starter.image.scenes import BACKGROUNDS, COLOURS, PLACES, RADII, SHAPES, SIZE, Scene, draw_scene
from starter.image.tokens import Words

NONE = "none"
ARRANGEMENTS = ("one", "across", "down", "nested", "count 2", "count 3", "count 4")
FIELDS: Sequence[Sequence[str]] = (
    ARRANGEMENTS,
    tuple(BACKGROUNDS),
    (*COLOURS,),
    SHAPES,
    (*COLOURS, NONE),
    (*SHAPES, NONE),
    (*RADII, NONE),
    (*PLACES, NONE),
)
"""The classes of each question to the head: arrangement, background, both things, size and place of a single one."""
CELLS = 3
"""Rows and columns of the picture's parts, each of which a state of the padding tells of."""
CELL_FIELDS: Sequence[Sequence[str]] = ((*COLOURS, NONE), (*SHAPES, NONE))
CELLS_WEIGHT = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WordsPlan:
    """What the run is."""

    steps: int
    batch: int = 96
    seed: int = 20_261_123
    rate: float = 1.5e-3
    warm_up: int = 100


def facts(scene: Scene) -> list[int]:
    """Return the class of each field: of a pair first the inner, left or upper thing."""
    things = scene.things
    if scene.layout == "one":
        arrangement, shown = "one", (things[0], None)
    elif scene.layout == "count":
        arrangement, shown = f"count {len(things)}", (things[0], None)
    else:
        arrangement = {"inside": "nested", "above": "down", "below": "down"}.get(scene.relation, "across")
        turned = scene.relation in ("right of", "below")
        shown = (things[1], things[0]) if turned else (things[0], things[1])
    first, second = shown
    said = (
        arrangement,
        scene.background,
        first.colour,
        first.shape,
        second.colour if second else NONE,
        second.shape if second else NONE,
        scene.size or NONE,
        scene.place or NONE,
    )
    return [names.index(one) for names, one in zip(FIELDS, said, strict=True)]


def cells(scene: Scene) -> list[list[int]]:
    """Return what is seen at the middle of each part, row by row: the classes of CELL_FIELDS."""
    told = []
    for row in range(CELLS):
        for column in range(CELLS):
            x, y = ((2 * at + 1) * SIZE / (2 * CELLS) for at in (column, row))
            over = [one for one in scene.things if (one.x - x) ** 2 + (one.y - y) ** 2 <= one.radius**2]
            seen = min(over, key=lambda one: one.radius, default=None)
            said = (seen.colour, seen.shape) if seen else (NONE, NONE)
            told.append([names.index(one) for names, one in zip(CELL_FIELDS, said, strict=True)])
    return told


class Reader(Module):
    """The head: tells from the states of the text encoder what a caption asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.whole = Linear(TEXT_WIDTH, sum(len(names) for names in FIELDS))
        self.cell = Linear(TEXT_WIDTH, sum(len(names) for names in CELL_FIELDS))

    def loss(self, states: Tensor, ids: Tensor, scenes: Sequence[Scene], end: int) -> tuple[Tensor, Tensor]:
        """Return the loss, and the share of what is told rightly: of each field, then of each field of the parts.

        `states`: [n, LONGEST, TEXT_WIDTH]; `ids`: [n, LONGEST].
        """
        first_end = (ids == end).int().argmax(1)
        wholes = self.whole(states[torch.arange(len(ids)), first_end]).float()
        parts = self.cell(states[:, -(CELLS**2) :]).float().flatten(0, 1)
        told = torch.tensor([facts(scene) for scene in scenes])
        seen = torch.tensor([cells(scene) for scene in scenes]).flatten(0, 1)
        losses, right = [], []
        for logits, wanted, fields, weight in ((wholes, told, FIELDS, 1.0), (parts, seen, CELL_FIELDS, CELLS_WEIGHT)):
            for number, answer in enumerate(logits.split([len(names) for names in fields], dim=-1)):
                losses.append(weight * cross_entropy(answer, wanted[:, number]))
                right.append((answer.argmax(-1) == wanted[:, number]).float().mean())
        return torch.stack(losses).sum(), torch.stack(right)


def train_words(plan: WordsPlan, encoder: CLIPTextModel, words: Words, out: Path, *, every: int) -> Reader:
    """Train the text encoder to the end, or go on; return its head."""
    torch.manual_seed(plan.seed)
    reader = Reader()
    weights = {f"text.{name}": one for name, one in encoder.named_parameters()}
    weights |= {f"head.{name}": one for name, one in reader.named_parameters()}
    run = Run(out / "checkpoint" / "words", asdict(plan), weights)
    log = Log(out / "log.jsonl", "words")
    while run.step < plan.steps:
        rng = random.Random(f"{plan.seed}:words:{run.step}")
        scenes = [draw_scene(rng) for _ in range(plan.batch)]
        ids = torch.tensor(words.rows([caption(scene, rng) for scene in scenes]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, right = reader.loss(encoder(ids).last_hidden_state, ids, scenes, words.end)
        run.learn(loss, rate=rate_at(plan.rate, plan.warm_up, plan.steps, run.step), decay=0.99)
        names = ("arrangement", "ground", "colour", "shape", "other_colour", "other_shape", "size", "place")
        named = zip((*names, "cell_colour", "cell_shape"), right, strict=True)
        log.add(loss=float(loss.detach()), **{name: float(one) for name, one in named})
        if run.step % every == 0 or run.step == plan.steps:
            run.save()
            log.tell(run.step)
    run.use_average()
    return reader
