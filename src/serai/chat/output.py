"""What a model writes, taken apart while it comes: reasoning, tool calls, and what is said.

Nothing waits longer than it must: only text that may be the beginning of a mark is held back.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from serai.chat.messages import ToolCall
from serai.chat.templates import ToolFormat
from serai.ids import NewId

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
PYTHON_TAG: Final = "<|python_tag|>"
MAX_CALL_CHARACTERS: Final = 1_000_000
"""Of one call; a longer one is told as text."""

State = Literal["start", "say", "think", "call", "bare"]


@dataclass(frozen=True, slots=True)
class Said:
    """Text of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """Text of the reasoning before the answer."""

    text: str


Piece = Said | Thought | ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What is looked for in an answer, and what its prompt has already begun."""

    thinks: bool = False
    is_thinking: bool = False
    """The prompt ends inside the reasoning."""
    tools: ToolFormat | None = None
    is_calling: bool = False
    """The prompt ends inside a call."""

    @property
    def is_plain(self) -> bool:
        """Whether everything is simply said."""
        return not self.thinks and self.tools is None


class Parser:
    """Takes apart one answer. `feed` it what comes, then `finish`."""

    def __init__(self, form: Form, new_id: NewId) -> None:
        self._form = form
        self._new_id = new_id
        self._held = ""
        self._drops_breaks = False
        """Whether white space comes next that belongs to the mark before it."""
        self._state: State = "start"
        if form.is_calling:
            self._state = "call"
        elif form.is_thinking:
            self._state = "think"

    def feed(self, text: str) -> list[Piece]:
        """Return what can be told now."""
        self._held += text
        return list(self._advance(is_over=False))

    def finish(self) -> list[Piece]:
        """Return what was held back: the answer is over."""
        return list(self._advance(is_over=True))

    def _advance(self, *, is_over: bool) -> Iterator[Piece]:
        while True:
            before = self._state, self._held
            if self._drops_breaks:
                self._held = self._held.lstrip("\n")
                self._drops_breaks = not self._held
            match self._state:
                case "start":
                    self._start(is_over)
                case "say":
                    yield from self._until_mark(is_over)
                case "think":
                    yield from self._think(is_over)
                case "call":
                    yield from self._call(is_over)
                case "bare":
                    yield from self._bare(is_over)
            if (self._state, self._held) == before:
                return

    def _start(self, is_over: bool) -> None:
        """Decide by the first characters; white space before a mark belongs to it."""
        begun = self._held.lstrip()
        if self._form.thinks and begun.startswith(THINK):
            self._state, self._held, self._drops_breaks = "think", begun[len(THINK) :], True
            return
        if self._form.tools == "llama" and begun.startswith(("{", PYTHON_TAG)):
            self._state, self._held = "bare", begun.removeprefix(PYTHON_TAG)
            return
        marks = self._marks_at_start()
        if not is_over and (not begun or any(mark.startswith(begun) for mark in marks)):
            return
        self._state = "say"

    def _marks_at_start(self) -> list[str]:
        marks = [THINK] if self._form.thinks else []
        if self._form.tools == "llama":
            marks.append(PYTHON_TAG)
        return marks

    def _until_mark(self, is_over: bool) -> Iterator[Piece]:
        if self._form.tools != "hermes":
            said, self._held = self._held, ""
        else:
            said, mark, rest = self._held.partition(CALL)
            if mark:
                self._state, self._held = "call", rest
                said = said.rstrip()
            else:
                keep = 0 if is_over else _begun_after_space(self._held, CALL)
                said, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        if said:
            yield Said(said)

    def _think(self, is_over: bool) -> Iterator[Piece]:
        thought, mark, rest = self._held.partition(END_THINK)
        if mark:
            self._state, self._held, self._drops_breaks = "start", rest, True
            self._form = _said_next(self._form)
            thought = thought.rstrip()
        else:
            keep = 0 if is_over else _begun_after_space(self._held, END_THINK)
            thought, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        if thought:
            yield Thought(thought)

    def _call(self, is_over: bool) -> Iterator[Piece]:
        body, mark, rest = self._held.partition(END_CALL)
        if not mark and not is_over and len(body) <= MAX_CALL_CHARACTERS:
            return
        self._state, self._held, self._drops_breaks = "say", rest if mark else "", bool(mark)
        call = _read_call(body, self._new_id)
        if call is not None:
            yield call
        elif body.strip():
            yield Said(f"{CALL}{body}{mark}")

    def _bare(self, is_over: bool) -> Iterator[Piece]:
        """A whole answer that is one call, or several with ';' between them."""
        if not is_over and len(self._held) <= MAX_CALL_CHARACTERS:
            return
        body, self._held, self._state = self._held, "", "say"
        calls = [_read_call(part, self._new_id) for part in _split(body)]
        if calls and None not in calls:
            yield from (call for call in calls if call is not None)
        elif body:
            yield Said(body)


def _said_next(form: Form) -> Form:
    """Return the form of what follows the reasoning, of which there is only one."""
    return Form(thinks=False, tools=form.tools)


def _begun(text: str, mark: str) -> int:
    """Return how many characters at the end of `text` may be the beginning of `mark`."""
    for length in range(min(len(mark) - 1, len(text)), 0, -1):
        if mark.startswith(text[-length:]):
            return length
    return 0


def _begun_after_space(text: str, mark: str) -> int:
    """Return how many characters at the end may be the white space before `mark` and its beginning."""
    begun = _begun(text, mark)
    head = text[: len(text) - begun]
    return begun + len(head) - len(head.rstrip())


def _split(body: str) -> list[str]:
    """Return the calls of an answer in the bare form: JSON objects in a row, with ';' or line breaks between."""
    parts, rest = [], body.strip()
    while rest:
        end = _object_end(rest)
        parts.append(rest[:end])
        rest = rest[end:].lstrip("; \n\t")
    return parts


def _object_end(text: str) -> int:
    """Return where the JSON object at the start of `text` ends; the whole length where it does not."""
    depth, in_string, escaped = 0, False, False
    for place, character in enumerate(text):
        if in_string:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                in_string = False
        elif character == '"':
            in_string = True
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth <= 0:
                return place + 1
    return len(text)


def _read_call(text: str, new_id: NewId) -> ToolCall | None:
    """Return the call that a JSON object describes, or None. The object is data, whatever stands in it."""
    try:
        value: Any = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, dict):
        arguments = msgspec.json.encode(arguments).decode()
    if not isinstance(arguments, str):
        return None
    return ToolCall(id=new_id("call"), name=value["name"], arguments=arguments)
