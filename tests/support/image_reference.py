"""What diffusers draws of given noise: the pictures that the engine `openvino-image` is compared with.

It runs in a process of its own, so that no test process holds torch. Noise is drawn as the engine draws it.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from support.llm_models import child_environment

Pixels = np.ndarray[Any, np.dtype[np.uint8]]
_TIMEOUT_S = 600


def drawn_by_diffusers(folder: Path, scratch: Path, cases: Sequence[dict[str, Any]]) -> list[Pixels]:
    """Return a picture for each case: prompt, negative_prompt, steps, guidance, seed, width, height.

    Where there are any: `loras` (pairs of file and scale), `source` (the path of an .npy) with `strength`.
    """
    (scratch / "cases.json").write_text(json.dumps(list(cases)))
    command = [sys.executable, "-m", "support.image_reference", str(folder), str(scratch)]
    done = subprocess.run(
        command, env=child_environment(), capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(scratch / "pictures.npz") as found:
        return [found[str(number)] for number in range(len(cases))]


def _draw(folder: Path, scratch: Path) -> None:
    from serai.engines.quiet import quieten, quieten_transformers

    quieten()
    import diffusers
    import torch

    torch.set_num_threads(1)
    quieten_transformers()
    pictures = {}
    for number, case in enumerate(json.loads((scratch / "cases.json").read_text())):
        pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        for at, (path, _) in enumerate(case.get("loras", ())):
            pipeline.load_lora_weights(path, adapter_name=f"lora{at}")
        if case.get("loras"):
            scales = [scale for _, scale in case["loras"]]
            pipeline.set_adapters([f"lora{at}" for at in range(len(scales))], adapter_weights=scales)
        pictures[str(number)] = _one(pipeline, case)
    np.savez(scratch / "pictures.npz", **pictures)


def _one(pipeline: Any, case: dict[str, Any]) -> Pixels:
    import diffusers
    import torch
    from PIL import Image

    generator = np.random.Generator(np.random.Philox(key=case["seed"]))
    shape = (1, 4, case["height"] // 8, case["width"] // 8)
    noise, further = (torch.from_numpy(generator.standard_normal(shape, dtype=np.float32)) for _ in range(2))
    given = {
        "prompt": case["prompt"],
        "negative_prompt": case.get("negative_prompt", ""),
        "num_inference_steps": case["steps"],
        "guidance_scale": case["guidance"],
        "output_type": "np",
    }
    if "source" not in case:
        found = pipeline(**given, latents=noise, width=case["width"], height=case["height"])
    else:
        from diffusers.models.autoencoders import vae
        from diffusers.pipelines.stable_diffusion import pipeline_stable_diffusion_img2img as module

        vae.randn_tensor = lambda *_args, **_named: further
        module.randn_tensor = lambda *_args, **_named: noise
        changing = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
        changing.set_progress_bar_config(disable=True)
        found = changing(**given, image=Image.fromarray(np.load(case["source"])), strength=case["strength"])
    return np.asarray(np.round(found.images[0] * 255), np.uint8)


if __name__ == "__main__":
    _draw(Path(sys.argv[1]), Path(sys.argv[2]))
