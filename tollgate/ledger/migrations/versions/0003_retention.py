"""Retention: what was removed for its age stays accounted for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tollgate.ledger.types import Quantity

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "usage_retired",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("meter_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "quantity", Quantity(), nullable=False, comment="of rows removed; 0 for max, min and latest"
        ),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("unvalued", sa.BigInteger(), nullable=False),
        sa.Column("usage_rows", sa.BigInteger(), nullable=False, comment="rows removed so far"),
        sa.Column(
            "before_ms",
            sa.BigInteger(),
            nullable=False,
            comment="every window that lost a row begins before this",
        ),
        sa.PrimaryKeyConstraint("partition", "meter_id", name=op.f("pk_usage_retired")),
        comment="The law: totals are the sum of the usage rows there are and of those removed for their age.",
    )
    op.add_column(
        "reconciliations",
        sa.Column(
            "retired_ms",
            sa.BigInteger(),
            nullable=True,
            comment="since when its usage and postings may be removed",
        ),
    )
    op.add_column(
        "reconciliations",
        sa.Column(
            "emptied_ms",
            sa.BigInteger(),
            nullable=True,
            comment="when the last of its postings was removed",
        ),
    )
    # SQLite keeps no comments and has no such parameters.
    if op.get_bind().dialect.name == "postgresql":
        op.create_table_comment(
            "progress_totals",
            "The law: equals the sum of this partition's usage rows of this meter, there or retired.",
        )
        # Hashes do not compress, and trying takes a quarter of the time of writing a merged row of 4 MiB.
        op.execute("ALTER TABLE seen_ids ALTER COLUMN ids SET STORAGE EXTERNAL")
