"""The second stage: denoiser and text encoder together, on latents that are made once; and the styles upon them."""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import convert_state_dict_to_diffusers
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import CLIPTextModel

from starter.image.captions import caption
from starter.image.checkpoints import Run
from starter.image.networks import TRAINED_STEPS, make_scheduler
from starter.image.progress import Log, late_rate_at, rate_at
from starter.image.scenes import Scene, Style, draw_scene, paint
from starter.image.tokens import Words
from starter.image.train_vae import pixels_of, to_network
from starter.image.train_words import Reader

SCENES_PER_SHARD = 2048
FIRST_SHARDS = 2
ADAPTED = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePlan:
    """What the run is. The pool of scenes grows by a shard every `shard_steps`, so that training begins at once."""

    steps: int
    batch: int = 48
    seed: int = 20_261_121
    rate: float = 1e-3
    warm_up: int = 200
    no_caption: float = 0.1
    """Share of the samples without a caption: what guidance is measured against."""
    shards: int = 9
    shard_steps: int = 150
    telling: float = 0.02
    """Weight of what the head of the text encoder learns beside the denoiser."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StylePlan:
    """What the run of a style is."""

    style: Style
    steps: int
    rank: int = 16
    batch: int = 48
    seed: int = 20_261_121
    rate: float = 2e-3
    warm_up: int = 30
    no_caption: float = 0.1
    shards: int = 1


@dataclass(frozen=True, slots=True)
class Shard:
    """Scenes and their latents, float16 [n, channels, height, width]."""

    scenes: Sequence[Scene]
    latents: NDArray[np.float16]


def make_shard(vae: AutoencoderKL, folder: Path, seed: int, number: int, style: Style = "plain") -> Shard:
    """Return a shard of the pool; its latents are kept in a file, its scenes follow from the seed."""
    rng = random.Random(f"{seed}:shard:{number}")
    scenes = [draw_scene(rng) for _ in range(SCENES_PER_SHARD)]
    path = folder / f"{style}-{number}.npy"
    if not path.exists():
        some = []
        for at in range(0, len(scenes), 64):
            pixels = pixels_of([paint(scene, style=style, rng=rng) for scene in scenes[at : at + 64]])
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                some.append(vae.encode(to_network(pixels)).latent_dist.mean.half().numpy())
        folder.mkdir(parents=True, exist_ok=True)
        with path.with_suffix(".next").open("wb") as file:
            np.save(file, np.concatenate(some))
        path.with_suffix(".next").replace(path)
    return Shard(scenes, np.load(path))


class Sampler:
    """Draws batches from shards: latents and the ids of captions, each phrased anew."""

    def __init__(self, words: Words, batch: int, no_caption: float) -> None:
        self._words, self._batch, self._no_caption = words, batch, no_caption
        self.shards: list[Shard] = []

    def draw(self, rng: random.Random) -> tuple[Tensor, Tensor, Sequence[Scene]]:
        """Return latents, ids, and the scenes; those without a caption stand behind the others."""
        picked = [(rng.choice(self.shards), rng.randrange(SCENES_PER_SHARD)) for _ in range(self._batch)]
        scenes = [shard.scenes[n] for shard, n in picked]
        told = self._batch - sum(rng.random() < self._no_caption for _ in picked)
        texts = [caption(scene, rng) if n < told else "" for n, scene in enumerate(scenes)]
        latents = np.stack([shard.latents[n] for shard, n in picked]).astype(np.float32)
        return torch.from_numpy(latents), torch.tensor(self._words.rows(texts)), scenes[:told]


class Noising:
    """The schedule of the noise: what the denoiser is shown, and what it must say.

    Each timestep counts alike. Weights by the signal-to-noise ratio (min-SNR) were tried: so small a picture gets its
    layout while there is almost only noise, and with little weight there things were drawn well and in wrong places.
    """

    def __init__(self) -> None:
        kept = make_scheduler().alphas_cumprod
        self._signal, self._noise = kept.sqrt(), (1 - kept).sqrt()

    def loss(self, unet: UNet2DConditionModel, latents: Tensor, states: Tensor) -> Tensor:
        """Return the square error of the velocity at timesteps by chance."""
        times = torch.randint(0, TRAINED_STEPS, (len(latents),))
        noise = torch.randn_like(latents)
        signal, spread = (one[times, None, None, None] for one in (self._signal, self._noise))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            said = unet(signal * latents + spread * noise, times, states).sample
        return mse_loss(said.float(), signal * noise - spread * latents)


def train_base(
    plan: BasePlan,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    encoder: CLIPTextModel,
    reader: Reader,
    words: Words,
    out: Path,
    *,
    every: int,
) -> None:
    """Train denoiser and text encoder to the end, or go on; both hold their averaged weights then."""
    weights = {f"unet.{name}": one for name, one in unet.named_parameters()}
    weights |= {f"text.{name}": one for name, one in encoder.named_parameters()}
    weights |= {f"head.{name}": one for name, one in reader.named_parameters()}
    run = Run(out / "checkpoint" / "base", asdict(plan), weights)
    log, noising = Log(out / "log.jsonl", "base"), Noising()
    sampler = Sampler(words, plan.batch, plan.no_caption)
    unet.train()
    while run.step < plan.steps:
        while len(sampler.shards) < min(plan.shards, FIRST_SHARDS + run.step // plan.shard_steps):
            sampler.shards.append(make_shard(vae, out / "latents", plan.seed, len(sampler.shards)))
        torch.manual_seed(plan.seed + run.step)
        latents, ids, scenes = sampler.draw(random.Random(f"{plan.seed}:base:{run.step}"))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = encoder(ids).last_hidden_state
            telling, _ = reader.loss(states[: len(scenes)], ids[: len(scenes)], scenes, words.end)
        denoising = noising.loss(unet, latents, states)
        rate = late_rate_at(plan.rate, plan.warm_up, plan.steps, run.step)
        run.learn(denoising + plan.telling * telling, rate=rate, decay=0.995)
        log.add(loss=float(denoising.detach()), telling=float(telling.detach()))
        if run.step % every == 0 or run.step == plan.steps:
            run.save()
            log.tell(run.step)
    run.use_average()


def train_style(plan: StylePlan, pipeline: StableDiffusionPipeline, words: Words, out: Path, *, every: int) -> None:
    """Train a LoRA on the attention of the finished denoiser, on pictures in the style; write its file."""
    unet, vae, encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
    unet.requires_grad_(False)
    torch.manual_seed(plan.seed)
    name = plan.style
    config = LoraConfig(r=plan.rank, lora_alpha=plan.rank, init_lora_weights="gaussian", target_modules=list(ADAPTED))
    unet.add_adapter(config, adapter_name=name)
    weights = {key: one for key, one in unet.named_parameters() if one.requires_grad}
    run = Run(out / "checkpoint" / name, asdict(plan), weights, weight_decay=0.0)
    log, noising = Log(out / "log.jsonl", name), Noising()
    sampler = Sampler(words, plan.batch, plan.no_caption)
    sampler.shards = [make_shard(vae, out / "latents", plan.seed, number, name) for number in range(plan.shards)]
    while run.step < plan.steps:
        torch.manual_seed(plan.seed + run.step)
        latents, ids, _ = sampler.draw(random.Random(f"{plan.seed}:{name}:{run.step}"))
        with torch.no_grad():
            states = encoder(ids).last_hidden_state
        loss = noising.loss(unet, latents, states)
        run.learn(loss, rate=rate_at(plan.rate, plan.warm_up, plan.steps, run.step), decay=0.99)
        log.add(loss=float(loss.detach()))
        if run.step % every == 0 or run.step == plan.steps:
            run.save()
            log.tell(run.step)
    run.use_average()
    tensors = convert_state_dict_to_diffusers(get_peft_model_state_dict(unet, adapter_name=name))
    StableDiffusionPipeline.save_lora_weights(
        out / f"starter-image-{name}", unet_lora_layers={key: one.detach().half() for key, one in tensors.items()}
    )
    unet.delete_adapters(name)
