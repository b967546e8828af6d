"""Judges the pipeline by the pictures that it draws from captions that it never saw.

python -m starter.image.evaluate                  what ships, by the engine; writes evaluation.json beside this file
python -m starter.image.evaluate --by diffusers   what was trained, in fp32; writes evaluation_diffusers.json
"""

import argparse
import io
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from serai.engines.base import AdapterUse, EngineSpec, Run
from serai.engines.images.openvino_image import OpenvinoImage
from serai.engines.tasks import GenerateImage
from serai.events import Done, Failed, Media
from starter.image.captions import caption
from starter.image.checker import judge, look
from starter.image.scenes import BACKGROUNDS, COLOURS, SIZE, Layout, Scene, Style, draw_scene, pale

HERE = Path(__file__).parent
NAME = "starter-image"
STARTERS = HERE.parents[1] / "src" / "serai" / "starters"
STYLES: Sequence[Style] = ("outline", "pastel")
STEPS = 20
GUIDANCE = 3.0
SEED = 4_000_000
BATCH = 24
OUTLINE_FILLED = 0.75
"""Share of its outline's area that a shape of style 'outline' may cover."""

Draw = Callable[[Sequence[str], Sequence[str], Sequence[int]], list[Image.Image]]
"""Pictures for prompts, negative prompts and seeds."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A scene and how it is asked for."""

    scene: Scene
    text: str


def held_out(layout: Layout, number: int, *, phrasing: bool) -> list[Asked]:
    """Return scenes that training left out; with `phrasing` in words that it left out too."""
    rng = random.Random(f"held out:{layout}:{phrasing}")
    scenes = [draw_scene(rng, layout, held_out=True) for _ in range(number)]
    return [Asked(scene, caption(scene, rng, held_out=phrasing, whole=True)) for scene in scenes]


def share(draw: Draw, asked: Sequence[Asked]) -> dict[str, float]:
    """Return the shares of pictures that are right."""
    pictures = draw([one.text for one in asked], [""] * len(asked), range(SEED, SEED + len(asked)))
    verdicts = [judge(picture, one.scene) for picture, one in zip(pictures, asked, strict=True)]
    told = [
        verdict.background
        for verdict, one in zip(verdicts, asked, strict=True)
        if any(f" {name}" in one.text.lower() for name in (*BACKGROUNDS, "gray"))
    ]
    return {
        "pictures": len(asked),
        "right": mean([verdict.right for verdict in verdicts]),
        "things": mean([verdict.things for verdict in verdicts]),
        "background_when_named": mean(told),
    }


def mean(some: Sequence[bool]) -> float:
    """Return the share of what is true."""
    return round(sum(some) / max(1, len(some)), 4)


def avoided(draw: Draw, number: int) -> dict[str, float]:
    """Return how often a colour comes by itself, and how often when the negative prompt names it."""
    rng = random.Random("avoided")
    colours = [rng.choice(tuple(COLOURS)) for _ in range(number)]
    prompts, seeds = ["a large shape"] * number, range(SEED, SEED + number)
    free = draw(prompts, [""] * number, seeds)
    bound = draw(prompts, [f"{colour}" for colour in colours], seeds)
    return {
        "pictures": number,
        "named_colour_without": mean([_shows(one, colour) for one, colour in zip(free, colours, strict=True)]),
        "named_colour_with": mean([_shows(one, colour) for one, colour in zip(bound, colours, strict=True)]),
    }


def _shows(picture: Image.Image, colour: str) -> bool:
    return any(found.colour == colour for found in look(picture)[1])


def styled(draw: Draw, style: Style, number: int) -> dict[str, float]:
    """Return how many pictures of one thing show the style and, of the pastel ones, the right thing."""
    asked = held_out("one", number, phrasing=False)
    pictures = draw([one.text for one in asked], [""] * number, range(SEED, SEED + number))
    if style == "pastel":
        tones = {name: pale(tone) for name, tone in {**COLOURS, **BACKGROUNDS}.items()}
        right = [judge(picture, one.scene, tones).right for picture, one in zip(pictures, asked, strict=True)]
        return {"pictures": number, "right": mean(right)}
    hollow = []
    for picture, one in zip(pictures, asked, strict=True):
        found = [patch for patch in look(picture)[1] if patch.colour == one.scene.things[0].colour]
        hollow.append(bool(found) and found[0].filled < OUTLINE_FILLED)
    return {"pictures": number, "hollow_in_colour": mean(hollow)}


def by_diffusers(pipeline: StableDiffusionPipeline, *, steps: int = STEPS, guidance: float = GUIDANCE) -> Draw:
    """Return a drawer by the pipeline of diffusers."""
    pipeline.set_progress_bar_config(disable=True)

    def draw(prompts: Sequence[str], negatives: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        pictures: list[Image.Image] = []
        for at in range(0, len(prompts), BATCH):
            some = slice(at, at + BATCH)
            made = pipeline(
                list(prompts[some]),
                negative_prompt=list(negatives[some]),
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[some]],
            )
            pictures += made.images
        return pictures

    return draw


def by_engine(
    folder: Path,
    *,
    threads: int = 1,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
    style: str = "",
    scale: float = 1.0,
) -> Draw:
    """Return a drawer by the engine that ships, with a style if one is named."""
    engine = OpenvinoImage()
    engine.load(EngineSpec(engine="openvino-image", name=NAME, folder=str(folder), threads=threads), lambda share: None)
    adapters = (AdapterUse(id=style, path=str(folder.parent / f"{NAME}-{style}"), scale=scale),) if style else ()

    def draw(prompts: Sequence[str], negatives: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        pictures: dict[int, Image.Image] = {}
        for at in range(0, len(prompts), 8):
            for number in range(at, min(at + 8, len(prompts))):
                task = GenerateImage(
                    prompt=prompts[number],
                    negative_prompt=negatives[number],
                    width=SIZE,
                    height=SIZE,
                    steps=steps,
                    guidance_scale=guidance,
                    seed=seeds[number],
                )
                engine.start(Run(id=number, task=task, adapters=adapters))
            open_runs = set(range(at, min(at + 8, len(prompts))))
            while open_runs:
                for run, event in engine.step():
                    if isinstance(event, Failed):
                        raise SystemExit(event.message)
                    if isinstance(event, Media):
                        pictures[run] = Image.open(io.BytesIO(event.data)).convert("RGB")
                    if isinstance(event, Done):
                        open_runs.discard(run)
        return [pictures[number] for number in range(len(prompts))]

    return draw


def evaluate(draw: Draw, number: int) -> dict[str, Any]:
    """Return the figures of the base."""
    told: dict[str, Any] = {}
    for layout in ("one", "pair", "count"):
        told[layout] = share(draw, held_out(layout, number, phrasing=False))
    told["one, held-out phrasing"] = share(draw, held_out("one", number, phrasing=True))
    told["pair, held-out phrasing"] = share(draw, held_out("pair", number, phrasing=True))
    told["negative prompt"] = avoided(draw, number // 2)
    return told


def sheet(pictures: Sequence[Image.Image], columns: int = 8) -> Image.Image:
    """Return the pictures side by side."""
    width, height = pictures[0].size
    rows = -(-len(pictures) // columns)
    whole = Image.new("RGB", (columns * (width + 4), rows * (height + 4)), (255, 0, 255))
    for number, picture in enumerate(pictures):
        whole.paste(picture, (number % columns * (width + 4), number // columns * (height + 4)))
    return whole


def load(folder: Path) -> StableDiffusionPipeline:
    """Return the trained pipeline in fp32."""
    return StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)


def main() -> None:
    """Evaluate the base and the styles, as they ship or as diffusers draws them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--by", choices=("engine", "diffusers"), default="engine")
    parser.add_argument("--out", type=Path, default=HERE / "out")
    parser.add_argument("--number", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    def drawer(style: str = "") -> Draw:
        if options.by == "engine":
            return by_engine(STARTERS / NAME, threads=options.threads, style=style)
        pipeline = load(options.out / "pipeline")
        if style:
            pipeline.load_lora_weights(options.out / f"{NAME}-{style}", adapter_name=style)
        return by_diffusers(pipeline)

    told = {"by": options.by, "steps": STEPS, "guidance_scale": GUIDANCE, **evaluate(drawer(), options.number)}
    for style in STYLES:
        told[f"style {style}"] = styled(drawer(style), style, options.number // 3)
    print(json.dumps(told, indent=2))
    name = "evaluation.json" if options.by == "engine" else "evaluation_diffusers.json"
    (HERE / name).write_text(json.dumps(told, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
