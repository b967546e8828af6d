"""Noise, pixels, masks and previews of image models: what lies around the network. Numpy and Pillow alone."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FloatArray = NDArray[Any]
"""float32."""
Pixels = NDArray[np.uint8]
"""height × width × 3."""

PREVIEW_SIDE = 128
_PREVIEW_QUALITY = 70
_FITTED, _FITTED_SIDE = 6, 8
"""Random latents that the preview's colours are fitted to, and the side of each."""
_FIT_SEED = 20_240
_LEAST_LOG, _MOST_LOG = -30.0, 20.0
"""Bounds of a logarithm of a variance, as diffusers has them."""


class Draws:
    """The chance of one picture: the same seed gives the same numbers, whatever else is drawn beside it."""

    def __init__(self, seed: int) -> None:
        """`seed`: 0 to 2⁶⁴-1. Philox is a counter-based generator: neighbouring seeds have nothing in common."""
        self._generator = np.random.Generator(np.random.Philox(key=seed))

    def normal(self, shape: tuple[int, ...]) -> FloatArray:
        """Return standard normal noise."""
        return self._generator.standard_normal(shape, dtype=np.float32)


def drawn_latents(parameters: FloatArray, channels: int, draws: Draws) -> FloatArray:
    """Return latents of what an encoder said: mean and log-variance one behind the other, or the latents themselves."""
    if parameters.shape[0] != 2 * channels:
        return parameters
    mean, log = parameters[:channels], parameters[channels:].clip(_LEAST_LOG, _MOST_LOG)
    deviation: FloatArray = np.exp(0.5 * log)
    latents: FloatArray = mean + deviation * draws.normal(mean.shape)
    return latents


def to_pixels(sample: FloatArray) -> Pixels:
    """Return the picture of a decoder's output, 3 × height × width from -1 to 1."""
    bytes_ = np.round((sample * 0.5 + 0.5).clip(0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(bytes_.transpose(1, 2, 0))


def to_sample(pixels: Pixels) -> FloatArray:
    """Return a picture as an encoder takes it: 3 × height × width from -1 to 1."""
    return np.ascontiguousarray(pixels.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1)


def fitted(pixels: Pixels, width: int, height: int) -> Pixels:
    """Return a picture, or a mask, of this size: as it is, or scaled."""
    if pixels.shape[:2] == (height, width):
        return pixels
    resample = Image.Resampling.LANCZOS if pixels.ndim == 3 else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize((width, height), resample))


def latent_mask(mask: NDArray[np.uint8], factor: int) -> FloatArray:
    """Return 1 × height × width of latents: 1 where any pixel of the latent is to be painted anew, else 0."""
    height, width = mask.shape
    blocks = mask.reshape(height // factor, factor, width // factor, factor)
    painted: FloatArray = blocks.max(axis=(1, 3)) >= 128
    return painted.astype(np.float32)[None]


def kept(painted: Pixels, source: Pixels, mask: NDArray[np.uint8]) -> Pixels:
    """Return the picture with the source's own pixels where the mask is black, and shades of both where it is grey."""
    share = mask[:, :, None].astype(np.float32) / 255
    return np.round(share * painted + (1 - share) * source).astype(np.uint8)


def ppm(pixels: Pixels) -> bytes:
    """Return a binary PPM (P6, 8 bits): https://netpbm.sourceforge.net/doc/ppm.html."""
    height, width, _ = pixels.shape
    return b"P6\n%d %d\n255\n" % (width, height) + pixels.tobytes()


class Preview:
    """Small pictures of latents, by one matrix: a colour is nearly a linear function of the latent below it.

    The matrix is fitted when the model is loaded, by least squares to what the decoder makes of a few random
    latents. Decoding a preview instead would be a tenth of a step's work for each; this costs nothing, and
    needs no table of factors for models that nobody has seen.
    """

    def __init__(self, matrix: FloatArray) -> None:
        self._matrix = matrix

    @classmethod
    def fit(cls, decode: Callable[[FloatArray], FloatArray], channels: int, factor: int) -> "Preview":
        """`decode`: latents (batch, channels, height, width) to samples of `factor` times the size."""
        half = _FITTED_SIDE // 2
        coarse = Draws(_FIT_SEED).normal((_FITTED, channels, half, half))
        latents = coarse.repeat(2, axis=2).repeat(2, axis=3)  # even spots, as pictures have them
        samples = decode(latents)
        blocks = samples.reshape(_FITTED, 3, _FITTED_SIDE, factor, _FITTED_SIDE, factor).mean(axis=(3, 5))
        rows = latents.transpose(0, 2, 3, 1).reshape(-1, channels)
        colours = blocks.transpose(0, 2, 3, 1).reshape(-1, 3)
        matrix, *_ = np.linalg.lstsq(np.append(rows, np.ones((len(rows), 1), np.float32), axis=1), colours, rcond=None)
        return cls(matrix.astype(np.float32))

    def webp(self, latents: FloatArray) -> bytes:
        """Return a WebP whose longer side is at most 128 pixels. `latents`: channels × height × width."""
        weights, bias = self._matrix[:-1], self._matrix[-1]
        colours = np.tensordot(weights, latents, axes=(0, 0)) + bias[:, None, None]
        small = Image.fromarray(to_pixels(np.nan_to_num(colours)))
        scale = PREVIEW_SIDE / max(small.size)
        size = (max(1, round(small.width * scale)), max(1, round(small.height * scale)))
        buffer = io.BytesIO()
        small.resize(size, Image.Resampling.BICUBIC).save(buffer, "WEBP", quality=_PREVIEW_QUALITY)
        return buffer.getvalue()
