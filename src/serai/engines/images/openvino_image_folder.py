"""The folder of an image pipeline in OpenVINO's form, and what its configuration files say.

    model_index.json  scheduler/scheduler_config.json  tokenizer/
    text_encoder/  unet/  vae_decoder/  vae_encoder/      each openvino_model.xml, .bin and config.json

Without vae_encoder pictures are made from texts alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from serai.engines.language.openvino_llm_folder import read_as
from serai.errors import LoadFailed

INDEX = "model_index.json"
NOTE = "serai_pipeline.json"
"""What our exporter notes beside a pipeline."""


class PipelineNote(msgspec.Struct, frozen=True, kw_only=True):
    """How a pipeline was exported."""

    exporter: int = 1
    quantization: str = ""
    takes_any_size: bool = False
    """Whether latents of odd sizes are right; else they must halve without rest as often as the network halves them."""


class _Index(msgspec.Struct, frozen=True):
    class_name: str = msgspec.field(name="_class_name", default="")


class _UnetConfig(msgspec.Struct, frozen=True):
    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    sample_size: int | tuple[int, int] | None = None


class _VaeConfig(msgspec.Struct, frozen=True):
    latent_channels: int = 4
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    scaling_factor: float = 0.18215
    shift_factor: float | None = None


class _TextConfig(msgspec.Struct, frozen=True):
    max_position_embeddings: int = 77


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineShape:
    """What the configuration files say."""

    name: str
    channels: int
    """Of latents."""
    factor: int
    """Pixels to a latent, in each direction."""
    size_step: int
    """Sizes of pictures are multiples of it."""
    side: int
    """Of a picture of the size that the model was trained for."""
    scaling: float
    shift: float
    tokens: int
    quantization: str

    @classmethod
    def read(cls, folder: Path) -> "PipelineShape":
        """Raises LoadFailed for what is no pipeline of Stable Diffusion's shape."""
        if not (folder / INDEX).is_file():
            raise LoadFailed(f"The model's folder holds no {INDEX}.", hint="Pull it with quantize=auto.")
        index: _Index = read_as(folder / INDEX, _Index)
        unet: _UnetConfig = _config(folder / "unet", _UnetConfig)
        vae: _VaeConfig = _config(folder / "vae_decoder", _VaeConfig)
        text: _TextConfig = _config(folder / "text_encoder", _TextConfig)
        note: PipelineNote = read_as(folder / NOTE, PipelineNote) if (folder / NOTE).is_file() else PipelineNote()
        if (unet.in_channels, unet.out_channels) != (vae.latent_channels, vae.latent_channels):
            raise LoadFailed(
                f"The denoiser takes {unet.in_channels} channels and gives {unet.out_channels}, and latents have "
                f"{vae.latent_channels}: inpainting networks of their own kind are not run here.",
                hint="Use the plain model with a mask, or the engine diffusers.",
            )
        factor = 2 ** (len(vae.block_out_channels) - 1)
        halvings = 0 if note.takes_any_size else len(unet.block_out_channels) - 1
        side = unet.sample_size if isinstance(unet.sample_size, int) else max(unet.sample_size or (64,))
        return cls(
            name=index.class_name,
            channels=vae.latent_channels,
            factor=factor,
            size_step=factor * 2**halvings,
            side=side * factor,
            scaling=vae.scaling_factor,
            shift=vae.shift_factor or 0.0,
            tokens=text.max_position_embeddings,
            quantization=note.quantization,
        )


def _config(folder: Path, kind: Any) -> Any:
    return read_as(folder / "config.json", kind) if (folder / "config.json").is_file() else kind()
