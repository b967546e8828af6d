"""Models, versions, aliases, services and their histories.

What is searched or constrained is a column; the rest of a value is one JSON text (`document`). What
a version *is* stands apart (`identity`), so that a trigger can keep it from changing.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
)

from serai.storage.tables.base import Instant, metadata

models = Table(
    "models",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("tags", Text, nullable=False),  # '|a|b|', for exact matches by LIKE
    Column("search", Text, nullable=False),  # lower case: id, name, lookup names, publisher, description, tags
    Column("document", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("updated_by", Text, nullable=False),
    Column("deleted_at", Instant),  # the row stays, so that the numbers of its versions are not used again
    Index("ix_models_task", "task", "id"),
)

# Every name that a client may write where it names a model, in lower case: the database itself
# refuses two owners of one.
names = Table(
    "registry_names",
    metadata,
    Column("name", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("target_id", Text, nullable=False),
    CheckConstraint("kind IN ('model', 'service')", name="kind"),
    Index("ix_registry_names_target", "kind", "target_id"),
)

versions = Table(
    "versions",
    metadata,
    Column("model_id", Text, ForeignKey("models.id"), primary_key=True),
    Column("version", Text, primary_key=True),
    Column("seq", Integer, nullable=False),
    Column("status", Text, nullable=False),
    Column("sort_key", Text().with_variant(Text(collation="C"), "postgresql"), nullable=False),
    Column("immutable", Boolean, nullable=False),
    Column("digest", Text),
    Column("identity", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("updated_by", Text, nullable=False),
    UniqueConstraint("model_id", "seq"),
    CheckConstraint("status IN ('draft', 'active', 'deprecated', 'retired', 'tombstone')", name="status"),
    CheckConstraint("seq > 0", name="seq"),
    CheckConstraint("status = 'draft' OR digest IS NOT NULL OR status = 'tombstone'", name="digest"),
    Index("ix_versions_model_id_status", "model_id", "status"),
    Index("ix_versions_digest", "digest"),
    Index("ix_versions_model_id_sort_key", "model_id", "sort_key"),
)

aliases = Table(
    "aliases",
    metadata,
    Column("model_id", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("version", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("updated_by", Text, nullable=False),
    ForeignKeyConstraint(["model_id", "version"], ["versions.model_id", "versions.version"]),
    CheckConstraint("epoch > 0", name="epoch"),
)

alias_events = Table(
    "alias_events",
    metadata,
    Column("model_id", Text, ForeignKey("models.id"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("before", Text),
    Column("after", Text),
    Column("reason", Text, nullable=False),
    Column("at", Instant, nullable=False),
    Column("by", Text, nullable=False),
)

services = Table(
    "services",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("task", Text, nullable=False),
    Column("current_revision", Integer, nullable=False),
    Column("pinned", Boolean, nullable=False),
    Column("published", Boolean, nullable=False),
    Column("version_updated_at", Instant),
    Column("document", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("updated_at", Instant, nullable=False),
    Column("updated_by", Text, nullable=False),
    Column("deleted_at", Instant),  # the row stays, so that its history can be asked and its revisions count on
    Index("ix_services_task", "task", "id"),
)

revisions = Table(
    "revisions",
    metadata,
    Column("service_id", Text, ForeignKey("services.id"), primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("document", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("created_by", Text, nullable=False),
    CheckConstraint("n > 0", name="n"),
)

# With which versions a service answered, from when until when.
bindings = Table(
    "bindings",
    metadata,
    Column("service_id", Text, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("versions", Text, nullable=False),
    Column("since", Instant, nullable=False),
    Column("until", Instant),
    Column("by", Text, nullable=False),
    Column("reason", Text, nullable=False),
    ForeignKeyConstraint(["service_id", "revision"], ["revisions.service_id", "revisions.n"]),
    Index("ix_bindings_service_id_since", "service_id", "since"),
)

# What governs changes: experiments, approvals, policies, measured performance. Nothing acts on these
# rows yet; `kind` says which value of `registry.governance` the document holds.
governance = Table(
    "governance",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),  # a service, a version's digest, a model: what the row is about
    Column("document", Text, nullable=False),
    Column("created_at", Instant, nullable=False),
    Column("created_by", Text, nullable=False),
    CheckConstraint(
        "kind IN ('experiment', 'approval_policy', 'approval', 'deprecation_policy', 'performance')", name="kind"
    ),
    Index("ix_governance_subject", "kind", "subject"),
)

# Decisions that were taken: which candidate answered, why, and what was tried before it.
decisions = Table(
    "decisions",
    metadata,
    Column("id", Text, primary_key=True),
    Column("at", Instant, nullable=False),
    Column("service_id", Text),
    Column("model_id", Text, nullable=False),
    Column("version", Text, nullable=False),
    Column("reason", Text, nullable=False),
    Column("owner_id", Text, nullable=False),
    Column("document", Text, nullable=False),
    Index("ix_decisions_service_id_at", "service_id", "at"),
    Index("ix_decisions_model_id_at", "model_id", "version", "at"),
)
