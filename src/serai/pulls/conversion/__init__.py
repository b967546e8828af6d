"""Turning a checkpoint into OpenVINO's form: a program for a process of its own, and what is said with it.

    python -m serai.pulls.conversion '{"source": "…", "target": "…", "quantization": "int8"}'

It writes one JSON object per line: `Step` while it goes on, and at the end `Converted` or `Refused`.
Killing it leaves no target: the folder gets its name when it is complete. The libraries it imports
(torch, transformers, diffusers, openvino, nncf) stay in that process.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

ARCHITECTURES = frozenset({"GPT2LMHeadModel", "LlamaForCausalLM", "OPTForCausalLM", "Qwen3ForCausalLM"})
"""Language models that can be converted, by the names in config.json."""

ENCODERS = frozenset(
    {
        "BertModel",
        "CamembertModel",
        "DistilBertModel",
        "MPNetModel",
        "RobertaModel",
        "XLMRobertaModel",
    }
)
"""Models that give a hidden state for each token and no more: what they are good for is embedding."""

EMBEDDERS = (
    ENCODERS | {f"{name.removesuffix('Model')}ForMaskedLM" for name in ENCODERS} | {"Qwen3ForCausalLM", "Qwen3Model"}
)
"""Embedding models that can be converted; many keep the name of what they were trained as."""

PIPELINES = frozenset({"StableDiffusionImg2ImgPipeline", "StableDiffusionPipeline"})
"""Image pipelines that can be converted, by the names in model_index.json."""

Quantization = Literal["int8", "int4", "fp16", "fp32"]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is to be converted. A source that holds IR is only compressed, which needs no torch."""

    source: str
    target: str
    """A folder that does not exist yet; it is made beside its final place and moved there."""
    quantization: Quantization
    threads: Annotated[int, Meta(ge=1, le=1024)] = 1
    task: Literal["", "embedding"] = ""
    """What the model is to do, where its architecture leaves that open."""


class Step(msgspec.Struct, frozen=True, kw_only=True, tag="step"):
    """How far it is: a stage begins, or is done in part."""

    stage: str
    fraction: float


class Converted(msgspec.Struct, frozen=True, kw_only=True, tag="converted"):
    """It is done: the target is complete."""

    quantization: Quantization
    architecture: str
    bytes: int


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """It cannot be done; the fields are those of the error."""

    code: str
    message: str
    hint: str | None = None


Message = Step | Converted | Refused
