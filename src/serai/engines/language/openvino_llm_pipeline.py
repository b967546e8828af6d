"""Making GenAI's continuously batching pipelines: properties, sizes, settings of one request."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serai.engines.base import EngineSpec
from serai.engines.options import OpenvinoLlmOptions
from serai.engines.quiet import quieten
from serai.engines.tasks import Sampling
from serai.errors import InvalidInput

quieten()
import numpy as np  # noqa: E402 - what the fork server is to have imported
import openvino  # noqa: E402 - after quieten
import openvino_genai as genai  # noqa: E402 - after quieten

_FAST_GROUP = 128
_LARGEST_MIN_P = 0.999999
"""GenAI takes no 1, which leaves the likeliest token alone, as this does."""


def properties_of(spec: EngineSpec, options: OpenvinoLlmOptions, quantization: str) -> dict[str, Any]:
    """Return OpenVINO's properties. Threads are not pinned: several workers would pin the same core."""
    profile = options.profile or quantization
    precision = options.precision or ("f32" if profile == "int4" else fastest_precision())
    properties: dict[str, Any] = {
        "INFERENCE_NUM_THREADS": spec.threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
        "INFERENCE_PRECISION_HINT": precision,
        "KV_CACHE_PRECISION": options.cache_precision,
        "sampler_num_threads": spec.threads,
    }
    if profile == "int4":
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = _FAST_GROUP
    return properties


def fastest_precision() -> str:
    """Return bf16 where the CPU computes it natively, else f32."""
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bf16" if "BF16" in capabilities else "f32"


def make_pipeline(
    folder: Path, properties: Mapping[str, Any], *, blocks: int, batched_tokens: int, has_cache: bool
) -> Any:
    """Return a pipeline. It must not be stepped from two threads, nor again after a step that raised."""
    config = genai.SchedulerConfig()
    config.num_kv_blocks = blocks
    config.max_num_batched_tokens = batched_tokens
    config.dynamic_split_fuse = True
    config.enable_prefix_caching = has_cache
    return genai.ContinuousBatchingPipeline(folder, config, "CPU", dict(properties))


def request_config(sampling: Sampling, *, max_tokens: int, seed: int, end_ids: frozenset[int]) -> Any:
    """Return GenAI's settings for one answer. Stop texts are ours to see to. Raises InvalidInput.

    `seed`: GenAI draws the same for everybody if it is given none.
    """
    config = genai.GenerationConfig()
    config.max_new_tokens = max_tokens
    config.apply_chat_template = False
    if end_ids:
        config.stop_token_ids = set(end_ids)
        config.set_eos_token_id(min(end_ids))
    else:
        config.ignore_eos = True
    config.do_sample = sampling.temperature > 0
    config.rng_seed = seed
    config.repetition_penalty = sampling.repetition_penalty
    config.presence_penalty = sampling.presence_penalty
    config.frequency_penalty = sampling.frequency_penalty
    config.logprobs = 0 if sampling.logprobs is None else 1
    if config.do_sample:
        config.temperature = sampling.temperature
        config.top_p = sampling.top_p
        config.min_p = min(sampling.min_p, _LARGEST_MIN_P)
        if sampling.top_k:
            config.top_k = sampling.top_k
    try:
        config.validate()
    except RuntimeError as error:
        raise InvalidInput.at("sampling", f"is not possible: {_reason(error)}") from None
    return config


def with_grammar(config: Any, kind: str, value: str) -> Any:
    """Return the settings with a grammar ('regex' or 'ebnf')."""
    structured = genai.StructuredOutputConfig()
    if kind == "regex":
        structured.regex = value
    else:
        structured.grammar = value
    config.structured_output_config = structured
    return config


def token_tensor(ids: list[int]) -> Any:
    """Return the prompt as the pipeline takes it: int64, (1, tokens)."""
    return openvino.Tensor(np.array([ids], dtype=np.int64))


def _reason(error: Exception) -> str:
    """Return the last line of OpenVINO's message, which alone says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "unknown"
