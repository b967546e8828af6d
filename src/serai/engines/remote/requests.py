"""What is sent to a server that speaks OpenAI's API. Pure.

What it cannot be asked for is refused by name; nothing is left out in silence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from serai.engines.options import RemoteOptions
from serai.engines.tasks import Chat, Embed, Generate, Grammar, Sampling
from serai.errors import InvalidInput

_FOREIGN = ("top_k", "min_p", "repetition_penalty")
_OPTIONAL = ("presence_penalty", "frequency_penalty", "seed", "n", *_FOREIGN)
_DEFAULTS = Sampling()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A POST of JSON to `path` below the endpoint."""

    path: str
    content: bytes


def request_for(task: Chat | Generate | Embed, model: str, options: RemoteOptions) -> Request:
    """Return what to send for a task. Raises InvalidInput for what the server cannot be asked."""
    match task:
        case Chat():
            return Request(path="/chat/completions", content=msgspec.json.encode(_chat(task, model, options)))
        case Generate():
            return Request(path="/completions", content=msgspec.json.encode(_completion(task, model, options)))
        case Embed():
            body: dict[str, Any] = {"model": model, "input": task.texts, "encoding_format": "float"}
            if task.dimensions is not None:
                body["dimensions"] = task.dimensions
            return Request(path="/embeddings", content=msgspec.json.encode(body))


def url_below(endpoint: str, path: str) -> str:
    """Return the endpoint with `path` behind its own path, before its query."""
    base, mark, query = endpoint.partition("?")
    return f"{base.rstrip('/')}{path}{mark}{query}"


def _chat(task: Chat, model: str, options: RemoteOptions) -> dict[str, Any]:
    sampling = task.sampling
    body: dict[str, Any] = {
        "model": model,
        "messages": task.messages,
        **_streamed(options),
        **_drawn(sampling, options),
    }
    if sampling.max_tokens is not None:
        body[options.max_tokens_member] = sampling.max_tokens
    if sampling.logprobs is not None:
        body["logprobs"] = True
        if sampling.logprobs:
            body["top_logprobs"] = sampling.logprobs
    if task.tools:
        body["tools"] = task.tools
    if task.tool_choice is not None:
        body["tool_choice"] = task.tool_choice
    form = task.response_format
    if sampling.grammar is not None:
        if form is not None:
            raise InvalidInput.at("response_format", "cannot be combined with another grammar")
        form = _schema_format(sampling.grammar)
    if form is not None:
        body["response_format"] = form
    return body


def _completion(task: Generate, model: str, options: RemoteOptions) -> dict[str, Any]:
    sampling = task.sampling
    if sampling.grammar is not None:
        raise InvalidInput.at("response_format", "is known to this model's server only for chats")
    if sampling.max_tokens is None:
        # Servers of this API stop after 16 tokens where it is left out, which nobody means.
        raise InvalidInput.at("max_tokens", "must be given for this model, unless it is asked as a chat")
    body: dict[str, Any] = {"model": model, "prompt": task.prompt, "max_tokens": sampling.max_tokens}
    body |= _streamed(options) | _drawn(sampling, options)
    if sampling.logprobs is not None:
        body["logprobs"] = sampling.logprobs
    return body


def _streamed(options: RemoteOptions) -> dict[str, Any]:
    return {"stream": True} | ({"stream_options": {"include_usage": True}} if options.stream_usage else {})


def _drawn(sampling: Sampling, options: RemoteOptions) -> dict[str, Any]:
    """Return how tokens are drawn; temperature and top_p always, because servers have defaults of their own."""
    drawn: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    for name in _OPTIONAL:
        value = getattr(sampling, name)
        if value == getattr(_DEFAULTS, name):
            continue
        if name in _FOREIGN and name not in options.sampling_extensions:
            raise InvalidInput.at(
                name,
                "is not known to the server behind this model",
                hint="An admin who knows better lists it in the engine option sampling_extensions.",
            )
        drawn[name] = value
    if sampling.stop:
        drawn["stop"] = sampling.stop
    if sampling.logit_bias:
        drawn["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias.items()}
    return drawn


def _schema_format(grammar: Grammar) -> Mapping[str, Any]:
    if grammar.kind != "json_schema":
        raise InvalidInput.at("response_format", f"cannot be a grammar of kind {grammar.kind} for this model")
    schema = msgspec.Raw(grammar.value.encode())
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
