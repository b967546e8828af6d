"""The four networks of the pipeline, in the classes and with the configurations that diffusers loads."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from torch.nn import Conv2d
from transformers import CLIPTextConfig, CLIPTextModel

from starter.image.scenes import SIZE
from starter.image.tokens import LONGEST, Words

LATENT_CHANNELS = 12
DOWNSAMPLING = 16
TEXT_WIDTH = 192
TRAINED_STEPS = 1000
SIGNALS = 6


def make_vae(seed: int) -> AutoencoderKL:
    """Return the untrained autoencoder: SIZE × SIZE pixels to a sixteenth of the side, and back."""
    torch.manual_seed(seed)
    widths = (16, 32, 64, 64, 96)
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=2,
        sample_size=SIZE,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    _start_with_tones(vae)
    return vae


def _start_with_tones(vae: AutoencoderKL) -> None:
    """Set the weights so that three latents begin as the mean tone of their patch, and with little noise.

    Three signals, lightness and two colour differences, each with its negative, go straight through: silu(x) - silu(-x)
    is x. From random weights the autoencoder learns the lightness soon, and the colours only after thousands of steps.
    """
    tones = torch.tensor([[1 / 3, 1 / 3, 1 / 3], [1.5, -1.5, 0.0], [-0.75, -0.75, 1.5]])
    signs = torch.tensor([[1.0], [-1.0]])
    pairs = torch.kron(torch.eye(3), signs)  # 6 signals from 3 tones
    encoder, decoder = vae.encoder, vae.decoder
    with torch.no_grad():
        _carry(encoder.conv_in, pairs @ tones)
        for block in (*encoder.down_blocks, encoder.mid_block, decoder.mid_block, *decoder.up_blocks):
            for layer in block.resnets:
                layer.conv2.weight[:SIGNALS] = 0
                layer.conv2.bias[:SIGNALS] = 0
                if layer.conv_shortcut is not None:
                    _carry(layer.conv_shortcut, torch.eye(SIGNALS))
            for resized in getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or ():
                _carry(resized.conv, torch.eye(SIGNALS))
        _carry(encoder.conv_out, pairs.T)
        _carry(vae.quant_conv, torch.eye(3))
        vae.quant_conv.weight[LATENT_CHANNELS:] *= 0.1
        vae.quant_conv.bias[LATENT_CHANNELS:] = -6.0
        _carry(vae.post_quant_conv, torch.eye(3))
        _carry(decoder.conv_in, pairs)
        _carry(decoder.conv_out, 0.3 * torch.linalg.inv(tones) @ pairs.T)


def _carry(layer: Conv2d, matrix: Tensor) -> None:
    """Make the layer's first channels this matrix of the first ones that come in; its stride takes a mean."""
    rows, columns = matrix.shape
    layer.weight[:rows] = 0
    layer.bias[:rows] = 0
    if layer.stride[0] == 2:
        layer.weight[:rows, :columns, :2, :2] = matrix[:, :, None, None] / 4
    else:
        middle = layer.kernel_size[0] // 2
        layer.weight[:rows, :columns, middle, middle] = matrix


def make_unet(seed: int) -> UNet2DConditionModel:
    """Return the untrained denoiser: attention to the words at full size, plain convolutions below."""
    torch.manual_seed(seed)
    widths = (96, 160)
    return UNet2DConditionModel(
        sample_size=SIZE // DOWNSAMPLING,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=[width // 32 for width in widths],
        norm_num_groups=16,
        use_linear_projection=True,
    )


def make_text_encoder(seed: int, words: Words) -> CLIPTextModel:
    """Return the untrained text encoder."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=words.size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=3 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=6,
        max_position_embeddings=LONGEST,
        bos_token_id=words.start,
        eos_token_id=words.end,
        pad_token_id=words.end,
    )
    return CLIPTextModel(config)


def make_scheduler() -> DDIMScheduler:
    """Return the noise schedule of training, which is the sampler that the pipeline names too."""
    return DDIMScheduler(
        num_train_timesteps=TRAINED_STEPS,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="leading",
    )
