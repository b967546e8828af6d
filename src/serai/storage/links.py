"""Who holds which blob: store functions over `blobs` and `blob_links`, and the collector of the rest.

A row that needs a blob (a file, a finished job, a version) is written in one transaction with
`record` and a `link` under the row's own id as holder; `unlink` goes with the row's deletion. A blob
that was put must be recorded within the grace time, or the collector takes it for abandoned.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from serai.storage.blobs import Blob, BlobNotFound, Blobs
from serai.storage.database import Database
from serai.storage.tables import metadata
from serai.storage.tables.blobs import blob_links, blobs

_BATCH = 500


def record(connection: Connection, blob: Blob, now: datetime) -> None:
    """Write that `blob`, put a moment ago, exists; for a known one, that it was put again."""
    statement = _insert(connection, blobs).values(digest=blob.digest, size=blob.size, created_at=now)
    connection.execute(statement.on_conflict_do_update(index_elements=["digest"], set_={"created_at": now}))


def link(connection: Connection, *, holder: str, digest: str, owner_id: str) -> None:
    """Keep the recorded blob alive for the row `holder`, on the quota of `owner_id`; again changes nothing.

    Raises BlobNotFound for what is not recorded.
    """
    # The lock makes a collector that is about to forget the blob finish first, so that the answer holds.
    known = sa.select(blobs.c.size).where(blobs.c.digest == digest).with_for_update(read=True, key_share=True)
    size = connection.execute(known).scalar()
    if size is None:
        raise BlobNotFound("There is no such blob.", hint="Upload it again.")
    values = {"holder": holder, "digest": digest, "owner_id": owner_id, "size": size}
    connection.execute(_insert(connection, blob_links).values(values).on_conflict_do_nothing())


def unlink(connection: Connection, holder: str) -> int:
    """Let go of every blob that `holder` kept; returns how many those were."""
    return connection.execute(sa.delete(blob_links).where(blob_links.c.holder == holder)).rowcount


def usage(connection: Connection, owner_id: str) -> int:
    """Return the bytes that count against the quota of `owner_id`.

    A blob counts once for an owner, however many rows of theirs hold it, and in full for each owner
    that holds it: a quota neither shrinks nor tells because somebody else keeps the same picture.
    """
    held = sa.select(blob_links.c.digest, blob_links.c.size).where(blob_links.c.owner_id == owner_id).distinct()
    total = sa.select(sa.func.coalesce(sa.func.sum(held.subquery().c.size), 0))
    return int(connection.execute(total).scalar_one())


def check_held(connection: Connection, owner_id: str, digest: str) -> None:
    """Raise BlobNotFound unless a row of `owner_id` holds the blob: what exists for others does not exist."""
    held = sa.select(blob_links.c.digest).where(blob_links.c.owner_id == owner_id, blob_links.c.digest == digest)
    if connection.execute(held.limit(1)).first() is None:
        raise BlobNotFound("There is no such blob.", hint="Upload it with POST /files.")


def unreferenced(connection: Connection, before: datetime, limit: int = _BATCH) -> list[str]:
    """Return digests recorded before `before` that no row names, locked until the transaction ends."""
    found = sa.select(blobs.c.digest).where(_unnamed(before)).limit(limit).with_for_update(skip_locked=True)
    return list(connection.execute(found).scalars())


def forget_unreferenced(connection: Connection, before: datetime, limit: int = _BATCH) -> int:
    """Delete up to `limit` rows of blobs as `unreferenced` finds them; returns how many."""
    digests = unreferenced(connection, before, limit)
    # Asked again now that the rows are locked: a link may have been committed between look and lock.
    statement = sa.delete(blobs).where(blobs.c.digest.in_(digests), _unnamed(before))
    return connection.execute(statement).rowcount if digests else 0


def recorded(connection: Connection, digests: Sequence[str]) -> set[str]:
    """Return those of `digests` that are recorded."""
    return set(connection.execute(sa.select(blobs.c.digest).where(blobs.c.digest.in_(digests))).scalars())


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a run removed: rows of blobs, and blobs."""

    rows: int
    blobs: int


class Collector:
    """Removes the blobs that no row names, when they are older than a grace time.

    Several servers may run one at the same time. A blob that is put, or put again, while it runs
    stays; while a backup runs, all stay.
    """

    def __init__(self, database: Database, blobs: Blobs, *, grace_s: float) -> None:
        """`grace_s`: longer than from any put to the commit of the row that names it, servers' clocks included."""
        self._database = database
        self._blobs = blobs
        self._grace = timedelta(seconds=grace_s)

    async def run(self, now: datetime) -> Collected:
        """Remove what is to be removed now."""
        before = now - self._grace
        rows = 0
        while gone := await self._database.run(forget_unreferenced, before):
            rows += gone
        removed = await self._blobs.sweep(before, lambda digests: self._database.read_sync(recorded, digests))
        return Collected(rows=rows, blobs=removed)


def _insert(connection: Connection, table: sa.Table) -> postgresql.Insert | sqlite.Insert:
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _unnamed(before: datetime) -> sa.ColumnElement[bool]:
    """Recorded before `before`, and named by no column of any table that points to blobs."""
    naming = [key.parent for table in metadata.tables.values() for key in table.foreign_keys if key.references(blobs)]
    return sa.and_(blobs.c.created_at < before, *(~sa.exists().where(column == blobs.c.digest) for column in naming))
