"""What pictures began with: uploads of their owners, which may be gone before them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from sqlalchemy.engine import Connection

from serai.files.store import FileNotFound
from serai.images.inputs import digest_of
from serai.images.model import Picture
from serai.jobs import store as jobs_store
from serai.jobs.model import JobNotFound
from serai.storage.blobs import BlobNotFound

_FIELDS: Final = ("image", "mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """What a picture began with; nothing, if from words alone."""

    named: Mapping[str, str]
    """`image` and `mask` as its request named them: the id of a file, or a digest."""
    digests: Mapping[str, str]
    """`image_sha256` and `mask_sha256`."""


def sources_of(connection: Connection, picture: Picture) -> Sources | None:
    """Return what the picture began with; None where that, or the job that named it, is there no more.

    Without its job, a picture that an editing model made without a strength is not known from one of words alone.
    """
    owner = picture.owner_id
    try:
        payload = jobs_store.get(connection, picture.job_id, owner_id=owner).payload
    except JobNotFound:  # its time was over before the picture's
        return None if "strength" in picture.settings else Sources(named={}, digests={})
    named = {field: payload[field] for field in _FIELDS if payload.get(field) is not None}
    try:
        digests = {f"{field}_sha256": digest_of(connection, one, owner) for field, one in named.items()}
    except (FileNotFound, BlobNotFound):
        return None
    return Sources(named=named, digests=digests)
