"""Pictures as tasks, pipelines and events hold them; previews from what a denoiser has so far."""

from io import BytesIO
from typing import Any

import numpy as np
import torch
from PIL import Image

from serai.engines.tasks import Array
from serai.errors import InvalidInput

PREVIEW_SIDE = 128
_FIT_LATENTS = 16
_FIT_SEED = 0


def picture_of(array: Array, field: str) -> Image.Image:
    """Return an RGB picture (height × width × 3) or a mask (height × width). Raises InvalidInput that names `field`."""
    channels = array.shape[2:]
    is_mask = field == "mask"
    if array.dtype != "uint8" or len(array.shape) < 2 or channels != (() if is_mask else (3,)):
        raise InvalidInput.at(field, f"must be uint8, height × width{'' if is_mask else ' × 3'}")
    height, width = array.shape[:2]
    if height < 1 or width < 1 or len(array.data) != height * width * (1 if is_mask else 3):
        raise InvalidInput.at(field, "does not hold as many numbers as its shape says")
    return Image.frombytes("L" if is_mask else "RGB", (width, height), array.data)


def ppm(picture: Image.Image) -> bytes:
    """Return the picture as a binary PPM: P6, 8 bits."""
    return b"P6\n%d %d\n255\n" % picture.size + picture.convert("RGB").tobytes()


def within(picture: Image.Image, pixels: int, multiple: int) -> Image.Image:
    """Return the picture with at most so many pixels, its sides multiples of `multiple`, its proportions about kept."""
    factor = min(1.0, (pixels / (picture.width * picture.height)) ** 0.5)
    size = tuple(max(int(side * factor) // multiple, 1) * multiple for side in picture.size)
    return resized(picture, *size)


def resized(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Return the picture in a size; in its own, untouched."""
    if picture.size == (width, height):
        return picture
    return picture.resize((width, height), Image.Resampling.LANCZOS if picture.mode == "RGB" else Image.Resampling.BOX)


def inpainted(drawn: Image.Image, source: Image.Image, mask: Image.Image) -> Image.Image:
    """Return what was drawn where the mask is white, and the source where it is black, to the last bit.

    Without this the pixels that are to stay would come back as the autoencoder remembers them.
    """
    return Image.composite(drawn, resized(source, *drawn.size), resized(mask, *drawn.size))


class Projection:
    """Latents as colours: a linear map, fitted to the autoencoder that the model has.

    A few smooth pictures are encoded, and the map is the least-squares one from their latents to their colours.
    """

    def __init__(self, weights: np.ndarray[Any, np.dtype[np.float32]] | None = None) -> None:
        self._weights = weights

    @classmethod
    def fitted(cls, vae: Any) -> "Projection":
        """Return the map for an autoencoder; for one of another form, the first three channels are the colours."""
        try:
            weights = _fit(vae)
        except torch.OutOfMemoryError:
            raise
        except Exception:  # noqa: BLE001 - an autoencoder of another form; a preview is not worth a model
            return cls()
        return cls(weights if np.isfinite(weights).all() else None)

    @property
    def is_fitted(self) -> bool:
        return self._weights is not None

    def preview(self, latents: torch.Tensor, size: tuple[int, int]) -> bytes:
        """Return latents (channels × height × width) of a picture of `size` as a WebP of 128 pixels at most."""
        values = latents.detach().to("cpu", torch.float32).numpy()
        flat = values.reshape(values.shape[0], -1).T
        if self._weights is not None and self._weights.shape[0] == flat.shape[1] + 1:
            colours = np.concatenate([flat, np.ones((len(flat), 1), np.float32)], axis=1) @ self._weights
        else:
            colours = np.resize(flat[:, :3], (len(flat), 3))
            low, high = colours.min(axis=0), colours.max(axis=0)
            colours = (colours - low) / np.maximum(high - low, 1e-6)
        pixels = (np.nan_to_num(colours).clip(0, 1) * 255).round().astype(np.uint8)
        small = Image.fromarray(pixels.reshape(*values.shape[1:], 3))
        factor = min(1.0, PREVIEW_SIDE / max(size))
        small = small.resize((max(round(size[0] * factor), 1), max(round(size[1] * factor), 1)))
        buffer = BytesIO()
        small.save(buffer, "WEBP", quality=70, method=2)
        return buffer.getvalue()


@torch.no_grad()
def _fit(vae: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the map, (channels + 1) × 3, from scaled latents and a one to colours from 0 to 1."""
    generator = torch.Generator().manual_seed(_FIT_SEED)
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    side = _FIT_LATENTS * factor
    pictures = torch.cat(
        [
            torch.nn.functional.interpolate(torch.rand(1, 3, 4, 4, generator=generator), side, mode="bilinear"),
            torch.nn.functional.interpolate(torch.rand(1, 3, 5, 5, generator=generator), side, mode="nearest"),
        ]
    )
    latents = vae.encode((pictures * 2 - 1).to(vae.device, vae.dtype)).latent_dist.mode().to("cpu", torch.float32)
    latents = (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor
    colours = torch.nn.functional.avg_pool2d(pictures, factor)
    inputs = torch.nn.functional.pad(latents.permute(0, 2, 3, 1).flatten(0, 2), (0, 1), value=1.0)
    outputs = colours.permute(0, 2, 3, 1).flatten(0, 2)
    weights: np.ndarray[Any, np.dtype[np.float32]] = np.linalg.lstsq(inputs.numpy(), outputs.numpy(), rcond=None)[0]
    return weights
