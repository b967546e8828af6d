"""A folder as diffusers saves it, brought into memory: the types, quantized where asked, offloaded where it must be."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import torch
import transformers
from diffusers import pipelines

from serai.engines.base import EngineSpec
from serai.engines.images.diffusers_folder import (
    DENOISERS,
    Offload,
    choose_offload,
    component_bytes,
    components,
    read_index,
    variant,
)
from serai.engines.options import DiffusersOptions
from serai.engines.weights import weights_in
from serai.errors import LoadFailed

_LIBRARIES = ("diffusers", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    pipeline: Any
    dtype: str
    offload: Offload


def load_pipeline(spec: EngineSpec, options: DiffusersOptions, report: Callable[[float], None]) -> Loaded:
    """Return the pipeline of a folder on its device. Raises LoadFailed, MemoryError."""
    folder = Path(spec.folder)
    on_cuda = spec.device.startswith("cuda")
    dtype = options.dtype or ("bfloat16" if on_cuda else "float32")
    index = read_index(folder)
    _check_pipeline(index)
    quantization = _quantization(options.quantize, dtype, on_cuda=on_cuda)
    offload: Offload = "none"
    if on_cuda:
        sizes = component_bytes(folder, index, item_bytes=getattr(torch, dtype).itemsize, quantize=options.quantize)
        offload = options.offload or choose_offload(sizes, spec.memory_bytes)
    elif options.offload not in ("", "none"):
        raise LoadFailed("Offloading moves weights between a CUDA device and the CPU.", hint="Leave out 'offload'.")
    if offload == "sequential" and options.quantize:
        raise LoadFailed(
            "Quantized weights cannot be offloaded layer by layer.",
            hint="Give the model more memory, or leave out 'quantize'.",
        )
    try:
        pipeline = _read(folder, index, getattr(torch, dtype), quantization, report)
        _place(pipeline, spec.device, offload)
    except (torch.OutOfMemoryError, MemoryError):
        raise MemoryError from None
    except (OSError, ValueError, RuntimeError, ImportError, TypeError, AttributeError, KeyError) as error:
        reason = str(error).replace(str(folder), "the model's folder").strip().split("\n", 1)[0][:300]
        raise LoadFailed(f"diffusers cannot load the model: {reason}") from None
    vae = getattr(pipeline, "vae", None)
    if vae is not None and hasattr(vae, "enable_slicing"):
        vae.enable_slicing()  # one picture after the other: less memory, and the same bytes as alone
    return Loaded(pipeline=pipeline, dtype=dtype, offload=offload)


def denoiser_of(pipeline: Any) -> Any:
    """Return the network that makes the steps. Raises LoadFailed."""
    for name in DENOISERS:
        if getattr(pipeline, name, None) is not None:
            return getattr(pipeline, name)
    raise LoadFailed("The pipeline has neither a 'unet' nor a 'transformer'.")


def _check_pipeline(index: Mapping[str, Any]) -> None:
    """Raise LoadFailed for a pipeline that this diffusers does not have, or that cannot be run in steps."""
    name = str(index.get("_class_name"))[:80]
    kind = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise LoadFailed(
            f"The pipeline {name!r} is none of diffusers {diffusers.__version__}.",
            hint="Newer pipelines need a newer diffusers; code that comes with a model is not run.",
        )
    if "callback_on_step_end" not in inspect.signature(kind.__call__).parameters:
        raise LoadFailed(f"{name} cannot be stopped between its steps, so it is not run here.")
    for component, (library, _) in components(index).items():
        if library not in _LIBRARIES and not isinstance(getattr(pipelines, library, None), ModuleType):
            raise LoadFailed(f"The component {component!r} would run code that comes with the model.")


def _read(
    folder: Path, index: Mapping[str, Any], dtype: torch.dtype, quantization: Any, report: Callable[[float], None]
) -> Any:
    """Read one network after the other, so that it can be told how far it is, and then the small rest."""
    given: dict[str, Any] = {"safety_checker": None} if "safety_checker" in index else {}
    if "requires_safety_checker" in index:
        given["requires_safety_checker"] = False
    common = {"use_safetensors": True, "local_files_only": True, **variant(folder)}
    networks = dict(_networks(index))
    sizes = {name: sum(weights_in(folder / name).files.values()) for name in networks}
    done = 0
    for name, kind in networks.items():
        fields: dict[str, Any] = {"torch_dtype" if kind.__module__.startswith("diffusers") else "dtype": dtype}
        if quantization is not None and name in DENOISERS:
            fields["quantization_config"] = quantization
        given[name] = kind.from_pretrained(str(folder / name), **fields, **common).eval()
        done += sizes[name]
        report(0.8 * done / max(sum(sizes.values()), 1))
    library: Any = diffusers.DiffusionPipeline
    pipeline = library.from_pretrained(str(folder), **given, torch_dtype=dtype, **common)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _networks(index: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the components that hold weights, with their classes, but not the safety checker."""
    for name, (library, kind) in components(index).items():
        source = {"diffusers": diffusers, "transformers": transformers}.get(library) or getattr(pipelines, library)
        found = getattr(source, str(kind), None)
        is_network = isinstance(found, type) and issubclass(found, torch.nn.Module)
        if is_network and hasattr(found, "from_pretrained") and name != "safety_checker":
            yield name, found


def _quantization(quantize: str, dtype: str, *, on_cuda: bool) -> Any:
    """Return how the denoiser is to be quantized while it is read, None for not at all. Raises LoadFailed."""
    if not quantize:
        return None
    if not on_cuda:
        raise LoadFailed(f"Quantizing to {quantize} needs CUDA.", hint="Leave out 'quantize', or bind a CUDA device.")
    package = "bitsandbytes" if quantize == "nf4" else "torchao"
    if find_spec(package) is None:
        raise LoadFailed(f"Quantizing to {quantize} needs {package}.", hint=f"pip install {package}")
    library: Any = diffusers
    if quantize == "nf4":
        return library.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
        )
    kinds = import_module("torchao.quantization")
    kind = kinds.Int8WeightOnlyConfig if quantize == "int8" else kinds.Float8WeightOnlyConfig
    return library.TorchAoConfig(kind())


def _place(pipeline: Any, device: str, offload: Offload) -> None:
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    else:
        pipeline.to(device)
