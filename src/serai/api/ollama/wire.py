"""What Ollama's clients send. Options that only say how to use the machine are taken as hints; the rest counts."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidatorFunctionWrapHandler, WrapValidator

from serai.api.image_jobs import ImagesIn
from serai.api.wire import Wire
from serai.chat.chats import Ask
from serai.chat.keep_alive import KeepAlive, keep_alive_of
from serai.chat.messages import Message, from_ollama, picture_of, tools_of
from serai.chat.sampling import checked
from serai.errors import InvalidInput

Model = Annotated[str, Field(min_length=1, max_length=300)]
Think = bool | Literal["low", "medium", "high", "max"] | None

DEFAULTS: Mapping[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
"""What Ollama draws with where neither the request nor the model says anything."""

_SAMPLED = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "stop": "stop",
}
_NAMES = {"max_tokens": "num_predict", **{ours: theirs for theirs, ours in _SAMPLED.items()}}
_HINTS = frozenset(
    {"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "use_mmap", "use_mlock", "low_vram"}
    | {"numa", "f16_kv", "vocab_only", "logits_all", "embedding_only"}
)
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "typical_p": (1, 1.0),
    "tfs_z": (1, 1.0),
    "mirostat": (0,),
    "repeat_last_n": (64, -1),
    "penalize_newline": (True, False),
}
"""Options that we do not have, with the values that change nothing."""


def sampling_of(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the checked fields of `Sampling` that options ask for. Raises InvalidInput."""
    given: dict[str, Any] = {}
    for name, value in (options or {}).items():
        if value is None or name in _HINTS:
            continue
        if name in _SAMPLED:
            given[_SAMPLED[name]] = value
        elif name == "num_predict":
            if value not in (-1, -2):
                given["max_tokens"] = value
        elif name == "seed":
            if value != -1:
                given["seed"] = value
        elif name in _ONLY:
            if value not in _ONLY[name]:
                raise InvalidInput.at(f"options.{name}", "is not supported here")
        else:
            raise InvalidInput.at(f"options.{name[:60]}", "is not an option")
    if given.get("stop") == []:
        del given["stop"]
    return checked(given, {ours: f"options.{theirs}" for ours, theirs in _NAMES.items()})


def format_of(value: Any) -> dict[str, Any] | None:
    """Return `format` as OpenAI's `response_format`. Raises InvalidInput."""
    if value is None or value == "":
        return None
    if value == "json":
        return {"type": "json_object"}
    if isinstance(value, dict):
        return {"type": "json_schema", "json_schema": {"schema": value}}
    raise InvalidInput.at("format", "must be json or a JSON schema")


class Asked(Wire):
    """What chats and texts share."""

    model: Model
    stream: bool | None = True
    format: Any = None
    options: dict[str, Any] | None = None
    keep_alive: KeepAlive = None
    think: Think = None
    truncate: bool | None = None
    shift: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def asked(self, **values: Any) -> Ask:
        """Return what is asked. Raises InvalidInput."""
        given = sampling_of(self.options)
        if self.logprobs:
            given["logprobs"] = self.top_logprobs or 0
        return Ask(
            model=self.model,
            given=given,
            fallback=DEFAULTS,
            response_format=format_of(self.format),
            think=None if self.think is None else bool(self.think),
            keep_alive=keep_alive_of(self.keep_alive),
            names={"response_format": "format", **_NAMES},
            **values,
        )


class OllamaChatIn(Asked):
    messages: list[Any] = Field([])
    tools: list[Any] | None = None

    def ask(self) -> Ask:
        """Return what is asked. Raises InvalidInput."""
        return self.asked(messages=from_ollama(self.messages), tools=tools_of(self.tools))


class GenerateIn(Asked):
    prompt: str = ""
    suffix: str | None = None
    system: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None
    images: list[str] | None = None
    width: int | None = None
    height: int | None = None
    steps: int | None = None

    def ask(self) -> Ask:
        """Return what is asked. Raises InvalidInput."""
        for name in ("suffix", "template", "context", "width", "height", "steps"):
            if getattr(self, name):
                raise InvalidInput.at(name, "is not supported here")
        if self.raw:
            if self.system or self.images:
                raise InvalidInput.at("raw", "goes with a prompt alone")
            return self.asked(prompt=self.prompt)
        pictures = [picture_of(image, f"images[{number}]") for number, image in enumerate(self.images or ())]
        user = Message(role="user", parts=(*pictures, self.prompt))
        system = (Message(role="system", parts=(self.system,)),) if self.system else ()
        return self.asked(messages=(*system, user))


def _generate_body(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Read a body as the one of the two that it is, so that errors name its own fields alone."""
    kind = ImagesIn if isinstance(value, dict) and "model_id" in value else GenerateIn
    return kind.model_validate(value)


GenerateBody = Annotated[GenerateIn | ImagesIn, WrapValidator(_generate_body)]
"""Ollama's own call, or, with `model_id`, the one of the service that this one replaces."""


class EmbedIn(Wire):
    model: Model
    input: str | list[str] = Field([])
    truncate: bool | None = None
    dimensions: Annotated[int, Field(ge=1, le=65536)] | None = None
    options: dict[str, Any] | None = None
    keep_alive: KeepAlive = None


class EmbeddingIn(Wire):
    model: Model
    prompt: str = ""
    options: dict[str, Any] | None = None
    keep_alive: KeepAlive = None


class Named(Wire):
    """A model, under either of the names that clients of different age use."""

    model: Model | None = None
    name: Model | None = None

    @property
    def reference(self) -> str:
        found = self.model or self.name
        if found is None:
            raise InvalidInput.at("model", "is missing")
        return found


class ShowIn(Named):
    verbose: bool | None = None
    system: str | None = None
    template: str | None = None
    options: dict[str, Any] | None = None


class OllamaPullIn(Named):
    stream: bool | None = True
    insecure: bool | None = None
    username: str | None = None
    password: str | None = None


class CopyIn(Wire):
    source: Model
    destination: Model
