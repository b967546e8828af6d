"""Running a task on a service: decide, lease, run, and go on to the next candidate where one fails.

answer = await serving.open(call)          raises what nobody could answer
async with answer:
    await answer.started()                 response headers wait for this
    async for event in answer: …
"""

from dataclasses import dataclass

import structlog

from serai.errors import SeraiError, Unavailable
from serai.ids import NewId
from serai.registry.failure import Failure, Situation
from serai.registry.plan import Plan, Request, next_candidate
from serai.registry.policy import make_plan
from serai.registry.registry import Registry
from serai.registry.service import Limits
from serai.registry.snapshot import RegistrySnapshot
from serai.runtime.runtime import Loaded
from serai.serving.admission import Gate, Turn
from serai.serving.answer import Answer
from serai.serving.call import Call
from serai.serving.channel import Channel
from serai.serving.course import Course, CourseParts
from serai.serving.recorder import DecisionRecorder
from serai.serving.residency import InMemory, Residency
from serai.serving.store import DecisionRow
from serai.serving.switch import Switches
from serai.telemetry.context import current_request_id

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """Where the ends of calls are entered."""

    recorder: DecisionRecorder
    new_id: NewId


class Serving:
    """The one place where the registry, the runtime and fallback meet. One per server, on one event loop."""

    def __init__(self, registry: Registry, parts: CourseParts, books: Books) -> None:
        self._registry = registry
        self._parts = parts
        self._books = books
        self._gate = Gate()
        self._answers: set[Answer] = set()
        self._is_closed = False
        self.residency = Residency(registry, parts.runtime, parts.placer, parts.standing, parts.clock)
        """Loads and unloads by name."""
        self.switches = Switches(registry, parts.runtime, self.residency, lambda: self._answers)
        """Switches and rolls back services without dropping a request."""
        parts.metrics.in_flight = lambda: len(self._answers)
        parts.metrics.circuits = lambda: parts.standing.open_circuits

    @property
    def answers(self) -> tuple[Answer, ...]:
        """Those that go on."""
        return tuple(self._answers)

    async def open(self, call: Call) -> Answer:
        """Begin to answer a call.

        Raises what no candidate can answer: what `make_plan` raises, InvalidInput of the task,
        ServiceQueueFull, and where nobody can even be tried what the last candidate lacks. What fails
        later is the answer's last event.
        """
        snapshot = await self._registry.current()
        if self._is_closed:
            raise Unavailable("The server is stopping.")
        parts = self._parts
        now = parts.clock.monotonic()
        plan = make_plan(snapshot, call.request, parts.standing.situation(now))
        limits = _limits(snapshot, plan)
        timeout_s = min(call.timeout_s, limits.timeout_s or call.timeout_s)
        channel = Channel()
        course = Course(call, plan, parts, channel, deadline=now + timeout_s)
        turn = self._gate.draw(plan.service or "", limits.concurrency, limits.queue_length)
        id_ = self._books.new_id("dec")
        try:
            await course.prepare()
        except BaseException as error:
            turn.release()
            if isinstance(error, SeraiError) and course.failure is not None and not course.failure.is_final:
                self._enter(id_, call, course, error)
                raise error.of_decision(id_) from None
            course.abandon(Unavailable("The call was not begun."))  # a caller's own mistake, or a departure
            raise
        return self._start(id_, call, course, channel, turn, snapshot)

    async def check(self, request: Request) -> None:
        """Raise what `open` raises for a request that nobody here can ever answer, as the registry stands.

        Nothing is loaded; who failed a short while ago is no reason to refuse.
        """
        plan = make_plan(await self._registry.current(), request)
        while True:
            try:
                await self._parts.placer.place(plan.candidate)
            except SeraiError as error:
                after = next_candidate(plan, Failure.UNAVAILABLE, error=error.message.rstrip("."))
                if after is None:
                    raise
                plan = after
            else:
                return

    def situation(self) -> Situation:
        """Return who is left alone for now, and who is loaded: what a decision reads besides the registry."""
        return self._parts.standing.situation(self._parts.clock.monotonic())

    async def preload(self, reference: str, *, keep_alive: float | None = None, timeout_s: float) -> Loaded:
        """Load what a name means; as `Residency.preload`."""
        return await self.residency.preload(reference, keep_alive=keep_alive, timeout_s=timeout_s)

    async def unload(self, reference: str, *, force: bool = False) -> tuple[Loaded, ...]:
        """Unload what a name means; as `Residency.unload`."""
        return await self.residency.unload(reference, force=force)

    async def clear_cooldown(self, reference: str) -> None:
        """Let what a name means be tried again at once."""
        await self.residency.clear_cooldown(reference)

    async def loaded(self) -> tuple[InMemory, ...]:
        """Return what is in memory, and for whom."""
        return await self.residency.loaded()

    async def keep_pinned(self, *, timeout_s: float) -> None:
        """Bring memory in line with the services that are pinned; as `Residency.keep_pinned`."""
        await self.residency.keep_pinned(timeout_s=timeout_s)

    async def close(self) -> None:
        """Take no more calls, stop those that go on, and write what is to be stored."""
        self._is_closed = True
        for answer in self.answers:
            await answer.aclose(Unavailable("The server is stopping."))
        await self.switches.close()
        await self._books.recorder.close()

    def _start(
        self, id_: str, call: Call, course: Course, channel: Channel, turn: Turn, snapshot: RegistrySnapshot
    ) -> Answer:
        def on_end(answer: Answer) -> None:
            self._answers.discard(answer)
            self._enter(id_, call, course, answer.error)

        answer = Answer(id_, course, channel, turn, rules=snapshot.rules, on_end=on_end)
        self._answers.add(answer)
        return answer

    def _enter(self, id_: str, call: Call, course: Course, error: SeraiError | None) -> None:
        """Count, log and store how a call ended."""
        parts, decision = self._parts, course.final or course.plan.decision
        outcome = "served" if error is None else "cancelled" if course.failure is Failure.CANCELLED else "failed"
        now = parts.clock.monotonic()
        first_s = None if course.first_output is None else course.first_output - course.opened
        parts.metrics.count_call(decision.reason.value, outcome, first_s)
        engine = "" if course.placement is None else course.placement.engine.name
        document = {
            **decision.document(),
            "outcome": outcome,
            "engine": engine,
            "ms": round((now - course.opened) * 1000, 3),
            "failure": None if course.failure is None else course.failure.value,
            "error": None if error is None else error.code,
            "request_id": current_request_id(),
        }
        self._books.recorder.add(
            DecisionRow(
                id=id_,
                at=parts.clock.now(),
                service_id=decision.service,
                model_id=decision.model,
                version=decision.version,
                reason=decision.reason.value,
                owner_id=call.owner,
                document=document,
            )
        )


def _limits(snapshot: RegistrySnapshot, plan: Plan) -> Limits:
    service = snapshot.services.get(plan.service or "")
    return Limits() if service is None else service.revision.limits
