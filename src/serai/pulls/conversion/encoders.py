"""From an embedding model's checkpoint to a network of the engine `openvino-embed`: tokens in, hidden states out.

Pooling stays outside of the network: the files that tell of it are copied.
"""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from serai.engines.language.embedding_folder import EmbeddingShape, configuration_files
from serai.engines.language.openvino_llm_folder import EXPORT, MODEL, Export, read_json
from serai.engines.quiet import quieten, quieten_transformers
from serai.errors import InvalidInput
from serai.pulls.conversion import EMBEDDERS, Converted, Quantization
from serai.pulls.conversion.folders import whole_folder

quieten()
import openvino  # noqa: E402 - after its telemetry is switched off

Report = Callable[[str, float], None]

_BESIDE = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
)


def export_encoder(
    source: Path, target: Path, *, quantization: Quantization, report: Report, threads: int = 1
) -> Converted:
    """Write the embedding model of `source` (safetensors) to `target`.

    Nothing is left at `target` unless all went well. Raises InvalidInput for what cannot be converted,
    Conflict if `target` exists, LoadFailed for a broken source, and for a pooling that no engine here does.
    """
    architecture = _check(source)
    with whole_folder(target) as made:
        quieten_transformers()
        report("load", 0.0)
        from serai.pulls.conversion.encoders_trace import trace_encoder

        _save(trace_encoder(source, quantization, threads), made, quantization, report)
        for name in (*_BESIDE, *configuration_files(source)):
            if (source / name).is_file():
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, made / name)
        (made / EXPORT).write_bytes(msgspec.json.encode(Export(architecture=architecture, quantization=quantization)))
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    report("done", 1.0)
    return Converted(quantization=quantization, architecture=architecture, bytes=size)


def _check(source: Path) -> str:
    """Return the architecture. Raises InvalidInput, LoadFailed, before anything heavy is read."""
    config = read_json(source / "config.json")
    named = config.get("architectures")
    names = [str(name) for name in named] if isinstance(named, list) else []
    found = next((name for name in names if name in EMBEDDERS), None)
    if found is None or config.get("auto_map"):
        raise InvalidInput(
            f"The architecture of the model ({', '.join(names) or 'an unnamed one'}) cannot be converted for OpenVINO.",
            hint=f"Known: {', '.join(sorted(EMBEDDERS))}. Or pull a repository that holds IR or ONNX.",
        )
    if config.get("position_embedding_type", "absolute") != "absolute" or config.get("is_decoder"):
        raise InvalidInput("Encoders with relative positions, or that are decoders, cannot be converted for OpenVINO.")
    if config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or ()):
        raise InvalidInput("Models with sliding-window attention cannot be converted for OpenVINO.")
    if config.get("quantization_config"):
        hint = "Pull the original in 16 or 32 bits."
        raise InvalidInput("The checkpoint is quantized already and cannot be converted.", hint=hint)
    if not (source / "tokenizer.json").exists():
        hint = "Save it with a fast tokenizer, then pull it again."
        raise InvalidInput("The checkpoint has no tokenizer.json.", hint=hint)
    EmbeddingShape.read(source)
    return found


def _save(network: Any, made: Path, quantization: Quantization, report: Report) -> None:
    report("save", 0.6)
    if quantization not in {"int8", "int4"}:
        openvino.save_model(network, made / MODEL, compress_to_fp16=quantization != "fp32")
        return
    from serai.pulls.conversion.compress import compress

    plain = made / "plain_model.xml"
    openvino.save_model(network, plain, compress_to_fp16=True)
    del network
    gc.collect()  # the weights go before they are read again, compressed
    compress(plain, made / MODEL, quantization=quantization, report=report)
    plain.unlink()
    plain.with_suffix(".bin").unlink()
