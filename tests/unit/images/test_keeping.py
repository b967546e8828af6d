"""A picture becomes a file and a thumbnail; all of a job become blobs together, or none of them is told."""

import asyncio
import hashlib
from collections.abc import AsyncIterable

import pytest

from serai.clock import SystemClock
from serai.decode.decoder import Decoder
from serai.errors import DiskFull
from serai.events import Media
from serai.images.errors import WrongPictures
from serai.images.keeping import WRITERS, Keeper
from serai.images.plan import Resolved
from serai.storage.blobs import Blob, MemoryBlobs
from support.embedded import read_embedded

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
    """Blobs that are safe only when so many are on their way; it counts them."""

    def __init__(self, parties: int) -> None:
        super().__init__(clock=SystemClock())
        self._all = asyncio.Barrier(parties)
        self.under_way = self.most = 0

    async def put(self, chunks: AsyncIterable[bytes] | bytes, *, max_bytes: int) -> Blob:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        async with asyncio.timeout(60):
            await self._all.wait()
        self.under_way -= 1
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


async def contents(blobs: MemoryBlobs, *stored: Blob) -> list[bytes]:
    return [b"".join([piece async for piece in blobs.read(one.digest)]) for one in stored]


async def test_a_picture_is_stored_as_it_was_encoded() -> None:
    """File and thumbnail, neither of which waits for the other; each is what its blob's digest says."""
    blobs = Meeting(2)
    keeper = Keeper(blobs, Decoder())
    encoded = await keeper.encode(a_picture(), USED, lambda size: {"width": size[0]})
    assert encoded.size == (2, 1)
    ((file, thumb),) = await keeper.store([encoded])
    data = await contents(blobs, file, thumb)
    assert data == [encoded.file, encoded.thumb]
    assert read_embedded(data[0]) == {"width": 2}
    assert data[1].startswith(b"RIFF")
    assert [hashlib.sha256(one).hexdigest() for one in data] == [file.digest, thumb.digest]


async def test_pictures_are_stored_side_by_side_up_to_a_number() -> None:
    """Eight blobs are on their way at once, and no more; each picture gets its own."""
    blobs = Meeting(WRITERS)
    keeper = Keeper(blobs, Decoder())
    pictures = [a_picture(b"P6\n1 1\n255\n" + bytes([number, 0, 0])) for number in range(WRITERS)]
    encoded = [await keeper.encode(picture, USED, None) for picture in pictures]
    stored = await keeper.store(encoded)
    assert [await contents(blobs, *pair) for pair in stored] == [[one.file, one.thumb] for one in encoded]
    assert (WRITERS, blobs.most) == (8, 8)


async def test_what_is_no_picture_is_the_models_failure() -> None:
    """And nothing is stored of it."""
    with pytest.raises(WrongPictures):
        await Keeper(Full(), Decoder()).encode(a_picture(b"P6 nonsense"), USED, None)


async def test_a_full_disk_is_told_as_it_is() -> None:
    """It is not the model's failure, and the other blob is not waited for."""
    blobs = Full()
    keeper = Keeper(blobs, Decoder())
    with pytest.raises(DiskFull):
        await keeper.store([await keeper.encode(a_picture(), USED, None)])
    assert blobs.has_stopped.is_set()
