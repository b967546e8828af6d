"""The process that has an engine's libraries imported and forks the workers of that engine.

    python -P -s -m serai.runtime.worker.forkserver FOLDER [MODULE …]

It loads no model and has one thread: only so is a fork of it sound. Its standard input is a socket to
the server; when that is closed, it kills its workers, removes FOLDER, their working folder, and ends.
"""

import contextlib
import gc
import os
import select
import shutil
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from serai.clock import SystemClock
from serai.engines.quiet import quieten
from serai.runtime.worker.channel import WaitingChannel, decode_to_worker
from serai.runtime.worker.isolation import die_with_parent, isolate, threads
from serai.runtime.worker.main import Worker
from serai.runtime.worker.memory import proportional_set_size
from serai.runtime.worker.orders import (
    MAX_PACKET_BYTES,
    Answer,
    Ended,
    Fork,
    Forked,
    Signal,
    Started,
    decode_order,
    encode,
)
from serai.runtime.worker.reports import Report, trace_of, write

FOLDER_PREFIX = "serai-workers-"
"""How the name of the working folder begins."""
NOTHING = "-"
"""Stands for the modules when they turned out not to be fit for importing before a fork."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Running:
    worker: int
    pid: int
    handle: int
    """Becomes readable when the process has ended (pidfd)."""


class ForkServer:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._running: dict[int, _Running] = {}
        """By the server's number."""
        self._by_handle: dict[int, _Running] = {}

    def serve(self) -> None:
        """Fork, signal and bury workers until the server goes away."""
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            for descriptor in ready - {self._control.fileno()}:
                self._bury(self._by_handle[descriptor])
            # Last, because a new worker may be given descriptors that one of the above had.
            if self._control.fileno() in ready and not self._obey():
                return

    def close(self) -> None:
        """Kill and bury every worker."""
        for running in tuple(self._running.values()):
            self._bury(running)

    def _obey(self) -> bool:
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._control, MAX_PACKET_BYTES, 2, socket.MSG_CMSG_CLOEXEC)
        except ConnectionError:
            return False
        if not packet:
            return False
        order = decode_order(packet)
        if isinstance(order, Signal):
            running = self._running.get(order.worker)
            if running is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(running.pid, order.number)
        else:
            self._fork(order, *descriptors)
        return True

    def _fork(self, order: Fork, channel: int, output: int) -> None:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            pid = -1
        if pid == 0:
            self._become(order, channel=channel, output=output, parent=parent)
        os.close(channel)
        os.close(output)
        if pid > 0:
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)  # the child does so, too: nobody may have to wait for the other
            running = _Running(worker=order.worker, pid=pid, handle=os.pidfd_open(pid))
            self._running[running.worker] = self._by_handle[running.handle] = running
            self._poll.register(running.handle, select.POLLIN)
        self._say(Forked(worker=order.worker, pid=max(pid, 0)))

    def _become(self, order: Fork, *, channel: int, output: int, parent: int) -> NoReturn:
        """Be that worker, in a fresh fork; never return."""
        status = 1
        try:
            isolate(parent=parent, output=output, thread_budget=order.threads)  # its new input replaces the control
            for handle in self._by_handle:
                os.close(handle)
            gc.enable()
            worker = Worker(
                WaitingChannel(socket.socket(fileno=channel), decode_to_worker),
                target=order.target,
                clock=SystemClock(),
                memory=proportional_set_size,
                tell=write,
            )
            status = 0 if worker.serve() else 1
            sys.stdout.flush()
            sys.stderr.flush()
        except BaseException as error:  # noqa: BLE001 - the process ends; this is where it can still say why
            write(Report(serai="a worker could not begin", trace=trace_of(error)))
        finally:
            # Nothing that the fork shares with its parent is to run, and no library's idea of a proper end.
            os._exit(status)

    def _bury(self, running: _Running) -> None:
        """Kill what is left of the worker's group, and tell the server."""
        # Before it is waited for: until then nobody else can have its number.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        _, status = os.waitpid(running.pid, 0)
        self._poll.unregister(running.handle)
        os.close(running.handle)
        del self._running[running.worker], self._by_handle[running.handle]
        self._say(Ended(worker=running.worker, status=os.waitstatus_to_exitcode(status)))

    def _say(self, answer: Answer) -> None:
        with contextlib.suppress(OSError):  # the server is gone: `_obey` finds out
            self._control.send(encode(answer))


def preload(folder: str, modules: Sequence[str]) -> bool:
    """Import the modules, if that can be done before a fork; return whether it was.

    A module that starts a thread or cannot be imported makes this process begin again without any.
    """
    if list(modules) == [NOTHING]:
        return False
    problem: Report | None = None
    for module in modules:
        try:
            import_module(module)
        except Exception as error:  # noqa: BLE001 - what is wrong with it the worker tells, which imports it as well
            problem = Report(serai=f"{module} cannot be imported", trace=trace_of(error))
            break
        if threads() > 1:
            problem = Report(serai=f"{module} starts threads when it is imported: each worker imports it for itself")
            break
    if problem is not None:
        write(problem)
        again = [sys.executable, "-P", "-s", "-m", "serai.runtime.worker.forkserver", folder, NOTHING]
        os.execv(sys.executable, again)  # noqa: S606 - this very program; it ends the threads
    return True


def main() -> None:
    """Serve on standard input until it is closed."""
    folder, *modules = sys.argv[1:]
    # A module may take for ever to import, so the kernel sees to it that this does not outlive the server.
    die_with_parent(signal.SIGKILL)
    if select.select([0], [], [], 0)[0]:
        return  # it is gone already: nothing else can be read before `Started`
    quieten()
    preloaded = preload(folder, modules)
    die_with_parent(0)
    gc.disable()
    gc.freeze()
    with socket.socket(fileno=0) as control:
        server = ForkServer(control)
        try:
            control.send(encode(Started(preloaded=preloaded)))
            server.serve()
        finally:
            server.close()
            if Path(folder).name.startswith(FOLDER_PREFIX):
                shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
