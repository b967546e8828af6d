"""The process that has the decoders loaded and forks a fresh child for every file.

It opens no file itself. Its standard input is a SOCK_SEQPACKET socket to the server; when that is
closed, it kills its children and ends. A child is killed when the server closes its end of the
child's socket: that is how a deadline and a cancellation arrive.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass

from serai.decode import child
from serai.decode.confinement import can_filter
from serai.decode.messages import MAX_MESSAGE_BYTES, READY, Died, encode


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Running:
    pid: int
    handle: int
    """Becomes readable when the process has ended (pidfd)."""
    reply: socket.socket


class Zygote:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.poll()
        self._poll.register(control, select.POLLIN)
        self._running: dict[int, _Running] = {}
        """Each under its two descriptors."""

    def serve(self) -> None:
        """Fork, watch and bury children until the server goes away."""
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            for descriptor in ready - {self._control.fileno()}:
                self._on_child(descriptor)
            # Last, because a new child may be given descriptors that one of the above had.
            if self._control.fileno() in ready:
                packet, descriptors, _, _ = socket.recv_fds(self._control, MAX_MESSAGE_BYTES, 3)
                if not packet:
                    return
                self._fork(packet, descriptors)

    def close(self) -> None:
        """Kill and bury every child."""
        for running in set(self._running.values()):
            os.kill(running.pid, signal.SIGKILL)
            self._bury(running)

    def _on_child(self, descriptor: int) -> None:
        running = self._running.get(descriptor)
        if running is None:
            return
        if descriptor == running.handle:
            self._bury(running)
        else:
            self._poll.unregister(descriptor)
            os.kill(running.pid, signal.SIGKILL)

    def _fork(self, packet: bytes, descriptors: list[int]) -> None:
        reply, source, sink = descriptors
        zygote = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            # No memory for one more. The server sees the socket close without an answer.
            for descriptor in descriptors:
                os.close(descriptor)
            return
        if pid == 0:
            child.serve_and_exit(packet, reply=reply, source=source, sink=sink, parent=zygote)
        os.close(source)
        os.close(sink)
        running = _Running(pid=pid, handle=os.pidfd_open(pid), reply=socket.socket(fileno=reply))
        self._running[running.handle] = self._running[reply] = running
        self._poll.register(running.handle, select.POLLIN)
        self._poll.register(reply, 0)  # nothing but the closing of the other end

    def _bury(self, running: _Running) -> None:
        _, status = os.waitpid(running.pid, 0)
        del self._running[running.handle], self._running[running.reply.fileno()]
        self._poll.unregister(running.handle)
        os.close(running.handle)
        with contextlib.suppress(KeyError):
            self._poll.unregister(running.reply)
        with running.reply, contextlib.suppress(OSError):
            if status != 0:
                signal_number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
                running.reply.send(encode(Died(signal=signal_number)), socket.MSG_DONTWAIT)


def _enter_empty_folder() -> None:
    """Make the working folder one that is empty, and in which nothing can be made: it is removed already."""
    with tempfile.TemporaryDirectory(prefix="serai-decode-") as folder:
        os.chdir(folder)


def main() -> None:
    """Serve on standard input until it is closed."""
    if not can_filter():
        sys.stderr.write("serai: no filter of system calls on this machine; files are opened without it.\n")
    _enter_empty_folder()
    gc.freeze()
    with socket.socket(fileno=0) as control:
        zygote = Zygote(control)
        try:
            control.send(READY)
            zygote.serve()
        finally:
            zygote.close()


if __name__ == "__main__":
    main()
