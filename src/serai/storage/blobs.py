"""Bytes kept under their SHA-256: pictures, speech, video, uploads, outputs of jobs.

A blob never changes: the digest is its only name, so equal content is kept once and a reader can
check what it got. Which rows name a blob is written in the database (`serai.storage.links`); the
order is always: put the blob, then commit the row that names it.
"""

import hashlib
import os
import re
import secrets
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractContextManager, aclosing, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Protocol

from anyio import CancelScope
from anyio.to_thread import run_sync

from serai.clock import Clock
from serai.errors import DiskFull, InvalidInput, NotFound, TooLarge
from serai.storage.home import disk_errors, file_lock, make_folder, open_private, sync_folder
from serai.storage.tables.base import to_microseconds

Named = Callable[[Sequence[str]], Collection[str]]
"""Says which of some digests a row names; called in a thread, may block."""

_DIGEST = re.compile(r"[0-9a-f]{64}")
_WRITE_BYTES = 2**20  # pieces of an upload are gathered to this size: one thread hop each
_READ_BYTES = 2**18
_SWEEP_BATCH = 256
_INCOMING = "incoming"
_PUT_LOCK = "put.lock"
_KEEP_LOCK = "keep.lock"


class BlobNotFound(NotFound):
    code = "BLOB_NOT_FOUND"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """What was put: its SHA-256 in lower-case hexadecimal, and its bytes' number."""

    digest: str
    size: int


class Blobs(Protocol):
    """The seam. No method blocks the event loop; all but `put` raise InvalidInput for a malformed digest."""

    async def put(self, chunks: AsyncIterable[bytes] | bytes, *, max_bytes: int) -> Blob:
        """Keep the bytes and return their name, when they are safe against a power cut.

        Raises TooLarge over `max_bytes`, DiskFull where the space is needed for other things, and
        whatever `chunks` raises; nothing is then left. Putting again what is there makes it new: its
        age for `sweep` starts again, and damaged content is replaced.
        """
        ...

    def read(self, digest: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        """Yield the bytes from `start` (≥ 0) to before `end` (default and limit: the end).

        Raises BlobNotFound, before the first piece; a blob deleted meanwhile is still read to its end.
        """
        ...

    async def open(self, digest: str) -> BinaryIO:
        """Return the blob as a real file to read, which the caller closes. Raises BlobNotFound.

        It has a `fileno`, so it can be handed to a child process, and stays whole when the blob is deleted.
        """
        ...

    async def size(self, digest: str) -> int | None:
        """Return the number of bytes, or None where there is no such blob."""
        ...

    async def verify(self, digest: str) -> bool:
        """Read all of it and say whether it still has its digest. Raises BlobNotFound."""
        ...

    async def delete(self, digest: str) -> None:
        """Remove it, whoever names it; nothing happens where it is missing. `sweep` asks first."""
        ...

    async def sweep(self, before: datetime, named: Named) -> int:
        """Remove what was last put before `before` and what `named` does not claim; return how many.

        Never removes what is being put, nor anything while a backup runs (the rest is left for later).
        """
        ...


class FileBlobs:
    """Blobs as files `ab/abcd…` under a folder, which servers may share."""

    def __init__(self, root: Path, *, clock: Clock, min_free_bytes: int = 0) -> None:
        """`min_free_bytes`: a put that would leave less on the disk raises DiskFull."""
        self._root = root
        self._clock = clock
        self._min_free_bytes = min_free_bytes
        make_folder(root / _INCOMING)

    async def put(self, chunks: AsyncIterable[bytes] | bytes, *, max_bytes: int) -> Blob:
        incoming = await run_sync(_Incoming, self._root, max_bytes, self._min_free_bytes)
        try:
            async with aclosing(_gather(chunks)) as pieces:
                async for piece in pieces:
                    await run_sync(incoming.write, piece)
            return await run_sync(incoming.commit, self._clock.now())
        finally:
            with CancelScope(shield=True):
                await run_sync(incoming.discard)

    async def read(self, digest: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        left = _length(start, end)
        file = await self.open(digest)
        try:
            await run_sync(file.seek, start)
            while left is None or left > 0:
                piece = await run_sync(file.read, _READ_BYTES if left is None else min(left, _READ_BYTES))
                if not piece:
                    return
                left = None if left is None else left - len(piece)
                yield piece
        finally:
            file.close()

    async def open(self, digest: str) -> BinaryIO:
        path = blob_path(self._root, digest)
        try:
            return await run_sync(lambda: open(path, "rb", opener=open_private))
        except FileNotFoundError:
            raise _not_found() from None

    async def size(self, digest: str) -> int | None:
        try:
            return (await run_sync(blob_path(self._root, digest).stat)).st_size
        except FileNotFoundError:
            return None

    async def verify(self, digest: str) -> bool:
        try:
            return await run_sync(file_digest, blob_path(self._root, digest)) == digest
        except FileNotFoundError:
            raise _not_found() from None

    async def delete(self, digest: str) -> None:
        await run_sync(lambda: blob_path(self._root, digest).unlink(missing_ok=True))

    async def sweep(self, before: datetime, named: Named) -> int:
        return await run_sync(self._sweep, to_microseconds(before) * 1000, named)

    def _sweep(self, before_ns: int, named: Named) -> int:
        for unfinished in (self._root / _INCOMING).iterdir():
            _unlink_older(unfinished, before_ns)
        removed = 0
        old = (path for path in self._root.glob("??/*") if _is_older(path, before_ns))
        while batch := {path.name: path for path in islice(old, _SWEEP_BATCH)}:
            kept = named(list(batch))
            with file_lock(self._root / _KEEP_LOCK, shared=False, wait=False) as free:
                if not free:
                    return removed
                # Asked before the lock, and still right: a digest named since then was put again since then.
                with file_lock(self._root / _PUT_LOCK, shared=False):
                    removed += sum(_unlink_older(path, before_ns) for name, path in batch.items() if name not in kept)
        return removed


class MemoryBlobs:
    """Blobs in this process's memory, for tests: hashing happens on the event loop's thread."""

    def __init__(self, *, clock: Clock, capacity_bytes: int = 2**30) -> None:
        self._clock = clock
        self._capacity_bytes = capacity_bytes
        self._kept: dict[str, tuple[bytes, datetime]] = {}

    async def put(self, chunks: AsyncIterable[bytes] | bytes, *, max_bytes: int) -> Blob:
        gathered = bytearray()
        async with aclosing(_gather(chunks)) as pieces:
            async for piece in pieces:
                gathered += piece
                if len(gathered) > max_bytes:
                    raise _too_large(max_bytes)
        data = bytes(gathered)
        digest = hashlib.sha256(data).hexdigest()
        others = sum(len(kept) for name, (kept, _) in self._kept.items() if name != digest)
        if others + len(data) > self._capacity_bytes:
            raise DiskFull("The memory for blobs is full.")
        self._kept[digest] = (data, self._clock.now())
        return Blob(digest=digest, size=len(data))

    async def read(self, digest: str, *, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        _length(start, end)
        if data := self._get(digest)[start:end]:
            yield data

    async def open(self, digest: str) -> BinaryIO:
        data = self._get(digest)

        def write() -> BinaryIO:
            file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
            file.write(data)
            file.seek(0)
            return file

        return await run_sync(write)

    async def size(self, digest: str) -> int | None:
        kept = self._kept.get(check_digest(digest))
        return None if kept is None else len(kept[0])

    async def verify(self, digest: str) -> bool:
        return hashlib.sha256(self._get(digest)).hexdigest() == digest

    async def delete(self, digest: str) -> None:
        self._kept.pop(check_digest(digest), None)

    async def sweep(self, before: datetime, named: Named) -> int:
        old = self._older(before)
        kept = await run_sync(named, list(old))
        gone = (old & self._older(before)).difference(kept)
        for digest in gone:
            del self._kept[digest]
        return len(gone)

    def _older(self, before: datetime) -> set[str]:
        return {digest for digest, (_, put_at) in self._kept.items() if put_at < before}

    def _get(self, digest: str) -> bytes:
        kept = self._kept.get(check_digest(digest))
        if kept is None:
            raise _not_found()
        return kept[0]


class _Incoming:
    """A blob on its way in: a file under a temporary name, hashed while it grows.

    A caller that is cancelled may discard while a write still runs in its thread; the buffered file's
    own lock makes the one wait for the other.
    """

    def __init__(self, root: Path, max_bytes: int, min_free_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._path = incoming_path(root)
        self._size = 0
        self._hash = hashlib.sha256()
        with disk_errors():
            self._file = open(self._path, "xb", opener=open_private)  # noqa: SIM115 - closed by discard

    def write(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._max_bytes:
            raise _too_large(self._max_bytes)
        disk = os.statvfs(self._root)
        if disk.f_bavail * disk.f_frsize - len(data) < self._min_free_bytes:
            raise DiskFull("The disk is too full to keep this.")
        with disk_errors():
            self._file.write(data)
        self._hash.update(data)

    def commit(self, now: datetime) -> Blob:
        """Sync, give it its name, and return that."""
        blob = Blob(digest=self._hash.hexdigest(), size=self._size)
        moment = to_microseconds(now) * 1000
        with disk_errors():
            self._file.flush()
            os.utime(self._file.fileno(), ns=(moment, moment))  # the age that sweep goes by
            os.fsync(self._file.fileno())
            place(self._root, self._path, blob.digest)
        return blob

    def discard(self) -> None:
        """Close, and remove what was not committed."""
        with suppress(OSError):  # a full disk fails the last flush of what is thrown away
            self._file.close()
        self._path.unlink(missing_ok=True)


def check_digest(digest: str) -> str:
    """Return `digest` if it is one (64 lower-case hexadecimal digits); raises InvalidInput."""
    if _DIGEST.fullmatch(digest) is None:
        raise InvalidInput("A digest is 64 hexadecimal digits in lower case.")
    return digest


def blob_path(root: Path, digest: str) -> Path:
    """Return where the blob `digest` lies under `root`; raises InvalidInput.

    One level of 256 folders: a deeper one would be new for nearly every blob, and each costs a sync of its parent.
    """
    check_digest(digest)
    return root / digest[:2] / digest


def incoming_path(root: Path) -> Path:
    """Return a fresh name for a file that will be given to `place`."""
    return root / _INCOMING / secrets.token_hex(16)


def place(root: Path, temporary: Path, digest: str) -> None:
    """Make the whole and synced file `temporary` the blob `digest` of the folder `root`; blocks."""
    target = blob_path(root, digest)
    make_folder(target.parent)
    with file_lock(root / _PUT_LOCK, shared=True):
        temporary.replace(target)
    sync_folder(target.parent)


def keep_all(root: Path) -> AbstractContextManager[bool]:
    """While this is held no sweep of the folder `root` removes a blob, on any server; blocks."""
    return file_lock(root / _KEEP_LOCK, shared=True)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of the file's bytes; blocks. Raises FileNotFoundError."""
    with open(path, "rb", opener=open_private) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


async def _gather(chunks: AsyncIterable[bytes] | bytes) -> AsyncGenerator[bytes]:
    """Yield the same bytes in pieces of at least `_WRITE_BYTES`, the last one apart."""
    if isinstance(chunks, bytes):
        yield chunks
        return
    waiting = bytearray()
    async for chunk in chunks:
        waiting += chunk
        if len(waiting) >= _WRITE_BYTES:
            yield bytes(waiting)
            waiting.clear()
    yield bytes(waiting)


def _length(start: int, end: int | None) -> int | None:
    if start < 0 or (end is not None and end < start):
        raise InvalidInput("A range starts at 0 or later and does not end before it starts.")
    return None if end is None else end - start


def _is_older(path: Path, before_ns: int) -> bool:
    try:
        return path.lstat().st_mtime_ns < before_ns
    except FileNotFoundError:  # another collector was here
        return False


def _unlink_older(path: Path, before_ns: int) -> bool:
    old = _is_older(path, before_ns)
    if old:
        path.unlink(missing_ok=True)
    return old


def _not_found() -> BlobNotFound:
    return BlobNotFound("There is no such blob.", hint="It may have been removed since its name was given out.")


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"It is larger than the {max_bytes} bytes that are allowed.")
