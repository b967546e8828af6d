"""From a diffusers folder of Stable Diffusion's shape to one that the engine `openvino-image` runs.

Each network is traced and written by itself, so that one of them at a time is in memory.
"""

import gc
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from serai.engines.images.image_schedule import read_config
from serai.engines.images.openvino_image_folder import INDEX, NOTE, PipelineNote
from serai.engines.language.openvino_llm_folder import MODEL, read_as
from serai.engines.quiet import quieten, quieten_transformers
from serai.errors import InvalidInput
from serai.pulls.conversion import PIPELINES, Converted, Quantization
from serai.pulls.conversion.folders import whole_folder

quieten()
import openvino  # noqa: E402 - after its telemetry is switched off

Report = Callable[[str, float], None]

_CLASSES = {"text_encoder": "CLIPTextModel", "unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
"""What a pipeline's parts must be, by the names in model_index.json."""
_FURTHER_INPUTS = ("time_cond_proj_dim", "addition_embed_type", "class_embed_type", "encoder_hid_dim")
"""Members of the denoiser's config.json under which it asks for more than a text and a time."""
_CONFIGS = {
    "text_encoder/config.json": "text_encoder",
    "unet/config.json": "unet",
    "vae/config.json": "vae_decoder vae_encoder",
    "scheduler/scheduler_config.json": "scheduler",
}
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
)
_BESIDE = (INDEX, "README.md", "LICENSE", "LICENSE.txt", "LICENSE.md")


def export_pipeline(
    source: Path, target: Path, *, quantization: Quantization, report: Report, threads: int = 1
) -> Converted:
    """Write the pipeline of `source` to `target`: fp32, fp16, or int8 (weights of denoiser and text encoder).

    Nothing is left at `target` unless all went well. Raises InvalidInput for what cannot be converted,
    Conflict if `target` exists, LoadFailed for a broken source.
    """
    name = _check(source, quantization)
    with whole_folder(target) as made:
        for path, folders in _CONFIGS.items():
            for folder in folders.split():
                _copy(source / path, made / folder / Path(path).name)
        for file in _TOKENIZER:
            _copy(source / "tokenizer" / file, made / "tokenizer" / file)
        for file in _BESIDE:
            _copy(source / file, made / file)
        for part, network, share in _networks(source, report, threads):
            is_compressed = quantization == "int8" and part in ("text_encoder", "unet")
            _save(network, made / part, compress_to_half=quantization != "fp32", is_compressed=is_compressed)
            report(part, share)
            del network
            gc.collect()
        note = PipelineNote(quantization=quantization, takes_any_size=True)
        (made / NOTE).write_bytes(msgspec.json.encode(note))
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    report("done", 1.0)
    return Converted(quantization=quantization, architecture=name, bytes=size)


def _check(source: Path, quantization: Quantization) -> str:
    """Return the pipeline's class. Raises InvalidInput, LoadFailed, before anything heavy is read."""
    index: dict[str, Any] = read_as(source / INDEX, dict[str, Any])
    name = str(index.get("_class_name", ""))
    if name not in PIPELINES:
        raise InvalidInput(
            f"The pipeline ({name or 'an unnamed one'}) cannot be converted for OpenVINO.",
            hint=f"Known: {', '.join(sorted(PIPELINES))}. Or pull a repository that holds IR (openvino_model.xml).",
        )
    if quantization == "int4":
        raise InvalidInput.at("quantization", "of an image pipeline must be int8, fp16 or fp32")
    for part, wanted in _CLASSES.items():
        entry = index.get(part)
        found = entry[-1] if isinstance(entry, list) and entry else None
        if found != wanted:
            raise InvalidInput(f"The pipeline's {part} is {found or 'missing'}, and only {wanted} can be converted.")
    unet: dict[str, Any] = read_as(source / "unet" / "config.json", dict[str, Any])
    vae: dict[str, Any] = read_as(source / "vae" / "config.json", dict[str, Any])
    if unet.get("in_channels", 4) != vae.get("latent_channels", 4):
        raise InvalidInput("The pipeline's denoiser is one for inpainting alone, which cannot be converted.")
    asked = [member for member in _FURTHER_INPUTS if unet.get(member) is not None]
    if asked:
        raise InvalidInput(f"The pipeline's denoiser asks for more than a text ({asked[0]}): it cannot be converted.")
    read_config(source / "scheduler" / "scheduler_config.json")
    return name


def _networks(source: Path, report: Report, threads: int) -> Iterator[tuple[str, Any, float]]:
    """Yield each network, with the folder that it belongs in and how far that is."""
    quieten_transformers()
    import torch

    from serai.pulls.conversion.pipelines_trace import trace_autoencoder, trace_denoiser, trace_text_encoder

    torch.set_num_threads(threads)
    report("load", 0.0)
    yield "text_encoder", trace_text_encoder(source), 0.2
    yield "unet", trace_denoiser(source), 0.7
    decoder, encoder = trace_autoencoder(source)
    yield "vae_decoder", decoder, 0.85
    yield "vae_encoder", encoder, 0.95


def _save(network: Any, folder: Path, *, compress_to_half: bool, is_compressed: bool) -> None:
    if not is_compressed:
        openvino.save_model(network, folder / MODEL, compress_to_fp16=compress_to_half)
        return
    from serai.pulls.conversion.compress import compress

    plain = folder / "plain_model.xml"
    openvino.save_model(network, plain, compress_to_fp16=True)
    compress(plain, folder / MODEL, quantization="int8", report=lambda _stage, _fraction: None)
    plain.unlink()
    plain.with_suffix(".bin").unlink()


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
