"""Users, their API keys, and the encrypted secrets of the server."""

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Integer, LargeBinary, Table, Text

from serai.storage.tables.base import Instant, Json, metadata

users = Table(
    "users",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("password_hash", Text),
    Column("token_epoch", Integer, nullable=False),  # raised to make all earlier tokens of the user invalid
    Column("disk_quota_bytes", BigInteger),
    Column("disabled_at", Instant),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("created_by", Text, nullable=False),
    CheckConstraint("role IN ('viewer', 'user', 'moderator', 'admin')", name="role"),
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("user_id", Text, ForeignKey("users.id", ondelete="CASCADE"), nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False, unique=True),  # SHA-256 of the key, which has 256 random bits
    Column("prefix", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("scopes", Json, nullable=False),
    Column("limit_per_minute", Integer),
    Column("limit_per_hour", Integer),
    Column("limit_tokens_per_minute", Integer),
    Column("expires_at", Instant),
    Column("revoked_at", Instant),
    Column("last_used_at", Instant),
    Column("created_at", Instant, nullable=False),
    Column("created_by", Text, nullable=False),
    CheckConstraint("role IN ('viewer', 'user', 'moderator', 'admin')", name="role"),
    Index("ix_api_keys_user_id", "user_id"),
)

secrets = Table(
    "secrets",
    metadata,
    Column("name", Text, primary_key=True),
    Column("ciphertext", LargeBinary, nullable=False),
    Column("origins", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("updated_by", Text, nullable=False),
)
