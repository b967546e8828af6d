"""From what a model drew to what is kept of it: the file and the thumbnail, each a blob.

Pictures are encoded as they come, and stored together when all are there: no row names a blob before its job
ends, and what lies unnamed for long is collected.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
"""Pictures that are turned into files at the same time, each of them opened; the others wait as they came."""
WRITERS: Final = 8
"""Blobs that are written at the same time."""
PPM: Final = "image/x-portable-pixmap"

Size = tuple[int, int]
Document = Callable[[Size], Mapping[str, Any]]
"""Says what made a picture of a size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A picture as it is going to be kept."""

    size: Size
    file: bytes
    thumb: bytes


class Keeper:
    """Makes files and thumbnails in threads, and stores them."""

    def __init__(self, blobs: Blobs, decoder: Decoder) -> None:
        self._blobs = blobs
        self._decoder = decoder
        self._encoding = asyncio.Semaphore(ENCODERS)
        self._writing = asyncio.Semaphore(WRITERS)

    async def encode(self, picture: Media, used: Resolved, document: Document | None) -> Encoded:
        """Return what is to be stored of a picture. Raises WrongPictures."""
        try:
            async with self._encoding:
                is_raw = picture.media_type == PPM
                pixels = picture.data if is_raw else await self._decoder.image(picture.data)
                encoding = run_sync(_file_of, pixels, used, document)
                (size, file), thumb = await _side_by_side(encoding, run_sync(_thumb_of, pixels))
        except (InvalidInput, EngineFailed) as error:
            raise WrongPictures("The model made a picture that cannot be opened.") from error
        return Encoded(size=size, file=file, thumb=thumb)

    async def store(self, pictures: Sequence[Encoded]) -> list[tuple[Blob, Blob]]:
        """Return each picture's file and thumbnail, which are safe then. Raises DiskFull; none is put any more then.

        Side by side: most of the time is the disk's, which syncs some in little more than the time of one.
        """
        async with tasks() as putting:
            putting.extend(asyncio.create_task(self._put(data)) for one in pictures for data in (one.file, one.thumb))
            blobs: list[Blob] = await asyncio.gather(*putting)
        return list(zip(blobs[::2], blobs[1::2], strict=True))

    async def _put(self, data: bytes) -> Blob:
        async with self._writing:
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
