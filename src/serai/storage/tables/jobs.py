"""Durable jobs, the events that they tell, and the webhooks that wait to be sent."""

from sqlalchemy import BigInteger, CheckConstraint, Column, ForeignKey, Index, Integer, Table, Text, text

from serai.storage.tables.base import Instant, Json, metadata

_IS_QUEUED = text("status = 'queued'")
_IS_RUNNING = text("status = 'running'")

jobs = Table(
    "jobs",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("version", Integer, nullable=False),  # of the payload's form
    Column("payload", Json, nullable=False),
    Column("owner_id", Text, nullable=False),
    Column("resource", Text, nullable=False),  # what it competes for: a device, a model, the network
    Column("priority", Integer, nullable=False),
    Column("round", BigInteger, nullable=False),  # its turn among the owners' jobs; see DESIGN.md of jobs
    Column("rank", BigInteger, nullable=False),  # the order of claiming: round and priority in one number
    Column("status", Text, nullable=False),
    Column("claim", Text),  # the fence: who may write while it runs
    Column("holder", Text),  # the incarnation of the server that claimed it last
    Column("lease_until", Instant),
    Column("run_at", Instant),  # not before; None: at once
    Column("cancel_requested_at", Instant),
    Column("attempts", Integer, nullable=False),
    Column("error_count", Integer, nullable=False),
    Column("crash_count", Integer, nullable=False),
    Column("max_errors", Integer, nullable=False),
    Column("parent_id", Text, ForeignKey("jobs.id", ondelete="SET NULL")),
    Column("retry_of", Text),
    Column("children", Integer, nullable=False),
    Column("open_children", Integer, nullable=False),
    Column("idempotency_key", Text),
    Column("request_digest", Text, nullable=False),
    Column("webhook_url", Text),
    Column("last_seq", BigInteger, nullable=False),
    Column("progress", Json),
    Column("decision", Json),
    Column("result", Json),
    Column("error", Json),
    Column("created_at", Instant, nullable=False),
    Column("started_at", Instant),
    Column("finished_at", Instant),
    CheckConstraint("status IN ('queued', 'running', 'succeeded', 'failed', 'cancelled')", name="status"),
    CheckConstraint("(status = 'running') = (claim IS NOT NULL)", name="claim"),
    CheckConstraint("(status = 'running') = (lease_until IS NOT NULL)", name="lease"),
    CheckConstraint("(status IN ('queued', 'running')) = (finished_at IS NULL)", name="finished"),
    CheckConstraint("(status = 'succeeded') = (result IS NOT NULL)", name="result"),
    CheckConstraint("open_children BETWEEN 0 AND children", name="children"),
    Index("uq_jobs_idempotency", "owner_id", "idempotency_key", unique=True),
    Index("ix_jobs_owner_id", "owner_id", "id"),
    Index("ix_jobs_parent_id", "parent_id"),
    Index("ix_jobs_finished_at", "finished_at"),
    Index("ix_jobs_round", "resource", "status", "round"),
    Index("ix_jobs_rank", "resource", "rank", "id", sqlite_where=_IS_QUEUED, postgresql_where=_IS_QUEUED),
    Index(
        "ix_jobs_turn",
        "owner_id",
        "resource",
        "priority",
        "round",
        sqlite_where=_IS_QUEUED,
        postgresql_where=_IS_QUEUED,
    ),
    Index("ix_jobs_lease_until", "lease_until", sqlite_where=_IS_RUNNING, postgresql_where=_IS_RUNNING),
)

job_events = Table(
    "job_events",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("event", Json, nullable=False),
    Column("created_at", Instant, nullable=False),
)

job_webhooks = Table(
    "job_webhooks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("owner_id", Text, nullable=False),
    Column("url", Text, nullable=False),
    Column("body", Text, nullable=False),  # the very bytes that are signed
    Column("attempts", Integer, nullable=False),
    Column("next_at", Instant),  # None: delivered or given up
    Column("claim", Text),
    Column("delivered_at", Instant),
    Column("last_problem", Text),
    Column("created_at", Instant, nullable=False),
    Index("ix_job_webhooks_next_at", "next_at"),
)
