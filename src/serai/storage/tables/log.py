"""The audit log: append-only (triggers refuse UPDATE and DELETE) and chained by hash."""

from sqlalchemy import BigInteger, Column, Index, Table, Text

from serai.storage.tables.base import Instant, metadata

audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Instant, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("object_kind", Text, nullable=False),
    Column("object_id", Text, nullable=False),
    Column("before", Text),  # canonical JSON: the very bytes that were hashed
    Column("after", Text),
    Column("address", Text),
    Column("request_id", Text),
    Column("prev_hash", Text, nullable=False),
    Column("hash", Text, nullable=False, unique=True),
    Index("ix_audit_object", "object_kind", "object_id", "seq"),
    Index("ix_audit_actor", "actor", "seq"),
    Index("ix_audit_at", "at"),
)
