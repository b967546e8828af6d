"""Starting, reaching and ending the zygote. Every function may block: call them in a thread."""

import contextlib
import socket
import subprocess
import sys

from serai.decode.errors import DecoderUnavailable
from serai.decode.messages import MAX_MESSAGE_BYTES, READY

START_SECONDS = 60.0
STOP_SECONDS = 5.0


class ZygoteProcess:
    """The server's hold on a zygote. It ends with `stop()`, or by itself when the server is gone."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket) -> None:
        self._process = process
        self._control = control

    @classmethod
    def start(cls) -> "ZygoteProcess":
        """Return a zygote that has the decoders loaded. Raises DecoderUnavailable."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-m", "serai.decode.zygote"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                cwd="/",
                env={},
                start_new_session=True,
            )
        zygote = cls(process, ours)
        ours.settimeout(START_SECONDS)
        with contextlib.suppress(OSError):
            if ours.recv(MAX_MESSAGE_BYTES) == READY:
                ours.setblocking(False)
                return zygote
        zygote.stop()
        raise DecoderUnavailable("The process that opens files did not start.")

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, packet: bytes, descriptors: list[int]) -> None:
        """Hand over an order with its three descriptors, at once. Raises OSError if the zygote is gone or stuck."""
        socket.send_fds(self._control, [packet], descriptors)

    def stop(self) -> None:
        """End the zygote and all its children; return when they are gone."""
        self._control.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
