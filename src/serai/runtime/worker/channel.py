"""The two ends of the channel between the server and a worker: one that waits, and one of an event loop.

Each message in a frame is msgpack; a frame holds a list of them. What arrives after a frame that no
sound peer sends is not looked at.
"""

import asyncio
import contextlib
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from io import FileIO
from typing import Generic, TypeVar

import anyio
import msgspec
from anyio import to_thread

from serai.runtime.worker.frames import (
    INLINE_BYTES,
    ChannelBroken,
    ChannelClosed,
    Frames,
    Lent,
    check_size,
    framed,
    header_of_file,
    memory_file,
    read_file,
    receive_some,
)
from serai.runtime.worker.messages import FromWorker, ToWorker

M = TypeVar("M")
Decode = Callable[[bytes], list[M]]

encode: Callable[[object], bytes] = msgspec.msgpack.Encoder().encode
decode_to_worker: Decode[ToWorker] = msgspec.msgpack.Decoder(list[ToWorker]).decode
decode_from_worker: Decode[FromWorker] = msgspec.msgpack.Decoder(list[FromWorker]).decode

MAX_UNREAD_BYTES = 2**30
"""What may be on its way to a peer that does not read."""
_MAX_LENT_BYTES = 256 * 2**20
_LOOK_MS = 5


class WaitingChannel(Generic[M]):
    """The worker's end. Sending waits for a peer that does not read: that is what holds a fast engine back."""

    def __init__(self, connection: socket.socket, decode: Decode[M]) -> None:
        connection.setblocking(True)
        self._connection = connection
        self._decode = decode
        self._frames = Frames()
        self._lent = Lent(connection)
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    def send(self, messages: Sequence[object]) -> None:
        """Send the messages as one frame. Raises ChannelClosed, TooLarge, and TypeError for what is no message."""
        payload = encode(messages)
        check_size(payload)
        try:
            if len(payload) <= INLINE_BYTES:
                self._connection.sendall(framed(payload))
            else:
                self._send_file(payload)
        except ConnectionError:
            raise ChannelClosed from None

    def receive(self, timeout_s: float | None) -> list[M]:
        """Return the messages of the next frame; none if no frame comes in that time (None: wait for ever).

        Raises ChannelClosed at the end, and ChannelBroken.
        """
        while not self._frames.payloads:
            if timeout_s and not self._poll.poll(timeout_s * 1000):
                return []
            try:
                if not receive_some(self._connection, self._frames, 0 if timeout_s is None else socket.MSG_DONTWAIT):
                    raise ChannelClosed
            except BlockingIOError:
                return []
        return _decoded(self._decode, _content(self._frames.payloads.popleft()))

    def close(self) -> None:
        self._frames.close()
        self._connection.close()

    def _send_file(self, payload: bytes) -> None:
        with memory_file(payload) as file:
            # Nothing tells when a peer has read, so the kernel is asked now and then.
            gone = select.poll()
            gone.register(self._connection, 0)
            while (unread := self._lent.unread()) and unread + len(payload) > _MAX_LENT_BYTES:
                if gone.poll(_LOOK_MS):
                    raise ChannelClosed
            socket.send_fds(self._connection, [header_of_file(len(payload))], [file.fileno()])
        self._lent.add(len(payload))


class LoopChannel(Generic[M]):
    """The server's end, for one event loop: nothing here waits for the peer but `receive`.

    It reads only while somebody receives, so that a peer that is faster than its reader has to wait.
    """

    def __init__(self, connection: socket.socket, decode: Decode[M]) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._decode = decode
        self._frames = Frames()
        self._lent = Lent(connection)
        self._outgoing: deque[tuple[bytes, bool]] = deque()
        """What is left of a frame for the stream; or, where that is said, a payload for a memory file."""
        self._queued = 0
        self._flushing: asyncio.Task[None] | None = None
        self._is_open = True

    def send(self, message: object) -> None:
        """Send the message as soon as the peer takes it. Does nothing when that is gone.

        Raises TooLarge, and ChannelBroken for a peer that has left `MAX_UNREAD_BYTES` unread.
        """
        payload = encode([message])
        check_size(payload)
        if not self._is_open:
            return
        if self._queued + self._lent.unread() + len(payload) > MAX_UNREAD_BYTES:
            raise ChannelBroken("the peer does not read what it is sent")
        in_file = len(payload) > INLINE_BYTES
        data = payload if in_file else framed(payload)
        if self._flushing is None and not in_file:
            data = self._send_now(data)
            if not data:
                return
        self._outgoing.append((data, in_file))
        self._queued += len(data)
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().create_task(self._flush())

    async def receive(self) -> list[M]:
        """Return the next messages, of as many frames as are here, none at the end. A cancelled call loses none.

        Raises ChannelBroken.
        """
        await asyncio.sleep(0)  # a peer that always has more must not keep the loop from everybody else
        while not self._frames.payloads:
            if not self._is_open:
                return []
            try:
                if not receive_some(self._connection, self._frames):
                    return []
            except BlockingIOError:
                with contextlib.suppress(anyio.ClosedResourceError):
                    await anyio.wait_readable(self._connection)
        content = await self._head()
        if not self._is_open:
            return []
        head = self._frames.payloads.popleft()
        if isinstance(head, FileIO):
            head.close()
        messages = _decoded(self._decode, content)
        while self._frames.payloads and isinstance(more := self._frames.payloads[0], bytes):
            self._frames.payloads.popleft()
            messages += _decoded(self._decode, more)
        return messages

    def shut_down(self) -> None:
        """Let `receive` come to its end when it has read what is there, whoever else holds the peer's end open."""
        if self._is_open:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Drop what was not sent and what was not received."""
        if not self._is_open:
            return
        self._is_open = False
        self._frames.close()
        self._outgoing.clear()
        anyio.notify_closing(self._connection)
        self._connection.close()

    async def _head(self) -> bytes:
        """Return the oldest payload, which stays where it is until nothing can be cancelled any more."""
        head = self._frames.payloads[0]
        if isinstance(head, bytes):
            return head
        try:
            return await to_thread.run_sync(read_file, head)
        except ChannelBroken:
            if self._is_open:
                raise
            return b""  # it was closed meanwhile

    def _send_now(self, data: bytes) -> bytes:
        """Return what of the data the socket does not take at once."""
        try:
            return data[self._connection.send(data) :]
        except BlockingIOError:
            return data
        except OSError:
            return b""  # `receive` says so

    async def _flush(self) -> None:
        try:
            while self._outgoing:
                data, in_file = self._outgoing.popleft()
                if in_file:
                    await self._send_file(data)
                else:
                    await self._send_rest(data)
                self._queued -= len(data)
        except (OSError, anyio.ClosedResourceError):
            self._outgoing.clear()
        finally:
            self._queued = 0
            self._flushing = None

    async def _send_rest(self, data: bytes) -> None:
        while data:
            await anyio.wait_writable(self._connection)
            with contextlib.suppress(BlockingIOError):
                data = data[self._connection.send(data) :]

    async def _send_file(self, payload: bytes) -> None:
        with await _written(payload) as file:
            while self._is_open:
                try:
                    socket.send_fds(self._connection, [header_of_file(len(payload))], [file.fileno()])
                except BlockingIOError:
                    await anyio.wait_writable(self._connection)
                else:
                    self._lent.add(len(payload))
                    return


async def _written(payload: bytes) -> FileIO:
    """Return a memory file that holds the payload; nothing of it is left when the call is cancelled meanwhile."""
    made: list[FileIO] = []
    is_wanted = True

    def write() -> None:
        file = memory_file(payload)
        made.append(file)
        if not is_wanted:
            file.close()

    try:
        await to_thread.run_sync(write)
    except BaseException:
        is_wanted = False
        for file in made:
            file.close()
        raise
    return made[0]


def _content(payload: bytes | FileIO) -> bytes:
    if isinstance(payload, bytes):
        return payload
    with payload:
        return read_file(payload)


def _decoded(decode: Decode[M], content: bytes) -> list[M]:
    try:
        return decode(content)
    except msgspec.MsgspecError:
        raise ChannelBroken("a frame holds what is no message") from None
