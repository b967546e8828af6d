"""The gallery of pictures that models made, with its search.

Revision: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    op.create_table(
        "pictures",
        sa.Column("seq", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False),
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("owner_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("decision", JSON, nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("negative_prompt", sa.Text(), nullable=False),
        sa.Column("settings", JSON, nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("format", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("thumb_digest", sa.Text(), nullable=False),
        sa.Column("thumb_size", sa.BigInteger(), nullable=False),
        sa.Column("generation_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("tags", JSON, nullable=False),
        sa.Column("is_favourite", sa.Boolean(), nullable=False),
        sa.Column("search", sa.Text(), nullable=False),
        sa.CheckConstraint("format IN ('png', 'jpeg', 'webp')", name=op.f("ck_pictures_format")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_pictures")),
    )
    op.create_index("uq_pictures_id", "pictures", ["id"], unique=True)
    op.create_index("uq_pictures_job_id", "pictures", ["job_id", "position"], unique=True)
    op.create_index("ix_pictures_owner_id", "pictures", ["owner_id", "seq"], unique=False)
    op.create_index(
        "ix_pictures_unmarked",
        "pictures",
        ["seq"],
        unique=False,
        sqlite_where=sa.text("is_favourite = 0"),
        postgresql_where=sa.text("NOT is_favourite"),
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE INDEX ix_pictures_search ON pictures "
            "USING gin (array_to_tsvector(string_to_array(search, ' '))) WITH (fastupdate = off)"
        )
        return
    op.execute(
        "CREATE VIRTUAL TABLE picture_search USING fts5("
        "search, content='pictures', content_rowid='seq', tokenize='ascii', prefix='2 3 4')"
    )


def downgrade() -> None:
    op.drop_table("pictures")
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DROP TABLE picture_search")
