"""What can be set per engine. Each engine has one class; every field has a default; unknown ones are refused.

These are the `engine_options` of a version. They import no library, so that they can be checked anywhere.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(ge=0, le=3600)]
Path = Annotated[str, Meta(max_length=4096)]
Tokens = Annotated[int, Meta(ge=0, le=2**24)]


class Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The base of all options."""


class NoOptions(Options, frozen=True):
    """For an engine with nothing to set."""


FakeFailure = Literal[
    "",
    "load",
    "load_oom",
    "load_crash",
    "load_hang",
    "start",
    "invalid",
    "run",
    "step",
    "oom",
    "crash",
    "hang",
]
"""What goes wrong with the fake engine, and so which failure a chain of candidates meets:

| value | what happens |
|---|---|
| load | the load is refused (LOAD_FAILED) |
| load_oom, oom | memory runs out, while loading or in a step |
| load_crash, crash | the process is killed, while loading or in a step |
| load_hang, hang | the load or the step never returns |
| start | a run is refused (ENGINE_FAILED) |
| invalid | a run is refused as the caller's own mistake (INVALID_INPUT) |
| run | one run fails (ENGINE_FAILED), others go on |
| step | the engine itself breaks: every run fails and the process ends |
"""


class FakeOptions(Options, frozen=True):
    """How the fake engine behaves: for trying out queues, budgets and fallback chains without a model."""

    load_s: Seconds = 0.0
    """How long loading takes."""
    load_gate: Path = ""
    """Loading ends when this file exists; empty: at once."""
    step_s: Seconds = 0.0
    """How long one step takes, in which one run is given one word."""
    step_gate: Path = ""
    """Runs stand still until this file exists; empty: they never do."""
    bytes: Annotated[int, Meta(ge=0, le=2**40)] = 0
    """Memory that is really allocated and written to at the load."""
    max_runs: Annotated[int, Meta(ge=1, le=4096)] = 8
    tokens: Tokens = 0
    """Words in an answer, the prompt's own again and again; 0: as many as the prompt has."""
    dimensions: Annotated[int, Meta(ge=1, le=65536)] = 64
    """Length of the vectors of `embed`."""
    scale: float = 1.0
    offset: float = 0.0
    """`infer` returns `scale × input + offset`."""
    fail: FakeFailure = ""
    fail_after: Annotated[int, Meta(ge=0)] = 0
    """Steps of one run before `run`, `step`, `oom`, `crash` or `hang` happens."""


class OpenvinoOptions(Options, frozen=True):
    """A network run by OpenVINO."""

    file: Path = ""
    """The network's file within the folder; needed only where there are several."""
    precision: Literal["", "f32", "bf16", "f16"] = ""
    """In which it computes; empty: what OpenVINO finds fastest on the device."""
    max_runs: Annotated[int, Meta(ge=1, le=64)] = 1
    """Runs at once; they share the threads. More than one helps only small networks."""


class OpenvinoLlmOptions(Options, frozen=True):
    """A language model run by OpenVINO GenAI."""

    profile: Literal["", "int8", "int4", "fp16"] = ""
    """How it computes: int4 quantizes activations in groups, too. Empty: as the weights are stored."""
    precision: Literal["", "f32", "bf16", "f16"] = ""
    """In which it computes. Empty: f32 with the profile int4, else bf16 where the CPU has it."""
    max_runs: Annotated[int, Meta(ge=1, le=512)] = 32
    """Runs in one batch; further ones wait outside."""
    batched_tokens: Annotated[int, Meta(ge=32, le=8192)] = 128
    """Tokens in one step: more take prompts in faster and make running answers stutter."""
    prefix_cache: bool = True
    """Keep computed prompts for the same owner's next one, where the network was made for it."""
    cache_tokens: Tokens = 0
    """Tokens in the cache of keys and values; 0: what the reserved memory leaves."""
    cache_precision: Literal["u8", "bf16", "f16", "f32"] = "u8"
    """How keys and values are kept. u8 is small and fast; the others are closer to the original."""
    context_tokens: Tokens = 0
    """Longest prompt with its answer; 0: the model's own."""


class TransformersOptions(Options, frozen=True):
    """A language model run by transformers."""

    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """Of the weights in memory. Empty: bfloat16 on CUDA, float32 on CPUs."""
    load_in_4bit: bool = False
    """Quantize to NF4 while loading (bitsandbytes; CUDA alone)."""
    max_runs: Annotated[int, Meta(ge=1, le=256)] = 16
    """Answers in one batch."""
    context_tokens: Tokens = 0
    """Longest prompt with its answer; 0: the model's own."""


class EmbedOptions(Options, frozen=True):
    """What the engines of embedding models have in common."""

    pooling: Literal["", "cls", "lasttoken", "max", "mean"] = ""
    """How tokens become one vector. Empty: as the files say, and their mean where they say nothing."""
    context_tokens: Tokens = 0
    """Tokens of a text that count; what is longer is cut. 0: the model's own, at most 8192."""
    batch_tokens: Annotated[int, Meta(ge=1, le=2**20)] = 1024
    """Tokens of the texts that are computed together, padding included; a longer text is alone."""
    max_runs: Annotated[int, Meta(ge=1, le=256)] = 16
    """Calls that take turns, batch by batch; further ones wait outside."""


class OpenvinoEmbedOptions(EmbedOptions, frozen=True):
    """An embedding model run by OpenVINO."""

    file: Path = ""
    """The network's file within the folder; needed only where there are several of no usual name."""
    precision: Literal["f32", "bf16", "f16"] = "f32"
    """In which it computes. With f32 the vectors of one machine fit those of another."""


class TransformersEmbedOptions(EmbedOptions, frozen=True):
    """An embedding model run by transformers."""

    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """Of the weights in memory. Empty: bfloat16 on CUDA, float32 on CPUs."""


class VllmOptions(Options, frozen=True):
    """A language model run by vLLM."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    max_runs: Annotated[int, Meta(ge=1, le=1024)] = 256
    """Runs in one batch."""
    context_tokens: Tokens = 0
    """Longest prompt with its answer; 0: the model's own."""
    memory_fraction: Annotated[float, Meta(gt=0, le=0.95)] = 0.9
    """Share of the card that it may take, where no memory bound is given."""
    enforce_eager: bool = False
    """Start sooner and run slower: no CUDA graphs."""
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256] = 64
    max_adapters: Annotated[int, Meta(ge=0, le=64)] = 4
    """Adapters in memory at once; 0: none can be used."""


class RemoteOptions(Options, frozen=True):
    """A model behind a server that speaks OpenAI's API, or fal.ai's for pictures."""

    max_concurrency: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Calls to the endpoint at once; further ones wait."""
    timeout_s: Seconds = 0.0
    """After which the server is too slow, and the next candidate is tried; 0: when the caller gives up, or, with
    pictures, after 15 minutes."""
    sampling_extensions: tuple[Literal["top_k", "min_p", "repetition_penalty"], ...] = ()
    """Which of the sampling parameters that OpenAI's API lacks the server knows; the others are refused."""
    max_tokens_member: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How the server calls the bound on a chat's answer."""
    stream_usage: bool = True
    """Whether the server can be asked for the usage at the end of a stream (`stream_options`)."""
    images: Literal["openai", "fal"] = "openai"
    """Which API makes pictures: OpenAI's below the endpoint, or fal.ai's queue, whose endpoint is its root."""
    partial_images: Annotated[int, Meta(ge=0, le=3)] = 0
    """Previews that a server with OpenAI's API is asked for, where the caller wants any; 0: it knows none."""
    image_member: Literal["image_url", "image_urls"] = "image_url"
    """How a model of fal.ai takes the picture to start from: one, or a list."""


class HttpOptions(Options, frozen=True):
    """A server with an API of its own, which takes JSON and gives JSON."""

    max_concurrency: Annotated[int, Meta(ge=1, le=4096)] = 16
    timeout_s: Seconds = 0.0
    """After which the server is too slow, and the next candidate is tried; 0: when the caller gives up."""


class OpenvinoImageOptions(Options, frozen=True):
    """Of image pipelines by OpenVINO."""

    precision: Literal["", "f32", "bf16", "f16"] = ""
    """Of the arithmetic; empty: f32, with which the same seed gives the same bytes on every CPU of a kind."""
    max_runs: Annotated[int, Meta(ge=1, le=64)] = 8
    """Runs that share the steps of the network."""


class DiffusersOptions(Options, frozen=True):
    """Of image pipelines by diffusers."""

    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """Empty: bfloat16 on CUDA, float32 on a CPU."""
    quantize: Literal["", "nf4", "int8", "fp8"] = ""
    """Of the denoiser's weights, while they are loaded; CUDA only."""
    offload: Literal["", "none", "model", "sequential"] = ""
    """Empty: none if the memory that was reserved holds all, else model, else sequential."""
    max_runs: Annotated[int, Meta(ge=1, le=64)] = 4
    max_adapters: Annotated[int, Meta(ge=0, le=64)] = 8
    """Adapters that stay loaded; the one used longest ago goes first."""
