"""What loaded models were measured to take."""

from sqlalchemy import BigInteger, CheckConstraint, Column, Table, Text

from serai.storage.tables.base import Instant, metadata

# The most memory that a resident unit was seen to use, so that the next start plans with it.
footprints = Table(
    "footprints",
    metadata,
    Column("weights", Text, primary_key=True),  # digest of the base weights
    Column("engine", Text, primary_key=True),
    Column("quantization", Text, primary_key=True),
    Column("device_kind", Text, primary_key=True),
    Column("bytes", BigInteger, nullable=False),
    Column("measured_at", Instant, nullable=False),
    CheckConstraint("bytes > 0", name="bytes"),
)
