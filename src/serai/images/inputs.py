"""Pictures that a caller gave: from what was uploaded to the array that a model starts from.

A request names a file of its owner's by its id, or a blob that they hold by its digest. A blob is held by the
jobs that start from it: it is there as long as one of them, and counts against its owner's quota.

A small file may hold a large picture. So it is opened when the task of a model is made, no larger than that
needs it, and let go at once.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from anyio.to_thread import run_sync

from serai.decode.decoder import DecodedImage, Decoder
from serai.engines.tasks import Array
from serai.files import store as files_store
from serai.images.model import ImageRequest
from serai.images.room import check_room
from serai.jobs.model import Job
from serai.storage import links
from serai.storage.blobs import Blob, Blobs
from serai.storage.database import Connection, Database
from serai.storage.locks import hold

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a request starts from: the digests of its files, None where it names nothing."""

    image: str | None
    mask: str | None
    blobs: Blobs
    decoder: Decoder

    def document(self) -> dict[str, str]:
        """Return what is told of them where a picture's making is told."""
        told = {"image_sha256": self.image, "mask_sha256": self.mask}
        return {name: digest for name, digest in told.items() if digest is not None}

    async def opened(self, digest: str, *, max_side: int) -> DecodedImage:
        """Return one of them, reduced to this. Raises BlobNotFound, and what the decoder finds wrong."""
        with await self.blobs.open(digest) as content:
            return await self.decoder.image(content, max_side=max_side)


async def find_inputs(
    asked: ImageRequest, owner_id: str, *, database: Database, blobs: Blobs, decoder: Decoder
) -> Inputs:
    """Return what a request starts from, unopened. Raises FileNotFound or BlobNotFound for what is not the owner's."""

    async def found(named: str | None) -> str | None:
        return None if named is None else await database.read(digest_of, named, owner_id)

    return Inputs(image=await found(asked.image), mask=await found(asked.mask), blobs=blobs, decoder=decoder)


def digest_of(connection: Connection, named: str, owner_id: str) -> str:
    """Return the digest of an owner's file, named by its id or by that. Raises FileNotFound, BlobNotFound."""
    if not is_digest(named):
        return files_store.get(connection, named, owner_id).digest
    links.check_held(connection, owner_id, named)
    return named


async def array_in(size: tuple[int, int], decoded: DecodedImage, mode: Literal["RGB", "L"]) -> Array:
    """Return a picture in this size, uint8: height × width × 3, or height × width in grey."""
    return await run_sync(_array, decoded, size, mode)


def _array(decoded: DecodedImage, size: tuple[int, int], mode: Literal["RGB", "L"]) -> Array:
    from serai.images.pixels import array_of  # the server starts without Pillow

    return array_of(decoded, size, mode)


def is_digest(named: str) -> bool:
    """Say whether a request names a blob by this, and not a file."""
    return _DIGEST.fullmatch(named) is not None


def hold_inputs(connection: Connection, job: Job, usual: int, at: datetime, new: Collection[Blob] = ()) -> None:
    """Have a job hold the blobs that it names: in the transaction that stores it.

    `new`: those that were put for it a moment ago; `usual`: what an owner may keep who has no quota of their
    own. Raises QuotaExceeded, and BlobNotFound for one that is gone.
    """
    asked = ImageRequest.of(job.payload)
    if new:
        hold(connection, job.owner_id)  # jobs of one owner must not pass the quota together
        check_room(connection, job.owner_id, usual, set(new))
    for blob in new:
        links.record(connection, blob, at)
    for named in (asked.image, asked.mask):
        if named is not None and is_digest(named):
            links.link(connection, holder=job.id, digest=named, owner_id=job.owner_id)
