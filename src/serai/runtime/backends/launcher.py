"""The server's hold on a fork server: starting it, having it fork, and hearing of ends."""

import asyncio
import contextlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from types import MappingProxyType

import msgspec
from anyio import to_thread

from serai.clock import Clock
from serai.errors import LoadFailed
from serai.runtime.backends.output import Output
from serai.runtime.worker.forkserver import FOLDER_PREFIX
from serai.runtime.worker.isolation import THREAD_VARIABLES
from serai.runtime.worker.orders import (
    MAX_PACKET_BYTES,
    Ended,
    Fork,
    Forked,
    Order,
    Signal,
    Started,
    decode_answer,
    encode,
)

START_S = 120.0
"""Importing the libraries of an engine on a busy machine."""
STOP_S = 5.0

ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "PATH": os.defpath,
        "LC_ALL": "C.UTF-8",
        # One thread until a worker has its budget: a library that made more while it is imported could not be forked.
        **dict.fromkeys(THREAD_VARIABLES, "1"),
        "TOKENIZERS_PARALLELISM": "false",
        # Models are on this machine when they are loaded, and nothing calls home.
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
)
"""All that a worker has of an environment, besides HOME, an empty folder, and what the backend was given for it."""


class ForkServerLost(Exception):
    """It died, or does not take orders; another one can be started."""


OnEnd = Callable[[int | None], None]
"""Takes the status of a worker that is gone."""


class ForkServer:
    """Forks the workers of one kind of engine. It ends with `close()`, or by itself when the server is gone.

    When it dies, its workers do: the kernel sees to that.
    """

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, folder: str, output: Output) -> None:
        self._process = process
        self._control = control
        self._folder = folder
        self._output = output
        self._numbers = count(1)
        self._forking: dict[int, asyncio.Future[int]] = {}
        self._pids: dict[int, int] = {}
        self._on_end: dict[int, OnEnd] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(control, self._hear)
        self._burial: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, preload: Sequence[str], *, environment: Mapping[str, str], clock: Clock, name: str
    ) -> "ForkServer":
        """Return a fork server that has imported the modules. Raises LoadFailed. Is not to be cancelled."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        output = Output(reading, clock=clock, model=name)
        try:
            launched = await to_thread.run_sync(_launch, tuple(preload), dict(environment), writing)
        except BaseException:
            output.close()
            raise
        return cls(*launched, output)

    @property
    def is_alive(self) -> bool:
        return self._burial is None

    async def fork(self, *, target: str, threads: int, channel: int, output: int, on_end: OnEnd) -> tuple[int, int]:
        """Fork a worker; return its number and its pid. `on_end` is called once it is gone.

        Raises LoadFailed, and ForkServerLost.
        """
        number = next(self._numbers)
        forked = self._forking[number] = self._loop.create_future()
        self._on_end[number] = on_end
        try:
            self._say(Fork(worker=number, target=target, threads=threads), channel, output)
            pid = await forked
        except OSError:
            self.kill()
            raise ForkServerLost from None
        finally:
            del self._forking[number]
        if not pid:
            self._on_end.pop(number, None)
            raise LoadFailed("No process could be started for the model.", hint="Look at the machine's free memory.")
        return number, pid

    def signal(self, worker: int, number: int) -> None:
        """Send a signal to the process group of a worker that may be gone."""
        with contextlib.suppress(OSError):
            self._say(Signal(worker=worker, number=number))

    def kill(self) -> None:
        """End it and all its workers at once: for one that does not do what it is told."""
        self._process.kill()

    async def close(self) -> None:
        """End it and all its workers; return when they are gone."""
        self._lose()
        if self._burial is not None:
            await asyncio.shield(self._burial)

    def _say(self, order: Order, *descriptors: int) -> None:
        if self._burial is not None:
            raise ConnectionResetError
        socket.send_fds(self._control, [encode(order)], descriptors)

    def _hear(self) -> None:
        """Take one answer, or notice that there will be none."""
        try:
            packet = self._control.recv(MAX_PACKET_BYTES)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if not packet:
            self._lose()
            return
        answer = decode_answer(packet)
        if isinstance(answer, Forked):
            self._pids[answer.worker] = answer.pid
            waiting = self._forking.get(answer.worker)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer.pid)
        elif isinstance(answer, Ended):
            self._pids.pop(answer.worker, None)
            self._tell_end(answer.worker, answer.status)

    def _tell_end(self, worker: int, status: int | None) -> None:
        on_end = self._on_end.pop(worker, None)
        if on_end is not None:
            on_end(status)

    def _lose(self) -> None:
        if self._burial is None:
            self._loop.remove_reader(self._control)
            self._control.close()
            self._burial = self._loop.create_task(self._bury())

    async def _bury(self) -> None:
        """Wait until the process is gone, and its workers with it."""
        for waiting in self._forking.values():
            if not waiting.done():
                waiting.set_exception(ForkServerLost())
        await to_thread.run_sync(_wait_and_remove, self._process, self._folder, tuple(self._pids.values()))
        self._pids.clear()
        for worker in tuple(self._on_end):
            self._tell_end(worker, -signal.SIGKILL)
        self._output.close()


def _launch(
    preload: Sequence[str], environment: Mapping[str, str], output: int
) -> tuple[subprocess.Popen[bytes], socket.socket, str]:
    """Start the process and wait until it is ready. Takes `output`. Blocks."""
    folder = tempfile.mkdtemp(prefix=FOLDER_PREFIX)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-s", "-m", "serai.runtime.worker.forkserver", folder, *preload],
                stdin=theirs.fileno(),
                stdout=output,
                stderr=output,
                cwd=folder,
                env={**ENVIRONMENT, "HOME": folder, **environment},
                start_new_session=True,
            )
    except OSError:
        ours.close()
        shutil.rmtree(folder, ignore_errors=True)
        raise LoadFailed("No process could be started for models.") from None
    finally:
        os.close(output)
    ours.settimeout(START_S)
    with contextlib.suppress(OSError, msgspec.MsgspecError):
        if isinstance(decode_answer(ours.recv(MAX_PACKET_BYTES)), Started):
            ours.setblocking(False)
            return process, ours, folder
    ours.close()
    process.kill()
    _wait_and_remove(process, folder)
    raise LoadFailed("The process that starts models did not start.")


def _wait_and_remove(process: subprocess.Popen[bytes], folder: str, workers: Sequence[int] = ()) -> None:
    """Wait for the process, which is to end by itself, and for its workers; remove its folder. Blocks."""
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for pid in workers:
        # They die with it, by the kernel; what they started themselves does not.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        _wait_for_orphan(pid)
    shutil.rmtree(folder, ignore_errors=True)


def _wait_for_orphan(pid: int) -> None:
    """Wait until a process that is no child of this one has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([handle], [], [], STOP_S)
    finally:
        os.close(handle)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # it was handed to this process, as to the first one in a container
