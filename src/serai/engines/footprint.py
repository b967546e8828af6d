"""How much memory a model will take, estimated from its files before it was ever loaded. Pure.

    estimate = weights + cache + activations + base

| part | how |
|---|---|
| weights | parameters × bytes of their type; twice on OpenVINO: the mapped file, and repacked for the machine |
|  | three times for embedding models of 16 bits there, which are computed with in 32 |
| cache | tokens × layers × 2 × key/value heads × head size × 2 bytes |
| activations | language models: logits and hidden states of one batch of tokens; networks: four times their weights |
| base | the process with its libraries; on CUDA the context |

Image pipelines are weights of several folders, and activations that grow with the pictures:

| part | how |
|---|---|
| weights | OpenVINO: the mapped file, and every parameter at 32 bits; diffusers: in the type of the load |
| decoder | pixels × its width × 36 bytes, for a picture of the model's own size |
| denoiser | latents of a batch × its width × 200 bytes |

The factors come from measurements of a 0.6B Qwen3 shape on OpenVINO (resident 1,787 MB at int8, 1,406 at
int4, 2,908 at fp16, for files of 569, 367 and 1,136 MB) and of transformers and vLLM beside it; those of
pictures from a denoiser of width 160 and a decoder of width 64 on OpenVINO. The first load is measured, and from
then on the measurement counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

MIB = 1024 * 1024

_BASE = {
    "fake": 40 * MIB,
    "openvino": 180 * MIB,
    "openvino-genai": 220 * MIB,
    "transformers": 480 * MIB,
    "vllm": 3500 * MIB,
    "diffusers": 700 * MIB,
    "openvino-image": 200 * MIB,
    "openvino-embed": 180 * MIB,
    "transformers-embed": 480 * MIB,
}
_CUDA_CONTEXT = 600 * MIB
_OPENVINO = frozenset({"openvino", "openvino-embed", "openvino-genai"})
_EMBEDDING = frozenset({"openvino-embed", "transformers-embed"})
_AS_THEY_ARE = ("int8", "int4", "fp32")
"""Weights of embedding models that are not widened: 16 bits are."""
_IMAGES = frozenset({"diffusers", "openvino-image"})
_DENOISERS = ("transformer/", "unet/")
_UNUSED = "safety_checker/"
_LATENTS_AT_ONCE = 4 * 64 * 64
_DENOISER_BYTES, _DECODER_BYTES = 200, 36
"""Of activations, for a latent and a pixel, at 32 bits and a width of 1."""
_USUAL_SIDE, _USUAL_WIDTH = 1024, 320
_DIFFUSERS_ROOM = 3 * 1024 * MIB
"""On CUDA diffusers takes less for a reason to hold its weights elsewhere."""
_TOKENS_AT_ONCE = 512
_CACHE_TOKENS = 8192
_USUAL_TEXT, _LONGEST_TEXT, _TEXTS_AT_ONCE = 512, 8192, 1024
"""Tokens of embedding models, as their engines have them."""
_LEAST_ACTIVATIONS = 64 * MIB
_WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".onnx", ".tflite", ".gguf", ".data"})
_DTYPE_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1,
}  # fmt: skip
_PARAMETER_BYTES = {
    "fp32": 4.0, "f32": 4.0, "fp16": 2.0, "f16": 2.0, "bf16": 2.0,
    "int8": 1.06, "q8": 1.06, "int4": 0.66, "q4": 0.66, "nf4": 0.66,
}  # fmt: skip
"""Of a parameter in a quantized model, with its scales and the layers that stay wider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """What the files tell."""

    files: Mapping[str, int]
    """Bytes by relative path."""
    tensors: Mapping[str, int]
    """Bytes of tensors by safetensors' name of their type; empty where no header was read."""
    config: Mapping[str, Any]
    """The checkpoint's config.json; empty where there is none. Of a pipeline those of its parts, by their folders."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The parts, in bytes."""

    weights: int
    cache: int
    activations: int
    base: int

    @property
    def bytes(self) -> int:
        return self.weights + self.cache + self.activations + self.base


def estimate(
    weights: Weights, *, engine: str, device_kind: str, quantization: str, options: Mapping[str, Any] | None = None
) -> Estimate:
    """Return what a version will take on a kind of device. An engine on other servers takes nothing."""
    if device_kind == "remote" or engine not in _BASE:
        return Estimate(weights=0, cache=0, activations=0, base=0)
    options = options or {}
    held = _weight_bytes(weights, _quantization(engine, device_kind, quantization, options))
    base = _CUDA_CONTEXT if device_kind == "cuda" else _BASE[engine]
    if engine == "fake":
        return Estimate(weights=_number(options, "bytes", 0), cache=0, activations=0, base=base)
    if engine in _IMAGES:
        return _of_pipeline(weights, engine, device_kind, quantization, options)
    if engine in _OPENVINO:
        held *= 3 if engine in _EMBEDDING and quantization not in _AS_THEY_ARE else 2
    if engine in _EMBEDDING:
        return Estimate(weights=held, cache=0, activations=_activations_of_texts(weights.config, options), base=base)
    if "num_hidden_layers" not in weights.config:
        return Estimate(weights=held, cache=0, activations=max(2 * held, _LEAST_ACTIVATIONS), base=base)
    context = _number(weights.config, "max_position_embeddings", _CACHE_TOKENS)
    tokens = _number(options, "cache_tokens", 0) or min(context, _CACHE_TOKENS)
    return Estimate(
        weights=held, cache=tokens * cache_bytes_per_token(weights.config), activations=_activations(weights), base=base
    )


def cache_bytes_per_token(config: Mapping[str, Any]) -> int:
    """Return the size of keys and values of one token, at two bytes a number, by a checkpoint's config.json."""
    heads = _number(config, "num_attention_heads", 1)
    pairs = _number(config, "num_key_value_heads", heads)
    size = _number(config, "head_dim", _number(config, "hidden_size", 0) // max(heads, 1))
    return 2 * _number(config, "num_hidden_layers", 0) * pairs * size * 2


def _activations(weights: Weights) -> int:
    """Return logits of the tokens that are drawn at once, and some forty hidden states of a batch of tokens."""
    vocabulary, hidden = _number(weights.config, "vocab_size", 0), _number(weights.config, "hidden_size", 0)
    return max(4 * _TOKENS_AT_ONCE * (vocabulary + 40 * hidden), _LEAST_ACTIVATIONS)


def _activations_of_texts(config: Mapping[str, Any], options: Mapping[str, Any]) -> int:
    """Return some forty hidden states of one batch of texts, and the scores of one layer's attention, at 32 bits."""
    context = min(_number(config, "max_position_embeddings", _USUAL_TEXT), _LONGEST_TEXT)
    longest = min(_number(options, "context_tokens", 0) or context, context)
    tokens = max(_number(options, "batch_tokens", _TEXTS_AT_ONCE), longest)
    heads, hidden = _number(config, "num_attention_heads", 12), _number(config, "hidden_size", 768)
    return max(4 * tokens * (40 * hidden + heads * longest), _LEAST_ACTIVATIONS)


def _of_pipeline(
    weights: Weights, engine: str, device_kind: str, quantization: str, options: Mapping[str, Any]
) -> Estimate:
    """Return the parts of an image pipeline."""
    files = {path: size for path, size in weights.files.items() if not path.startswith(_UNUSED)}
    sizes = {path: size for path, size in files.items() if PurePosixPath(path).suffix.lower() in _WEIGHT_SUFFIXES}
    total = sum(sizes.values())
    if engine == "openvino-image":
        wide = 2.0 if options.get("precision") in ("bf16", "f16") else 4.0
        held, item = int(total * (1 + wide / _PARAMETER_BYTES.get(quantization, 2.0))), wide
        base = _BASE[engine]
    else:
        dtype = options.get("dtype") or ("float32" if device_kind == "cpu" else "bfloat16")
        item = 4.0 if dtype == "float32" else 2.0
        held = _by_diffusers(weights, sizes, item, str(options.get("quantize") or quantization))
        base = _CUDA_CONTEXT if device_kind == "cuda" else _BASE[engine]
    activations = int(_activations_of_pictures(weights.config) * item / 4)
    least = _DIFFUSERS_ROOM if device_kind == "cuda" else _LEAST_ACTIVATIONS
    return Estimate(weights=held, cache=0, activations=max(activations, least), base=base)


def _by_diffusers(weights: Weights, sizes: Mapping[str, int], item: float, quantization: str) -> int:
    """Return the bytes of the weights in the type that they are loaded in; quantizing is of the denoiser alone."""
    total = sum(sizes.values())
    of_file = sum(weights.files[path] for path in weights.files if path.endswith(".safetensors"))
    parameters = sum(size // _DTYPE_BYTES.get(dtype, 2) for dtype, size in weights.tensors.items())
    each = parameters / of_file if parameters and of_file else 1 / 2
    denoiser = sum(size for path, size in sizes.items() if path.startswith(_DENOISERS))
    shrunk = {"nf4": 0.66, "int4": 0.66, "int8": 1.06, "fp8": 1.06}.get(quantization, item)
    return int(each * (denoiser * shrunk + (total - denoiser) * item))


def _activations_of_pictures(config: Mapping[str, Any]) -> int:
    """Return what denoiser and decoder take at 32 bits for pictures of the model's own size."""
    denoiser = _part(config, "unet") or _part(config, "transformer")
    vae = _part(config, "vae_decoder") or _part(config, "vae")
    factor = 2 ** (len(_widths(vae)) - 1) if _widths(vae) else 8
    native = _number(denoiser, "sample_size", 0)
    side = native * factor if native and _part(config, "unet") else _USUAL_SIDE
    latents = (side // factor) ** 2
    heads = _number(denoiser, "num_attention_heads", 0) * _number(denoiser, "attention_head_dim", 0)
    width = _widths(denoiser)[0] if _widths(denoiser) else heads
    at_once = max(_LATENTS_AT_ONCE, 2 * latents) if _part(config, "unet") else latents // 2
    decoder_width = _widths(vae)[0] if _widths(vae) else 128
    return at_once * (width or _USUAL_WIDTH) * _DENOISER_BYTES + side * side * decoder_width * _DECODER_BYTES


def _part(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _widths(config: Mapping[str, Any]) -> list[int]:
    widths = config.get("block_out_channels")
    if not isinstance(widths, list):
        return []
    return [one for one in widths[:10] if isinstance(one, int) and 0 < one < 2**16]


def _quantization(engine: str, device_kind: str, quantization: str, options: Mapping[str, Any]) -> str:
    """Return how the weights are held: transformers widens them on a CPU and can shrink them while it loads."""
    if engine not in ("transformers", "transformers-embed") or quantization in ("nf4", "int4", "int8", "q4", "q8"):
        return quantization
    if options.get("load_in_4bit"):
        return "nf4"
    dtype = options.get("dtype") or ("float32" if device_kind == "cpu" else "bfloat16")
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(str(dtype), quantization)


def _weight_bytes(weights: Weights, quantization: str) -> int:
    """Return the bytes of the weights as they are held: the files' own, unless they are quantized at the load."""
    if weights.tensors:
        per_parameter = _PARAMETER_BYTES.get(quantization)
        if per_parameter is None:
            return sum(weights.tensors.values())
        parameters = sum(size // _DTYPE_BYTES.get(dtype, 2) for dtype, size in weights.tensors.items())
        return int(parameters * per_parameter)
    return sum(
        size
        for path, size in weights.files.items()
        if PurePosixPath(path).suffix.lower() in _WEIGHT_SUFFIXES and not path.startswith("openvino_tokenizer")
    )


def _number(values: Mapping[str, Any], name: str, otherwise: int) -> int:
    """Return a whole number that files or options give, or `otherwise`: other people's files hold anything."""
    value = values.get(name)
    is_number = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    return int(value) if is_number else otherwise  # type: ignore[arg-type]
