"""How messages are laid on a stream socket: frames, of which large ones travel as memory files.

A frame is a header, four bytes little-endian, and its payload. The header is the payload's length;
its highest bit says that the payload is not on the stream but in a memory file, whose descriptor
comes with the header. Such a file has no name: when both processes are gone, so is it.
"""

import array
import fcntl
import os
import socket
import stat
import struct
import termios
from collections import deque
from collections.abc import Sequence
from io import FileIO

from serai.errors import TooLarge

INLINE_BYTES = 64 * 1024
"""Payloads up to this size are on the stream itself."""
MAX_BYTES = 2**30
"""No payload is larger."""

_HEADER = struct.Struct("<I")
_IN_FILE = 2**31
_CHUNK = _HEADER.size + INLINE_BYTES
_SPACE = socket.CMSG_SPACE(8 * array.array("i").itemsize)


class ChannelBroken(Exception):
    """What came cannot have been sent by a sound peer; nothing that follows means anything."""


class ChannelClosed(Exception):
    """The other end is gone."""


class Frames:
    """Takes what arrives and holds whole payloads, in order, with the descriptors that belong to them."""

    def __init__(self) -> None:
        self.payloads: deque[bytes | FileIO] = deque()
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()

    def feed(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Take a piece of the stream with the descriptors that came with it, which are now held here.

        Raises ChannelBroken, after which there is nothing to do but `close`.
        """
        self._descriptors.extend(descriptors)
        self._buffer += data
        at, end = 0, len(self._buffer)
        while end - at >= _HEADER.size:
            (header,) = _HEADER.unpack_from(self._buffer, at)
            length = header & ~_IN_FILE
            if length > MAX_BYTES or (not header & _IN_FILE and length > INLINE_BYTES):
                raise ChannelBroken("a frame has a length that no frame has")
            body = at + _HEADER.size
            if header & _IN_FILE:
                self.payloads.append(self._file(length))
                at = body
                continue
            if end - body < length:
                break
            self.payloads.append(bytes(memoryview(self._buffer)[body : body + length]))
            at = body + length
        del self._buffer[:at]
        # A header may come in two pieces, with its descriptor on the first.
        if len(self._descriptors) > (1 if 0 < len(self._buffer) < _HEADER.size else 0):
            raise ChannelBroken("a descriptor came without a frame")

    def close(self) -> None:
        """Forget all, and close the descriptors."""
        while self._descriptors:
            os.close(self._descriptors.popleft())
        while self.payloads:
            payload = self.payloads.popleft()
            if isinstance(payload, FileIO):
                payload.close()
        self._buffer.clear()

    def _file(self, length: int) -> FileIO:
        if not self._descriptors:
            raise ChannelBroken("a frame in a memory file came without the file")
        file = FileIO(self._descriptors.popleft(), "r")
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size != length:
            file.close()
            raise ChannelBroken("a frame in a memory file is not what its header says")
        return file


def receive_some(connection: socket.socket, frames: Frames, flags: int = 0) -> bool:
    """Read once from the socket into `frames`; return False at the end of the stream.

    Raises BlockingIOError where there is nothing to read and the call may not wait, and ChannelBroken.
    """
    try:
        data, ancillary, state, _ = connection.recvmsg(_CHUNK, _SPACE, flags | socket.MSG_CMSG_CLOEXEC)
    except ConnectionError:
        return False
    descriptors = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(content[: len(content) - len(content) % descriptors.itemsize])
    if data:
        frames.feed(data, descriptors)
    if state & socket.MSG_CTRUNC:
        raise ChannelBroken("more descriptors came than any frame has")
    return bool(data)


def framed(payload: bytes) -> bytes:
    """Return a payload of at most `INLINE_BYTES` with its header."""
    return _HEADER.pack(len(payload)) + payload


def header_of_file(length: int) -> bytes:
    """Return the header that the descriptor of a memory file is sent with."""
    return _HEADER.pack(length | _IN_FILE)


def check_size(payload: bytes) -> None:
    """Raise TooLarge for a payload that no frame can hold."""
    if len(payload) > MAX_BYTES:
        raise TooLarge(f"A message of {len(payload)} bytes is larger than the {MAX_BYTES} that one may have.")


def memory_file(payload: bytes) -> FileIO:
    """Return a memory file that holds the payload. Blocks for as long as the copying takes."""
    file = FileIO(os.memfd_create("serai-frame", os.MFD_CLOEXEC), "w")
    try:
        rest = memoryview(payload)
        while rest:
            rest = rest[file.write(rest) :]
    except BaseException:
        file.close()
        raise
    return file


def read_file(file: FileIO) -> bytes:
    """Return what a memory file holds. Blocks for as long as the copying takes. Raises ChannelBroken.

    Copied, not mapped: the peer could cut the file off under a mapping.
    """
    try:
        size = os.fstat(file.fileno()).st_size
        content = os.pread(file.fileno(), min(size, MAX_BYTES), 0)
    except (OSError, ValueError):
        raise ChannelBroken("a memory file cannot be read") from None
    if len(content) != size:
        raise ChannelBroken("a memory file changed while it was read")
    return content


class Lent:
    """Counts the bytes of memory files that the peer may not have read yet.

    The stream's own buffer bounds what is on it, but holds the headers of hundreds of files.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._bytes = 0

    def add(self, size: int) -> None:
        self._bytes += size

    def unread(self) -> int:
        """Return them; 0 as soon as the peer has read all that was sent."""
        waiting = fcntl.ioctl(self._connection, termios.TIOCOUTQ, bytes(4))
        if not any(waiting):
            self._bytes = 0
        return self._bytes
