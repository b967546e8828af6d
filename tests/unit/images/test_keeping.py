"""A picture becomes two blobs, or none of it is told."""

import asyncio
import hashlib
from collections.abc import AsyncIterable

import pytest

from serai.clock import SystemClock
from serai.decode.decoder import Decoder
from serai.errors import DiskFull
from serai.events import Media
from serai.images.errors import WrongPictures
from serai.images.keeping import Keeper
from serai.images.metadata import read_embedded
from serai.images.plan import Resolved
from serai.storage.blobs import Blob, MemoryBlobs

pytestmark = pytest.mark.anyio

USED = Resolved(
    width=2,
    height=1,
    images=1,
    steps=1,
    guidance_scale=1.0,
    seed=0,
    max_sequence_length=None,
    strength=None,
    adapters=(),
    chooses_adapters=False,
    format="png",
    quality=None,
    reproducible=True,
    previews=0,
    steps_made=1,
)


def a_picture(data: bytes = b"P6\n2 1\n255\n" + bytes([255, 0, 0, 0, 0, 255])) -> Media:
    return Media(name="picture", media_type="image/x-portable-pixmap", data=data, index=0)


class Meeting(MemoryBlobs):
    """Blobs that are safe only when a second one is on its way."""

    def __init__(self) -> None:
        super().__init__(clock=SystemClock())
        self._both = asyncio.Barrier(2)

    async def put(self, chunks: AsyncIterable[bytes] | bytes, *, max_bytes: int) -> Blob:
        async with asyncio.timeout(60):
            await self._both.wait()
        return await super().put(chunks, max_bytes=max_bytes)


class Full(MemoryBlobs):
    """Takes no thumbnail, and takes for ever with a file."""

    def __init__(self) -> None:
        super().__init__(clock=SystemClock())
        self.has_stopped = asyncio.Event()

    async def put(self, chunks: AsyncIterable[bytes] | bytes, *, max_bytes: int) -> Blob:
        assert isinstance(chunks, bytes)
        if chunks.startswith(b"RIFF"):
            raise DiskFull("The disk is full.")
        try:
            await asyncio.Event().wait()
        finally:
            self.has_stopped.set()
        raise AssertionError("nobody sets that event")


async def test_the_file_and_the_thumbnail_are_stored_side_by_side() -> None:
    """Neither waits for the other to be safe; each is what its blob's digest says."""
    blobs = Meeting()
    size, file, thumb = await Keeper(blobs, Decoder()).keep(a_picture(), USED, lambda size: {"width": size[0]})
    contents = [b"".join([piece async for piece in blobs.read(one.digest)]) for one in (file, thumb)]
    assert size == (2, 1)
    assert read_embedded(contents[0]) == {"width": 2}
    assert contents[1].startswith(b"RIFF")
    assert [hashlib.sha256(one).hexdigest() for one in contents] == [file.digest, thumb.digest]


async def test_what_is_no_picture_is_the_models_failure() -> None:
    """And nothing is stored of it."""
    with pytest.raises(WrongPictures):
        await Keeper(Full(), Decoder()).keep(a_picture(b"P6 nonsense"), USED, None)


async def test_a_full_disk_is_told_as_it_is() -> None:
    """It is not the model's failure, and the other blob is not waited for."""
    blobs = Full()
    with pytest.raises(DiskFull):
        await Keeper(blobs, Decoder()).keep(a_picture(), USED, None)
    assert blobs.has_stopped.is_set()
