"""The runtime: what loaded models were measured to take.

Revision: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "footprints",
        sa.Column("weights", sa.Text(), nullable=False),
        sa.Column("engine", sa.Text(), nullable=False),
        sa.Column("quantization", sa.Text(), nullable=False),
        sa.Column("device_kind", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("measured_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("bytes > 0", name=op.f("ck_footprints_bytes")),
        sa.PrimaryKeyConstraint("weights", "engine", "quantization", "device_kind", name=op.f("pk_footprints")),
    )


def downgrade() -> None:
    op.drop_table("footprints")
