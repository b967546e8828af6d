"""Answers in OpenAI's form: whole, and as chunks that are put together from parts made once."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from serai.api.json_lines import encode
from serai.chat.messages import ToolCall, openai_call
from serai.chat.output import Thought
from serai.chat.reply import Batch, Choice, Ending, Gathered
from serai.events import Loading, Queued, Text

DONE = b"data: [DONE]\n\n"
_REASONS = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "content_filter": "content_filter"}


def openai_id(internal: str) -> str:
    """Return an id as clients know them: 'chatcmpl-…'."""
    return internal.replace("_", "-", 1)


def data(value: Any) -> bytes:
    """Return one frame."""
    return b"data: " + encode(value) + b"\n\n"


def comments(headers: Mapping[str, str]) -> bytes:
    """Return headers that came too late to be headers, as comments of the stream."""
    return b"".join(f": {name.lower()}: {value}\n\n".encode() for name, value in headers.items())


def usage_of(ending: Ending) -> dict[str, Any]:
    """Return the usage of an answer."""
    return {
        "prompt_tokens": ending.prompt_tokens,
        "completion_tokens": ending.completion_tokens,
        "total_tokens": ending.total_tokens,
        "prompt_tokens_details": {"cached_tokens": ending.cached_tokens},
    }


def reason_of(ending: Ending, index: int) -> str:
    """Return why answer `index` ended, in this dialect's words."""
    reasons = ending.finish_reasons
    return _REASONS.get(reasons[index] if index < len(reasons) else reasons[-1], "stop")


def chat_logprobs(tokens: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the log-probabilities of tokens in the form of chats."""
    return {"content": [_token(token) for token in tokens], "refusal": None}


def _token(token: Mapping[str, Any]) -> dict[str, Any]:
    return {**_likely(token), "top_logprobs": [_likely(other) for other in token.get("top") or ()]}


def _likely(token: Mapping[str, Any]) -> dict[str, Any]:
    text = token["token"]
    return {"token": text, "logprob": token["logprob"], "bytes": list(text.encode("utf-8", "surrogatepass"))}


def text_logprobs(tokens: Sequence[Mapping[str, Any]], start: int = 0) -> dict[str, Any]:
    """Return the log-probabilities of tokens in the form of plain completions; `start`: characters before them."""
    offsets, place = [], start
    for token in tokens:
        offsets.append(place)
        place += len(token["token"])
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [token["logprob"] for token in tokens],
        "top_logprobs": [{other["token"]: other["logprob"] for other in token.get("top") or ()} for token in tokens],
        "text_offset": offsets,
    }


def chat_message(choice: Choice) -> dict[str, Any]:
    """Return a whole message."""
    message: dict[str, Any] = {"role": "assistant", "content": choice.content or None, "refusal": None}
    if not choice.tool_calls:
        message["content"] = choice.content
    else:
        message["tool_calls"] = [openai_call(call) for call in choice.tool_calls]
    if choice.reasoning:
        message["reasoning_content"] = message["reasoning"] = choice.thought
    return message


def chat_completion(
    id_: str, created: datetime, model: str, gathered: Gathered, ending: Ending, *, logprobs: bool
) -> dict[str, Any]:
    """Return a whole chat completion."""
    choices = [
        {
            "index": index,
            "message": chat_message(choice),
            "logprobs": chat_logprobs(choice.logprobs) if logprobs else None,
            "finish_reason": reason_of(ending, index),
        }
        for index, choice in enumerate(gathered.choices)
    ]
    head = {"id": id_, "object": "chat.completion", "created": int(created.timestamp()), "model": model}
    return {**head, "choices": choices, "usage": usage_of(ending)}


def text_completion(
    id_: str, created: datetime, model: str, gathered: Gathered, ending: Ending, *, logprobs: bool, echo: str
) -> dict[str, Any]:
    """Return a whole plain completion."""
    choices = [
        {
            "index": index,
            "text": echo + choice.content,
            "logprobs": text_logprobs(choice.logprobs, len(echo)) if logprobs else None,
            "finish_reason": reason_of(ending, index),
        }
        for index, choice in enumerate(gathered.choices)
    ]
    head = {"id": id_, "object": "text_completion", "created": int(created.timestamp()), "model": model}
    return {**head, "choices": choices, "usage": usage_of(ending)}


class _Chunks:
    """What the chunks of one stream share; `id` and `created` never change."""

    def __init__(self, kind: str, id_: str, created: datetime, model: str, *, usage: bool) -> None:
        head = encode({"id": id_, "object": kind, "created": int(created.timestamp()), "model": model})
        self._head = b"data: " + head[:-1] + b',"choices":'
        self._tail = b',"usage":null}\n\n' if usage else b"}\n\n"
        self._tells_usage = usage

    def _framed(self, choice: bytes) -> bytes:
        return self._head + b"[" + choice + b"]" + self._tail

    def usage(self, ending: Ending) -> bytes:
        """Return the chunk with the usage; empty where it was not asked for."""
        if not self._tells_usage:
            return b""
        return self._head + b'[],"usage":' + encode(usage_of(ending)) + b"}\n\n"


class ChatChunks(_Chunks):
    """Chunks of a chat completion."""

    def __init__(self, id_: str, created: datetime, model: str, *, usage: bool) -> None:
        super().__init__("chat.completion.chunk", id_, created, model, usage=usage)
        self._calls: dict[int, int] = {}

    def _delta(self, index: int, delta: bytes, logprobs: Any = None, reason: bytes = b"null") -> bytes:
        told = b"null" if logprobs is None else encode(chat_logprobs(logprobs))
        head = b'{"index":%d,"delta":' % index + delta
        return self._framed(head + b',"logprobs":' + told + b',"finish_reason":' + reason + b"}")

    def opening(self, n: int) -> bytes:
        """Return the first chunk of each answer: its role."""
        return b"".join(self._delta(index, b'{"role":"assistant","content":""}') for index in range(n))

    def batch(self, items: Batch) -> bytes:
        """Return the chunks of what came together."""
        pieces = []
        for item in items:
            if type(item) is Text:
                logprobs = item.logprobs if type(item.logprobs) is list else None
                pieces.append(self._delta(item.index, b'{"content":' + encode(item.delta) + b"}", logprobs))
            elif not isinstance(item, Queued | Loading | Text):
                if isinstance(item.piece, ToolCall):
                    pieces.append(self._called(item.index, item.piece))
                else:
                    pieces.append(self._delta(item.index, _said(item.piece), item.logprobs))
        return b"".join(pieces)

    def _called(self, index: int, call: ToolCall) -> bytes:
        number = self._calls.get(index, 0)
        self._calls[index] = number + 1
        function = {"name": call.name, "arguments": ""}
        begun = {"tool_calls": [{"index": number, "id": call.id, "type": "function", "function": function}]}
        filled = {"tool_calls": [{"index": number, "function": {"arguments": call.arguments}}]}
        return self._delta(index, encode(begun)) + self._delta(index, encode(filled))

    def closing(self, ending: Ending, n: int) -> bytes:
        """Return the last chunk of each answer: why it ended."""
        return b"".join(
            self._delta(index, b"{}", reason=encode(reason_of(ending, index))) for index in range(n)
        ) + self.usage(ending)


def _said(piece: Any) -> bytes:
    if isinstance(piece, Thought):
        text = encode(piece.text)
        return b'{"reasoning_content":' + text + b',"reasoning":' + text + b"}"
    return b'{"content":' + encode(piece.text) + b"}"


class TextChunks(_Chunks):
    """Chunks of a plain completion."""

    def __init__(self, id_: str, created: datetime, model: str, *, usage: bool) -> None:
        super().__init__("text_completion", id_, created, model, usage=usage)
        self._places: dict[int, int] = {}

    def text(self, index: int, text: str, logprobs: Any = None, reason: bytes = b"null") -> bytes:
        """Return one chunk."""
        place = self._places.get(index, 0)
        self._places[index] = place + len(text)
        told = b"null" if logprobs is None else encode(text_logprobs(logprobs, place))
        head = b'{"index":%d,"text":' % index + encode(text)
        return self._framed(head + b',"logprobs":' + told + b',"finish_reason":' + reason + b"}")

    def batch(self, items: Batch) -> bytes:
        """Return the chunks of what came together."""
        return b"".join(
            self.text(item.index, item.delta, item.logprobs if isinstance(item.logprobs, list) else None)
            for item in items
            if isinstance(item, Text)
        )

    def closing(self, ending: Ending, n: int) -> bytes:
        """Return the last chunk of each answer: why it ended."""
        return b"".join(
            self.text(index, "", reason=encode(reason_of(ending, index))) for index in range(n)
        ) + self.usage(ending)
