"""Bringing the chosen files of a repository into a staging folder, from whatever is on the disk already.

The disk is the only memory: a part lies under the identity of its bytes, a finished file in the staging
folder. So a download that was cancelled, cut off or killed goes on where the disk says it was, and two
downloads of the same thing in one process are one task.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import structlog
from anyio.to_thread import run_sync

from serai.clock import Clock
from serai.hub.errors import NotEnoughSpace
from serai.hub.fetching import Digests, Sleep, fetch, to_the_end
from serai.hub.files import ModelFiles, key_of
from serai.hub.meter import Meter
from serai.hub.model import Hub, Listing, RemoteFile
from serai.registry.canonical import digest_of
from serai.registry.source import source_document
from serai.storage.blobs import file_digest

_log = structlog.get_logger(__name__)


@dataclass(eq=False, kw_only=True)
class Download:
    """One download in progress or done. Its bytes are whole and verified when `wait` returns."""

    key: str
    folder: Path
    """The staging folder, with the files under their own paths."""
    meter: Meter
    further_bytes: int = 0
    """Needed on the disk for what follows."""
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 by path, of the files that are done."""
    reused_bytes: int = 0
    """Of files that were here whole, in other versions or in another program's cache."""
    holders: int = 0
    is_leaving: bool = False
    """Nobody can join it any more; whoever wants the same waits until it is `gone`."""
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None]" = field(init=False, repr=False)

    @property
    def needed_bytes(self) -> int:
        """Bytes that are still to be written, and what is needed after them."""
        return self.meter.left_bytes + self.further_bytes

    async def wait(self) -> None:
        """Return when all files are here. Raises what the hub raised; being cancelled stops this wait alone."""
        await asyncio.shield(self.task)


class Downloads:
    """The downloads of one server."""

    def __init__(
        self,
        files: ModelFiles,
        clock: Clock,
        *,
        connections: int = 4,
        min_free_bytes: int = 0,
        sleep: Sleep = anyio.sleep,
    ) -> None:
        """`connections`: at most so many files of one download come at a time."""
        self._files = files
        self._clock = clock
        self._connections = connections
        self._min_free_bytes = min_free_bytes
        self._sleep = sleep
        self._open: dict[str, Download] = {}

    @asynccontextmanager
    async def of(
        self, hub: Hub[Any], listing: Listing, wanted: Sequence[RemoteFile], *, further_bytes: int = 0
    ) -> AsyncIterator[Download]:
        """Start the download of `wanted`, or join the one that goes on; it stops when the last holder leaves.

        `further_bytes`: needed on the disk for what follows. Raises NotEnoughSpace before the first byte.
        """
        key = staging_key(listing, wanted)
        folder = await run_sync(self._files.staging, key)
        while (download := self._open.get(key)) is not None and download.is_leaving:
            await download.gone.wait()
        if download is None:
            meter = Meter(sum(file.size for file in wanted), self._clock)
            download = self._open[key] = Download(key=key, folder=folder, meter=meter, further_bytes=further_bytes)
            work = self._bring(hub, listing, wanted, download)
            download.task = asyncio.create_task(work, name="download")
        download.holders += 1
        try:
            yield download
        finally:
            download.holders -= 1
            if not download.holders:
                await self._stop(download)

    async def forget(self, download: Download) -> None:
        """Remove the staged files of a download that somebody has made a version of, if nobody else holds it."""
        if download.holders <= 1:
            download.is_leaving = True
            await to_the_end(self._files.unstage, download.key)

    async def _stop(self, download: Download) -> None:
        """Cancel what still runs and wait for it: whoever comes next must not find two writers."""
        download.is_leaving = True
        download.task.cancel()
        try:
            await asyncio.wait({download.task})
        finally:
            download.task.add_done_callback(lambda _: self._forget_open(download))
        if not download.task.cancelled() and (error := download.task.exception()) is not None:
            _log.debug("download_failed", problem=type(error).__name__)  # whoever waited has got it

    def _forget_open(self, download: Download) -> None:
        if self._open.get(download.key) is download:
            del self._open[download.key]
        download.gone.set()

    async def _bring(self, hub: Hub[Any], listing: Listing, wanted: Sequence[RemoteFile], download: Download) -> None:
        left = [file for file in wanted if not await self._is_here(hub, listing, file, download)]
        parts = [await run_sync(self._part_bytes, listing, file) for file in left]
        for file, part in zip(left, parts, strict=True):
            download.meter.place(file.path, part)
        await self._check_space(download)
        slots = asyncio.Semaphore(self._connections)

        async def bring(file: RemoteFile) -> None:
            async with slots:
                partial = await run_sync(self._files.partial, _identity(listing, file))
                digest = await fetch(hub, listing, file, partial, wanted, download.meter, self._sleep)
                await to_the_end(self._files.stage_partial, partial, digest, download.folder / file.path)
                download.digests[file.path] = digest

        try:
            async with asyncio.TaskGroup() as group:
                for file in sorted(left, key=lambda one: -one.size):
                    group.create_task(bring(file))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _is_here(self, hub: Hub[Any], listing: Listing, file: RemoteFile, download: Download) -> bool:
        """Say whether the file is staged, staging it from what this machine has."""
        staged = download.folder / file.path
        digest = await run_sync(_staged_digest, staged, file)
        known = file.sha256 if digest is None else None
        if known is not None and await run_sync(self._files.stage_blob, known, file.size, staged):
            digest = known
            download.reused_bytes += file.size
        if digest is None and (found := await hub.cached(listing, file)) is not None:
            digest = await run_sync(_foreign_digest, found, file)
            if digest is not None:
                await run_sync(self._files.stage_foreign, found, digest, staged)
                download.reused_bytes += file.size
        if digest is None:
            return False
        download.digests[file.path] = digest
        download.meter.place(file.path, file.size)
        return True

    def _part_bytes(self, listing: Listing, file: RemoteFile) -> int:
        partial = self._files.partial(_identity(listing, file))
        return min(partial.stat().st_size, file.size) if partial.exists() else 0

    async def _check_space(self, download: Download) -> None:
        """Raise NotEnoughSpace where this download, and those that go on beside it, would leave too little."""
        needed = download.needed_bytes
        beside = sum(other.needed_bytes for other in self._open.values() if other is not download)
        free = await run_sync(self._files.free)
        missing = needed + beside + self._min_free_bytes - free
        if missing <= 0:
            return
        raise NotEnoughSpace(
            f"{needed} bytes are needed, {free} are free; other downloads need {beside} of them, and "
            f"{self._min_free_bytes} are to stay free.",
            hint=f"Free {missing} bytes (delete versions that nothing uses), then pull again.",
            details={"needed_bytes": needed, "free_bytes": free, "missing_bytes": missing},
        )


def staging_key(listing: Listing, wanted: Sequence[RemoteFile]) -> str:
    """Return the name under which a download is staged: the same for the same files of the same commit."""
    source = digest_of({"source": source_document(listing.source)})
    return key_of(source, *sorted(f"{file.path}\0{_identity(listing, file)}" for file in wanted))


def _identity(listing: Listing, file: RemoteFile) -> str:
    return file.identity(digest_of({"source": source_document(listing.source)}))


def _staged_digest(staged: Path, file: RemoteFile) -> str | None:
    """Return the digest of a file that an earlier try finished; it was verified before it got its name."""
    try:
        if staged.stat().st_size != file.size:
            return None
    except FileNotFoundError:
        return None
    return file.sha256 or file_digest(staged.resolve())


def _foreign_digest(found: Path, file: RemoteFile) -> str | None:
    """Return the digest of another program's file if it is the announced one, else None."""
    digests = Digests(file)
    try:
        with found.open("rb") as content:
            while piece := content.read(2**20):
                digests.update(piece)
    except OSError:
        return None
    return digests.sha256 if digests.is_announced and digests.is_known else None
