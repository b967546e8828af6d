"""From a Hugging Face checkpoint to a network that OpenVINO GenAI batches continuously; image pipelines: `pipelines`.

What its ContinuousBatchingPipeline asks for: inputs input_ids, attention_mask, position_ids and beam_idx,
one output logits, the keys and values of each layer as state that beam_idx reorders, and one
scaled-dot-product attention per layer that is fed by past and new keys and an explicit mask.

The checkpoint is exported once in its own precision; int8 and int4 are made from that without torch.
"""

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from serai.engines.images.openvino_image_folder import INDEX
from serai.engines.language.openvino_llm_folder import EXPORT, MODEL, Export, ModelConfig, read_as, read_json
from serai.engines.quiet import quieten, quieten_transformers
from serai.errors import InvalidInput, LoadFailed
from serai.pulls.conversion import Converted, Quantization
from serai.pulls.conversion.folders import whole_folder

quieten()
import openvino  # noqa: E402 - after its telemetry is switched off

Report = Callable[[str, float], None]

FAMILIES = {
    "GPT2LMHeadModel": "gpt2",
    "OPTForCausalLM": "opt",
    "LlamaForCausalLM": "llama",
    "Qwen3ForCausalLM": "qwen3",
}
"""Architectures whose exported network is compared with torch token for token by the tests."""

COPIED = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
    "LICENSE",
    "LICENSE.txt",
)


def convert(
    source: Path, target: Path, *, quantization: Quantization, report: Report, threads: int = 1, task: str = ""
) -> Converted:
    """Write the model of `source` to `target` for OpenVINO.

    `source`: a folder with config.json, safetensors and tokenizer.json; or one that holds IR, which is
    only compressed; or an image pipeline with model_index.json (see `pipelines`); or, where `task` is
    'embedding', an embedding model (see `encoders`). Nothing is left at `target` unless all went well.
    Raises InvalidInput for what cannot be converted, Conflict if `target` exists, LoadFailed for a broken source.
    """
    if (source / INDEX).is_file():
        from serai.pulls.conversion.pipelines import export_pipeline

        return export_pipeline(source, target, quantization=quantization, report=report, threads=threads)
    if task == "embedding":
        from serai.pulls.conversion.encoders import export_encoder

        return export_encoder(source, target, quantization=quantization, report=report, threads=threads)
    with whole_folder(target) as made:
        if (source / MODEL).exists():
            export = _compress_export(source, made, quantization, report)
        else:
            export = _export(source, made, quantization, report, threads)
        _copy_files(source, made)
        (made / EXPORT).write_bytes(msgspec.json.encode(export))
    size = sum(file.stat().st_size for file in target.iterdir())
    report("done", 1.0)
    return Converted(quantization=quantization, architecture=export.architecture, bytes=size)


def family_of(folder: Path) -> str:
    """Return the family of a checkpoint. Raises InvalidInput, LoadFailed."""
    config = read_as(folder / "config.json", ModelConfig)
    known = [FAMILIES[name] for name in config.architectures if name in FAMILIES]
    if not known:
        names = ", ".join(config.architectures) or "an unnamed one"
        raise InvalidInput(
            f"The architecture of the model ({names}) cannot be converted for OpenVINO.",
            hint=f"Known: {', '.join(FAMILIES)}. Or pull a repository that holds IR (openvino_model.xml).",
        )
    raw = read_json(folder / "config.json")
    if raw.get("use_sliding_window") or "sliding_attention" in (raw.get("layer_types") or ()):
        raise InvalidInput("Models with sliding-window attention cannot be converted for OpenVINO.")
    if raw.get("quantization_config"):
        raise InvalidInput(
            "The checkpoint is quantized already and cannot be converted.", hint="Pull the original in 16 bits."
        )
    return known[0]


def _compress_export(source: Path, made: Path, quantization: Quantization, report: Report) -> Export:
    """Make int8 or int4 of a network that is there in 16 or 32 bits."""
    from serai.engines.language.openvino_llm_folder import read_export
    from serai.pulls.conversion.compress import compress, copy_tokenizer_networks

    export = read_export(source)
    if export.quantization in {"int8", "int4"} or quantization not in {"int8", "int4"}:
        raise InvalidInput(f"A network in {export.quantization or 'IR'} cannot be made {quantization}.")
    compress(source / MODEL, made / MODEL, quantization=quantization, report=report)
    copy_tokenizer_networks(source, made)
    return msgspec.structs.replace(export, quantization=quantization)


def _export(source: Path, made: Path, quantization: Quantization, report: Report, threads: int) -> Export:
    """Trace the checkpoint; compress what came of it where that is asked for."""
    family = family_of(source)
    if not (source / "tokenizer.json").exists():
        raise InvalidInput(
            "The checkpoint has no tokenizer.json.", hint="Save it with a fast tokenizer, then pull it again."
        )
    from serai.pulls.conversion.compress import compress, save_tokenizer_networks
    from serai.pulls.conversion.trace import salt_bits, trace

    quieten_transformers()
    report("load", 0.0)
    model, has_raw_penalties = trace(source, quantization, report, threads)
    _check(model)
    report("save", 0.6)
    is_compressed = quantization in {"int8", "int4"}
    plain = made / ("plain_model.xml" if is_compressed else MODEL)
    openvino.save_model(model, plain, compress_to_fp16=quantization != "fp32")
    del model
    gc.collect()  # the weights go before they are read again, compressed
    if is_compressed:
        compress(plain, made / MODEL, quantization=quantization, report=report)
        plain.unlink()
        plain.with_suffix(".bin").unlink()
    report("tokenizer", 0.95)
    save_tokenizer_networks(source, made)
    vocabulary = read_as(source / "config.json", ModelConfig).vocab_size
    return Export(
        architecture=family,
        quantization=quantization,
        salt_bits=salt_bits(vocabulary),
        has_raw_penalties=has_raw_penalties,
    )


def _check(model: Any) -> None:
    """Refuse a network that the pipeline would not take: better now than at each load."""
    names = {name for port in model.inputs for name in port.get_names()}
    attention = sum(node.get_type_name() == "ScaledDotProductAttention" for node in model.get_ordered_ops())
    states = len(model.get_sinks())
    if names != {"input_ids", "attention_mask", "position_ids", "beam_idx"} or states != 2 * attention:
        raise LoadFailed(f"The traced network has {attention} attentions, {states} states and inputs {sorted(names)}.")


def _copy_files(source: Path, made: Path) -> None:
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, made / name)
