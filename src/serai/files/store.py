"""Files in the database. A file holds its blob; the owner's quota is checked in the same transaction."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from serai.audit import Actor, record
from serai.errors import NotFound, QuotaExceeded
from serai.storage import links
from serai.storage.blobs import Blob
from serai.storage.locks import hold
from serai.storage.tables.blobs import files


class FileNotFound(NotFound):
    code = "FILE_NOT_FOUND"
    default_hint = "GET /files lists yours."


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """An upload. `info` is what its content says of itself: width, height, duration_s and so on."""

    id: str
    owner_id: str
    digest: str
    name: str
    media_type: str
    size: int
    info: dict[str, Any]
    created_at: datetime

    @classmethod
    def from_row(cls, row: Row[Any]) -> "File":
        return cls(**row._mapping)

    def audited(self) -> dict[str, Any]:
        """Return what the audit log may show."""
        return {"owner_id": self.owner_id, "digest": self.digest, "media_type": self.media_type, "size": self.size}


def add(connection: Connection, file: File, quota: int, actor: Actor) -> File:
    """Insert `file`, whose blob is stored already. Raises QuotaExceeded, and then nothing holds the blob."""
    hold(connection, file.owner_id)  # parallel uploads of one owner must not pass together
    used = links.usage(connection, file.owner_id)
    if used + file.size > quota:
        raise over_quota(used, quota, file.size)
    links.record(connection, Blob(digest=file.digest, size=file.size), file.created_at)
    links.link(connection, holder=file.id, digest=file.digest, owner_id=file.owner_id)
    connection.execute(sa.insert(files).values({column.name: getattr(file, column.name) for column in files.c}))
    record(connection, actor, "files.add", "file", file.id, at=file.created_at, after=file.audited())
    return file


def over_quota(used: int, quota: int, asked: int) -> QuotaExceeded:
    """Return the error for `asked` more bytes where `used` of `quota` are taken."""
    return QuotaExceeded(
        f"This would take your files to {used + asked} of {quota} bytes.",
        hint="Remove files that are no longer needed, or ask an admin for a greater quota.",
        details={"used_bytes": used, "quota_bytes": quota, "asked_bytes": asked},
    )


def get(connection: Connection, file_id: str, owner_id: str | None) -> File:
    """Return the file; of `owner_id` alone unless that is None. Raises FileNotFound."""
    query = sa.select(files).where(files.c.id == file_id)
    if owner_id is not None:
        query = query.where(files.c.owner_id == owner_id)
    row = connection.execute(query).first()
    if row is None:
        raise FileNotFound("No such file.")
    return File.from_row(row)


def list_files(connection: Connection, *, owner_id: str | None, limit: int, after: str | None) -> list[File]:
    """Return at most `limit` files in the order of their ids, behind `after`; of one owner or of all."""
    query = sa.select(files).order_by(files.c.id).limit(limit)
    if owner_id is not None:
        query = query.where(files.c.owner_id == owner_id)
    if after is not None:
        query = query.where(files.c.id > after)
    return [File.from_row(row) for row in connection.execute(query)]


def remove(connection: Connection, file_id: str, owner_id: str | None, actor: Actor, at: datetime) -> None:
    """Remove the file; the collector removes its blob when nothing else holds it. Raises FileNotFound."""
    before = get(connection, file_id, owner_id)
    if connection.execute(sa.delete(files).where(files.c.id == file_id)).rowcount == 0:
        raise FileNotFound("No such file.")
    links.unlink(connection, file_id)
    record(connection, actor, "files.remove", "file", file_id, at=at, before=before.audited())
