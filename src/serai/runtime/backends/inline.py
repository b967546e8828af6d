"""Workers as threads of this process: for tests, and for looking at an engine with a debugger."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Mapping
from weakref import WeakSet

import structlog
from anyio import to_thread

from serai.clock import Clock
from serai.engines.base import EngineInfo, EngineSpec
from serai.engines.catalogue import CATALOGUE
from serai.errors import LoadFailed
from serai.runtime.backends.preflight import check
from serai.runtime.backends.worker import ChannelWorker
from serai.runtime.worker.channel import LoopChannel, WaitingChannel, decode_from_worker, decode_to_worker
from serai.runtime.worker.main import Worker
from serai.runtime.worker.messages import FromWorker, Load, Stop, ToWorker
from serai.runtime.worker.reports import Report

_log = structlog.get_logger("serai.models")


class InlineWorker(ChannelWorker):
    """A worker that is a thread. It cannot be killed: one that ignores `Stop` is left to itself, cut off."""

    def __init__(self, channel: LoopChannel[FromWorker]) -> None:
        super().__init__(channel)
        self._loop = asyncio.get_running_loop()

    def begin(self, info: EngineInfo, spec: EngineSpec, clock: Clock, theirs: socket.socket) -> None:
        """Start the thread and have it load; `theirs` is its end of the channel."""
        thread = threading.Thread(target=self._serve, args=(info.target, spec.name, clock, theirs), daemon=True)
        thread.start()
        self.send(Load(spec=spec))

    async def stop(self, grace_s: float) -> None:
        self.send(Stop())
        if not await self._ends_within(grace_s):
            self._kill()
        self._channel.close()

    def _kill(self) -> None:
        self.on_end(None)

    def _serve(self, target: str, name: str, clock: Clock, theirs: socket.socket) -> None:
        def tell(report: Report) -> None:
            _log.error("worker_failed", model=name, problem=report.serai, trace=report.trace)

        channel: WaitingChannel[ToWorker] = WaitingChannel(theirs, decode_to_worker)
        # What an engine takes of a process that does other things as well, nobody can tell.
        worker = Worker(channel, target=target, clock=clock, memory=lambda: 0, tell=tell)
        try:
            worker.serve()
        finally:
            channel.close()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits for it any more
                self._loop.call_soon_threadsafe(self.on_end, None)


class InlineBackend:
    """Runs engines in this process, each in a thread of its own, under the same protocol as in processes."""

    def __init__(self, *, clock: Clock, catalogue: Mapping[str, EngineInfo] = CATALOGUE) -> None:
        self._clock = clock
        self._catalogue = catalogue
        self._workers: WeakSet[InlineWorker] = WeakSet()
        self._is_closed = False

    async def spawn(self, spec: EngineSpec) -> InlineWorker:
        """Start a worker and send it `Load(spec)`. Raises what `preflight.check` raises."""
        info = await to_thread.run_sync(check, spec, self._catalogue)
        if self._is_closed:
            raise LoadFailed("The server is stopping.")
        ours, theirs = socket.socketpair()
        worker = InlineWorker(LoopChannel(ours, decode_from_worker))
        worker.begin(info, spec, self._clock, theirs)
        self._workers.add(worker)
        return worker

    async def close(self) -> None:
        """Stop every worker."""
        self._is_closed = True
        await asyncio.gather(*(worker.stop(1.0) for worker in self._workers))
