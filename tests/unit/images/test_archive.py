"""Many pictures as one zip: whole whatever is missing, and made in bounded memory."""

import io
import json
import tracemalloc
import zipfile
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from serai.clock import ManualClock
from serai.images.archive import archive
from serai.images.model import Format, Picture
from serai.storage.blobs import Blobs, FileBlobs, MemoryBlobs, blob_path

pytestmark = pytest.mark.anyio
Told = tuple[Picture, Mapping[str, str]]
NOTHING: Mapping[str, str] = {}
AT = datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)


def made(number: int, digest: str, size: int, kind: Format = "png", at: datetime = AT) -> Picture:
    return Picture(
        id=f"img_{number}",
        owner_id="ada",
        job_id="job_1",
        position=number,
        model="m",
        version="1.0.0",
        decision={},
        prompt="گربه 🐱",
        negative_prompt="",
        settings={"width": 8, "height": 8, "seed": 0, "num_images": 3, "format": kind},
        seed=number,
        width=8,
        height=8,
        format=kind,
        digest=digest,
        size=size,
        thumb_digest="0" * 64,
        thumb_size=1,
        generation_ms=1,
        created_at=at,
        tags=("a",),
    )


async def each(*pictures: Picture, sources: Mapping[str, str] = NOTHING) -> AsyncIterator[Told]:
    for picture in pictures:
        yield picture, sources


async def stored(blobs: Blobs, number: int, data: bytes, kind: Format = "png", at: datetime = AT) -> Picture:
    blob = await blobs.put(data, max_bytes=2**30)
    return made(number, blob.digest, blob.size, kind, at)


def open_files(folder: Path) -> list[Path]:
    opened = [path.resolve() for path in Path("/proc/self/fd").iterdir()]
    return [path for path in opened if path.is_relative_to(folder)]


async def test_pictures_come_with_what_made_them() -> None:
    """Each lies under the day it was made on, beside its document; a program that knows zip reads all of it."""
    blobs = MemoryBlobs(clock=ManualClock())
    old = datetime(1970, 1, 1, tzinfo=UTC)
    pictures = [
        await stored(blobs, 1, b"one"),
        await stored(blobs, 2, b"two", "jpeg"),
        await stored(blobs, 3, b"", "webp", old),
    ]
    data = b"".join([piece async for piece in archive(each(*pictures, sources={"image_sha256": "a" * 64}), blobs)])
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        assert read.testzip() is None
        names = ["2026-01-02/img_1", "2026-01-02/img_2", "1970-01-01/img_3"]
        kinds = ["png", "jpg", "webp"]
        assert read.namelist() == [f"{n}.{k}" for n, kind in zip(names, kinds, strict=True) for k in (kind, "json")]
        assert [read.read(f"{n}.{k}") for n, k in zip(names, kinds, strict=True)] == [b"one", b"two", b""]
        told = json.loads(read.read("2026-01-02/img_1.json"))
        assert told == {
            "id": "img_1",
            "model": "m",
            "version": "1.0.0",
            "prompt": "گربه 🐱",
            "negative_prompt": "",
            "settings": {"width": 8, "height": 8, "seed": 1, "num_images": 1, "format": "png"},
            "seed": 1,
            "width": 8,
            "height": 8,
            "format": "png",
            "image_sha256": "a" * 64,
            "created_at": "2026-01-02T03:04:06+00:00",
            "tags": ["a"],
            "is_favourite": False,
        }
        assert read.getinfo("2026-01-02/img_1.png").date_time == (2026, 1, 2, 3, 4, 6)
        assert {one.compress_type for one in read.infolist()} == {zipfile.ZIP_STORED}


async def test_no_pictures_are_an_empty_archive() -> None:
    """It can be opened, and holds nothing."""
    data = b"".join([piece async for piece in archive(each(), MemoryBlobs(clock=ManualClock()))])
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        assert read.namelist() == []


async def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A blob that is gone, and one that was cut short on the disk, are named; the others are whole."""
    blobs = FileBlobs(tmp_path, clock=ManualClock())
    first, short, last = [await stored(blobs, number, bytes([number]) * 9) for number in (1, 2, 3)]
    blob_path(tmp_path, short.digest).write_bytes(b"22")
    pictures = each(first, made(7, "f" * 64, 9), short, last)
    data = b"".join([piece async for piece in archive(pictures, blobs)])
    with zipfile.ZipFile(io.BytesIO(data)) as read:
        assert read.testzip() is None
        assert [problem["id"] for problem in json.loads(read.read("errors.json"))] == ["img_7", "img_2"]
        assert "2026-01-02/img_7.png" not in read.namelist()
        assert (read.read("2026-01-02/img_1.png"), read.read("2026-01-02/img_3.png")) == (b"\1" * 9, b"\3" * 9)
        assert str(tmp_path) not in data.decode(errors="replace")


async def test_memory_is_bounded(tmp_path: Path) -> None:
    """64 MB go through in pieces of less than one."""
    blobs = FileBlobs(tmp_path, clock=ManualClock())
    picture = await stored(blobs, 1, bytes(32 * 2**20))
    again = made(2, picture.digest, picture.size)
    tracemalloc.start()
    try:
        sizes = [len(piece) async for piece in archive(each(picture, again), blobs)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(sizes) > 64 * 2**20
    assert max(sizes) <= 2 * 2**20
    assert peak < 8 * 2**20


async def test_a_reader_that_goes_away_leaves_nothing_open(tmp_path: Path) -> None:
    """Closing early closes the blob, and no warning follows."""
    blobs = FileBlobs(tmp_path, clock=ManualClock())
    picture = await stored(blobs, 1, bytes(8 * 2**20))
    pieces = archive(each(picture), blobs)
    assert await anext(pieces)
    await pieces.aclose()
    assert open_files(tmp_path) == []
