"""A last look at what was fetched, as a whole: what it will take in memory, which settings it takes. Blocks."""

from pathlib import Path

from serai.engines.footprint import estimate
from serai.engines.images.diffusers_folder import heeds_negative_prompt, read_index, size_step
from serai.engines.images.openvino_image_folder import PipelineShape
from serai.engines.language.openvino_llm_folder import MODEL
from serai.engines.weights import weights_in
from serai.hub.choice import Format
from serai.hub.inspect import INDEX_SUFFIX, check_content, check_index
from serai.pulls.model import Plan, PullPolicy
from serai.pulls.plan import is_pipeline
from serai.registry.parameters import Parameter

_USUAL_SIDE = 2048
"""The longest side that is asked of a model of which nothing else is known."""


def check_staged(plan: Plan, folder: Path) -> None:
    """Look at every staged file, wherever it came from, and at whether they fit together. Raises FileNotAsNamed."""
    names = [file.path for file in plan.choice.files]
    for name in names:
        check_content(folder / name, name, names)
        if name.endswith(INDEX_SUFFIX):
            check_index(folder / name, name, names)


def memory_bytes(plan: Plan, folder: Path, policy: PullPolicy) -> int:
    """Return the estimate for the model in `folder` on the machine's device, for the engine that would run it."""
    task = plan.listing.task or "chat"
    is_converted = plan.choice.format is not Format.SAFETENSORS or plan.convert
    if is_pipeline(plan.choice):
        engine = "openvino-image" if is_converted else "diffusers"
    elif task == "embedding":
        engine = "openvino-embed" if is_converted else "transformers-embed"
    elif not is_converted:
        engine = "transformers"
    else:
        engine = "openvino-genai" if task == "chat" else "openvino"
    weights = weights_in(folder)
    return estimate(weights, engine=engine, device_kind=policy.device, quantization=plan.quantization).bytes


def parameters(plan: Plan, folder: Path) -> dict[str, Parameter]:
    """Return what the files in `folder` say of the settings of pictures; nothing of what is no pipeline.

    Raises LoadFailed for a pipeline that the engine would not load.
    """
    if not is_pipeline(plan.choice):
        return {}
    if not (folder / "unet" / MODEL).is_file():
        return _of_diffusers(folder)
    shape = PipelineShape.read(folder)
    return _sides(shape.size_step, shape.side)


def _of_diffusers(folder: Path) -> dict[str, Parameter]:
    index = read_index(folder)
    step = size_step(folder, index)
    told = {} if step is None else _sides(step, None)
    if not heeds_negative_prompt(index):
        told["negative_prompt"] = Parameter(default="", fixed=True)
    return told


def _sides(step: int, usual: int | None) -> dict[str, Parameter]:
    most = max(usual or 0, _USUAL_SIDE) // step * step
    side = Parameter(default=usual, min=step, max=most, multiple_of=step)
    return {"width": side, "height": side}
