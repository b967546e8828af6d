"""The loop of a worker: read the channel, start or cancel runs, make a step, send what came of it. One thread."""

from collections.abc import Callable
from importlib import import_module
from typing import NoReturn, cast

from serai.clock import Clock
from serai.engines.base import Engine, EngineSpec
from serai.errors import InternalError, LoadFailed, OutOfMemory, SeraiError, WorkerCrashed
from serai.events import Done, Event, Failed
from serai.runtime.worker.channel import WaitingChannel
from serai.runtime.worker.frames import ChannelBroken, ChannelClosed
from serai.runtime.worker.memory import Gauge, OwnAllocator
from serai.runtime.worker.messages import (
    Cancel,
    Exit,
    Feed,
    FromWorker,
    Load,
    Loading,
    Ready,
    Start,
    Stats,
    Stop,
    Told,
    ToWorker,
)
from serai.runtime.worker.reports import Report, trace_of

STATS_S = 2.0
"""How often a worker with runs says that it lives."""
_SHORT_STEP_S = 0.0005
_PAUSE_S = 0.002


class _Stopped(BaseException):
    """The server has said `Stop`; not an Exception, so that no engine catches it while it loads."""


class Worker:
    """One engine and its runs, from `Load` to `Exit`.

    `target` is the engine, 'module:class'; `memory` measures this process; `tell` takes what is for the operator.
    """

    def __init__(
        self,
        channel: WaitingChannel[ToWorker],
        *,
        target: str,
        clock: Clock,
        memory: Callable[[], int],
        tell: Callable[[Report], None],
    ) -> None:
        self._channel = channel
        self._target = target
        self._clock = clock
        self._memory = memory
        self._tell = tell
        self._gauge = Gauge(memory, clock)
        self._inbox: list[ToWorker] = []
        """What came while the engine was loading."""
        self._engine: Engine | None = None
        self._is_ready = False
        self._runs: set[int] = set()
        self._max_runs = 1
        self._steps = 0
        self._stats_due = 0.0

    def serve(self) -> bool:
        """Load, run and end as the server says; return whether the end was in order."""
        try:
            self._live()
        except _Stopped:
            return self._say_goodbye(Exit())
        except (ChannelClosed, ChannelBroken):
            return False  # the server is gone, and with it everybody who could be told
        except BaseException as error:  # noqa: BLE001 - whatever an engine raises is its end, and has to be told
            self._tell(Report(serai="the engine failed", trace=trace_of(error)))
            self._say_goodbye(self._exit_of(error))
            return False

    def _live(self) -> NoReturn:
        engine = self._load()
        self._engine = engine
        while True:
            told = self._obey(engine, 0.0 if self._runs else None)
            begun = self._clock.monotonic()
            if self._runs:
                told += self._step(engine)
            now = self._clock.monotonic()
            if self._runs and now >= self._stats_due:
                self._stats_due = now + STATS_S
                told.append(Stats(bytes=self._gauge.value(), runs=len(self._runs), steps=self._steps))
            if told:
                self._channel.send(told)
            elif self._runs and now - begun < _SHORT_STEP_S:
                # Its runs wait, for more input or for threads of its own: nothing is gained by asking at once.
                self._inbox += self._channel.receive(_PAUSE_S)

    def _load(self) -> Engine:
        (message,) = self._channel.receive(None)
        if isinstance(message, Stop):
            raise _Stopped
        if not isinstance(message, Load):
            raise InternalError("A worker's first message must say what to load.")
        engine = _make(self._target)
        self._engine = engine
        footprint = engine.load(message.spec, self._report)
        self._max_runs = footprint.max_runs
        self._gauge = Gauge(self._measure_of(engine, message.spec, footprint.bytes), self._clock)
        size = self._gauge.value() if footprint.bytes is None else footprint.bytes
        self._channel.send([Ready(bytes=size, max_runs=footprint.max_runs, facts=footprint.facts)])
        self._is_ready = True
        return engine

    def _measure_of(self, engine: Engine, spec: EngineSpec, loaded: int | None) -> Callable[[], int]:
        if loaded is None:
            return self._memory
        if isinstance(engine, OwnAllocator):
            return engine.allocated_bytes
        return lambda: loaded

    def _report(self, fraction: float) -> None:
        """Tell how far the load is; this is where a load can be stopped."""
        self._inbox += self._channel.receive(0.0)
        if any(isinstance(message, Stop) for message in self._inbox):
            raise _Stopped
        self._channel.send([Loading(fraction=fraction)])

    def _obey(self, engine: Engine, timeout_s: float | None) -> list[FromWorker]:
        """Do what the server says; return what there is to say to it."""
        messages, self._inbox = self._inbox or self._channel.receive(timeout_s), []
        while more := self._channel.receive(0.0):
            messages += more
        told: list[FromWorker] = []
        for message in messages:
            failed = self._obey_one(engine, message)
            if failed is not None:
                told.append(failed)
        return told

    def _obey_one(self, engine: Engine, message: ToWorker) -> Told | None:
        match message:
            case Stop():
                raise _Stopped
            case Cancel(run=run) if run in self._runs:
                self._runs.remove(run)
                engine.cancel(run)
            case Feed(run=run) if run in self._runs:
                try:
                    engine.feed(run, message.message)
                except SeraiError as error:
                    self._runs.remove(run)
                    engine.cancel(run)
                    return Told(run, Failed.of(error))
            case Start(run=run):
                try:
                    self._check_room(run.id)
                    engine.start(run)
                except SeraiError as error:
                    return Told(run.id, Failed.of(error))
                if not self._runs:
                    self._stats_due = self._clock.monotonic() + STATS_S
                self._runs.add(run.id)
            case Load():
                raise InternalError("A worker was told to load a second time.")
        return None

    def _check_room(self, run: int) -> None:
        if run in self._runs or len(self._runs) >= self._max_runs:
            raise InternalError("A worker was given a run for which it has no room.")

    def _step(self, engine: Engine) -> list[FromWorker]:
        self._steps += 1
        return [Told(run, event) for run, event in engine.step() if self._counts(run, event)]

    def _counts(self, run: int, event: Event) -> bool:
        """Say whether the run goes on, or ends with this event: what an engine says of others is not passed on."""
        if run not in self._runs:
            return False
        if isinstance(event, Done | Failed):
            self._runs.remove(run)
        return True

    def _say_goodbye(self, last: Exit) -> bool:
        try:
            if self._engine is not None and not last.code:
                self._engine.close()
        except Exception as error:  # noqa: BLE001 - the process ends, and that frees what `close` did not
            self._tell(Report(serai="the engine failed to close", trace=trace_of(error)))
        try:
            self._channel.send([last])
        except ChannelClosed:
            return False
        return True

    def _exit_of(self, error: BaseException) -> Exit:
        """Return the last word after an error. What is not a `SeraiError` tells no more than its type."""
        if isinstance(error, SeraiError):
            return Exit(code=error.code, message=error.message, hint=error.hint)
        # torch.OutOfMemoryError, of which nothing else is known here
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return _last_word(OutOfMemory("The model needs more memory than there is."))
        name = type(error).__name__
        if not self._is_ready:
            return _last_word(LoadFailed(f"The engine could not load the model ({name})."))
        return _last_word(WorkerCrashed(f"The engine failed while it worked ({name})."))


def _last_word(error: SeraiError) -> Exit:
    return Exit(code=error.code, message=error.message, hint=error.hint)


def _make(target: str) -> Engine:
    module, _, name = target.partition(":")
    return cast(Engine, getattr(import_module(module), name)())
