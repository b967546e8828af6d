"""From what a model drew to what is kept of it: the file and the thumbnail, each a blob."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from anyio.to_thread import run_sync

from serai.decode.decoder import DecodedImage, Decoder
from serai.errors import EngineFailed, InvalidInput
from serai.events import Media
from serai.images.errors import WrongPictures
from serai.images.plan import Resolved
from serai.storage.blobs import Blob, Blobs

T = TypeVar("T")
U = TypeVar("U")

ENCODERS: Final = 2
"""Pictures that are turned into files at the same time: so many are in memory as pixels."""
PPM: Final = "image/x-portable-pixmap"

Size = tuple[int, int]
Document = Callable[[Size], Mapping[str, Any]]
"""Says what made a picture of a size."""


class Keeper:
    """Makes files and thumbnails in threads, and stores them."""

    def __init__(self, blobs: Blobs, decoder: Decoder) -> None:
        self._blobs = blobs
        self._decoder = decoder
        self._encoding = asyncio.Semaphore(ENCODERS)

    async def keep(self, picture: Media, used: Resolved, document: Document | None) -> tuple[Size, Blob, Blob]:
        """Return the size, the file and the thumbnail, which are safe then. Raises WrongPictures, DiskFull."""
        try:
            async with self._encoding:
                is_raw = picture.media_type == PPM
                pixels = picture.data if is_raw else await self._decoder.image(picture.data)
                encoding = run_sync(_file_of, pixels, used, document)
                (size, file), thumb = await _side_by_side(encoding, run_sync(_thumb_of, pixels))
                del pixels
        except (InvalidInput, EngineFailed) as error:
            raise WrongPictures("The model made a picture that cannot be opened.") from error
        # Most of the time is the disk's, which syncs two in little more than the time of one.
        blobs = await _side_by_side(self._put(file), self._put(thumb))
        return size, *blobs

    async def _put(self, data: bytes) -> Blob:
        return await self._blobs.put(data, max_bytes=len(data))


@asynccontextmanager
async def tasks() -> AsyncIterator[list["asyncio.Task[Any]"]]:
    """Give a list for tasks, none of which outlives the block."""
    found: list[asyncio.Task[Any]] = []
    try:
        yield found
    finally:
        for task in found:
            task.cancel()
        await asyncio.gather(*found, return_exceptions=True)


async def _side_by_side(one: Coroutine[Any, Any, T], other: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """Return what both return; neither goes on when one has failed."""
    async with tasks() as found:
        first, second = asyncio.create_task(one), asyncio.create_task(other)
        found.extend((first, second))
        return await asyncio.gather(first, second)


def _file_of(pixels: bytes | DecodedImage, used: Resolved, document: Document | None) -> tuple[Size, bytes]:
    from serai.images.pixels import file_of  # the server starts without Pillow

    return file_of(pixels, format=used.format, quality=used.quality, document=document)


def _thumb_of(pixels: bytes | DecodedImage) -> bytes:
    from serai.images.pixels import thumb_of  # the same

    return thumb_of(pixels)
