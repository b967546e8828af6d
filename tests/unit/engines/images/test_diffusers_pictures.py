"""Previews: the map from latents to colours is the autoencoder's own."""

import json
import subprocess
import sys

import pytest

from support.llm_models import child_environment

PROGRAM = """
import io, json
from types import SimpleNamespace
import numpy, torch
from PIL import Image
from serai.engines.images.diffusers_pictures import Projection

class Autoencoder(torch.nn.Module):
    # Eight pixels square become a latent of four channels, each a mixture of the colours.
    config = SimpleNamespace(block_out_channels=(1, 1, 1, 1), scaling_factor=0.5, get=lambda name: 0.25)
    device, dtype = torch.device("cpu"), torch.float32
    mixture = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 1.0], [2.0, 0.0, 1.0], [1.0, 1.0, -1.0]])
    def encode(self, pictures):
        small = torch.nn.functional.avg_pool2d(pictures, 8)
        latents = torch.einsum("lc,ncyx->nlyx", self.mixture, small)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

vae = Autoencoder()
ramp = torch.linspace(0, 1, 128)
picture = torch.stack([ramp.expand(64, 128), ramp[:64, None].expand(64, 128) * 2 % 1, 1 - ramp.expand(64, 128)])
latents = (vae.encode(picture[None] * 2 - 1).latent_dist.mode()[0] - 0.25) * 0.5

def shown(projection, size):
    opened = Image.open(io.BytesIO(projection.preview(latents, size)))
    return opened.format, opened.size, numpy.asarray(opened.convert("RGB")).transpose(2, 0, 1) / 255

fitted = Projection.fitted(vae)
form, size, colours = shown(fitted, (128, 64))
plain = Projection.fitted(None)
print(json.dumps({
    "fitted": [fitted.is_fitted, plain.is_fitted],
    "form": form,
    "sizes": [size, shown(fitted, (1024, 512))[1], shown(plain, (48, 24))[1]],
    "error": float(numpy.abs(colours - picture.numpy()).mean()),
}))
"""


@pytest.mark.timeout(300)
def test_a_preview_has_the_colours_of_the_picture() -> None:
    """The fitted map finds the colours again; its picture has 128 pixels at most; without a map there is one, too."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["error"] < 0.06
    assert {name: said[name] for name in ("fitted", "form", "sizes")} == {
        "fitted": [True, False],
        "form": "WEBP",
        "sizes": [[128, 64], [128, 64], [48, 24]],
    }
