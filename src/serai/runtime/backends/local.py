"""Workers as child processes of this machine, forked by a fork server for each kind of engine."""

import asyncio
import os
import signal
import socket
from collections.abc import Mapping
from typing import Final
from weakref import WeakSet

from anyio import to_thread

from serai.clock import Clock
from serai.engines.base import EngineInfo, EngineSpec
from serai.engines.catalogue import CATALOGUE
from serai.errors import LoadFailed
from serai.runtime.backends.launcher import ForkServer, ForkServerLost
from serai.runtime.backends.output import Output
from serai.runtime.backends.preflight import check
from serai.runtime.backends.worker import ChannelWorker
from serai.runtime.worker.channel import LoopChannel, decode_from_worker
from serai.runtime.worker.messages import FromWorker, Load, Stop

TERM_S: Final = 1.0
KILL_S: Final = 10.0
"""A fork server that has not told of the end of a killed worker after so long is killed itself."""


class LocalWorker(ChannelWorker):
    """A worker that is a process."""

    def __init__(self, channel: LoopChannel[FromWorker], server: ForkServer, output: Output) -> None:
        super().__init__(channel)
        self._server = server
        self._output = output
        self._number = 0
        self._pid: int | None = None

    @property
    def pid(self) -> int | None:
        return self._pid

    async def begin(self, info: EngineInfo, spec: EngineSpec, *, channel: int, output: int) -> None:
        """Fork the process and have it load. Raises LoadFailed, and ForkServerLost."""
        self._number, self._pid = await self._server.fork(
            target=info.target, threads=spec.threads, channel=channel, output=output, on_end=self.on_end
        )
        self.send(Load(spec=spec))

    async def stop(self, grace_s: float) -> None:
        self.send(Stop())
        for patience, number in ((grace_s, signal.SIGTERM), (TERM_S, signal.SIGKILL)):
            if await self._ends_within(patience):
                break
            self._server.signal(self._number, number)
        else:
            if not await self._ends_within(KILL_S):
                self._server.kill()
                await self._ended.wait()
        self._channel.close()

    def on_end(self, status: int | None) -> None:
        super().on_end(status)
        self._output.close()

    def _kill(self) -> None:
        self._server.signal(self._number, signal.SIGKILL)


class LocalBackend:
    """Starts workers on this machine.

    A fork server starts with the first model of its kind of engine, and imports `EngineInfo.preload`.
    `environment` is what workers get besides the backend's own: the server's environment they never
    see. Everything here is of one event loop.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        catalogue: Mapping[str, EngineInfo] = CATALOGUE,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._clock = clock
        self._catalogue = catalogue
        self._environment = environment or {}
        self._servers: dict[tuple[str, ...], asyncio.Task[ForkServer]] = {}
        """By what they import. Starting one is a task of its own: whoever waits for it may be cancelled."""
        self._workers: WeakSet[LocalWorker] = WeakSet()
        self._is_closed = False

    async def spawn(self, spec: EngineSpec) -> LocalWorker:
        """Start a worker and send it `Load(spec)`; returns before it is loaded.

        Raises LoadFailed if none can start, and what `preflight.check` raises.
        """
        info = await to_thread.run_sync(check, spec, self._catalogue)
        for _ in range(2):
            server = await self._server(info)
            try:
                return await self._begin(server, info, spec)
            except ForkServerLost:
                continue  # unseen until now; the next one is new
        raise LoadFailed("The process that starts models does not stay up.")

    async def close(self) -> None:
        """End every worker and what starts them; nothing can be started any more."""
        self._is_closed = True
        await asyncio.gather(*(worker.stop(0.0) for worker in self._workers))
        results = await asyncio.gather(*self._servers.values(), return_exceptions=True)
        await asyncio.gather(*(server.close() for server in results if isinstance(server, ForkServer)))

    async def _server(self, info: EngineInfo) -> ForkServer:
        starting = self._servers.get(info.preload)
        if starting is None or not _is_of_use(starting):
            if self._is_closed:
                raise LoadFailed("The server is stopping.")
            start = ForkServer.start(
                info.preload, environment=self._environment, clock=self._clock, name=f"fork server of {info.name}"
            )
            starting = self._servers[info.preload] = asyncio.get_running_loop().create_task(start)
        return await asyncio.shield(starting)

    async def _begin(self, server: ForkServer, info: EngineInfo, spec: EngineSpec) -> LocalWorker:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        output = Output(reading, clock=self._clock, model=spec.name)
        ours, theirs = socket.socketpair()
        channel: LoopChannel[FromWorker] = LoopChannel(ours, decode_from_worker)
        worker = LocalWorker(channel, server, output)
        try:
            with theirs:
                await worker.begin(info, spec, channel=theirs.fileno(), output=writing)
        except BaseException:
            channel.close()
            output.close()
            raise
        finally:
            os.close(writing)
        self._workers.add(worker)
        return worker


def _is_of_use(starting: "asyncio.Task[ForkServer]") -> bool:
    """Say whether a fork server is being started, or is there."""
    if not starting.done():
        return True
    return not starting.cancelled() and starting.exception() is None and starting.result().is_alive
