"""Trains the starter image from nothing: `python -m starter.image.train`. Goes on where it was stopped.

Five stages: the autoencoder, by parts of pictures; then by whole ones; its decoder further by itself; the denoiser with
the text encoder; a LoRA for each style. bf16 arithmetic over fp32 weights, AdamW. Every step's batch depends on the
seed and its number alone.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import Tokenizer
from transformers import CLIPTextModel, CLIPTokenizer

from starter.image.networks import make_scheduler, make_text_encoder, make_unet
from starter.image.scenes import Style
from starter.image.tokens import Words, make_tokenizer, padded, save_tokenizer
from starter.image.train_base import BasePlan, StylePlan, train_base, train_style
from starter.image.train_vae import VaePlan, decoder_plan, refine_plan, train_vae, train_whole
from starter.image.train_words import WordsPlan, train_words

OUT = Path(__file__).parent / "out"
SEED = 20_261_121
STAGES = ("vae", "refine", "decoder", "base", "styles")
STYLES: tuple[Style, ...] = ("outline", "pastel")


def kept_words(folder: Path, seed: int) -> Words:
    """Return the tokenizer of the run: made at its start, and kept, since the weights mean nothing without it."""
    path = folder / "tokenizer.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        make_tokenizer(seed).save(str(path))
    return Words(padded(Tokenizer.from_file(str(path))))


def assemble(out: Path, words: Words) -> StableDiffusionPipeline:
    """Write the folder that diffusers and the exporter read, weights in fp16, and return the pipeline in fp32."""
    tokenizer = CLIPTokenizer.from_pretrained(save_tokenizer(words, out / "tokenizer"))
    pipeline = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(out / "vae"),
        text_encoder=CLIPTextModel.from_pretrained(out / "text_encoder"),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel.from_pretrained(out / "unet"),
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.to(torch.float16).save_pretrained(out / "pipeline")
    save_tokenizer(words, out / "pipeline" / "tokenizer")
    return pipeline.to(torch.float32)


def main() -> None:
    """Read the options and train what is not finished."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae-steps", type=int, default=950)
    parser.add_argument("--refine-steps", type=int, default=5_000)
    parser.add_argument("--decoder-steps", type=int, default=8_000)
    parser.add_argument("--words-steps", type=int, default=900)
    parser.add_argument("--steps", type=int, default=14_000)
    parser.add_argument("--style-steps", type=int, default=2_000)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--stage", choices=("all", *STAGES), default="all", help="decoder and base may run side by side"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    out, every = options.out, options.every
    words = kept_words(out / "checkpoint", SEED)
    stages = STAGES if options.stage == "all" else (options.stage,)
    if "vae" in stages and not (out / "vae" / "config.json").exists():
        train_vae(VaePlan(steps=options.vae_steps), out, every=every)
    if "refine" in stages:
        train_whole("refine", refine_plan(options.refine_steps), _vae(out), out, every=every)
    if "decoder" in stages:
        train_whole("decoder", decoder_plan(options.decoder_steps), _vae(out), out, every=every)
    if "base" in stages:
        encoder, unet = make_text_encoder(SEED, words), make_unet(SEED)
        reader = train_words(WordsPlan(steps=options.words_steps), encoder, words, out, every=every)
        train_base(BasePlan(steps=options.steps), _vae(out), unet, encoder, reader, words, out, every=every)
        unet.save_pretrained(out / "unet")
        encoder.save_pretrained(out / "text_encoder")
    if "styles" in stages:
        pipeline = assemble(out, words)
        for style in STYLES:
            train_style(StylePlan(style=style, steps=options.style_steps), pipeline, words, out, every=every)


def _vae(out: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(out / "vae")


if __name__ == "__main__":
    main()
