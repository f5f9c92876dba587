"""Money: what modes, corrections, periods and reconciliation need to remember."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COMMENTS = {
    (
        "postings",
        "state",
    ): "planned, journalled, sending, delivered, dry_run, unknown, parked, settled, void, reversal",
    ("postings", "mode"): "delta, window_total, usage_record",
    (
        "holds",
        "reason",
    ): "no_mapping, no_item, closed, ambiguous, negative, too_old, in_flight, dry_run",
}


def upgrade() -> None:
    # SQLite keeps no comments.
    if op.get_bind().dialect.name == "postgresql":
        for (table, column), comment in _COMMENTS.items():
            op.alter_column(table, column, comment=comment)
