"""The answer to one call: events to read, and what is known of who gives them."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Self

import structlog

from serai.errors import Cancelled, InternalError, SeraiError
from serai.events import Done, Event, Failed
from serai.registry.decision import Decision
from serai.registry.rules import RegistryRules
from serai.runtime.errors import QueueTimeout
from serai.serving.admission import Turn
from serai.serving.channel import Channel
from serai.serving.course import Course
from serai.serving.headers import decision_headers, deprecation_headers

log = structlog.get_logger(__name__)

HEADERS_WAIT_S: Final = 15.0
"""How long response headers wait for the first output; then they go out, and the rest is told in band."""


class Answer:
    """An asynchronous iterator of events that ends with exactly one `Done` or `Failed`, and raises nothing.

    The work goes on whether or not anybody reads (a reader far behind holds it up). Whoever opened it
    closes it: `async with answer:` or `aclose`, which stops the work.
    """

    def __init__(
        self,
        id_: str,
        course: Course,
        channel: Channel,
        turn: Turn,
        *,
        rules: RegistryRules,
        on_end: "Callable[[Answer], None]",
    ) -> None:
        self.id = id_
        """Of the stored decision."""
        self.error: SeraiError | None = None
        """What ended it, with `retry_after` and details; None while it goes on and after a success."""
        self._course = course
        self._channel = channel
        self._turn = turn
        self._rules = rules
        self._on_end = on_end
        self._is_over = asyncio.Event()
        self._reason: SeraiError = Cancelled("The call was stopped.")
        self._task = asyncio.create_task(self._work(), name=f"answer {id_}")
        self._task.add_done_callback(self._on_task_end)

    # What is known

    @property
    def decision(self) -> Decision:
        """Who answers and why, as it stands; final after the last event."""
        return self._course.final or self._course.plan.decision

    @property
    def engine(self) -> str:
        """The engine that runs the task; empty until one is tried."""
        return "" if self._course.placement is None else self._course.placement.engine.name

    @property
    def why_engine(self) -> str:
        return "" if self._course.placement is None else self._course.placement.why

    @property
    def has_output(self) -> bool:
        """Whether a first output came: then nothing else answers any more."""
        return self._course.has_output

    @property
    def load_s(self) -> float:
        """How long the call has waited for a model to be loaded."""
        return self._course.load_s

    @property
    def course(self) -> Course:
        return self._course

    def headers(self) -> dict[str, str]:
        """Return the headers that tell the decision, as it stands, and the deprecation of who answers."""
        version = self._course.plan.candidate.version
        return decision_headers(self.decision, self.id) | dict(deprecation_headers(version, self._rules))

    # Reading

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        event = await self._channel.get()
        if event is None:
            raise StopAsyncIteration
        return event

    def ready(self) -> list[Event]:
        """Return the further events that are here already, without waiting; there may be none."""
        return self._channel.ready()

    async def started(self, within_s: float = HEADERS_WAIT_S) -> None:
        """Return at the first output, at the end, or after `within_s` seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._course.has_begun.wait()

    def feed(self, message: Mapping[str, Any]) -> None:
        """Hand a message to the run that goes on: more text, sound, an interruption."""
        self._course.feed(message)

    # Ending

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self, reason: SeraiError | None = None) -> None:
        """Stop the work if it goes on, and return when it has stopped. A reader finds `reason` as the last event."""
        if not self._task.done():
            self._reason = reason or self._reason
            self._task.cancel()
        await self._is_over.wait()

    async def over(self) -> None:
        """Return when the work has ended, however it did."""
        await self._is_over.wait()

    # The work

    async def _work(self) -> None:
        try:
            await self._admitted()
            last = await self._course.run()
        except Exception as error:
            known = error if isinstance(error, SeraiError) else InternalError("The work failed through a defect.")
            if known is not error:
                log.exception("call_defect")
            self._fail(known)
        else:
            self._finish(last)

    async def _admitted(self) -> None:
        """Wait for a place among the calls of the service."""
        if self._turn.is_admitted:
            return
        try:
            async with asyncio.timeout(self._course.remaining_s):
                await self._turn.wait(self._channel.put)
        except TimeoutError:
            raise QueueTimeout("The service was not free in the time given.", retry_after=1.0) from None

    def _fail(self, error: SeraiError) -> None:
        self.error = error.of_decision(self.id)
        self._course.abandon(error)
        self._finish(Failed.of(error))

    def _finish(self, last: Done | Failed) -> None:
        """Close the books, then tell the last event: who has read it finds everything in order."""
        self._turn.release()
        self._on_end(self)
        self._channel.put(last)
        self._channel.close()
        self._course.has_begun.set()
        self._is_over.set()

    def _on_task_end(self, task: "asyncio.Task[None]") -> None:
        """Runs also for a task that was cancelled before it began."""
        if not self._is_over.is_set():
            self._fail(self._reason)
