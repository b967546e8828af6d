"""One worker, minded from its start to its end: who reads what it says, and who notices that it says nothing."""

import asyncio
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import structlog

from serai.clock import Clock
from serai.engines.base import AdapterUse, EngineSpec, Run
from serai.engines.tasks import AnyTask
from serai.errors import InternalError, LoadFailed, OutOfMemory, SeraiError, WorkerCrashed, WorkerHung
from serai.runtime.backends.base import Backend, Worker
from serai.runtime.errors import WorkerGone
from serai.runtime.lease import Stream
from serai.runtime.model import UnitId
from serai.runtime.worker.messages import Cancel, Exit, Feed, FromWorker, Loading, Ready, Start, Stats, Told

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The times that workers are given, in seconds, and the bound of what is held for slow readers."""

    load_timeout_s: float = 600.0
    silence_s: float = 120.0
    """A worker with runs that sends nothing for so long is hung: longer than any step of any engine takes."""
    grace_s: float = 5.0
    """What a worker without work gets to end by itself before it is killed."""
    buffer_bytes: int = 64 * 2**20
    """Events of one run that wait for their reader, at most; see `Stream`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What all keepers share, and whom they tell."""

    backend: Backend
    clock: Clock
    pace: Pace
    oom_kills: Callable[[], int | None]
    """How often the kernel has killed for want of memory; None where it does not say. May block a little."""
    on_loading: "Callable[[Keeper, float], None]"
    on_ready: "Callable[[Keeper, Ready], None]"
    on_grown: "Callable[[Keeper, int], None]"
    """It takes more memory than it ever did."""
    on_end: "Callable[[Keeper, SeraiError], None]"
    """The last call: the worker is gone, its memory is free."""


class Keeper:
    """Keeps one worker: starts it, hands its events to streams, watches it, ends it; tells each through `Parts`."""

    def __init__(self, unit: UnitId, spec: EngineSpec, parts: Parts) -> None:
        self.unit = unit
        self.spec = spec
        self.names: dict[str, None] = {spec.name: None}
        """The versions that have used it."""
        self.ready: Ready | None = None
        self.fraction = 0.0
        """How far its load is, as it was told last."""
        self.bytes = 0
        """The most memory that it was measured to use."""
        self.error: SeraiError | None = None
        """Why it ends; None while nothing is wrong with it."""
        self.gone = asyncio.Event()
        self.begun = parts.clock.monotonic()
        self._parts = parts
        self._heard = self.begun
        self._is_suspect = False
        self._worker: Worker | None = None
        self._streams: dict[int, Stream] = {}
        self._numbers = count(1)
        self._ending: asyncio.Task[None] | None = None
        self._is_told_to_end = False
        loop = asyncio.get_running_loop()
        self._oom_kills = loop.run_in_executor(None, parts.oom_kills)
        self._spawning = loop.create_task(parts.backend.spawn(spec), name=f"spawn {spec.name}")
        self.task = loop.create_task(self._live(), name=f"worker {spec.name}")

    # What can be seen

    @property
    def pid(self) -> int | None:
        """The id of the worker's process on this machine, where it has one."""
        return None if self._worker is None else self._worker.pid

    @property
    def facts(self) -> Mapping[str, Any]:
        return {} if self.ready is None else self.ready.facts

    @property
    def runs(self) -> int:
        """How many runs go on."""
        return len(self._streams)

    def due(self) -> float | None:
        """Return when `check` is due if nothing is heard before; None while nothing is expected of the worker."""
        if self.error is not None:
            return None
        if self.ready is None:
            return self.begun + self._parts.pace.load_timeout_s
        if not self._streams:
            return None
        return self._heard + self._parts.pace.silence_s

    # What can be done

    def run(self, task: AnyTask, adapters: Sequence[AdapterUse]) -> Stream:
        number = next(self._numbers)
        stream = Stream(number, self, bound=self._parts.pace.buffer_bytes)
        if self.error is not None or self._worker is None:
            stream.fail(self.error or InternalError("A run was started on a model that is not loaded."))
            return stream
        self._worker.send(Start(run=Run(id=number, task=task, adapters=tuple(adapters))))
        if not self._streams:
            self._heard = self._parts.clock.monotonic()
            self._is_suspect = False
        self._streams[number] = stream
        return stream

    def feed(self, run: int, message: Mapping[str, Any]) -> None:
        if self._worker is not None:
            self._worker.send(Feed(run=run, message=message))

    def cancel(self, run: int) -> None:
        if self._streams.pop(run, None) is not None and self._worker is not None:
            self._worker.send(Cancel(run=run))

    def check(self, now: float) -> None:
        """End a worker that loads for too long, or that is silent while it should work.

        Silence is believed at the second look: after a pause of the server itself its words lie here, unread.
        """
        due = self.due()
        if due is None or now < due:
            return
        if self.ready is None:
            self.end(LoadFailed(f"{self.spec.name} was not loaded within {self._parts.pace.load_timeout_s:g} s."))
        elif not self._is_suspect:
            self._is_suspect = True
        else:
            self.end(WorkerHung(f"The worker of {self.spec.name} gave no sign of life and was ended."))

    def end(self, error: SeraiError, *, grace_s: float = 0.0) -> None:
        """Have the worker stopped, killed after `grace_s`; its runs fail with `error` at once. The first error stays.

        `Parts.on_end` follows when it is gone.
        """
        if self.error is not None:
            return
        self._fail(error)
        self._is_told_to_end = True
        if self._worker is None:
            self._spawning.cancel()
        else:
            self._ending = asyncio.get_running_loop().create_task(self._worker.stop(grace_s))

    # Its life

    async def _live(self) -> None:
        try:
            error = await self._until_death()
        except Exception:  # noqa: BLE001 - a defect ends this worker, not the run loop
            _log.exception("worker_keeper_failed", model=self.spec.name)
            error = InternalError("The worker's messages could not be read.")
        if self.error is None:
            self._fail(error)
        try:
            await self._bury()
        except Exception:  # noqa: BLE001 - the books must be closed whatever happens
            _log.exception("worker_stop_failed", model=self.spec.name)
        self.gone.set()
        self._parts.on_end(self, self.error or error)

    async def _until_death(self) -> SeraiError:
        """Return what the worker died of, or was ended for."""
        try:
            self._worker = await self._spawning
            while self.error is None:
                for message in self._hear(await self._worker.receive()):
                    return await self._cause_of(message)
        except asyncio.CancelledError:
            if self.error is None:
                raise
        except WorkerGone as gone:
            if self.error is None:
                return await self._cause_of(gone)
        except SeraiError as error:
            return error
        return self.error

    async def _bury(self) -> None:
        """Return when the process is gone and its memory is free."""
        if self._ending is not None:
            await self._ending
        if self._worker is not None:
            await self._worker.stop(0.0 if self._is_told_to_end else self._parts.pace.grace_s)

    def _hear(self, messages: Sequence[FromWorker]) -> list[Exit]:
        """Take messages; return its last word, if it is among them."""
        self._heard = self._parts.clock.monotonic()
        self._is_suspect = False
        for message in messages:
            if isinstance(message, Told):
                stream = self._streams.get(message.run)
                if stream is not None:
                    stream.put(message.event)
                    if stream.is_over:
                        self._streams.pop(message.run, None)
            elif isinstance(message, Exit):
                return [message]
            elif self.error is None:
                self._note(message)
        return []

    def _note(self, message: Loading | Ready | Stats) -> None:
        if isinstance(message, Loading):
            self._parts.on_loading(self, message.fraction)
        elif isinstance(message, Ready):
            self.ready, self.bytes = message, message.bytes
            self._parts.on_ready(self, message)
        elif message.bytes > self.bytes:
            self.bytes = message.bytes
            self._parts.on_grown(self, message.bytes)

    def _fail(self, error: SeraiError) -> None:
        self.error = error
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            stream.fail(error)

    async def _cause_of(self, end: WorkerGone | Exit) -> SeraiError:
        """Return why a worker ended that was not told to."""
        doing = "while it loaded" if self.ready is None else "while it worked" if self._streams else "while it was idle"
        if isinstance(end, Exit):
            return self._error_of(end, doing)
        if end.status == -signal.SIGKILL and await self._was_out_of_memory():
            return OutOfMemory(f"The worker of {self.spec.name} was killed {doing}: the machine ran out of memory.")
        how = "ended" if end.status is None else f"ended with status {end.status}"
        if end.status is not None and end.status < 0:
            how = f"was killed by signal {-end.status}"
        return WorkerCrashed(f"The worker of {self.spec.name} {how} {doing}.")

    def _error_of(self, last: Exit, doing: str) -> SeraiError:
        if last.code == OutOfMemory.code:
            return OutOfMemory(last.message, hint=last.hint)
        if not last.code:
            return WorkerCrashed(f"The worker of {self.spec.name} ended by itself {doing}.")
        failed = LoadFailed if self.ready is None else WorkerCrashed
        return failed(last.message, hint=last.hint, details={"code": last.code})

    async def _was_out_of_memory(self) -> bool:
        """Say whether the kernel killed for memory since this worker was started; it does not say whom."""
        before = await self._oom_kills
        now = await asyncio.get_running_loop().run_in_executor(None, self._parts.oom_kills)
        return before is not None and now is not None and now > before
