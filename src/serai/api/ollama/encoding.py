"""Answers in Ollama's form: whole, and as lines."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from serai.api.json_lines import encode
from serai.chat.messages import ToolCall
from serai.chat.output import Said, Thought
from serai.chat.reply import Batch, Ending, Gathered
from serai.events import Loading, Queued, Text

NS = 1_000_000_000
Kind = Literal["chat", "generate"]
_MEMBER = {"chat": b'"message":', "generate": b'"response":'}


def moment(at: datetime) -> str:
    """Return a time with nanoseconds, as Go writes it."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


def line(value: Any) -> bytes:
    """Return one line."""
    return encode(value) + b"\n"


def end_of(ending: Ending) -> dict[str, Any]:
    """Return how an answer ended, in this dialect's words."""
    return {
        "done": True,
        "done_reason": "length" if ending.finish_reasons[0] == "length" else "stop",
        "total_duration": round(ending.total_s * NS),
        "load_duration": round(ending.load_s * NS),
        "prompt_eval_count": ending.prompt_tokens,
        "prompt_eval_duration": round(ending.prompt_s * NS),
        "eval_count": ending.completion_tokens,
        "eval_duration": round(ending.generation_s * NS),
    }


def tool_call(call: ToolCall, index: int) -> dict[str, Any]:
    """Return a call; its arguments are an object here."""
    values = call.values
    arguments = values if isinstance(values, dict) else {}
    return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}}


def logprobs_of(tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the log-probabilities of tokens."""
    return [
        {**_likely(token), "top_logprobs": [_likely(other) for other in token.get("top") or ()]} for token in tokens
    ]


def _likely(token: Mapping[str, Any]) -> dict[str, Any]:
    text = token["token"]
    return {"token": text, "logprob": token["logprob"], "bytes": list(text.encode("utf-8", "surrogatepass"))}


def whole(kind: Kind, model: str, at: datetime, gathered: Gathered, ending: Ending) -> dict[str, Any]:
    """Return a whole answer."""
    choice = gathered.choices[0]
    body: dict[str, Any] = {"model": model, "created_at": moment(at)}
    thinking = {"thinking": choice.thought} if choice.reasoning else {}
    if kind == "generate":
        body |= {"response": choice.content, **thinking}
    else:
        message: dict[str, Any] = {"role": "assistant", "content": choice.content, **thinking}
        if choice.tool_calls:
            message["tool_calls"] = [tool_call(call, number) for number, call in enumerate(choice.tool_calls)]
        body["message"] = message
    if choice.logprobs:
        body["logprobs"] = logprobs_of(choice.logprobs)
    return {**body, **end_of(ending)}


class Lines:
    """The lines of one stream."""

    def __init__(self, kind: Kind, model: str) -> None:
        self._kind = kind
        self._model = model
        self._head = b'{"model":' + encode(model) + b',"created_at":"'
        self._calls = 0

    def batch(self, items: Batch, at: datetime) -> bytes:
        """Return the lines of what came together."""
        head = self._head + moment(at).encode() + b'",' + _MEMBER[self._kind]
        pieces = []
        for item in items:
            if type(item) is Text:
                logprobs = item.logprobs if type(item.logprobs) is list else None
                pieces.append(self._said(head, item.delta, logprobs))
            elif not isinstance(item, Queued | Loading | Text):
                if isinstance(item.piece, Said):
                    pieces.append(self._said(head, item.piece.text, item.logprobs))
                else:
                    pieces.append(self._other(head, item.piece))
        return b"".join(pieces)

    def _said(self, head: bytes, text: str, logprobs: list[dict[str, Any]] | None) -> bytes:
        told = encode(text)
        if self._kind == "chat":
            told = b'{"role":"assistant","content":' + told + b"}"
        more = b"" if logprobs is None else b',"logprobs":' + encode(logprobs_of(logprobs))
        return head + told + more + b',"done":false}\n'

    def _other(self, head: bytes, piece: Thought | ToolCall) -> bytes:
        if isinstance(piece, Thought):
            if self._kind == "generate":
                return head + b'"","thinking":' + encode(piece.text) + b',"done":false}\n'
            return head + b'{"role":"assistant","content":"","thinking":' + encode(piece.text) + b'},"done":false}\n'
        if self._kind == "generate":
            return b""
        call = tool_call(piece, self._calls)
        self._calls += 1
        return head + encode({"role": "assistant", "content": "", "tool_calls": [call]}) + b',"done":false}\n'

    def closing(self, ending: Ending, at: datetime, late: Mapping[str, str]) -> bytes:
        """Return the last line; `late`: headers that could not be told as such."""
        said = {"response": ""} if self._kind == "generate" else {"message": {"role": "assistant", "content": ""}}
        told = {"serai": dict(late)} if late else {}
        return line({"model": self._model, "created_at": moment(at), **said, **end_of(ending), **told})
