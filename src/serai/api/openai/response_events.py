"""Answers in the form of the Responses API: whole, and as its numbered events."""

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from serai.api.json_lines import encode
from serai.api.openai.response_wire import ResponseIn
from serai.chat.messages import ToolCall
from serai.chat.output import Said, Thought
from serai.chat.reply import Batch, Choice, Ending
from serai.events import Loading, Queued, Text
from serai.ids import NewId


def response_body(
    body: ResponseIn, id_: str, created: datetime, output: list[dict[str, Any]], ending: Ending | None, status: str
) -> dict[str, Any]:
    """Return the response as it stands."""
    told: dict[str, Any] = {
        "id": id_,
        "object": "response",
        "created_at": int(created.timestamp()),
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": body.model,
        "output": output,
        "parallel_tool_calls": True,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": body.store is not False,
        "temperature": body.temperature,
        "text": {"format": (body.text.format if body.text else None) or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_p": body.top_p,
        "truncation": "disabled",
        "metadata": body.metadata or {},
        "usage": None,
    }
    if ending is not None and ending.is_counted:
        told["usage"] = {
            "input_tokens": ending.prompt_tokens,
            "input_tokens_details": {"cached_tokens": ending.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": ending.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": ending.total_tokens,
        }
    return told


def status_of(ending: Ending) -> str:
    """Return the status of an answer that ended without an error."""
    return "incomplete" if ending.finish_reasons[0] == "length" else "completed"


def items_of(choice: Choice, new_id: NewId) -> list[dict[str, Any]]:
    """Return the items of a whole answer."""
    items = []
    if choice.reasoning:
        items.append(reasoning_item(new_id("rs"), choice.thought))
    if choice.text or not choice.tool_calls:
        items.append(message_item(new_id("msg"), choice.content))
    items += [call_item(new_id("fc"), call) for call in choice.tool_calls]
    return items


def message_item(id_: str, text: str, status: str = "completed") -> dict[str, Any]:
    """Return what was said as an item."""
    content = [text_part(text)] if status == "completed" else []
    return {"id": id_, "type": "message", "role": "assistant", "status": status, "content": content}


def text_part(text: str) -> dict[str, Any]:
    """Return text as a part of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def reasoning_item(id_: str, text: str) -> dict[str, Any]:
    """Return reasoning as an item."""
    content = [{"type": "reasoning_text", "text": text}] if text else []
    return {"id": id_, "type": "reasoning", "summary": [], "content": content}


def call_item(id_: str, call: ToolCall, status: str = "completed") -> dict[str, Any]:
    """Return a call as an item."""
    told = {"call_id": call.id, "name": call.name, "status": status}
    return {
        "id": id_,
        "type": "function_call",
        **told,
        "arguments": call.arguments if status == "completed" else "",
    }


class ResponseEvents:
    """The events of one stream. Each has the next number; items open and close in order."""

    def __init__(self, new_id: NewId) -> None:
        self._new_id = new_id
        self._number = 0
        self._open: str = ""
        """The type of the item that is open: message, reasoning, or none."""
        self._id = ""
        self._text: list[str] = []
        self.output: list[dict[str, Any]] = []

    def event(self, kind: str, **members: Any) -> bytes:
        """Return one event."""
        told = {"type": kind, "sequence_number": self._number, **members}
        self._number += 1
        return f"event: {kind}\n".encode() + b"data: " + encode(told) + b"\n\n"

    def batch(self, items: Batch) -> bytes:
        """Return the events of what came together."""
        return b"".join(event for item in items for event in self._one(item))

    def _one(self, item: Any) -> Iterator[bytes]:
        if isinstance(item, Queued | Loading):
            return
        piece = Said(item.delta) if isinstance(item, Text) else item.piece
        if isinstance(piece, ToolCall):
            yield from self.close()
            yield from self._call(piece)
            return
        kind = "reasoning" if isinstance(piece, Thought) else "message"
        if self._open != kind:
            yield from self.close()
            yield from self._begin(kind)
        self._text.append(piece.text)
        place = {"item_id": self._id, "output_index": len(self.output), "content_index": 0, "delta": piece.text}
        if kind == "message":
            yield self.event("response.output_text.delta", **place, logprobs=[])
        else:
            yield self.event("response.reasoning_text.delta", **place)

    def _begin(self, kind: str) -> Iterator[bytes]:
        self._open, self._text = kind, []
        self._id = self._new_id("msg" if kind == "message" else "rs")
        begun = message_item(self._id, "", "in_progress") if kind == "message" else reasoning_item(self._id, "")
        yield self.event("response.output_item.added", output_index=len(self.output), item=begun)
        part = text_part("") if kind == "message" else {"type": "reasoning_text", "text": ""}
        yield self.event("response.content_part.added", **self._place(), part=part)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._id, "output_index": len(self.output), "content_index": 0}

    def close(self) -> Iterator[bytes]:
        """Yield the events that end the open item, if there is one."""
        kind, self._open = self._open, ""
        if not kind:
            return
        text, place = "".join(self._text), self._place()
        if kind == "message":
            yield self.event("response.output_text.done", **place, text=text, logprobs=[])
            done, part = message_item(self._id, text), text_part(text)
        else:
            yield self.event("response.reasoning_text.done", **place, text=text)
            done, part = reasoning_item(self._id, text), {"type": "reasoning_text", "text": text}
        yield self.event("response.content_part.done", **place, part=part)
        yield self.event("response.output_item.done", output_index=len(self.output), item=done)
        self.output.append(done)

    def _call(self, call: ToolCall) -> Iterator[bytes]:
        id_, index = self._new_id("fc"), len(self.output)
        place = {"item_id": id_, "output_index": index}
        yield self.event("response.output_item.added", output_index=index, item=call_item(id_, call, "in_progress"))
        yield self.event("response.function_call_arguments.delta", **place, delta=call.arguments)
        yield self.event("response.function_call_arguments.done", **place, name=call.name, arguments=call.arguments)
        done = call_item(id_, call)
        yield self.event("response.output_item.done", output_index=index, item=done)
        self.output.append(done)

    def ensure_message(self) -> Iterator[bytes]:
        """Yield the events of an empty message where there was nothing at all."""
        if not self.output and not self._open:
            yield from self._begin("message")
        yield from self.close()
