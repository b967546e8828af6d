"""Room for pictures: whether their owner may keep so much."""

from collections.abc import Collection

from serai.auth import store as auth_store
from serai.files.store import over_quota
from serai.storage import links
from serai.storage.blobs import Blob, BlobNotFound
from serai.storage.database import Connection


def check_room(connection: Connection, owner_id: str, usual: int, new: Collection[Blob] = ()) -> None:
    """Raise QuotaExceeded where the owner has no room for these blobs; without any, for a single byte.

    `usual`: what a user may keep who has no quota of their own.
    """
    asked = sum(blob.size for blob in new if not _is_held(connection, owner_id, blob)) if new else 1
    used, quota = links.usage(connection, owner_id), _quota(connection, owner_id, usual)
    if asked and used + asked > quota:
        raise over_quota(used, quota, asked)


def _quota(connection: Connection, owner_id: str, usual: int) -> int:
    """Return what a user may keep."""
    try:
        own = auth_store.get_user(connection, owner_id).disk_quota_bytes
    except auth_store.UserNotFound:  # where nobody is asked who they are
        return usual
    return usual if own is None else own


def _is_held(connection: Connection, owner_id: str, blob: Blob) -> bool:
    try:
        links.check_held(connection, owner_id, blob.digest)
    except BlobNotFound:
        return False
    return True
