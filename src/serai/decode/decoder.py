"""The way in: open a file from outside, or say in one clear error why not."""

import math
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

import anyio
import msgspec
from anyio import to_thread

from serai.decode.errors import NOT_ACCEPTED_HINT, DecoderUnavailable, MediaMalformed, died, refused
from serai.decode.launcher import ZygoteProcess
from serai.decode.messages import (
    MAX_MESSAGE_BYTES,
    Died,
    Failed,
    Limits,
    MediaInfo,
    Order,
    Pixels,
    Probe,
    Probed,
    Refused,
    Reply,
    Samples,
    Task,
    ToFrame,
    ToPixels,
    ToSamples,
    decode_reply,
    encode,
)
from serai.decode.sniff import HEAD_BYTES, PICTURES, RECORDINGS, MediaType, sniff
from serai.errors import UnsupportedMedia

Source = bytes | Path | BinaryIO
"""The bytes, a file of ours by its path, or one that is open (a descriptor of a regular file; it is not closed)."""

Answer = TypeVar("Answer", Probed, Pixels, Samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedImage:
    """A picture, upright, in sRGB, without any metadata."""

    info: MediaInfo
    """Of the file; its width and height are those before any reduction."""
    width: int
    height: int
    mode: Literal["RGB", "RGBA"]
    pixels: bytes
    """Rows from the top, 8 bits a channel, alpha not multiplied in; width × height × len(mode) bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedAudio:
    info: MediaInfo
    sample_rate: int
    channels: int
    samples: bytes
    """float32, little-endian, interleaved, full scale ±1, all finite."""

    @property
    def duration_s(self) -> float:
        return len(self.samples) / (4 * self.channels * self.sample_rate)


class Decoder:
    """Opens pictures, sound and video, each in a process of its own that can do nothing else.

    Bytes or a file of ours go in; what the file is, its content decides. The helper process starts
    with the first file and is started anew when it dies. Every method raises UnsupportedMedia,
    MediaMalformed or MediaTooLarge for the file's faults, DecoderUnavailable for ours, and OSError
    where a path of ours cannot be read. Cancelling a call kills the child at once.
    """

    def __init__(
        self,
        *,
        memory_bytes: int = 2 * 2**30,
        timeout_s: float = 20.0,
        max_image_pixels: int = 50_000_000,
        max_video_pixels: int = 50_000_000_000,
        max_media_seconds: float = 4 * 3600.0,
        concurrency: int = 2,
    ) -> None:
        """Bound each child by `memory_bytes` of address space and `timeout_s`, and run `concurrency` at once.

        `max_video_pixels` bounds width × height × frames.
        """
        self._limits = Limits(
            memory_bytes=memory_bytes,
            seconds=timeout_s,
            max_pixels=max_image_pixels,
            max_video_pixels=max_video_pixels,
            max_media_seconds=max_media_seconds,
        )
        self._slots = anyio.Semaphore(concurrency)
        self._starting = anyio.Lock()
        self._zygote: ZygoteProcess | None = None
        self._closed = False

    async def probe(self, data: Source) -> MediaInfo:
        """Say what the file holds, by its headers. It may still turn out damaged when it is decoded."""
        answer, _ = await self._open(data, Probe(), {**PICTURES, **RECORDINGS}, Probed)
        return answer.info

    async def image(self, data: Source, *, max_side: int | None = None) -> DecodedImage:
        """Return the picture (of an animation the first frame), reduced so that no side is over `max_side`."""
        task = ToPixels(max_side=_positive(max_side))
        answer, pixels = await self._open(data, task, PICTURES, Pixels)
        return _image(answer, pixels)

    async def audio(
        self, data: Source, *, sample_rate: int = 16_000, channels: int = 1, max_seconds: float | None = None
    ) -> DecodedAudio:
        """Return the first sound track as 1 or 2 `channels` at `sample_rate`; refuse it over `max_seconds`."""
        if channels not in (1, 2) or not 1000 <= sample_rate <= 384_000:
            raise ValueError("channels is 1 or 2, sample_rate 1000 to 384000")
        longest = min(self._limits.max_media_seconds, math.inf if max_seconds is None else max_seconds)
        task = ToSamples(sample_rate=sample_rate, channels=channels, max_seconds=longest)
        answer, samples = await self._open(data, task, RECORDINGS, Samples)
        return DecodedAudio(info=answer.info, sample_rate=sample_rate, channels=channels, samples=samples)

    async def video_frame(self, data: Source, at_s: float = 0.0, *, max_side: int | None = None) -> DecodedImage:
        """Return the frame that is shown at `at_s` (past the end: the last), reduced like a picture."""
        if not 0 <= at_s < math.inf:
            raise ValueError("at_s is a time from the start, in seconds")
        task = ToFrame(at_s=at_s, max_side=_positive(max_side))
        answer, pixels = await self._open(data, task, RECORDINGS, Pixels)
        return _image(answer, pixels)

    async def aclose(self) -> None:
        """End the helper process and its children, and refuse further calls. Calls under way fail."""
        self._closed = True
        with anyio.CancelScope(shield=True):
            async with self._starting:
                if self._zygote is not None:
                    await to_thread.run_sync(self._zygote.stop)
                    self._zygote = None

    async def _open(
        self, data: Source, task: Task, accepted: Mapping[str, str], wanted: type[Answer]
    ) -> tuple[Answer, bytes]:
        async with self._slots:
            media_type, source = await to_thread.run_sync(_spool, data, accepted)
            with source, _memory_file() as sink:
                packet = encode(Order(media_type=media_type, limits=self._limits, task=task))
                answer = self._understand(await self._exchange(packet, source, sink))
                if not isinstance(answer, wanted):
                    raise MediaMalformed("The file made its decoder misbehave.")
                return answer, await to_thread.run_sync(_collect, sink, _size(answer, task))

    async def _exchange(self, packet: bytes, source: FileIO, sink: FileIO) -> bytes:
        """Have a child carry out the order; return its answer, empty if there is none."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours:
            ours.setblocking(False)
            with theirs:
                await self._submit(packet, [theirs.fileno(), source.fileno(), sink.fileno()])
            with anyio.move_on_after(self._limits.seconds):
                await anyio.wait_readable(ours)
                try:
                    packet = ours.recv(MAX_MESSAGE_BYTES)
                except OSError:
                    packet = b""
                if packet:
                    # Until the child is buried, for it counts as one of those that work at once.
                    await anyio.wait_readable(ours)
                return packet
        raise refused("time", self._limits)

    async def _submit(self, packet: bytes, descriptors: list[int]) -> None:
        for _ in range(2):
            async with self._starting:
                zygote = await self._running_zygote()
                try:
                    return zygote.send(packet, descriptors)
                except OSError:
                    # It died unseen, or is stuck: the next round has a new one.
                    self._zygote = None
                    await to_thread.run_sync(zygote.stop)
        raise DecoderUnavailable("The process that opens files does not stay up.")

    async def _running_zygote(self) -> ZygoteProcess:
        if self._closed:
            raise DecoderUnavailable("The server is stopping.")
        if self._zygote is not None and not self._zygote.alive:
            await to_thread.run_sync(self._zygote.stop)
            self._zygote = None
        if self._zygote is None:
            self._zygote = await to_thread.run_sync(ZygoteProcess.start)
        return self._zygote

    def _understand(self, packet: bytes) -> Probed | Pixels | Samples:
        if not packet:
            raise died(0)
        try:
            reply: Reply = decode_reply(packet)
        except msgspec.MsgspecError:
            raise MediaMalformed("The file made its decoder misbehave.") from None
        match reply:
            case Refused():
                raise refused(reply.reason, self._limits)
            case Died():
                raise died(reply.signal)
            case Failed():
                raise DecoderUnavailable("A decoder does not work on this machine.")
        return reply


def _positive(max_side: int | None) -> int | None:
    if max_side is not None and max_side < 1:
        raise ValueError("max_side is at least 1")
    return max_side


def _image(answer: Pixels, pixels: bytes) -> DecodedImage:
    return DecodedImage(info=answer.info, width=answer.width, height=answer.height, mode=answer.mode, pixels=pixels)


def _spool(data: Source, accepted: Mapping[str, str]) -> tuple[MediaType, FileIO]:
    """Return the type of the file and a descriptor of it, at its start. Blocks."""
    source = _memory_file() if isinstance(data, bytes) else _opened(data)
    try:
        if not stat.S_ISREG(os.fstat(source.fileno()).st_mode):
            raise MediaMalformed("This is not a file.")
        head = data[:HEAD_BYTES] if isinstance(data, bytes) else os.pread(source.fileno(), HEAD_BYTES, 0)
        media_type = sniff(head)
        if not head:
            raise MediaMalformed("The file is empty.")
        if media_type is None or media_type not in accepted:
            raise UnsupportedMedia("The file is of a type that is not accepted here.", hint=NOT_ACCEPTED_HINT)
        if isinstance(data, bytes):
            _write(source, data)
    except BaseException:
        source.close()
        raise
    return media_type, source


def _opened(file: Path | BinaryIO) -> FileIO:
    """Return a descriptor of our own, at its start: an open file is opened anew, for its owner may go on with it."""
    path = file if isinstance(file, Path) else f"/proc/self/fd/{file.fileno()}"
    # Without O_NONBLOCK a named pipe would be waited for.
    return FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK))


def _memory_file() -> FileIO:
    return FileIO(os.memfd_create("serai-decode"), "w+")


def _write(file: FileIO, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    file.seek(0)


def _size(answer: Probed | Pixels | Samples, task: Task) -> int:
    match answer:
        case Pixels():
            return answer.width * answer.height * len(answer.mode)
        case Samples():
            return answer.frames * 4 * (task.channels if isinstance(task, ToSamples) else 0)
    return 0


def _collect(sink: FileIO, size: int) -> bytes:
    """Return what the child wrote, if it is as much as it said. Blocks.

    Copied, not mapped: a child that still runs could cut the file off under a mapping.
    """
    if os.fstat(sink.fileno()).st_size != size:
        raise MediaMalformed("The file made its decoder misbehave.")
    parts: list[bytes] = []
    at = 0
    while at < size:
        part = os.pread(sink.fileno(), size - at, at)
        if not part:
            raise MediaMalformed("The file made its decoder misbehave.")
        parts.append(part)
        at += len(part)
    return b"".join(parts)
