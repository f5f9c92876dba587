"""Cut-over: a meter set says for which partition count it counts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "meter_sets",
        sa.Column(
            "partitions",
            sa.Integer(),
            nullable=True,
            comment="of the log while it is in force: records written for another number are dead; NULL: any",
        ),
    )
    # SQLite keeps no comments.
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("audit", "action", comment="amend, release_posting, cutover")
