"""Chats that the server keeps: sessions, and their messages, which are only ever added."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Float, ForeignKey, Index, Integer, Table, Text

from serai.storage.tables.base import Instant, Json, metadata

chat_sessions = Table(
    "chat_sessions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner_id", Text, nullable=False),
    Column("model", Text),
    Column("service", Text),
    Column("options", Json, nullable=False),  # fields of sampling that hold for every message
    Column("max_history", Integer, nullable=False),
    Column("ttl_s", Float, nullable=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("claim", Text),  # whose message is being answered
    Column("claim_until", Instant),  # a server that died holds it no longer
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("expires_at", Instant, nullable=False),
    CheckConstraint("max_history > 0", name="max_history"),
    CheckConstraint("(claim IS NULL) = (claim_until IS NULL)", name="claim"),
    Index("ix_chat_sessions_owner_id", "owner_id", "id"),
    Index("ix_chat_sessions_expires_at", "expires_at"),
)

chat_messages = Table(
    "chat_messages",
    metadata,
    Column("session_id", Text, ForeignKey("chat_sessions.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("message", Json, nullable=False),  # in OpenAI's form
    Column("created_at", Instant, nullable=False),
)
