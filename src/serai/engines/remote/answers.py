"""What comes from a server that speaks OpenAI's API: chunks become events, their end the result. Pure.

Chunks are decoded into typed structs that hold only what is used: this runs once per token.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from serai.engines.errors import RemoteFailed
from serai.engines.remote.failures import failure_in_band
from serai.engines.tasks import Array
from serai.events import Done, Text

MAX_TOOL_CALLS = 128
_REASONS = {
    "stop": "stop",
    "eos": "stop",
    "end_turn": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}
_EMPTY = msgspec.Raw()
_NONE = (b"", b"null")
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class _Function(msgspec.Struct, gc=False):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct, gc=False):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: msgspec.Raw = _EMPTY


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct, gc=False):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class _Likely(msgspec.Struct):
    token: str
    logprob: float
    top_logprobs: list["_Likely"] = []


class _ChatLogprobs(msgspec.Struct):
    content: list[_Likely] | None = None


class _TextLogprobs(msgspec.Struct):
    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] | None = None


class _Vector(msgspec.Struct):
    index: int
    embedding: list[float]


class _Vectors(msgspec.Struct):
    data: list[_Vector]
    usage: _Usage | None = None


_chunks = msgspec.json.Decoder(_Chunk)
_vectors = msgspec.json.Decoder(_Vectors)


@dataclass(slots=True, kw_only=True)
class _Call:
    """A tool call as it grows."""

    id: str = ""
    name: str = ""
    arguments: list[str] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class _Message:
    """One answer as it grows, but for its text, which went out as events."""

    reason: str | None = None
    calls: list[_Call] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    refusal: list[str] = field(default_factory=list)


class Answer:
    """Collects the chunks of `n` answers."""

    def __init__(self, *, n: int, logprobs: bool, secret: str | None) -> None:
        self._messages = [_Message() for _ in range(n)]
        self._logprobs = logprobs
        self._secret = secret
        self._usage: _Usage | None = None
        self.is_over = False
        """Whether the server said that it is done."""

    def take(self, data: bytes) -> Sequence[Text]:
        """Return what one event adds. Raises RemoteFailed for nonsense, and the error that the event tells of."""
        if data == b"[DONE]":
            self.is_over = True
            return ()
        try:
            chunk = _chunks.decode(data)
        except _UNREADABLE:
            raise _nonsense() from None
        if chunk.error is not None:
            raise failure_in_band(chunk.error, secret=self._secret)
        if chunk.usage is not None:
            self._usage = chunk.usage
        return [text for choice in chunk.choices if (text := self._text(choice)) is not None]

    def result(self, timings: Mapping[str, float]) -> Done:
        """Return the last event. Raises RemoteFailed if the stream ended before the answers did."""
        for message in self._messages:
            if message.reason is None:
                if not self.is_over:
                    raise RemoteFailed("The server behind this model broke off in the midst of its answer.")
                message.reason = "tool_calls" if message.calls else "stop"
        result: dict[str, Any] = {
            "finish_reasons": [message.reason for message in self._messages],
            "usage": usage_of(self._usage),
            "timings": dict(timings),
        }
        if any(message.calls for message in self._messages):
            result["tool_calls"] = [_calls(message, number) for number, message in enumerate(self._messages)]
        for name in ("reasoning", "refusal"):
            texts = ["".join(getattr(message, name)) for message in self._messages]
            if any(texts):
                result[name] = texts
        return Done(result=result)

    def _text(self, choice: _Choice) -> Text | None:
        if not 0 <= choice.index < len(self._messages):
            raise _nonsense()
        message = self._messages[choice.index]
        delta = choice.delta
        text = choice.text if delta is None else delta.content
        if delta is not None:
            self._note(message, delta)
        if choice.finish_reason is not None:
            message.reason = _reason(choice.finish_reason)
        if not text:
            return None
        if not self._logprobs or choice.logprobs in _NONE:
            return Text(delta=text, index=choice.index)
        return Text(
            delta=text, index=choice.index, logprobs=_logprobs(bytes(choice.logprobs), is_chat=delta is not None)
        )

    def _note(self, message: _Message, delta: _Delta) -> None:
        if delta.reasoning_content or delta.reasoning:
            message.reasoning.append(delta.reasoning_content or delta.reasoning or "")
        if delta.refusal:
            message.refusal.append(delta.refusal)
        for part in delta.tool_calls or ():
            call = _call_for(message.calls, part)
            call.id = call.id or part.id or ""
            if part.function is not None:
                call.name = call.name or part.function.name or ""
                if part.function.arguments:
                    call.arguments.append(part.function.arguments)


def usage_of(usage: _Usage | None) -> dict[str, int] | None:
    """Return the usage as events tell it; None where the server told none."""
    if usage is None:
        return None
    details = usage.prompt_tokens_details
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "cached_tokens": (details.cached_tokens or 0) if details is not None else 0,
    }


def embeddings_in(body: bytes, count: int) -> Done:
    """Return the vectors of `count` texts in their order. Raises RemoteFailed where they are not all there."""
    try:
        answer = _vectors.decode(body)
    except _UNREADABLE:
        raise _nonsense() from None
    rows = sorted(answer.data, key=lambda row: row.index)
    widths = {len(row.embedding) for row in rows}
    if [row.index for row in rows] != list(range(count)) or len(widths) > 1 or 0 in widths:
        raise _nonsense()
    numbers = array("f")
    try:
        for row in rows:
            numbers.extend(row.embedding)
    except OverflowError:
        raise _nonsense() from None
    shape = (count, widths.pop() if widths else 0)
    usage = None if answer.usage is None else {"prompt_tokens": answer.usage.prompt_tokens}
    embeddings = Array(dtype="float32", shape=shape, data=numbers.tobytes())
    return Done(result={"embeddings": embeddings.document, "usage": usage})


def body_in(body: bytes) -> Done:
    """Return any JSON as the result of `Fetch`. Raises RemoteFailed for what is none."""
    try:
        return Done(result={"body": msgspec.json.decode(body)})
    except _UNREADABLE:
        raise _nonsense() from None


def _nonsense() -> RemoteFailed:
    return RemoteFailed("The server behind this model answered something that it should not.")


def _reason(told: str) -> str:
    if told in ("error", "abort", "aborted"):
        raise RemoteFailed("The server behind this model gave its answer up.")
    return _REASONS.get(told, "stop")


def _call_for(calls: list[_Call], part: _ToolCall) -> _Call:
    """Return the call that a part belongs to: by its number, or, where a server gives none, by its id."""
    index = part.index
    if index is None:
        is_new = not calls or (part.id is not None and part.id != calls[-1].id)
        index = len(calls) if is_new else len(calls) - 1
    if not 0 <= index <= len(calls) or index >= MAX_TOOL_CALLS:
        raise _nonsense()
    if index == len(calls):
        calls.append(_Call())
    return calls[index]


def _calls(message: _Message, answer: int) -> list[dict[str, Any]]:
    calls = []
    for number, call in enumerate(message.calls):
        if not call.name:
            raise _nonsense()
        function = {"name": call.name, "arguments": "".join(call.arguments)}
        calls.append({"id": call.id or f"call_{answer}_{number}", "type": "function", "function": function})
    return calls


def _logprobs(raw: bytes, *, is_chat: bool) -> list[dict[str, Any]]:
    try:
        if is_chat:
            return [
                _likely(one) | {"top": [_likely(other) for other in one.top_logprobs]}
                for one in msgspec.json.decode(raw, type=_ChatLogprobs).content or ()
            ]
        told = msgspec.json.decode(raw, type=_TextLogprobs)
    except _UNREADABLE:
        raise _nonsense() from None
    tops = told.top_logprobs or [None] * len(told.tokens)
    if not len(told.tokens) == len(told.token_logprobs) == len(tops):
        raise _nonsense()
    return [
        {
            "token": token,
            "logprob": logprob,
            "top": [{"token": other, "logprob": value} for other, value in (top or {}).items()],
        }
        for token, logprob, top in zip(told.tokens, told.token_logprobs, tops, strict=True)
    ]


def _likely(one: _Likely) -> dict[str, Any]:
    return {"token": one.token, "logprob": one.logprob}
