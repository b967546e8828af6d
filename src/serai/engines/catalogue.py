"""Every engine that there is, by name, and what is known of it without importing it."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from serai.engines.base import EngineInfo
from serai.engines.errors import EngineUnknown
from serai.engines.options import (
    DiffusersOptions,
    FakeOptions,
    HttpOptions,
    NoOptions,
    OpenvinoEmbedOptions,
    OpenvinoImageOptions,
    OpenvinoLlmOptions,
    OpenvinoOptions,
    RemoteOptions,
    TransformersEmbedOptions,
    TransformersOptions,
    VllmOptions,
)

FAKE = "fake"
RESERVATION = "reservation"

_ENGINES = (
    EngineInfo(
        name="openvino-genai",
        target="serai.engines.language.openvino_llm:OpenvinoLlm",
        summary="Language models by OpenVINO GenAI, with continuous batching; the fastest on CPUs.",
        tasks=frozenset({"generate"}),
        device_kinds=("cpu",),
        formats=frozenset({"ir"}),
        options=OpenvinoLlmOptions,
        packages=("openvino", "openvino_genai", "openvino_tokenizers"),
        remedy="pip install openvino openvino-genai openvino-tokenizers",
        preload=("serai.engines.language.openvino_llm",),
        capabilities=frozenset({"batching", "grammar", "logprobs", "n"}),
    ),
    EngineInfo(
        name="openvino",
        target="serai.engines.openvino_net:OpenvinoNet",
        summary="Networks that turn arrays into arrays, by OpenVINO.",
        tasks=frozenset({"infer"}),
        device_kinds=("cpu",),
        formats=frozenset({"ir", "onnx", "tflite"}),
        options=OpenvinoOptions,
        packages=("openvino", "numpy"),
        remedy="pip install openvino",
        preload=("serai.engines.openvino_net",),
        capabilities=frozenset({"batching"}),
    ),
    EngineInfo(
        name="openvino-embed",
        target="serai.engines.language.openvino_embed:OpenvinoEmbed",
        summary="Embedding models by OpenVINO; needs no torch.",
        tasks=frozenset({"embed"}),
        device_kinds=("cpu",),
        formats=frozenset({"ir", "onnx"}),
        options=OpenvinoEmbedOptions,
        packages=("openvino", "numpy", "tokenizers"),
        remedy="pip install openvino tokenizers",
        preload=("serai.engines.language.openvino_embed",),
    ),
    EngineInfo(
        name="transformers-embed",
        target="serai.engines.language.transformers_embed:TransformersEmbed",
        summary="Embedding models by transformers, on any device.",
        tasks=frozenset({"embed"}),
        device_kinds=("cuda", "cpu"),
        formats=frozenset({"safetensors"}),
        options=TransformersEmbedOptions,
        packages=("torch", "transformers"),
        remedy="pip install 'serai[torch]'",
        preload=("serai.engines.language.transformers_embed",),
    ),
    EngineInfo(
        name="diffusers",
        target="serai.engines.images.diffusers_image:DiffusersImage",
        summary="Image pipelines by diffusers: from text, from pictures, masked, editing, with LoRA adapters.",
        tasks=frozenset({"generate_image"}),
        device_kinds=("cuda", "cpu"),
        formats=frozenset({"safetensors"}),
        options=DiffusersOptions,
        packages=("torch", "diffusers", "transformers", "peft"),
        remedy="pip install 'serai[torch]'",
        preload=("serai.engines.images.diffusers_image",),
        capabilities=frozenset({"adapters", "batching", "edit", "image_to_image", "inpaint", "n"}),
    ),
    EngineInfo(
        name="openvino-image",
        target="serai.engines.images.openvino_image:OpenvinoImage",
        summary="Image pipelines of Stable Diffusion's shape by OpenVINO, with LoRA adapters; needs no torch.",
        tasks=frozenset({"generate_image"}),
        device_kinds=("cpu",),
        formats=frozenset({"ir"}),
        options=OpenvinoImageOptions,
        packages=("openvino", "numpy", "tokenizers"),
        remedy="pip install openvino tokenizers",
        preload=("serai.engines.images.openvino_image",),
        capabilities=frozenset({"adapters", "batching", "image_to_image", "inpaint", "n"}),
    ),
    EngineInfo(
        name="vllm",
        target="serai.engines.language.vllm_llm:VllmLlm",
        summary="Language models by vLLM; the fastest on CUDA.",
        tasks=frozenset({"generate"}),
        device_kinds=("cuda",),
        formats=frozenset({"safetensors"}),
        options=VllmOptions,
        packages=("vllm", "torch"),
        remedy="pip install 'serai[vllm]'",
        capabilities=frozenset(
            {"batching", "grammar", "logprobs", "top_logprobs", "logit_bias", "adapters", "n"},
        ),
    ),
    EngineInfo(
        name="transformers",
        target="serai.engines.language.transformers_llm:TransformersLlm",
        summary="Language models by transformers, on any device.",
        tasks=frozenset({"generate"}),
        device_kinds=("cuda", "cpu"),
        formats=frozenset({"safetensors"}),
        options=TransformersOptions,
        packages=("torch", "transformers"),
        remedy="pip install 'serai[torch]'",
        preload=("serai.engines.language.transformers_llm",),
        capabilities=frozenset({"adapters", "batching", "logprobs", "top_logprobs", "logit_bias", "n"}),
    ),
    EngineInfo(
        name="remote",
        target="",
        summary="Models behind another server that speaks OpenAI's API, or fal.ai's for pictures.",
        tasks=frozenset({"chat", "generate", "embed", "generate_image"}),
        device_kinds=("remote",),
        formats=frozenset({"none"}),
        options=RemoteOptions,
        capabilities=frozenset(
            {
                "batching",
                "grammar",
                "logprobs",
                "top_logprobs",
                "logit_bias",
                "n",
                "edit",
                "image_to_image",
                "inpaint",
            }
        ),
    ),
    EngineInfo(
        name="http",
        target="",
        summary="Models behind another server with an API of its own: JSON in, JSON out.",
        tasks=frozenset({"fetch"}),
        device_kinds=("remote",),
        formats=frozenset({"none"}),
        options=HttpOptions,
        capabilities=frozenset({"batching"}),
    ),
    EngineInfo(
        name=RESERVATION,
        target="serai.engines.reservation:Reservation",
        summary="No model: memory and threads that are kept for a conversion.",
        tasks=frozenset(),
        device_kinds=("cpu",),
        formats=frozenset(),
        options=NoOptions,
        preload=("serai.engines.reservation",),
    ),
    EngineInfo(
        name=FAKE,
        target="serai.engines.fake:Fake",
        summary="No model: repeats what it is given. For trying out queues, budgets and fallback chains.",
        tasks=frozenset({"generate", "chat", "infer", "embed", "fetch", "generate_image"}),
        device_kinds=("cpu", "cuda"),
        formats=frozenset({"none"}),
        options=FakeOptions,
        preload=("serai.engines.fake",),
        capabilities=frozenset(
            {"batching", "logprobs", "top_logprobs", "adapters", "n", "edit", "image_to_image", "inpaint"}
        ),
    ),
)

CATALOGUE: Mapping[str, EngineInfo] = MappingProxyType({engine.name: engine for engine in _ENGINES})
"""By name. Where several engines can do a thing, `choose` says which; the order here says nothing."""


def engine_named(name: str) -> EngineInfo:
    """Return the engine. Raises EngineUnknown with the names that there are."""
    engine = CATALOGUE.get(name)
    if engine is None:
        raise EngineUnknown(f"There is no engine {name!r}.", hint=f"There are: {', '.join(sorted(CATALOGUE))}.")
    return engine


def check_options(name: str, options: Mapping[str, Any]) -> msgspec.Struct:
    """Return the options as the engine's own type. Raises EngineUnknown or InvalidInput."""
    return engine_named(name).check_options(options)
