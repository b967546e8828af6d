"""The text that a running job streams: in memory first, then in a file beside the job, never in rows."""

import asyncio
import os
import weakref
from pathlib import Path

from serai.errors import DiskFull
from serai.events import Event, Text, from_json, to_json
from serai.jobs.model import OutputTooLarge

MAX_BYTES = 64 * 2**20
READ_BYTES = 256 * 2**10


class Spool:
    """An append-only stream of lines, one `Text` event each, addressed by byte offset.

    Used on the event loop; the file is touched in threads. The file's name goes with the run, its
    content with the last follower that still reads: afterwards the job's result is the truth.
    """

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._written = 0
        self._writing = b""
        self._tail = bytearray()
        self._flushing = asyncio.Lock()
        self._handle: int | None = None

    @property
    def size(self) -> int:
        return self._written + len(self._writing) + len(self._tail)

    @property
    def unwritten(self) -> int:
        return len(self._tail)

    def add(self, event: Text) -> None:
        """Append the event. Raises OutputTooLarge."""
        line = to_json(event) + b"\n"
        if self.size + len(line) > self._max_bytes:
            raise OutputTooLarge(f"The job streamed more than {self._max_bytes} bytes of text.")
        self._tail += line

    async def flush(self) -> None:
        """Write what is in memory to the file. Raises DiskFull; then nothing is lost and it can be tried again."""
        async with self._flushing:
            self._writing, self._tail = bytes(self._tail), bytearray()
            try:
                await asyncio.to_thread(self._append, self._writing, self._written)
            except OSError:
                self._tail[:0] = self._writing
                raise DiskFull("The text of a job cannot be kept: the disk is full.") from None
            else:
                self._written += len(self._writing)
            finally:
                self._writing = b""

    async def read(self, offset: int) -> list[tuple[int, Event]]:
        """Return events from `offset` on, each with the offset after it: some of them, none only at the end."""
        if offset < self._written:
            data = await asyncio.to_thread(self._load, offset, self._written)
        else:
            data = (self._writing + self._tail)[offset - self._written :]
        found: list[tuple[int, Event]] = []
        for line in data.splitlines(keepends=True):
            offset += len(line)
            found.append((offset, from_json(line)))
        return found

    def _append(self, data: bytes, at: int) -> None:
        if self._handle is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            weakref.finalize(self, os.close, self._handle)
        # At a fixed place: an append that failed half-way is overwritten by the next one.
        view = memoryview(data)
        while view:
            count = os.pwrite(self._handle, view, at)
            at, view = at + count, view[count:]

    def _load(self, offset: int, end: int) -> bytes:
        if self._handle is None:
            raise AssertionError("what was written has a file")
        data = os.pread(self._handle, min(end - offset, READ_BYTES), offset)
        while b"\n" not in data:  # one event that is larger than a read
            data += os.pread(self._handle, min(end - offset - len(data), READ_BYTES), offset + len(data))
        return data[: data.rindex(b"\n") + 1]
