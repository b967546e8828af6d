"""The registry: models, versions, aliases, services, their histories, decisions.

Revision: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

from serai.storage.migrations.triggers import append_only, drop_append_only, drop_frozen, frozen

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_IDENTITY = ("model_id", "version", "seq", "identity")


def upgrade() -> None:
    op.create_table(
        "decisions",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("service_id", sa.Text(), nullable=True),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_decisions")),
    )
    op.create_index("ix_decisions_model_id_at", "decisions", ["model_id", "version", "at"], unique=False)
    op.create_index("ix_decisions_service_id_at", "decisions", ["service_id", "at"], unique=False)
    op.create_table(
        "governance",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "kind IN ('experiment', 'approval_policy', 'approval', 'deprecation_policy', 'performance')",
            name=op.f("ck_governance_kind"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_governance")),
    )
    op.create_index("ix_governance_subject", "governance", ["kind", "subject"], unique=False)
    op.create_table(
        "models",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("tags", sa.Text(), nullable=False),
        sa.Column("search", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_models")),
    )
    op.create_index("ix_models_task", "models", ["task", "id"], unique=False)
    op.create_table(
        "registry_names",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("target_id", sa.Text(), nullable=False),
        sa.CheckConstraint("kind IN ('model', 'service')", name=op.f("ck_registry_names_kind")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_registry_names")),
    )
    op.create_index("ix_registry_names_target", "registry_names", ["kind", "target_id"], unique=False)
    op.create_table(
        "services",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column("current_revision", sa.Integer(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("published", sa.Boolean(), nullable=False),
        sa.Column("version_updated_at", sa.BigInteger(), nullable=True),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.Column("deleted_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_services")),
    )
    op.create_index("ix_services_task", "services", ["task", "id"], unique=False)
    op.create_table(
        "alias_events",
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("before", sa.Text(), nullable=True),
        sa.Column("after", sa.Text(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_alias_events_model_id")),
        sa.PrimaryKeyConstraint("model_id", "name", "epoch", name=op.f("pk_alias_events")),
    )
    op.create_table(
        "revisions",
        sa.Column("service_id", sa.Text(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.CheckConstraint("n > 0", name=op.f("ck_revisions_n")),
        sa.ForeignKeyConstraint(["service_id"], ["services.id"], name=op.f("fk_revisions_service_id")),
        sa.PrimaryKeyConstraint("service_id", "n", name=op.f("pk_revisions")),
    )
    op.create_table(
        "versions",
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("sort_key", sa.Text().with_variant(sa.Text(collation="C"), "postgresql"), nullable=False),
        sa.Column("immutable", sa.Boolean(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=True),
        sa.Column("identity", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "status = 'draft' OR digest IS NOT NULL OR status = 'tombstone'", name=op.f("ck_versions_digest")
        ),
        sa.CheckConstraint(
            "status IN ('draft', 'active', 'deprecated', 'retired', 'tombstone')", name=op.f("ck_versions_status")
        ),
        sa.CheckConstraint("seq > 0", name=op.f("ck_versions_seq")),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name=op.f("fk_versions_model_id")),
        sa.PrimaryKeyConstraint("model_id", "version", name=op.f("pk_versions")),
        sa.UniqueConstraint("model_id", "seq", name=op.f("uq_versions_model_id_seq")),
    )
    op.create_index("ix_versions_model_id_sort_key", "versions", ["model_id", "sort_key"], unique=False)
    op.create_index("ix_versions_digest", "versions", ["digest"], unique=False)
    op.create_index("ix_versions_model_id_status", "versions", ["model_id", "status"], unique=False)
    op.create_table(
        "aliases",
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_by", sa.Text(), nullable=False),
        sa.CheckConstraint("epoch > 0", name=op.f("ck_aliases_epoch")),
        sa.ForeignKeyConstraint(
            ["model_id", "version"], ["versions.model_id", "versions.version"], name=op.f("fk_aliases_model_id_version")
        ),
        sa.PrimaryKeyConstraint("model_id", "name", name=op.f("pk_aliases")),
    )
    op.create_table(
        "bindings",
        sa.Column("service_id", sa.Text(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("revision", sa.Integer(), nullable=False),
        sa.Column("versions", sa.Text(), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.Column("until", sa.BigInteger(), nullable=True),
        sa.Column("by", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["service_id", "revision"],
            ["revisions.service_id", "revisions.n"],
            name=op.f("fk_bindings_service_id_revision"),
        ),
        sa.PrimaryKeyConstraint("service_id", "seq", name=op.f("pk_bindings")),
    )
    op.create_index("ix_bindings_service_id_since", "bindings", ["service_id", "since"], unique=False)
    append_only("revisions")
    append_only("alias_events")
    frozen("versions", "immutable", _IDENTITY)


def downgrade() -> None:
    drop_frozen("versions")
    drop_append_only("alias_events")
    drop_append_only("revisions")
    op.drop_index("ix_bindings_service_id_since", table_name="bindings")
    op.drop_table("bindings")
    op.drop_table("aliases")
    op.drop_index("ix_versions_model_id_status", table_name="versions")
    op.drop_index("ix_versions_digest", table_name="versions")
    op.drop_table("versions")
    op.drop_table("revisions")
    op.drop_table("alias_events")
    op.drop_index("ix_services_task", table_name="services")
    op.drop_table("services")
    op.drop_index("ix_registry_names_target", table_name="registry_names")
    op.drop_table("registry_names")
    op.drop_index("ix_models_task", table_name="models")
    op.drop_table("models")
    op.drop_index("ix_governance_subject", table_name="governance")
    op.drop_table("governance")
    op.drop_index("ix_decisions_service_id_at", table_name="decisions")
    op.drop_index("ix_decisions_model_id_at", table_name="decisions")
    op.drop_table("decisions")
