"""The stage before the denoiser's: the text encoder learns alone to tell what a caption asks for.

From the state behind a caption's last word a head tells the layout, the background and both things, in the order of
the picture and not of the words. The denoiser then finds "left of" and "right of" resolved; learning them by way of
pictures takes many times longer. The head is thrown away, and the encoder learns on with the denoiser.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import Linear
from torch.nn.functional import cross_entropy
from transformers import CLIPTextModel

from starter.image.captions import caption
from starter.image.checkpoints import Run
from starter.image.networks import TEXT_WIDTH, make_text_encoder
from starter.image.progress import Log, rate_at
from starter.image.scenes import BACKGROUNDS, COLOURS, PLACES, RADII, SHAPES, Scene, draw_scene
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


def errors_of(encoder: CLIPTextModel, head: Linear, ids: Tensor, wanted: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Return the loss, and for each field the share of the captions that is told rightly."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = encoder(ids).last_hidden_state
        first_end = (ids == end).int().argmax(1)
        read = torch.stack([states[torch.arange(len(ids)), first_end], states[:, -1]])
        logits = head(read).float()
    losses, right = [], []
    for number, answer in enumerate(logits.split([len(names) for names in FIELDS], dim=-1)):
        losses += [cross_entropy(one, wanted[:, number]) for one in answer]
        right.append((answer[1].argmax(-1) == wanted[:, number]).float().mean())
    return torch.stack(losses).sum() / 2, torch.stack(right)


def train_words(plan: WordsPlan, words: Words, out: Path, *, every: int) -> CLIPTextModel:
    """Train to the end, or go on; return the text encoder."""
    encoder = make_text_encoder(plan.seed, words)
    head = Linear(TEXT_WIDTH, sum(len(names) for names in FIELDS))
    weights = {f"text.{name}": one for name, one in encoder.named_parameters()}
    weights |= {f"head.{name}": one for name, one in head.named_parameters()}
    run = Run(out / "checkpoint" / "words", asdict(plan), weights)
    log = Log(out / "log.jsonl", "words")
    while run.step < plan.steps:
        rng = random.Random(f"{plan.seed}:words:{run.step}")
        scenes = [draw_scene(rng) for _ in range(plan.batch)]
        ids = torch.tensor(words.rows([caption(scene, rng) for scene in scenes]))
        wanted = torch.tensor([facts(scene) for scene in scenes])
        loss, right = errors_of(encoder, head, ids, wanted, words.end)
        run.learn(loss, rate=rate_at(plan.rate, plan.warm_up, plan.steps, run.step), decay=0.99)
        named = zip(("arrangement", "ground", "colour", "shape", "other_colour", "other_shape"), right, strict=False)
        log.add(loss=float(loss.detach()), **{name: float(one) for name, one in named})
        if run.step % every == 0 or run.step == plan.steps:
            run.save()
            log.tell(run.step)
    run.use_average()
    return encoder
