"""Tracing the networks of an image pipeline: text encoder, denoiser, and both halves of the autoencoder.

Inputs and outputs have the names under which OpenVINO's own published pipelines have them.
"""

import gc
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import openvino
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.jit._trace import TracerWarning
from transformers import CLIPTextModel

_FROM_HERE: dict[str, Any] = {"use_safetensors": True, "local_files_only": True}


class _TextEncoder(nn.Module):
    """input_ids (batch, tokens) → last_hidden_state (batch, tokens, width), pooler_output (batch, width)."""

    def __init__(self, text_encoder: Any) -> None:
        super().__init__()
        self.text_encoder = text_encoder

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.text_encoder(input_ids=input_ids)
        return output.last_hidden_state, output.pooler_output


class _Denoiser(nn.Module):
    """sample (batch, channels, height, width), timestep (batch), encoder_hidden_states → out_sample."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor, encoder_hidden_states: torch.Tensor
    ) -> torch.Tensor:
        found: torch.Tensor = self.unet(sample, timestep, encoder_hidden_states, return_dict=False)[0]
        return found


class _Decoder(nn.Module):
    """latent_sample (batch, channels, height, width) → sample, from -1 to 1."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, latent_sample: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.vae.decode(latent_sample, return_dict=False)[0]
        return found


class _Encoder(nn.Module):
    """sample, from -1 to 1 → latent_parameters: mean and logarithm of the variance, one behind the other."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.vae.encode(sample).latent_dist.parameters
        return found


def trace_text_encoder(source: Path) -> Any:
    """Return the network of `source`/text_encoder."""
    model: Any = CLIPTextModel.from_pretrained(source / "text_encoder", dtype=torch.float32, **_FROM_HERE)
    ids = torch.zeros((2, model.config.max_position_embeddings), dtype=torch.int64)
    return _traced(_TextEncoder(model), ["input_ids"], ["last_hidden_state", "pooler_output"], (ids,))


def trace_denoiser(source: Path) -> Any:
    """Return the network of `source`/unet, for latents of any size."""
    model = cast("Any", UNet2DConditionModel).from_pretrained(source / "unet", torch_dtype=torch.float32, **_FROM_HERE)
    # A size that halving leaves rests of: else the traced network would double sizes where it should match them.
    side = 2 * 2 ** (len(model.config.block_out_channels) - 1) + 1
    example = (
        torch.zeros((2, model.config.in_channels, side, side + 2)),
        torch.ones(2),
        torch.zeros((2, 7, model.config.cross_attention_dim)),
    )
    return _traced(_Denoiser(model), ["sample", "timestep", "encoder_hidden_states"], ["out_sample"], example)


def trace_autoencoder(source: Path) -> tuple[Any, Any]:
    """Return decoder and encoder of `source`/vae."""
    model = cast("Any", AutoencoderKL).from_pretrained(source / "vae", torch_dtype=torch.float32, **_FROM_HERE)
    halvings = len(model.config.block_out_channels) - 1
    latents = torch.zeros((2, model.config.latent_channels, 6, 5))
    pixels = torch.zeros((2, model.config.in_channels, 6 * 2**halvings, 5 * 2**halvings))
    return (
        _traced(_Decoder(model), ["latent_sample"], ["sample"], (latents,)),
        _traced(_Encoder(model), ["sample"], ["latent_parameters"], (pixels,)),
    )


def _traced(module: nn.Module, inputs: Sequence[str], outputs: Sequence[str], example: tuple[torch.Tensor, ...]) -> Any:
    """Return the network with its names; every size that the example has is free, but for channels."""
    module.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", TracerWarning)  # what it takes for a constant is one here
        network = openvino.convert_model(module, example_input=example)
    gc.collect()
    for port, name, value in zip(network.inputs, inputs, example, strict=True):
        _set_name(port, name)
        # Channels of pictures and the width of texts are fixed; a batch, its tokens and its pixels are not.
        fixed = {4: 1, 3: 2}.get(value.ndim)
        sizes = [size if at == fixed else -1 for at, size in enumerate(value.shape)]
        node = port.get_node()
        node.set_partial_shape(openvino.PartialShape(sizes))
        node.set_friendly_name(name)
    for port, name in zip(network.outputs, outputs, strict=True):
        _set_name(port, name)
    network.validate_nodes_and_infer_types()
    return network


def _set_name(port: Any, name: str) -> None:
    set_names: Callable[[set[str]], None] = port.get_tensor().set_names
    set_names({name})
