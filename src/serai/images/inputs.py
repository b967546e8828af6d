"""Pictures that a caller gave: from what was uploaded to the array that a model starts from.

A request names a file of its owner's by its id, or a blob that they hold by its digest. A blob is held by the
jobs that start from it: it is there as long as one of them, and counts against its owner's quota.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from anyio.to_thread import run_sync

from serai.decode.decoder import DecodedImage, Decoder
from serai.engines.tasks import Array
from serai.files import store as files_store
from serai.images.model import MAX_SIDE, ImageRequest
from serai.images.room import check_room
from serai.jobs.model import Job
from serai.storage import links
from serai.storage.blobs import Blob, Blobs
from serai.storage.database import Connection, Database
from serai.storage.locks import hold

_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a request starts from, decoded; None where it names nothing. The digests are those of the files."""

    image: DecodedImage | None = None
    mask: DecodedImage | None = None
    image_digest: str | None = None
    mask_digest: str | None = None

    @property
    def size(self) -> tuple[int, int] | None:
        return None if self.image is None else (self.image.width, self.image.height)

    def document(self) -> dict[str, str]:
        """Return what is told of them where a picture's making is told."""
        told = {"image_sha256": self.image_digest, "mask_sha256": self.mask_digest}
        return {name: digest for name, digest in told.items() if digest is not None}

    async def arrays(self, width: int, height: int) -> tuple[Array | None, Array | None]:
        """Return picture (height × width × 3) and mask (height × width) in this size, uint8."""
        if self.image is None and self.mask is None:
            return None, None
        return await run_sync(self._arrays, (width, height))

    def _arrays(self, size: tuple[int, int]) -> tuple[Array | None, Array | None]:
        from serai.images.pixels import array_of  # the server starts without Pillow

        image = None if self.image is None else array_of(self.image, size, "RGB")
        return image, None if self.mask is None else array_of(self.mask, size, "L")


async def read_inputs(
    asked: ImageRequest, owner_id: str, *, database: Database, blobs: Blobs, decoder: Decoder
) -> Inputs:
    """Return what a request starts from.

    Raises FileNotFound for what is not the owner's, BlobNotFound, and what the decoder finds wrong.
    """

    async def opened(named: str | None) -> tuple[DecodedImage | None, str | None]:
        if named is None:
            return None, None
        digest = await database.read(_digest_of, named, owner_id)
        with await blobs.open(digest) as content:
            return await decoder.image(content, max_side=MAX_SIDE), digest

    image, image_digest = await opened(asked.image)
    mask, mask_digest = await opened(asked.mask)
    return Inputs(image=image, mask=mask, image_digest=image_digest, mask_digest=mask_digest)


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


def _digest_of(connection: Connection, named: str, owner_id: str) -> str:
    if not is_digest(named):
        return files_store.get(connection, named, owner_id).digest
    links.check_held(connection, owner_id, named)
    return named
