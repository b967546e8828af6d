"""Tiny image pipelines of the real architectures, with random weights and real tokenizers, and adapters for them.

They are made once per test session by a process of their own, so that no test process holds torch. Test
processes that run side by side share them: whoever comes first makes them, the others wait at the lock.

| name | what it is |
|---|---|
| sd | a Stable Diffusion as diffusers saves it: CLIP, UNet, VAE (8 pixels to a latent), DDIM |
| sd-loras | two adapters of its UNet, in diffusers' keys: `first.safetensors`, `second.safetensors` |
| kontext | a FLUX Kontext: CLIP and T5, a transformer of one double and one single layer, VAE, flow matching |
| kontext-loras | two adapters of its transformer |

Pictures have 64 × 64 pixels by default. Weights are scaled so that prompts, guidance and adapters each make a
difference of several grey levels, and pictures use the whole range. The second adapter of each has
`lora_alpha` 8 at rank 4, which the file's metadata tells; the first one's alpha is its rank.

    sd, loras = made(tmp_path_factory, ["sd", "sd-loras"])
"""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from support.llm_models import SENTENCES, child_environment

NAMES = ("sd", "kontext", "sd-loras", "kontext-loras")
LORAS = ("first.safetensors", "second.safetensors")
SIDE = 64
CLIP_TOKENS = 24
START, END = "<|startoftext|>", "<|endoftext|>"

_TIMEOUT_S = 600
_RANK = 4
_DONE = ".made"


def made(factory: pytest.TempPathFactory, names: Sequence[str]) -> list[Path]:
    """Return the folders of `names` (see the table above), making at once all that are missing."""
    base = factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "image-models"
    root.mkdir(exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [name for name in names if not (root / f"{name}{_DONE}").exists()]
        if missing:
            command = [sys.executable, "-m", "support.image_models", str(root), *missing]
            done = subprocess.run(
                command, env=child_environment(), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
            assert done.returncode == 0, done.stderr[-4000:]
    return [root / name for name in names]


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Stable Diffusion."""
    return made(tmp_path_factory, ["sd"])[0]


@pytest.fixture(scope="session")
def tiny_kontext(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny FLUX Kontext."""
    return made(tmp_path_factory, ["kontext"])[0]


@pytest.fixture(scope="session")
def tiny_sd_loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two adapters of the tiny Stable Diffusion."""
    return made(tmp_path_factory, ["sd-loras"])[0]


@pytest.fixture(scope="session")
def tiny_kontext_loras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two adapters of the tiny FLUX Kontext."""
    return made(tmp_path_factory, ["kontext-loras"])[0]


def _clip_tokenizer() -> Any:
    """Train a tokenizer of CLIP's form: lower case, byte-level BPE, words that end in `</w>`."""
    from tokenizers import models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    # A first one for its way of cutting texts into words, which the trained pieces have to fit.
    tokenizer = CLIPTokenizer().backend_tokenizer
    tokenizer.model = models.BPE(end_of_word_suffix="</w>", unk_token=END)
    trainer = trainers.BpeTrainer(vocab_size=700, end_of_word_suffix="</w>", show_progress=False)
    tokenizer.train_from_iterator((text.lower() for text in SENTENCES * 3), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    pieces = sorted(model["vocab"], key=model["vocab"].__getitem__)
    single = {character + ending for character in pre_tokenizers.ByteLevel.alphabet() for ending in ("", "</w>")}
    alphabet = sorted(single - set(pieces))
    ordinary = [piece for piece in pieces if piece not in (START, END)]
    vocabulary = {piece: number for number, piece in enumerate([*ordinary, *alphabet, START, END])}
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in model["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_TOKENS)


def _save_vocabulary(folder: Path) -> None:
    """Write vocab.json and merges.txt beside tokenizer.json, as older programs want them."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    lines = [" ".join(merge) if isinstance(merge, list) else merge for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n")


def _t5_tokenizer() -> Any:
    """Train a tokenizer of T5's form: unigrams of words marked at their start."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Tokenizer

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(SENTENCES * 3, trainer)
    vocabulary = [tuple(entry) for entry in json.loads(tokenizer.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=512)


def _clip_model(vocabulary: int, end: int) -> Any:
    import transformers

    config = transformers.CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    model = transformers.CLIPTextModel(config).eval()
    _widen(model, ("token_embedding",), 40.0)
    return model


def _widen(model: Any, names: Sequence[str], factor: float) -> None:
    """Scale the parameters whose names hold one of `names`: small random weights make all inputs alike."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in names):
                parameter.mul_(factor)


def _vae(latent_channels: int, *, scaling_factor: float, shift_factor: float | None, has_quant: bool) -> Any:
    """Make a VAE of 8 pixels to a latent whose latents and pictures have the spread that a trained one's have."""
    import diffusers
    import torch

    widths = (8, 8, 16, 16)
    model = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        use_quant_conv=has_quant,
        use_post_quant_conv=has_quant,
    ).eval()
    last = model.quant_conv if has_quant else model.encoder.conv_out
    with torch.no_grad():
        coarse = torch.rand(4, 3, 8, 8) * 2 - 1
        pictures = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
        mean = model.encode(pictures).latent_dist.mean
        last.weight[:latent_channels].div_(mean.std() * scaling_factor)
        last.bias[:latent_channels].zero_()
        last.weight[latent_channels:].zero_()
        last.bias[latent_channels:].fill_(-6.0)
        decoded = model.decode(torch.randn(4, latent_channels, 8, 8) / scaling_factor).sample
        model.decoder.conv_out.weight.mul_(0.5 / decoded.std())
        model.decoder.conv_out.bias.zero_()
    return model


def _make_sd(folder: Path) -> None:
    import diffusers
    import torch

    torch.manual_seed(11)
    tokenizer = _clip_tokenizer()
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE // 8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=8,
    ).eval()
    _widen(unet, ("attn2.to_v", "attn2.to_out", "proj_out"), 3.0)
    pipeline = diffusers.StableDiffusionPipeline(
        tokenizer=tokenizer,
        text_encoder=_clip_model(len(tokenizer), tokenizer.eos_token_id),
        unet=unet,
        vae=_vae(4, scaling_factor=0.18215, shift_factor=None, has_quant=True),
        scheduler=diffusers.DDIMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    _save_vocabulary(folder / "tokenizer")


def _make_kontext(folder: Path) -> None:
    import diffusers
    import torch
    import transformers

    torch.manual_seed(12)
    tokenizer, tokenizer_2 = _clip_tokenizer(), _t5_tokenizer()
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    ).eval()
    _widen(transformer, ("context_embedder", "text_embedder", "guidance_embedder", "norm"), 3.0)
    t5 = transformers.T5EncoderModel(
        transformers.T5Config(
            vocab_size=len(tokenizer_2),
            d_model=32,
            d_kv=8,
            d_ff=64,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=False,
        )
    ).eval()
    pipeline = diffusers.FluxKontextPipeline(
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        text_encoder=_clip_model(len(tokenizer), tokenizer.eos_token_id),
        text_encoder_2=t5,
        transformer=transformer,
        vae=_vae(4, scaling_factor=0.3611, shift_factor=0.1159, has_quant=False),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    _save_vocabulary(folder / "tokenizer")


def _make_loras(folder: Path, base: Path, seed: int) -> None:
    """Save two adapters of the denoiser that `base` holds, as training programs of diffusers do."""
    import diffusers
    import torch
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    for number, name in enumerate(LORAS):
        pipeline = diffusers.DiffusionPipeline.from_pretrained(base, local_files_only=True)
        part = "unet" if hasattr(pipeline, "unet") else "transformer"
        denoiser = getattr(pipeline, part)
        torch.manual_seed(seed + number)
        config = LoraConfig(
            r=_RANK,
            lora_alpha=_RANK * (number + 1),
            init_lora_weights=False,
            target_modules=["to_q", "to_k", "to_v", "to_out.0"],
        )
        denoiser.add_adapter(config, adapter_name="default")
        _widen(denoiser, ("lora_B",), 4.0 if part == "unet" else 1.0)
        pipeline.save_lora_weights(
            folder,
            weight_name=name,
            safe_serialization=True,
            **{f"{part}_lora_layers": get_peft_model_state_dict(denoiser)},
            **({f"{part}_lora_adapter_metadata": config.to_dict()} if number else {}),
        )


def _make(root: Path, names: Sequence[str]) -> None:
    from serai.engines.quiet import quieten, quieten_transformers

    quieten()
    import torch

    torch.set_num_threads(1)
    quieten_transformers()
    makers = {"sd": _make_sd, "kontext": _make_kontext}
    wanted = {name.removesuffix("-loras") for name in names} | set(names)
    for name in (name for name in NAMES if name in wanted and not (root / f"{name}{_DONE}").exists()):
        if name in makers:
            makers[name](root / name)
        else:
            _make_loras(root / name, root / name.removesuffix("-loras"), seed=21)
        (root / f"{name}{_DONE}").touch()


if __name__ == "__main__":
    _make(Path(sys.argv[1]), sys.argv[2:])
