"""One file, from its source to a verified part on the disk: resumed, retried, hashed as it comes."""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, ParamSpec, TypeVar

from anyio.to_thread import run_sync

from serai.errors import SeraiError
from serai.hub.errors import ChecksumMismatch, FileNotAsNamed, HubFailed, HubRateLimited, HubUnreachable
from serai.hub.files import ETAG_SUFFIX
from serai.hub.inspect import check_content
from serai.hub.meter import Meter
from serai.hub.model import Hub, Listing, RemoteFile
from serai.storage.home import disk_errors, open_private

P = ParamSpec("P")
R = TypeVar("R")

Sleep = Callable[[float], Awaitable[None]]

WRITE_BYTES = 2**18
"""Bytes are gathered to this size, or for `WRITE_S`: one thread hop and one write each."""
WRITE_S = 0.5
READ_BYTES = 2**20
MAX_FAILURES = 5
"""Tries in a row that bring no byte before the error is raised."""
MAX_WAIT_S = 300.0
"""A source that asks for a longer pause gets the error instead."""


class Digests:
    """The digests of a file as its pieces come."""

    def __init__(self, file: RemoteFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        # What git signs with; the SHA-256 is recorded beside it, and is what counts from here on.
        self._git = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False) if file.git_id else None
        self.size = 0

    def update(self, piece: bytes) -> None:
        self.size += len(piece)
        self._sha256.update(piece)
        if self._git is not None:
            self._git.update(piece)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def is_known(self) -> bool:
        """Whether the source announced any digest to compare with."""
        return bool(self._file.sha256 or self._file.git_id)

    @property
    def is_announced(self) -> bool:
        """Whether the bytes so far are the announced ones: size, and each digest that was told."""
        git_id = self._git.hexdigest() if self._git is not None else None
        return (
            self.size == self._file.size
            and self._file.sha256 in (None, self.sha256)
            and self._file.git_id in (None, git_id)
        )


class Part:
    """What has come of a file, on the disk and in the digests. Every method blocks.

    A caller that is cancelled may close it while a write runs in its thread: the file's own lock orders them.
    """

    def __init__(self, path: Path, file: RemoteFile) -> None:
        self._path = path
        self._etag_path = path.with_name(path.name + ETAG_SUFFIX)
        self._remote = file
        self._file: BinaryIO | None = None
        self.digests = Digests(file)
        self.most = 0
        """The largest size that it ever had: what is more than that is progress."""

    def open(self) -> None:
        """Open it, made if it is missing, and digest what is there."""
        with disk_errors():
            self._file = open(self._path, "a+b", opener=open_private)  # noqa: SIM115 - closed by close
        self._file.seek(0)
        while piece := self._file.read(READ_BYTES):
            self.digests.update(piece)
        if self.size > self._remote.size:
            self.restart()
        self.most = self.size

    @property
    def size(self) -> int:
        return self.digests.size

    @property
    def etag(self) -> str | None:
        with suppress(FileNotFoundError, UnicodeDecodeError):
            return self._etag_path.read_text("utf-8") or None
        return None

    def begin(self, etag: str | None) -> None:
        """Note which content the bytes that come belong to."""
        self._etag_path.write_text(etag or "", "utf-8")

    def restart(self) -> None:
        """Throw away what has come."""
        self._opened.truncate(0)
        self.digests = Digests(self._remote)

    def write(self, data: bytes) -> None:
        """Append; the bytes are the system's when this returns, so a killed process loses none of them."""
        with disk_errors():
            self._opened.write(data)
            self._opened.flush()
        self.digests.update(data)
        self.most = max(self.most, self.size)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise ValueError("the part is not open")
        return self._file


async def fetch(
    hub: Hub[Any],
    listing: Listing,
    file: RemoteFile,
    partial: Path,
    wanted: Sequence[RemoteFile],
    meter: Meter,
    sleep: Sleep,
) -> str:
    """Bring the rest of `file` to `partial` and return its SHA-256 when it is verified; it is whole then.

    Bytes that are not the announced ones are fetched once more, from the start. Raises what the hub raises,
    ChecksumMismatch or FileNotAsNamed (the part is then gone), DiskFull.
    """
    part = Part(partial, file)
    try:
        await to_the_end(part.open)
        meter.place(file.path, part.size)
        await _fill(hub, listing, file, part, meter, sleep)
        if not part.digests.is_announced:  # damaged on its way, or while an earlier part of it lay here
            await to_the_end(part.restart)
            meter.place(file.path, 0)
            await _fill(hub, listing, file, part, meter, sleep)
        if not part.digests.is_announced:
            raise ChecksumMismatch(f"{file.path} did not come as it was announced, and was thrown away.")
        await run_sync(check_content, partial, file.path, [one.path for one in wanted])
    except (ChecksumMismatch, FileNotAsNamed):
        await run_sync(partial.unlink, True)
        meter.place(file.path, 0)
        raise
    finally:
        part.close()
    return part.digests.sha256


async def _fill(
    hub: Hub[Any],
    listing: Listing,
    file: RemoteFile,
    part: Part,
    meter: Meter,
    sleep: Sleep,
) -> None:
    """Read until the part is whole; a source that fails in between is asked again, from where it stopped."""
    failures = 0
    while part.size < file.size:
        before = part.most
        try:
            await _read_once(hub, listing, file, part, meter)
            if part.size < file.size:
                raise HubUnreachable("The transfer ended too soon.")
        except (HubUnreachable, HubFailed, HubRateLimited) as error:
            failures = 1 if part.most > before else failures + 1
            if failures > MAX_FAILURES or (error.retry_after or 0) > MAX_WAIT_S:
                raise
            await sleep(pause_s(error, failures))


def pause_s(error: SeraiError, failures: int) -> float:
    """Return the seconds to wait before another try: as the source asks, else 1, 2, 4 … ≤ 30."""
    return error.retry_after if error.retry_after is not None else min(30.0, 2.0 ** (failures - 1))


async def _read_once(hub: Hub[Any], listing: Listing, file: RemoteFile, part: Part, meter: Meter) -> None:
    etag = await run_sync(lambda: part.etag)
    async with hub.read(listing, file, start=part.size, etag=etag) as reading:
        if reading.start != part.size:
            await run_sync(part.restart)
            meter.place(file.path, 0)
        await run_sync(part.begin, reading.etag)
        gathered = bytearray()
        written_at = meter.clock.monotonic()
        try:
            async for piece in reading.pieces:
                gathered += piece
                now = meter.clock.monotonic()
                if len(gathered) >= WRITE_BYTES or now - written_at >= WRITE_S:
                    written_at = now
                    await _write(part, gathered, file, meter)
        finally:
            await _write(part, gathered, file, meter)


async def _write(part: Part, gathered: bytearray, file: RemoteFile, meter: Meter) -> None:
    data = bytes(gathered)
    gathered.clear()
    if data:
        await to_the_end(part.write, data)
        meter.count(file.path, len(data))


async def to_the_end(function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run a blocking function in a thread; a cancelled caller goes on only when it has ended.

    So that nobody finds a file that a thread of somebody who is gone still writes.
    """
    work = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        raise
