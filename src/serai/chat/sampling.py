"""How the next token is drawn: the fields, their bounds, and what a version says of its own."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from serai.engines.tasks import Grammar, Sampling
from serai.errors import InvalidInput
from serai.registry.parameters import Parameter, plain, resolve

MAX_STOPS = 16
MAX_STOP_CHARACTERS = 500
MAX_BIASES = 1024
MAX_SCHEMA_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a number may be. `above`: the lowest value itself is not allowed."""

    low: float
    high: float
    whole: bool = False
    above: bool = False

    def check(self, field: str, value: Any) -> float | int:
        """Return the number. Raises InvalidInput with the field, the bound and the value."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidInput.at(field, f"must be a {'whole ' if self.whole else ''}number")
        if self.whole and value != int(value):
            raise InvalidInput.at(field, f"must be a whole number, not {value}")
        if value < self.low or value > self.high or (self.above and value == self.low):
            start = f"{'above' if self.above else 'from'} {plain(self.low)}"
            raise InvalidInput.at(field, f"must be {start} to {plain(self.high)}, not {value}")
        return int(value) if self.whole else float(value)


BOUNDS: Mapping[str, Bounds] = {
    "max_tokens": Bounds(low=1, high=2**24, whole=True),
    "temperature": Bounds(low=0, high=2),
    "top_p": Bounds(low=0, high=1, above=True),
    "top_k": Bounds(low=0, high=1_000_000, whole=True),
    "min_p": Bounds(low=0, high=1),
    "repetition_penalty": Bounds(low=0, high=10, above=True),
    "presence_penalty": Bounds(low=-2, high=2),
    "frequency_penalty": Bounds(low=-2, high=2),
    "seed": Bounds(low=-(2**63), high=2**63 - 1, whole=True),
    "n": Bounds(low=1, high=16, whole=True),
    "logprobs": Bounds(low=0, high=20, whole=True),
}
"""By the name of the field of `Sampling`."""

_BIAS = Bounds(low=-100, high=100)


def checked(given: Mapping[str, Any], names: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the fields of `Sampling` that are given (not None), checked.

    `names`: what a dialect calls them, for errors. Raises InvalidInput.
    """
    told = names or {}
    found: dict[str, Any] = {}
    for name, value in given.items():
        field = told.get(name, name)
        if value is None:
            continue
        match name:
            case "stop":
                found[name] = stops(value, field)
            case "logit_bias":
                found[name] = _biases(value, field)
            case "seed":
                # A negative seed is as good as any; engines count from 0.
                found[name] = int(BOUNDS[name].check(field, value)) & (2**63 - 1)
            case _:
                found[name] = BOUNDS[name].check(field, value)
    return found


def stops(value: Any, field: str = "stop", most: int = MAX_STOPS) -> tuple[str, ...]:
    """Return the texts that end an answer, from one text or a list. Raises InvalidInput."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise InvalidInput.at(field, "must be a text or a list of texts")
    if len(texts) > most:
        raise InvalidInput.at(field, f"has at most {most} texts, not {len(texts)}")
    if any(not 1 <= len(text) <= MAX_STOP_CHARACTERS for text in texts):
        raise InvalidInput.at(field, f"has texts of 1 to {MAX_STOP_CHARACTERS} characters")
    return tuple(texts)


def _biases(value: Any, field: str) -> dict[int, float]:
    if not isinstance(value, Mapping):
        raise InvalidInput.at(field, "must be an object of token ids with a number each")
    if len(value) > MAX_BIASES:
        raise InvalidInput.at(field, f"has at most {MAX_BIASES} tokens")
    found = {}
    for token, bias in value.items():
        if not (str(token).isascii() and str(token).isdigit() and len(str(token)) < 10):
            raise InvalidInput.at(field, "has a name that is no token id")
        found[int(token)] = float(_BIAS.check(f"{field}.{token}", bias))
    return found


def for_version(parameters: Mapping[str, Parameter], given: Mapping[str, Any], fallback: Mapping[str, Any]) -> Sampling:
    """Return what goes to the engine: what the caller gave, else what the version declares, else `fallback`.

    Raises InvalidInput for a value beyond the version's own bounds.
    """
    declared = {name: _typed(name, parameter) for name, parameter in parameters.items() if name in BOUNDS}
    values = resolve(declared, {name: value for name, value in given.items() if name in declared})
    known = {name: value for name, value in values.items() if value is not None}
    return Sampling(**{**fallback, **known, **{name: value for name, value in given.items() if name not in declared}})


def _typed(name: str, parameter: Parameter) -> Parameter:
    """Return the parameter with the type of the field: a temperature declared with the default 0 takes 0.7, too."""
    default = parameter.default
    if isinstance(default, int) and not isinstance(default, bool) and not BOUNDS[name].whole:
        return msgspec.structs.replace(parameter, default=float(default))
    return parameter


def grammar_of(response_format: Any, field: str = "response_format") -> Grammar | None:
    """Return the grammar that OpenAI's `response_format` asks for; None for plain text. Raises InvalidInput."""
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    match kind:
        case "text":
            return None
        case "json_object":
            return ANY_OBJECT
        case "json_schema":
            held = response_format.get("json_schema", response_format)
            return schema_grammar(held.get("schema") if isinstance(held, Mapping) else None, f"{field}.json_schema")
        case _:
            raise InvalidInput.at(f"{field}.type", "must be text, json_object or json_schema")


def schema_grammar(schema: Any, field: str) -> Grammar:
    """Return the grammar of texts that match a JSON schema. Raises InvalidInput."""
    if not isinstance(schema, Mapping):
        raise InvalidInput.at(f"{field}.schema", "must be a JSON schema")
    text = msgspec.json.encode(schema).decode()
    if len(text) > MAX_SCHEMA_BYTES:
        raise InvalidInput.at(f"{field}.schema", f"has at most {MAX_SCHEMA_BYTES} bytes")
    return Grammar(kind="json_schema", value=text)


ANY_OBJECT = Grammar(kind="json_schema", value='{"type":"object"}')


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What not every engine can do, and the field that asks for it."""

    capability: str
    field: str


def needs_of(sampling: Sampling, names: Mapping[str, str] | None = None) -> tuple[Need, ...]:
    """Return what a sampling asks of an engine beyond the usual."""
    told = names or {}
    found = (
        (sampling.n > 1, "n", "n"),
        (sampling.logprobs is not None, "logprobs", "logprobs"),
        (sampling.logprobs is not None and sampling.logprobs > 0, "top_logprobs", "top_logprobs"),
        (bool(sampling.logit_bias), "logit_bias", "logit_bias"),
        (sampling.grammar is not None, "grammar", "response_format"),
    )
    return tuple(Need(capability=name, field=told.get(field, field)) for asked, name, field in found if asked)
