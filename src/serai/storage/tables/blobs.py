"""Blobs by digest, who holds them, and the files that users uploaded."""

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Table, Text

from serai.storage.tables.base import Instant, Json, metadata

blobs = Table(
    "blobs",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("size", BigInteger, nullable=False),
    Column("created_at", Instant, nullable=False),
    CheckConstraint("size >= 0", name="size"),
    Index("ix_blobs_created_at", "created_at"),
)

# What keeps a blob alive. `holder` is the id of the row that names it (a file, a job, a version);
# `owner_id` is whose quota it counts against.
blob_links = Table(
    "blob_links",
    metadata,
    Column("holder", Text, primary_key=True),
    Column("digest", Text, ForeignKey("blobs.digest"), primary_key=True),
    Column("owner_id", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Index("ix_blob_links_digest", "digest"),
    Index("ix_blob_links_owner_id", "owner_id"),
)

files = Table(
    "files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner_id", Text, nullable=False),
    Column("digest", Text, ForeignKey("blobs.digest"), nullable=False),
    Column("name", Text, nullable=False),
    Column("media_type", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("info", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Index("ix_files_owner_id", "owner_id", "id"),
    Index("ix_files_digest", "digest"),
)
