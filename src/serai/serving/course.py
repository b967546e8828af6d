"""The course of one call: candidate by candidate, engine by engine, until one answers or none is left."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import structlog

from serai.clock import Clock
from serai.engines.errors import RemoteFailed
from serai.engines.remote.engine import RemoteEngine, RemoteTask
from serai.engines.tasks import AnyTask
from serai.errors import DeadlineExceeded, EngineFailed, InternalError, InvalidInput, NotFound, SeraiError
from serai.events import Done, Event, Failed, Loading, Queued, is_output
from serai.outbound import OutboundSecret
from serai.registry.decision import Decision
from serai.registry.errors import CandidateInCooldown
from serai.registry.failure import Failure, failure_of
from serai.registry.plan import Plan, finish, give_up, next_candidate
from serai.runtime.lease import Stream
from serai.runtime.runtime import Runtime
from serai.serving.call import Call
from serai.serving.channel import Channel
from serai.serving.errors import error_of
from serai.serving.metrics import ServingMetrics
from serai.serving.placer import Placer
from serai.serving.placing import Placement, blames_engine
from serai.serving.standing import Standing

log = structlog.get_logger(__name__)

RevealSecret = Callable[[str], Awaitable[OutboundSecret]]

FAIR_S: Final = 30.0
"""A candidate that had less time than this before the call's deadline is not blamed for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseParts:
    """What every course uses."""

    runtime: Runtime
    remote: RemoteEngine
    reveal: RevealSecret
    """Reads a secret by its name."""
    placer: Placer
    standing: Standing
    clock: Clock
    metrics: ServingMetrics


class Course:
    """One call on its way. `prepare`, then `run`, which puts events into `channel`; each raises what ends the call."""

    def __init__(self, call: Call, plan: Plan, parts: CourseParts, channel: Channel, *, deadline: float) -> None:
        self.plan = plan
        self.final: Decision | None = None
        """The decision when the call is over."""
        self.opened = parts.clock.monotonic()
        self.first_output: float | None = None
        self.has_begun = asyncio.Event()
        """Set at the first output."""
        self.load_s = 0.0
        """How long it has waited for loads, of whichever candidate, as far as they are over."""
        self.failure: Failure | None = None
        """Of the last candidate that failed."""
        self.placement: Placement | None = None
        self._call = call
        self._parts = parts
        self._channel = channel
        self._deadline = deadline
        self._placements: Sequence[Placement] = ()
        self._task: AnyTask | None = None
        """For the first of the placements."""
        self._began = self.opened
        self._loading_since: float | None = None
        self._is_trying = False
        self._is_running = False
        self._stream: Stream | None = None
        self._fed: list[Mapping[str, Any]] = []

    @property
    def remaining_s(self) -> float:
        return max(self._deadline - self._parts.clock.monotonic(), 0.0)

    @property
    def has_output(self) -> bool:
        return self.first_output is not None

    @property
    def name(self) -> str:
        return self.plan.candidate.name

    # What the call goes through

    async def prepare(self) -> None:
        """Place the current candidate; while that is not possible, go on to the next. Raises the last one's error."""
        while True:
            try:
                await self._place()
            except Exception as error:
                if not self._hop(error):
                    raise
            else:
                return

    async def run(self) -> Done:
        """Let one candidate after another try; return its last event, which is not in the channel yet."""
        while True:
            try:
                done = await self._try()
            except Exception as error:
                if not self._hop(error):
                    raise
                await self.prepare()
            else:
                self._is_trying = False
                self._parts.standing.on_success(self.plan.candidate.key)
                self.final = finish(self.plan, self._elapsed_ms)
                return done

    def feed(self, message: Mapping[str, Any]) -> None:
        """Hand a message to the run, as soon as there is one; who answers instead of another gets it as well.

        Raises InvalidInput for a run on another server.
        """
        if self.placement is not None:
            _check_feeds(self.placement)
        if not self.has_output:
            self._fed.append(message)
        if self._stream is not None:
            self._stream.feed(message)

    def abandon(self, error: SeraiError) -> None:
        """End the course from outside: nobody wants the answer any more."""
        if self._is_trying:
            self._is_trying = False
            self._parts.standing.on_abandoned(self.plan.candidate.key)
        if self.final is None:
            self.failure = failure_of(error)
            self._give_up(self.failure, error)

    # One candidate

    async def _place(self) -> None:
        parts, candidate = self._parts, self.plan.candidate
        self._began = parts.clock.monotonic()
        self._placements, self._task, self.placement = (), None, None
        self._is_running = False
        if not parts.standing.begin(candidate.key, self._began):
            wait = parts.standing.situation(self._began).blocked_for(candidate.key)
            raise CandidateInCooldown(
                f"{candidate.name} has failed again and again; one call tries it.", retry_after=wait
            )
        self._is_trying = True
        try:
            async with asyncio.timeout(self.remaining_s):
                self._placements = await parts.placer.place(candidate, self._call.needs)
                self._task = await self._make_task(self._placements[0])
        except TimeoutError:
            raise DeadlineExceeded("The answer could not be begun in the time given.") from None

    async def _make_task(self, placement: Placement) -> AnyTask:
        made = self._call.task(self.plan.candidate, placement.engine)
        return await made if inspect.isawaitable(made) else made

    async def _try(self) -> Done:
        """Try the engines that can run the candidate: the next where one cannot even load it."""
        for number, placement in enumerate(self._placements, start=1):
            self.placement = placement
            others = self._placements[number:]
            try:
                return await self._run(placement)
            except SeraiError as error:
                if (
                    not others
                    or self._is_running
                    or not self.remaining_s
                    or not blames_engine(error, placement, others[0])
                ):
                    raise
                self._note_engine(placement, others[0], error)
        raise InternalError("A candidate was placed nowhere.")

    async def _run(self, placement: Placement) -> Done:
        task = self._task or await self._make_task(placement)
        self._task = None
        if placement.claim is None:
            if self._fed:
                _check_feeds(placement)
            self._is_running = True
            return await self._pass_on_remote(placement, task)
        call = self._call
        async with self._parts.runtime.lease(
            [placement.claim],
            caller=call.caller,
            timeout_s=self.remaining_s,
            priority=call.priority,
            keep_alive=call.keep_alive,
            watch=self._watch,
        ) as lease:
            self._note_loaded()
            self._is_running = True
            stream = self._stream = lease.run(task, adapters=placement.adapters)
            try:
                for message in self._fed:
                    stream.feed(message)
                return await self._pass_on(stream)
            finally:
                self._stream = None

    async def _pass_on_remote(self, placement: Placement, task: AnyTask) -> Done:
        source, options = placement.remote, placement.options
        assert source is not None, "what needs no memory here runs on another server"
        assert options is not None, "a remote engine has options"
        secret = None if source.secret is None else await self._reveal(source.secret)
        events = self._parts.remote.run(
            cast("RemoteTask", task), source, options=options, secret=secret, timeout_s=self.remaining_s
        )
        async with aclosing(events):
            return await self._pass_on(events)

    async def _reveal(self, name: str) -> OutboundSecret:
        try:
            return await self._parts.reveal(name)
        except NotFound as error:  # what is wrong with it is no mistake of the caller
            raise RemoteFailed(
                f"There is no secret {name} for the server behind this model.", hint=error.hint
            ) from error
        except InvalidInput as error:
            problem = "cannot be sent: no header can carry its characters"
            hint = f"An admin sets it anew with PUT /secrets/{name}."
            raise RemoteFailed(f"The secret {name} of the server behind this model {problem}.", hint=hint) from error
        except SeraiError as error:
            message = f"The secret {name} of the server behind this model cannot be read."
            raise RemoteFailed(message, hint=error.hint) from error

    async def _pass_on(self, events: Any) -> Done:
        """Put events into the channel, up to the last one, which is returned or raised."""
        try:
            async with asyncio.timeout(self.remaining_s):
                async for event in events:
                    if isinstance(event, Failed):
                        raise error_of(event)
                    self._note_output(event)
                    if isinstance(event, Done):
                        return event
                    self._channel.put(event)
                    if self._channel.is_full:
                        await self._channel.room()
        except TimeoutError:
            raise DeadlineExceeded("The answer was not finished in the time given.") from None
        raise InternalError("A model's events ended without the last one.")

    def _note_output(self, event: Event) -> None:
        if not self.has_output and is_output(event):
            self.first_output = self._parts.clock.monotonic()
            self.has_begun.set()

    def _note_loaded(self) -> None:
        if self._loading_since is not None:
            self.load_s += self._parts.clock.monotonic() - self._loading_since
            self._loading_since = None

    def _watch(self, event: Queued | Loading) -> None:
        if isinstance(event, Loading) and self._loading_since is None:
            self._loading_since = self._parts.clock.monotonic()
        if isinstance(event, Loading):  # the unit may be loading under the name of another version that shares it
            model, version = self.plan.candidate.key
            event = Loading(model=model, version=version, fraction=event.fraction)
        self._channel.put(event)

    # What follows from a failure

    def _hop(self, error: Exception) -> bool:
        """Note the failure of the current candidate and go on to the next; False where there is or must be none."""
        self._note_loaded()
        parts, before = self._parts, self.plan
        failure = self._failure_of(error)
        now = parts.clock.monotonic()
        self._blame(failure, now)
        known = error if isinstance(error, SeraiError) else InternalError("It failed through a defect.")
        if known is not error:
            log.error("candidate_defect", candidate=self.name, exc_info=error)
        after = None
        if self.remaining_s > 0:
            after = next_candidate(
                before,
                failure,
                error=known.message.rstrip("."),
                ms=self._elapsed_ms,
                output_started=self.has_output,
                situation=parts.standing.situation(now),
            )
        self.failure = failure
        if after is None:
            self._give_up(failure, known)
            return False
        parts.metrics.fallbacks.labels(failure=failure.value).inc()
        log.warning(
            "fallback",
            service=before.service,
            candidate=before.candidate.name,
            next=after.candidate.name,
            failure=failure.value,
            code=known.code,
            why=known.message,
        )
        self.plan = after
        return True

    def _blame(self, failure: Failure, now: float) -> None:
        """Tell how the try of the current candidate ended."""
        if not self._is_trying:
            return
        self._is_trying = False
        key = self.plan.candidate.key
        was_cut_off = failure is Failure.TIMEOUT and not self.remaining_s
        if failure.is_final or (was_cut_off and (self.has_output or now - self._began < FAIR_S)):
            self._parts.standing.on_abandoned(key)
            return
        units = [placement.unit for placement in self._placements if placement.unit is not None]
        self._parts.standing.on_failure(key, units, failure, now, was_running=self._is_running)
        if not self._is_running:
            self._parts.placer.forget(key)

    def _failure_of(self, error: Exception) -> Failure:
        """Return which failure it is; what kept a candidate from even being placed made it unavailable."""
        if isinstance(error, EngineFailed) and self.placement is None:
            return Failure.UNAVAILABLE
        return failure_of(error)

    def _give_up(self, failure: Failure, error: SeraiError) -> None:
        self.final = give_up(self.plan, failure, error=error.message.rstrip("."), ms=self._elapsed_ms)

    @property
    def _elapsed_ms(self) -> float:
        return round((self._parts.clock.monotonic() - self._began) * 1000, 3)

    def _note_engine(self, placement: Placement, other: Placement, error: SeraiError) -> None:
        """Say in the decision, the log and the metrics that an engine could not load the candidate."""
        sentence = f"{self.name} could not be loaded by {placement.engine.name} ({error.message.rstrip('.')}); "
        sentence += f"{other.engine.name} was tried instead."
        self.plan = replace(self.plan, warnings=(*self.plan.warnings, sentence))
        self._parts.metrics.engine_fallbacks.labels(engine=placement.engine.name).inc()
        log.warning(
            "engine_fallback",
            candidate=self.name,
            engine=placement.engine.name,
            next=other.engine.name,
            why=error.message,
        )


def _check_feeds(placement: Placement) -> None:
    if placement.claim is None:
        raise InvalidInput("A model on another server takes no messages while it answers.")
