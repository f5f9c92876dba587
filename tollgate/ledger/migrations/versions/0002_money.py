"""Money: what modes, corrections, periods and reconciliation need to remember."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tollgate.ledger.types import Document, Quantity

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_COMMENTS = {
    (
        "postings",
        "state",
    ): "planned, journalled, sending, delivered, dry_run, unknown, parked, settled, void, reversal, "
    "superseded",
    ("postings", "mode"): "delta, window_total, usage_record, invoice_item, dry_run, reversal",
    (
        "holds",
        "reason",
    ): "no_mapping, no_item, closed, no_price, ambiguous, negative, period_over, inexact, too_old, in_flight, "
    "dry_run",
}


def upgrade() -> None:
    # SQLite keeps no comments.
    if op.get_bind().dialect.name == "postgresql":
        for (table, column), comment in _COMMENTS.items():
            op.alter_column(table, column, comment=comment)
    _reconciliation()
    _imports()
    _corrections()
    _periods()


def _corrections() -> None:
    op.add_column(
        "postings",
        sa.Column(
            "for_period_ms",
            sa.BigInteger(),
            nullable=True,
            comment="start of the finalized period it makes up for; NULL when its own period bills it",
        ),
    )
    op.create_table(
        "prices",
        sa.Column("price_id", sa.Text(), nullable=False),
        sa.Column("terms", Document, nullable=True, comment="NULL when nothing here can express it"),
        sa.Column("problem", sa.Text(), nullable=False, comment="why not, else ''"),
        sa.Column("fetched_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("price_id", name=op.f("pk_prices")),
        comment="Stripe's prices that invoice items were worked out from. Their amounts never change.",
    )
    op.create_table(
        "audit",
        sa.Column("audit_id", sa.Text(), nullable=False, comment="random"),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("who", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False, comment="amend, release_posting"),
        sa.Column(
            "subject",
            sa.Text(),
            nullable=False,
            comment="what was acted on: a posting key, a meter and account",
        ),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("details", Document, nullable=False),
        sa.PrimaryKeyConstraint("audit_id", name=op.f("pk_audit")),
        comment="What operators have changed by hand: who, when, what and why. Rows are only ever added.",
    )
    op.create_index("ix_audit_at", "audit", ["at_ms"])
    op.create_index("ix_audit_subject", "audit", ["subject", "action"])


def _reconciliation() -> None:
    op.create_table(
        "invoice_lines",
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("line_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("price_id", sa.Text(), nullable=False),
        sa.Column("event_name", sa.Text(), nullable=False, comment="of the Billing Meter behind the price"),
        sa.Column("period_start_ms", sa.BigInteger(), nullable=False),
        sa.Column("period_end_ms", sa.BigInteger(), nullable=False),
        sa.Column(
            "quantity",
            sa.Text(),
            nullable=False,
            comment="decimal text as Stripe wrote it; of a draft, so far only",
        ),
        sa.PrimaryKeyConstraint("invoice_id", "position", name=op.f("pk_invoice_lines")),
        comment="What an invoice bills of metered usage, as last fetched: what reconciliation compares postings with.",
    )
    op.create_index(
        "ix_invoice_lines_customer", "invoice_lines", ["customer_id", "event_name", "period_start_ms"]
    )
    op.create_table(
        "reconciliations",
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("event_name", sa.Text(), nullable=False, comment="of the Billing Meter"),
        sa.Column("period_start_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("period_end_ms", sa.BigInteger(), nullable=False),
        sa.Column("counted", Quantity(), nullable=False, comment="usage in the ledger"),
        sa.Column("delivered", Quantity(), nullable=False, comment="what of it Stripe has taken"),
        sa.Column(
            "stripe",
            sa.Text(),
            nullable=True,
            comment="Stripe's summary, a double as text; NULL when not asked",
        ),
        sa.Column(
            "invoiced", sa.Text(), nullable=True, comment="on the final invoice, decimal text; NULL before"
        ),
        sa.Column("invoice_id", sa.Text(), nullable=True),
        sa.Column("invoice_status", sa.Text(), nullable=True, comment="as it was at this check"),
        sa.Column(
            "verdict", sa.Text(), nullable=False, comment="agrees, settling, explained, unchecked, drift"
        ),
        sa.Column("drift", sa.Text(), nullable=False, comment="units nothing explains, decimal text"),
        sa.Column(
            "findings",
            Document,
            nullable=False,
            comment="each difference with its cause, hour and postings",
        ),
        sa.Column("checked_ms", sa.BigInteger(), nullable=False),
        sa.Column("asked_ms", sa.BigInteger(), nullable=True, comment="when Stripe was last asked"),
        sa.Column(
            "due_ms", sa.BigInteger(), nullable=True, comment="next check; NULL when there is none to come"
        ),
        sa.PrimaryKeyConstraint(
            "customer_id", "event_name", "period_start_ms", name=op.f("pk_reconciliations")
        ),
        comment="The last comparison of ledger, postings, Stripe's summaries and invoice, per customer, meter and period.",
    )
    op.create_index("ix_reconciliations_due", "reconciliations", ["due_ms"])
    op.create_index("ix_reconciliations_verdict", "reconciliations", ["verdict"])
    op.create_table(
        "stripe_reads",
        sa.Column("day", sa.Integer(), autoincrement=False, nullable=False, comment="epoch days UTC"),
        sa.Column("reads", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("day", name=op.f("pk_stripe_reads")),
        comment="Reads of Stripe's summaries that reconciliation has spent, against its budget.",
    )


def _imports() -> None:
    op.create_table(
        "imports",
        sa.Column("name", sa.Text(), nullable=False, comment="what is imported: customers"),
        sa.Column("bookmark", sa.Text(), nullable=False, comment="where an interrupted import goes on"),
        sa.Column("customers", sa.BigInteger(), nullable=False, comment="written so far"),
        sa.Column("subscriptions", sa.BigInteger(), nullable=False, comment="written so far"),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_imports")),
        comment="Imports that have begun and not ended.",
    )


def _periods() -> None:
    op.create_index("ix_item_periods_end", "item_periods", ["state", "period_end_ms"])
    op.create_index("ix_invoices_status", "invoices", ["status", "finalizes_ms"])
    op.create_table(
        "finalization_delays",
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("planned_ms", sa.BigInteger(), nullable=False, comment="when Stripe meant to finalize it"),
        sa.Column(
            "until_ms", sa.BigInteger(), nullable=False, comment="when it becomes final as we last set it"
        ),
        sa.Column("reason", sa.Text(), nullable=False, comment="counting, planning, posting, parked"),
        sa.Column("delays", sa.Integer(), nullable=False, comment="how often it was put off"),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False, comment="delayed, released, given_up, refused"),
        sa.Column(
            "retry_ms",
            sa.BigInteger(),
            nullable=True,
            comment="not before this, after Stripe would not have it",
        ),
        sa.Column("error", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("invoice_id", name=op.f("pk_finalization_delays")),
        comment="Draft invoices whose finalization was put off because usage of their period was still on its way.",
    )
