"""The blobs seam: one suite, on files and in memory; then what only files promise."""

import asyncio
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

import anyio
import pytest
from blockbuster import blockbuster_ctx

from serai.clock import ManualClock
from serai.errors import DiskFull, InvalidInput, TooLarge
from serai.storage.blobs import BlobNotFound, Blobs, FileBlobs, MemoryBlobs, blob_path, incoming_path, keep_all

pytestmark = pytest.mark.anyio
MIB = 2**20
DATA = bytes(range(256)) * 5000  # 1.2 MiB: more than one piece
ABSENT = "0" * 64


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["files", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> Blobs:
    return FileBlobs(tmp_path / "blobs", clock=clock) if request.param == "files" else MemoryBlobs(clock=clock)


@pytest.fixture
def files(tmp_path: Path, clock: ManualClock) -> FileBlobs:
    return FileBlobs(tmp_path / "blobs", clock=clock)


def stored(folder: Path) -> list[str]:
    """Return every file that lies under the blobs' folder, locks apart."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def digest_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


async def chunks_of(data: bytes, size: int = 7919) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def read_all(blobs: Blobs, digest: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in blobs.read(digest, start=start, end=end)])


def none_is_named(_: Sequence[str]) -> set[str]:
    return set()


@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=["empty", "one", "many"])
@pytest.mark.parametrize("whole", [True, False], ids=["bytes", "chunks"])
async def test_what_was_put_is_read(blobs: Blobs, data: bytes, whole: bool) -> None:
    """A blob is named by its SHA-256 and gives its bytes back by every way of reading."""
    blob = await blobs.put(data if whole else chunks_of(data), max_bytes=len(data))
    assert (blob.digest, blob.size) == (digest_of(data), len(data))
    assert await read_all(blobs, blob.digest) == data
    with await blobs.open(blob.digest) as file:
        assert os.fstat(file.fileno()).st_size == len(data)
        assert await anyio.to_thread.run_sync(file.read) == data
    assert await blobs.size(blob.digest) == len(data)
    assert await blobs.verify(blob.digest)


@pytest.mark.parametrize(
    ("start", "end"), [(0, 0), (0, 1), (5, 5), (255, 300_000), (len(DATA) - 1, None), (len(DATA), None), (2**40, None)]
)
async def test_a_range_is_read(blobs: Blobs, start: int, end: int | None) -> None:
    """A range gives exactly its bytes; beyond the end there are none."""
    blob = await blobs.put(DATA, max_bytes=MIB * 2)
    assert await read_all(blobs, blob.digest, start, end) == DATA[start:end]


@pytest.mark.parametrize(("start", "end"), [(-1, None), (5, 4), (0, -1)])
async def test_a_range_that_is_none_is_refused(blobs: Blobs, start: int, end: int | None) -> None:
    """Negative and reversed ranges are the caller's error."""
    blob = await blobs.put(b"data", max_bytes=4)
    with pytest.raises(InvalidInput):
        await read_all(blobs, blob.digest, start, end)


async def test_what_is_missing_is_not_found(blobs: Blobs) -> None:
    """Reading what is not there says so; asking for its size and deleting it do not fail."""
    for ask in (lambda: read_all(blobs, ABSENT), lambda: blobs.open(ABSENT), lambda: blobs.verify(ABSENT)):
        with pytest.raises(BlobNotFound):
            await ask()
    assert await blobs.size(ABSENT) is None
    await blobs.delete(ABSENT)


@pytest.mark.parametrize(
    "digest", ["", "../" * 21 + "x", "A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "sha256-" + "0" * 57, "٠" * 64]
)
async def test_a_malformed_digest_is_refused(blobs: Blobs, digest: str) -> None:
    """Only 64 lower-case hexadecimal digits ever reach the disk."""
    for ask in (read_all(blobs, digest), blobs.open(digest), blobs.verify(digest), blobs.size(digest)):
        with pytest.raises(InvalidInput):
            await ask
    with pytest.raises(InvalidInput):
        await blobs.delete(digest)


@pytest.mark.parametrize("whole", [True, False], ids=["bytes", "chunks"])
async def test_too_large_leaves_nothing(blobs: Blobs, tmp_path: Path, whole: bool) -> None:
    """One byte over the bound is refused, and nothing of it stays."""
    with pytest.raises(TooLarge):
        await blobs.put(DATA if whole else chunks_of(DATA), max_bytes=len(DATA) - 1)
    assert await blobs.size(digest_of(DATA)) is None
    assert stored(tmp_path) == []


async def test_an_endless_upload_is_stopped_at_the_bound(blobs: Blobs) -> None:
    """The bound holds while the bytes come, not only when they end."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 65536
            yield bytes(65536)

    with pytest.raises(TooLarge):
        await blobs.put(endless(), max_bytes=MIB)
    assert sent <= 3 * MIB


async def test_a_client_that_goes_away_leaves_nothing(blobs: Blobs, tmp_path: Path) -> None:
    """An error in the middle of the chunks reaches the caller and nothing stays."""

    async def cut() -> AsyncIterator[bytes]:
        yield DATA
        yield DATA
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await blobs.put(cut(), max_bytes=8 * MIB)
    assert stored(tmp_path) == []


async def test_a_cancelled_put_leaves_nothing(blobs: Blobs, tmp_path: Path) -> None:
    """Cancelling a task in the middle of an upload removes what had come."""
    begun = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield DATA
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(blobs.put(stalled(), max_bytes=8 * MIB))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert stored(tmp_path) == []


async def test_a_full_store_takes_nothing(tmp_path: Path, clock: ManualClock) -> None:
    """Where the space is needed for other things a put is refused, and what was there stays."""
    for blobs in (
        FileBlobs(tmp_path / "blobs", clock=clock, min_free_bytes=2**62),
        MemoryBlobs(clock=clock, capacity_bytes=len(DATA) - 1),
    ):
        with pytest.raises(DiskFull):
            await blobs.put(chunks_of(DATA), max_bytes=8 * MIB)
    assert stored(tmp_path) == []


async def test_equal_content_is_kept_once(blobs: Blobs) -> None:
    """Twenty puts of the same bytes at the same time are one blob."""
    put = await asyncio.gather(*(blobs.put(chunks_of(DATA), max_bytes=8 * MIB) for _ in range(20)))
    assert len({blob.digest for blob in put}) == 1
    assert await blobs.sweep(ManualClock().now() + timedelta(days=1), none_is_named) == 1


async def test_a_deleted_blob_is_gone_but_read_to_its_end(blobs: Blobs) -> None:
    """Who opened a blob before it was deleted reads all of it; who comes later finds none."""
    blob = await blobs.put(DATA, max_bytes=8 * MIB)
    reading = blobs.read(blob.digest)
    first = await anext(reading)
    file = await blobs.open(blob.digest)
    await blobs.delete(blob.digest)
    assert first + b"".join([piece async for piece in reading]) == DATA
    with file:
        assert await anyio.to_thread.run_sync(file.read) == DATA
    with pytest.raises(BlobNotFound):
        await read_all(blobs, blob.digest)


async def test_a_sweep_removes_what_is_old_and_unnamed(blobs: Blobs, clock: ManualClock) -> None:
    """Age and a name each save a blob; only what has neither goes."""
    named, unnamed = [await blobs.put(data, max_bytes=9) for data in (b"named", b"unnamed")]
    clock.advance(10)
    moment = clock.now()
    young = await blobs.put(b"young", max_bytes=9)
    asked: list[str] = []

    def ask(digests: Sequence[str]) -> set[str]:
        asked.extend(digests)
        return {named.digest}

    assert await blobs.sweep(moment, ask) == 1
    assert [await blobs.size(blob.digest) for blob in (named, unnamed, young)] == [5, None, 5]
    assert set(asked) == {named.digest, unnamed.digest}


async def test_a_put_while_a_sweep_decides_is_safe(blobs: Blobs, clock: ManualClock) -> None:
    """A blob that is put again after the sweep asked who names it, and before it removes, stays."""
    old = await blobs.put(b"again", max_bytes=9)
    clock.advance(10)
    asking, answer = threading.Event(), threading.Event()

    def ask(_: Sequence[str]) -> set[str]:
        asking.set()
        assert answer.wait(10)
        return set()

    sweep = asyncio.create_task(blobs.sweep(clock.now(), ask))
    await anyio.to_thread.run_sync(asking.wait, 10)
    assert await blobs.put(b"again", max_bytes=9) == old
    answer.set()
    assert await sweep == 0
    assert await read_all(blobs, old.digest) == b"again"


async def test_the_event_loop_never_waits_for_the_disk(blobs: Blobs) -> None:
    """No method does file work on the event loop's thread."""
    with blockbuster_ctx():
        blob = await blobs.put(chunks_of(DATA), max_bytes=8 * MIB)
        async for _ in blobs.read(blob.digest):
            pass
        (await blobs.open(blob.digest)).close()
        await blobs.size(blob.digest)
        await blobs.verify(blob.digest)
        await blobs.sweep(ManualClock().now(), none_is_named)
        await blobs.delete(blob.digest)
        with pytest.raises(TooLarge):
            await blobs.put(DATA, max_bytes=1)


async def test_files_are_private_and_lie_under_their_digest(files: FileBlobs, tmp_path: Path) -> None:
    """A blob is the file ab/abcd… with mode 0600 in folders of mode 0700."""
    blob = await files.put(b"data", max_bytes=9)
    path = blob_path(tmp_path / "blobs", blob.digest)
    assert path.relative_to(tmp_path / "blobs").parts == (blob.digest[:2], blob.digest)
    assert path.stat().st_mode & 0o777 == 0o600
    assert {folder.stat().st_mode & 0o777 for folder in (path.parent, tmp_path / "blobs")} == {0o700}


async def test_rot_is_found_and_healed(files: FileBlobs, tmp_path: Path) -> None:
    """A blob whose bytes changed on the disk fails verify; putting the right bytes again repairs it."""
    blob = await files.put(DATA, max_bytes=8 * MIB)
    with blob_path(tmp_path / "blobs", blob.digest).open("r+b") as file:
        file.seek(1000)
        file.write(b"rot")
    assert not await files.verify(blob.digest)
    await files.put(DATA, max_bytes=8 * MIB)
    assert await files.verify(blob.digest)


async def test_a_link_in_a_blobs_place_is_not_followed(files: FileBlobs, tmp_path: Path) -> None:
    """A symbolic link under a digest's name gives away nothing."""
    blob = await files.put(b"data", max_bytes=9)
    path = blob_path(tmp_path / "blobs", blob.digest)
    (tmp_path / "secret").write_bytes(b"secret")
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic link"):
        await read_all(files, blob.digest)


async def test_stale_uploads_are_swept_and_running_ones_are_not(files: FileBlobs, tmp_path: Path) -> None:
    """What a killed server left under a temporary name goes when it is old; an upload that goes on stays."""
    stale, running = (incoming_path(tmp_path / "blobs") for _ in range(2))
    for path in (stale, running):
        path.write_bytes(b"half")
    os.utime(stale, (0, 0))
    assert await files.sweep(ManualClock().now(), none_is_named) == 0
    assert (stale.exists(), running.exists()) == (False, True)


async def test_nothing_is_swept_while_a_backup_holds_the_folder(
    files: FileBlobs, tmp_path: Path, clock: ManualClock
) -> None:
    """A sweep that meets a backup leaves everything for the next one; puts go on."""
    blob = await files.put(b"data", max_bytes=9)
    clock.advance(10)
    with keep_all(tmp_path / "blobs"):
        assert await files.sweep(clock.now(), none_is_named) == 0
        await files.put(b"more", max_bytes=9)
    assert await files.size(blob.digest) == 4
    assert await files.sweep(clock.now(), none_is_named) == 1
