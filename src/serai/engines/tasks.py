"""What an engine can be asked to do. A task is the whole input of one run; its events are the answer.

These are messages between processes, so they are msgspec structs: unknown members are refused.
"""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The base of all tasks."""


class Grammar(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What generated text must match. `value`: a JSON schema as text, a regular expression, or EBNF."""

    kind: Literal["json_schema", "regex", "ebnf"]
    value: str


class Sampling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the next token is drawn. The defaults draw from the model's own distribution."""

    max_tokens: int | None = None
    """None: as many as the context holds."""
    temperature: float = 1.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0: all."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    """None: another one each time."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are no part of it."""
    n: int = 1
    logprobs: int | None = None
    """None: none; 0: of the tokens drawn; more: of so many alternatives, too."""
    logit_bias: Mapping[int, float] = {}
    grammar: Grammar | None = None


class Generate(Task, frozen=True, tag="generate"):
    """Go on from a prompt: a chat whose template is rendered, or plain text.

    Events: `Text` as tokens come; `Done` with `finish_reasons` (one per answer: stop, length), `usage`
    {prompt_tokens, completion_tokens, cached_tokens} (None where another server tells none) and `timings`
    {prompt_s, generation_s}.
    """

    prompt: str
    sampling: Sampling = Sampling()
    has_special_tokens: bool = True
    """Whether `prompt` already holds what the tokenizer would put before it (a rendered template does)."""
    cache_key: str = ""
    """Prompts share cached prefixes only within one key: the owner's."""


class Chat(Task, frozen=True, tag="chat"):
    """Answer messages: for engines that render them themselves, which are those of other servers.

    `messages`, `tools` and `tool_choice` are in OpenAI's form. Events as for `Generate`; the finish reason
    can be tool_calls or content_filter, too. `Done` also holds, where there are any, `tool_calls` (for each
    answer a list in OpenAI's form), `reasoning` and `refusal` (for each answer a text).
    """

    messages: tuple[Mapping[str, Any], ...]
    sampling: Sampling = Sampling()
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: str | Mapping[str, Any] | None = None
    response_format: Mapping[str, Any] | None = None


class Array(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers in row-major order; `dtype` is numpy's name of a fixed-size type, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @property
    def document(self) -> dict[str, Any]:
        """The array as events hold it, so that it is the same before and behind a process's border."""
        return {"dtype": self.dtype, "shape": list(self.shape), "data": self.data}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> "Array":
        """Return the array that a result holds. Raises msgspec.ValidationError."""
        return msgspec.convert(document, cls)


class Infer(Task, frozen=True, tag="infer"):
    """Run a network once on named arrays. `Done` holds `outputs`: name → `Array.document`."""

    inputs: Mapping[str, Array]


class Embed(Task, frozen=True, tag="embed"):
    """Return a vector for each text. `Done` holds `embeddings` (`Array.document`, texts × dimensions) and `usage`.

    `usage` is {prompt_tokens}: those that count, without padding.
    """

    texts: tuple[str, ...]
    dimensions: int | None = None
    """Keep so many of the numbers, and bring what is left to length 1; None: all. Refused if the model has fewer."""
    truncate: bool = True
    """Cut what is longer than the model's context; else it is refused."""


class Fetch(Task, frozen=True, tag="fetch"):
    """Ask a server with an API of its own: `body` is what is sent, `Done` holds what came back as `body`."""

    body: Mapping[str, Any]


class GenerateImage(Task, frozen=True, kw_only=True, tag="generate_image"):
    """Make pictures from a text; with `source` from a picture, with `mask` only where that is white.

    Picture number i is drawn from the seed `seed + i`. Events: `Progress` of stage 'generating' after every
    step (`done` of `total` in 'steps', `detail` {image, images}); `Media` 'preview' (a small WebP) now and
    then; `Media` 'picture' for each that is ready, in order, a binary PPM (P6, 8 bits) or, from another
    server, a PNG, JPEG or WebP; `Done` with `seeds`, `steps`, `timings` {prompt_s, denoising_s, decoding_s},
    `device`, `batched` (whether it ever shared a step with another run) and, where another server tells any,
    `usage` and `revised_prompt`.
    """

    prompt: str
    negative_prompt: str = ""
    width: int
    height: int
    images: int = 1
    steps: int
    guidance_scale: float
    """1 and less: none, and the negative prompt says nothing."""
    seed: int
    max_sequence_length: int | None = None
    """Tokens of the prompt that count, where the model has a choice."""
    source: Array | None = None
    """uint8, height × width × 3: what to start from (image-to-image), or to edit (an editing model)."""
    mask: Array | None = None
    """uint8, height × width: 255 is painted anew, 0 stays. Only with `source`."""
    strength: float = 0.8
    """Of image-to-image: 1 forgets the source, little changes little. The share of the steps that are made."""
    adapter_scales: Mapping[str, float] = {}
    """By an adapter's name; those not named keep the scale that the version gives them."""
    reproducible: bool = False
    """Never share a batch with another run: the same task gives the same bytes."""
    preview_steps: int = 0
    """A preview after every so many steps but the last; 0: none."""


AnyTask = Generate | Chat | Infer | Embed | Fetch | GenerateImage


def name_of(task: AnyTask) -> str:
    """Return the tag of a task, by which engines say what they can do."""
    return str(task.__struct_config__.tag)
