"""An answer as it comes: pieces in batches, then how it ended. Nothing here knows a dialect."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, Self

from serai.chat.messages import ToolCall
from serai.chat.output import Form, Parser, Piece, Said, Thought
from serai.errors import Cancelled, DeadlineExceeded, SeraiError
from serai.events import Done, Event, Failed, Loading, Queued, Text
from serai.ids import NewId
from serai.registry.decision import Decision
from serai.serving.errors import error_of


class Answer(Protocol):
    """What serving gives: events that end with exactly one `Done` or `Failed`."""

    @property
    def decision(self) -> Decision:
        """Return the decision as it stands; final after the last event."""

    @property
    def error(self) -> SeraiError | None:
        """Return what ended it, in full; None while it goes on and after a success."""

    @property
    def load_s(self) -> float:
        """Return how long it has waited for a model to be loaded."""

    async def __anext__(self) -> Event:
        """Return the next event."""

    def ready(self) -> list[Event]:
        """Return the further events that are here already."""

    def headers(self) -> Mapping[str, str]:
        """Return what is told of the decision in headers."""

    async def aclose(self) -> None:
        """Cancel what is not over."""


@dataclass(frozen=True, slots=True)
class Bit:
    """A piece of the answer number `index`."""

    index: int
    piece: Piece
    logprobs: list[dict[str, Any]] | None = None


Item = Text | Bit
"""Output: events as they came where nothing is to be taken apart, else pieces."""

Waiting = Queued | Loading
Batch = list[Item | Waiting]
"""What is told together. Queue positions and load progress are in it only where they were asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How an answer ended. Where `is_counted` is False, nobody told counts: `completion_tokens` are about those."""

    finish_reasons: tuple[str, ...] = ("stop",)
    """For each answer: stop, length, tool_calls, cancelled, timeout or error."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    total_s: float = 0.0
    load_s: float = 0.0
    prompt_s: float = 0.0
    generation_s: float = 0.0
    is_counted: bool = False
    error: SeraiError | None = None

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


class Reply:
    """One answer. Iterate over it for batches of items; then `ending` says how it ended.

    `aclose` it, however that goes: what still runs is cancelled, and what was used is counted.
    """

    def __init__(
        self,
        answer: Answer,
        form: Callable[[], Form],
        *,
        spend: Callable[[int], Awaitable[None]],
        started: float,
        seconds: Callable[[], float],
        new_id: NewId,
        tells_waiting: bool = False,
        explain: Callable[[SeraiError], SeraiError] = lambda error: error,
    ) -> None:
        self._answer = answer
        self._explain = explain
        self._tells_waiting = tells_waiting
        self._pending: Batch = []
        self._form_of_now = form
        self._form: Form | None = None
        self._parsers: dict[int, Parser] = {}
        self._calling: set[int] = set()
        self._spend = spend
        self._started = started
        self._seconds = seconds
        self._new_id = new_id
        self._told = 0
        """Texts so far; each is about a token."""
        self._first_at: float | None = None
        self._is_counted = False
        self._is_over = False
        self.ending: Ending | None = None

    @property
    def decision(self) -> Decision:
        return self._answer.decision

    def headers(self) -> dict[str, str]:
        """Return what is told of the decision in headers, as it stands."""
        return dict(self._answer.headers())

    async def started(self, within_s: float) -> None:
        """Return at the first output, at the end, or after `within_s`. Raises the error of what failed without output.

        Afterwards `headers` are as they are told to a client whose stream opens now.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                while self._first_at is None and not self._is_over:
                    event = await anext(self._answer)
                    for one in (event, *self._answer.ready()):
                        self._take(one, self._pending)
        ending = self.ending
        if ending is not None:
            await self._count()
            if ending.error is not None and not self._pending:
                raise ending.error

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        """Return the next items, at least one; what is here together comes together."""
        if self._pending:
            pending, self._pending = self._pending, []
            return pending
        while not self._is_over:
            event = await anext(self._answer)
            items: Batch = []
            for one in (event, *self._answer.ready()):
                self._take(one, items)
            if self.ending is not None:
                await self._count()
            if items:
                return items
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel what is not over; count what was used. May be called more than once."""
        try:
            await self._answer.aclose()
        finally:
            await self._count()

    def _take(self, event: Event, items: Batch) -> None:
        if type(event) is Text:
            if self._form is None:
                self._first_at = self._seconds()
                self._form = self._form_of_now()
            self._told += 1
            if self._form.is_plain:
                items.append(event)
            else:
                self._parse(event, items)
        elif isinstance(event, Queued | Loading):
            if self._tells_waiting:
                items.append(event)
        elif isinstance(event, Done | Failed):
            self._is_over = True
            self._flush(items)
            self.ending = self._done(event.result, items) if isinstance(event, Done) else self._failed(event)

    def _parse(self, event: Text, items: Batch) -> None:
        parser = self._parsers.get(event.index)
        if parser is None:
            parser = self._parsers[event.index] = Parser(self._form or Form(), self._new_id)
        logprobs = event.logprobs if isinstance(event.logprobs, list) else None
        self._add(event.index, parser.feed(event.delta), items, logprobs)

    def _add(self, index: int, pieces: list[Piece], items: Batch, logprobs: list[dict[str, Any]] | None = None) -> None:
        for piece in pieces:
            if isinstance(piece, ToolCall):
                self._calling.add(index)
            items.append(Bit(index, piece, logprobs))
            logprobs = None

    def _done(self, result: Mapping[str, Any], items: Batch) -> Ending:
        for index, calls in enumerate(result.get("tool_calls") or ()):
            self._add(index, [self._call(call) for call in calls], items)
        for index, thought in enumerate(result.get("reasoning") or ()):
            self._add(index, [Thought(thought)] if thought else [], items)
        for index, refusal in enumerate(result.get("refusal") or ()):
            self._add(index, [Said(refusal)] if refusal else [], items)
        usage, timings = result.get("usage") or {}, result.get("timings") or {}
        reasons = tuple(result.get("finish_reasons") or ("stop",))
        ending = self._timed(timings)
        return replace(
            ending,
            is_counted=True,
            finish_reasons=tuple(
                "tool_calls" if number in self._calling and reason == "stop" else reason
                for number, reason in enumerate(reasons)
            ),
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            completion_tokens=int(usage.get("completion_tokens") or 0),
            cached_tokens=int(usage.get("cached_tokens") or 0),
        )

    def _call(self, call: Mapping[str, Any]) -> ToolCall:
        """Return a call that another server told, in OpenAI's form."""
        function = call["function"]
        return ToolCall(
            id=call.get("id") or self._new_id("call"), name=function["name"], arguments=function["arguments"]
        )

    def _failed(self, event: Failed) -> Ending:
        error = self._explain(self._answer.error or error_of(event))
        reason = "error"
        if isinstance(error, DeadlineExceeded):
            reason = "timeout"
        elif isinstance(error, Cancelled):
            reason = "cancelled"
        return replace(self._timed({}), finish_reasons=(reason,), completion_tokens=self._told, error=error)

    def _flush(self, items: Batch) -> None:
        for index, parser in self._parsers.items():
            self._add(index, parser.finish(), items)
        self._parsers.clear()

    def _timed(self, timings: Mapping[str, Any]) -> Ending:
        """Return an ending that says how long things took; where the engine does not, as seen from here."""
        now = self._seconds()
        first = self._first_at if self._first_at is not None else now
        return Ending(
            total_s=now - self._started,
            load_s=self._answer.load_s,
            prompt_s=float(timings.get("prompt_s") or 0.0),
            generation_s=float(timings.get("generation_s") or now - first),
        )

    async def _count(self) -> None:
        if not self._is_counted:
            self._is_counted = True
            used = self.ending.total_tokens if self.ending is not None else 0
            await self._spend(max(used, self._told))


@dataclass(slots=True, kw_only=True)
class Choice:
    """One whole answer."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def content(self) -> str:
        return "".join(self.text)

    @property
    def thought(self) -> str:
        return "".join(self.reasoning)


@dataclass(slots=True, kw_only=True)
class Gathered:
    """Answers as far as they have come."""

    choices: list[Choice] = field(default_factory=lambda: [Choice()])

    def add(self, item: Item | Waiting) -> None:
        """Add one item to the answer that it belongs to."""
        if isinstance(item, Queued | Loading):
            return
        while len(self.choices) <= item.index:
            self.choices.append(Choice())
        choice = self.choices[item.index]
        if isinstance(item, Text):
            choice.text.append(item.delta)
            logprobs = item.logprobs if isinstance(item.logprobs, list) else None
        else:
            logprobs = item.logprobs
            match item.piece:
                case Said():
                    choice.text.append(item.piece.text)
                case Thought():
                    choice.reasoning.append(item.piece.text)
                case ToolCall():
                    choice.tool_calls.append(item.piece)
        if logprobs:
            choice.logprobs += logprobs


async def gather(reply: Reply, into: Gathered | None = None) -> tuple[Gathered, Ending]:
    """Return the whole answer and how it ended; the reply is closed, whatever happens."""
    gathered = into or Gathered()
    try:
        async for items in reply:
            for item in items:
                gathered.add(item)
    finally:
        await reply.aclose()
    ending = reply.ending
    if ending is None:
        raise Cancelled("The answer was cancelled.")
    return gathered, ending
