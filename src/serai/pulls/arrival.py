"""A last look at what was fetched, as a whole, and what it will take in memory. Blocks."""

from pathlib import Path

from serai.engines.footprint import estimate
from serai.engines.weights import weights_in
from serai.hub.choice import Format
from serai.hub.inspect import INDEX_SUFFIX, check_content, check_index
from serai.pulls.model import Plan, PullPolicy
from serai.pulls.plan import is_pipeline


def check_staged(plan: Plan, folder: Path) -> None:
    """Look at every staged file, wherever it came from, and at whether they fit together. Raises FileNotAsNamed."""
    names = [file.path for file in plan.choice.files]
    for name in names:
        check_content(folder / name, name, names)
        if name.endswith(INDEX_SUFFIX):
            check_index(folder / name, name, names)


def memory_bytes(plan: Plan, folder: Path, policy: PullPolicy) -> int:
    """Return the estimate for the model in `folder` on the machine's device, for the engine that would run it."""
    is_chat = (plan.listing.task or "chat") == "chat"
    is_converted = plan.choice.format is not Format.SAFETENSORS or plan.convert
    if is_pipeline(plan.choice):
        engine = "openvino-image" if is_converted else "diffusers"
    elif not is_converted:
        engine = "transformers"
    else:
        engine = "openvino-genai" if is_chat else "openvino"
    weights = weights_in(folder)
    return estimate(weights, engine=engine, device_kind=policy.device, quantization=plan.quantization).bytes
