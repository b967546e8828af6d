"""What diffusers itself draws, in a process of its own: the engine is held against it, byte for byte."""

import base64
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.llm_models import child_environment

_TIMEOUT_S = 600


def drawn(calls: Sequence[Mapping[str, Any]]) -> list[bytes]:
    """Return the RGB bytes of the one picture that each call draws, with a generator of its own.

    A call holds the pipeline's arguments; its `folder` and `seed`; `kind` (text, image or inpaint); `adapters`,
    pairs of a file and a scale; `image` and `mask_image` as [width, height, RGB or L bytes].
    """
    done = subprocess.run(
        [sys.executable, "-m", "support.diffusers_reference"],
        env=child_environment(),
        input=json.dumps([_plain(call) for call in calls]),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return [base64.b64decode(line) for line in done.stdout.split()]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value) if isinstance(value, Path) else value


def _draw(calls: list[dict[str, Any]]) -> None:
    from serai.engines.quiet import quieten

    quieten()
    import diffusers
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    kinds = {"image": diffusers.AutoPipelineForImage2Image, "inpaint": diffusers.AutoPipelineForInpainting}
    bases: dict[str, Any] = {}
    for call in calls:
        folder, kind, adapters = call.pop("folder"), call.pop("kind", "text"), call.pop("adapters", ())
        if folder not in bases:
            bases[folder] = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipeline = bases[folder] if kind == "text" else kinds[kind].from_pipe(bases[folder])
        pipeline.set_progress_bar_config(disable=True)
        for number, (file, _) in enumerate(adapters):
            pipeline.load_lora_weights(str(Path(file).parent), weight_name=Path(file).name, adapter_name=f"a{number}")
        if adapters:
            pipeline.set_adapters([f"a{n}" for n in range(len(adapters))], [scale for _, scale in adapters])
        for name in {"image", "mask_image"} & set(call):
            width, height, data = call[name]
            call[name] = Image.frombytes("RGB" if name == "image" else "L", (width, height), base64.b64decode(data))
        generator = torch.Generator().manual_seed(call.pop("seed"))
        picture = pipeline(generator=generator, **call).images[0]
        sys.stdout.write(base64.b64encode(picture.convert("RGB").tobytes()).decode() + "\n")
        if adapters:
            pipeline.unload_lora_weights()


if __name__ == "__main__":
    _draw(json.load(sys.stdin))
