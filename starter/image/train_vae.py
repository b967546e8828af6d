"""The first stage: the autoencoder, by absolute error of pixels and of edges, and a little of the usual divergence."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from starter.image.checkpoints import Run
from starter.image.networks import make_vae
from starter.image.progress import Log, rate_at
from starter.image.scenes import COLOURS, SHAPES, SIZE, Scene, Style, Thing, draw_scene, near, paint

STYLES: Sequence[Style] = ("plain", "outline", "pastel")
SPREAD = 2e-3
"""Weight of the latents' square, without which they would grow to drown the noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VaePlan:
    """What the run is."""

    steps: int
    crops: int = 12
    """Of a quarter of a picture each, by which most of the run learns; the rest sees whole pictures."""
    pictures: int = 4
    whole_share: float = 0.15
    seed: int = 20_261_121
    rate: float = 1.5e-3
    warm_up: int = 60
    divergence: float = 3e-4
    edges: float = 1.0


def any_picture(rng: random.Random) -> Image.Image:
    """Return a scene, a crowd of shapes, or shapes in any colour: more edges than the scenes alone would have."""
    style = rng.choices(STYLES, (6, 3, 2))[0]
    chance = rng.random()
    if chance < 0.4:
        return paint(draw_scene(rng), style=style, rng=rng)
    things = tuple(
        Thing(
            shape=rng.choice(SHAPES),
            colour=rng.choice(tuple(COLOURS)),
            x=rng.uniform(0, SIZE),
            y=rng.uniform(0, SIZE),
            radius=rng.uniform(13, 45),
        )
        for _ in range(rng.randint(3, 7))
    )
    ground = draw_scene(rng).background
    if chance < 0.8:
        return paint(Scene(layout="count", things=things, background=ground), style=style, rng=rng)
    return _any_colours(rng)


def _any_colours(rng: random.Random) -> Image.Image:
    picture = Image.new("RGB", (2 * SIZE, 2 * SIZE), _colour(rng))
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.randint(2, 6)):
        corners = [(rng.uniform(0, 2 * SIZE), rng.uniform(0, 2 * SIZE)) for _ in range(rng.randint(3, 5))]
        draw.polygon(corners, fill=_colour(rng))
    return picture.reduce(2)


def _colour(rng: random.Random) -> tuple[int, int, int]:
    return near((rng.randint(0, 255), rng.randint(0, 255), rng.randint(0, 255)), rng)


def crop_of(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Return the busier of two quarters of the picture."""
    half = SIZE // 2
    corners = [(rng.randint(0, half), rng.randint(0, half)) for _ in range(2)]
    cuts = [picture.crop((x, y, x + half, y + half)) for x, y in corners]
    return max(cuts, key=lambda cut: len(set(cut.reduce(4).get_flattened_data())))


def batch_at(plan: VaePlan, step: int) -> Tensor:
    """Return what a step learns by."""
    rng = random.Random(f"{plan.seed}:vae:{step}")
    if step < plan.steps * (1 - plan.whole_share):
        return to_network(pixels_of([crop_of(any_picture(rng), rng) for _ in range(plan.crops)]))
    return to_network(pixels_of([any_picture(rng) for _ in range(plan.pictures)]))


def pixels_of(pictures: Sequence[Image.Image]) -> NDArray[np.uint8]:
    """Return uint8 [n, 3, height, width]."""
    return np.stack([np.asarray(one, np.uint8) for one in pictures]).transpose(0, 3, 1, 2)


def to_network(pixels: NDArray[np.uint8]) -> Tensor:
    """Return the pixels between -1 and 1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).float() / 127.5 - 1


def loss_of(vae: AutoencoderKL, plan: VaePlan, wanted: Tensor) -> tuple[Tensor, float]:
    """Return the loss, and its part for the pixels."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        posterior = vae.encode(wanted).latent_dist
        got = vae.decode(posterior.sample()).sample
    mean, spread = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + spread.exp() - 1 - spread).mean()
    got = got.float()
    pixels = functional.l1_loss(got, wanted)
    across = functional.l1_loss(got.diff(dim=3), wanted.diff(dim=3))
    down = functional.l1_loss(got.diff(dim=2), wanted.diff(dim=2))
    square = functional.mse_loss(got, wanted)
    loss = pixels + 2 * square + plan.edges * (across + down) + plan.divergence * divergence
    return loss, float(pixels.detach())


def train_vae(plan: VaePlan, out: Path, *, every: int) -> AutoencoderKL:
    """Train to the end, or go on; return the autoencoder with normal latents and save it in diffusers' form."""
    vae = make_vae(plan.seed)
    run = Run(out / "checkpoint" / "vae", asdict(plan), dict(vae.named_parameters()))
    log = Log(out / "log.jsonl", "vae")
    while run.step < plan.steps:
        torch.manual_seed(plan.seed + run.step)
        loss, pixels = loss_of(vae, plan, batch_at(plan, run.step))
        run.learn(loss, rate=rate_at(plan.rate, plan.warm_up, plan.steps, run.step), decay=0.99)
        log.add(loss=float(loss.detach()), pixels=pixels)
        if run.step % every == 0 or run.step == plan.steps:
            run.save()
            log.tell(run.step)
    run.use_average()
    normalise(vae, plan.seed)
    vae.save_pretrained(out / "vae")
    return vae


def normalise(vae: AutoencoderKL, seed: int, pictures: int = 512) -> None:
    """Fold mean and spread of the latents into the 1×1 convolutions, so that each channel has mean 0 and spread 1."""
    rng = random.Random(f"{seed}:normal")
    means = []
    with torch.no_grad():
        for _ in range(pictures // 32):
            scenes = [paint(draw_scene(rng), rng=rng) for _ in range(32)]
            means.append(vae.encode(to_network(pixels_of(scenes))).latent_dist.mean)
        latents = torch.cat(means)
        mean, spread = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        channels = len(mean)
        into, back = vae.quant_conv, vae.post_quant_conv
        back.bias += torch.einsum("oc,c->o", back.weight[:, :, 0, 0], mean)
        back.weight *= spread[None, :, None, None]
        into.bias[:channels] = (into.bias[:channels] - mean) / spread
        into.weight[:channels] /= spread[:, None, None, None]
        into.bias[channels:] -= 2 * spread.log()


@dataclass(frozen=True, slots=True, kw_only=True)
class WholePlan:
    """What a run on whole pictures is."""

    steps: int
    encoder: bool
    """Whether the encoder learns too. If not, the latents stay as they are, and the denoiser may learn beside it."""
    pictures: int = 6
    seed: int = 20_261_122
    rate: float
    warm_up: int = 50
    noise: float = 0.12
    """Spread of the noise on the latents: what the denoiser leaves wrong."""
    edges: float = 1.0
    near_edges: float = 4.0
    """How much more the pixels near an edge count, and so the corners of small shapes."""


def refine_plan(steps: int) -> WholePlan:
    """Return the plan of the run that both halves of the autoencoder make."""
    return WholePlan(steps=steps, encoder=True, rate=7e-4)


def decoder_plan(steps: int) -> WholePlan:
    """Return the plan of the decoder's run by itself."""
    return WholePlan(steps=steps, encoder=False, rate=1e-3, seed=20_261_124)


def near_edges(wanted: Tensor, more: float) -> Tensor:
    """Return the weight of each pixel, [n, 1, height, width]: one, and `more` times the contrast round it."""
    highest = functional.max_pool2d(wanted, 5, stride=1, padding=2)
    lowest = -functional.max_pool2d(-wanted, 5, stride=1, padding=2)
    return 1 + more * (highest - lowest).amax(1, keepdim=True) / 2


def train_whole(name: str, plan: WholePlan, vae: AutoencoderKL, out: Path, *, every: int) -> None:
    """Train on whole pictures to the end, or go on, and save the autoencoder in diffusers' form."""
    vae.requires_grad_(False)
    halves = ("encoder", "quant_conv", "decoder", "post_quant_conv") if plan.encoder else ("decoder", "post_quant_conv")
    weights = {key: one for key, one in vae.named_parameters() if key.startswith(halves)}
    for one in weights.values():
        one.requires_grad_(True)
    run = Run(out / "checkpoint" / name, asdict(plan), weights)
    log = Log(out / "log.jsonl", name)
    while run.step < plan.steps:
        rng = random.Random(f"{plan.seed}:{name}:{run.step}")
        torch.manual_seed(plan.seed + run.step)
        wanted = to_network(pixels_of([any_picture(rng) for _ in range(plan.pictures)]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.set_grad_enabled(plan.encoder):
                latents = vae.encode(wanted).latent_dist.mean
            got = vae.decode(latents + plan.noise * rng.random() * torch.randn_like(latents)).sample
        far = (got.float() - wanted).abs()
        weight = near_edges(wanted, plan.near_edges)
        pixels = (weight * far).sum() / (3 * weight.sum())
        across = functional.l1_loss(got.float().diff(dim=3), wanted.diff(dim=3))
        down = functional.l1_loss(got.float().diff(dim=2), wanted.diff(dim=2))
        loss = pixels + plan.edges * (across + down) + SPREAD * latents.float().square().mean()
        run.learn(loss, rate=rate_at(plan.rate, plan.warm_up, plan.steps, run.step), decay=0.995)
        log.add(loss=float(loss.detach()), near=float(pixels.detach()), pixels=float(far.detach().mean()))
        if run.step % every == 0 or run.step == plan.steps:
            run.save()
            log.tell(run.step)
    run.use_average()
    if plan.encoder:
        normalise(vae, plan.seed)
    vae.save_pretrained(out / "vae")
