"""The first schema: every table of the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from tollgate.ledger.types import Document, Identity, Quantity

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "attributions",
        sa.Column("meter_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("window_start_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("posting_key", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("meter_id", "window_start_ms", "account", name=op.f("pk_attributions")),
        comment="Whose customer an account's window was posted to: pinned at its first posting.",
    )
    op.create_index("ix_attributions_posting_key", "attributions", ["posting_key"], unique=False)
    op.create_table(
        "catalogue_state",
        sa.Column("id", sa.SmallInteger(), nullable=False),
        sa.Column("meters_version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_catalogue_state_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_catalogue_state")),
        comment="The version of the meter set in force. A flush takes it FOR SHARE; `meters apply` updates it.",
    )
    op.create_table(
        "controls",
        sa.Column("name", sa.Text(), nullable=False, comment="paused, sync_now, halted:<meter>"),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("changed_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_controls")),
    )
    op.create_table(
        "customers",
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("email", sa.Text(), nullable=True),
        sa.Column("name", sa.Text(), nullable=True),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("metadata", Document, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("customer_id", name=op.f("pk_customers")),
    )
    op.create_index("ix_customers_email", "customers", ["email"], unique=False)
    op.create_table(
        "directory_state",
        sa.Column("id", sa.SmallInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_directory_state_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_directory_state")),
        comment="Raised with every change to mappings or item periods: tells stripe_sync to look at what it holds.",
    )
    op.create_table(
        "distinct_values",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("meter_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("window_start_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("dimensions", sa.Text(), nullable=False),
        sa.Column(
            "value_hash", sa.BigInteger(), autoincrement=False, nullable=False, comment="xxh3_64, as signed"
        ),
        sa.PrimaryKeyConstraint(
            "partition",
            "meter_id",
            "window_start_ms",
            "account",
            "dimensions",
            "value_hash",
            name=op.f("pk_distinct_values"),
        ),
        comment="What a unique metric has seen.",
    )
    op.create_table(
        "holds",
        sa.Column("meter_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("window_start_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column(
            "reason",
            sa.Text(),
            nullable=False,
            comment="no_mapping, no_item, closed, ambiguous, negative, too_old",
        ),
        sa.Column("quantity", Quantity(), nullable=False, comment="what is not posted"),
        sa.Column("since_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("meter_id", "window_start_ms", "account", name=op.f("pk_holds")),
    )
    op.create_index("ix_holds_reason", "holds", ["reason"], unique=False)
    op.create_table(
        "invoices",
        sa.Column("invoice_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("billing_reason", sa.Text(), nullable=True),
        sa.Column("period_start_ms", sa.BigInteger(), nullable=False),
        sa.Column("period_end_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column(
            "finalizes_ms", sa.BigInteger(), nullable=True, comment="automatically_finalizes_at of a draft"
        ),
        sa.Column("finalized_ms", sa.BigInteger(), nullable=True),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("invoice_id", name=op.f("pk_invoices")),
    )
    op.create_index("ix_invoices_customer", "invoices", ["customer_id"], unique=False)
    op.create_table(
        "item_periods",
        sa.Column("item_id", sa.Text(), nullable=False),
        sa.Column("period_start_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("period_end_ms", sa.BigInteger(), nullable=False),
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("price_id", sa.Text(), nullable=False),
        sa.Column("event_name", sa.Text(), nullable=False, comment="of the Billing Meter behind the price"),
        sa.Column(
            "state", sa.Text(), nullable=False, comment="open, closed (its invoice is finalized), removed"
        ),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("item_id", "period_start_ms", name=op.f("pk_item_periods")),
    )
    op.create_index("ix_item_periods_customer", "item_periods", ["customer_id", "event_name"], unique=False)
    op.create_table(
        "leases",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column(
            "version",
            sa.BigInteger(),
            nullable=False,
            comment="raised at each take-over; fences every state change",
        ),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_leases")),
    )
    op.create_table(
        "mappings",
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("from_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("to_ms", sa.BigInteger(), nullable=True, comment="first event time it no longer holds for"),
        sa.Column(
            "rule", sa.Text(), nullable=False, comment="the mapping rule that made it, e.g. user=customer.id"
        ),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("account", "customer_id", "from_ms", name=op.f("pk_mappings")),
        comment="Which customer pays for an account, for event times in [from_ms, to_ms).",
    )
    op.create_index("ix_mappings_customer", "mappings", ["customer_id"], unique=False)
    op.create_table(
        "meter_sets",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("applied_ms", sa.BigInteger(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False, comment="meters.yaml as it was applied"),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_meter_sets")),
    )
    op.create_table(
        "meters",
        sa.Column("meter_id", Identity, autoincrement=True, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("definition", Document, nullable=False, comment="canonical JSON of the meter"),
        sa.Column("from_ms", sa.BigInteger(), nullable=False, comment="first event time it counts"),
        sa.Column("to_ms", sa.BigInteger(), nullable=True, comment="first event time it no longer counts"),
        sa.Column("since_version", sa.BigInteger(), nullable=False, comment="meter set that brought it"),
        sa.Column(
            "ended_version",
            sa.BigInteger(),
            nullable=True,
            comment="meter set that gave it its end; to_ms is NULL in sets before",
        ),
        sa.Column("until_version", sa.BigInteger(), nullable=True, comment="first meter set without it"),
        sa.PrimaryKeyConstraint("meter_id", name=op.f("pk_meters")),
        comment="One row per version of a meter; immutable but for its end.",
    )
    op.create_index("ix_meters_name", "meters", ["name"], unique=False)
    op.create_table(
        "pins",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_pins")),
        comment="What this ledger belongs to: Kafka cluster, topic, partitions, Stripe account and mode, id seed, itself.",
    )
    op.create_table(
        "plan_cursors",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "planned_offset",
            sa.BigInteger(),
            nullable=False,
            comment="usage changed up to here has been planned",
        ),
        sa.PrimaryKeyConstraint("partition", name=op.f("pk_plan_cursors")),
    )
    op.create_table(
        "postings",
        sa.Column("posting_key", sa.Text(), nullable=False, comment="hash of customer, meter and window"),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("meter_id", sa.BigInteger(), nullable=False),
        sa.Column("window_start_ms", sa.BigInteger(), nullable=False),
        sa.Column("quantity_from", Quantity(), nullable=False),
        sa.Column("quantity_to", Quantity(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False, comment="delta"),
        sa.Column("identifier", sa.Text(), nullable=False),
        sa.Column("idempotency_key", sa.Text(), nullable=False),
        sa.Column("timestamp_s", sa.BigInteger(), nullable=False),
        sa.Column("body", sa.Text(), nullable=False, comment="exact JSON of the request's parameters"),
        sa.Column(
            "state",
            sa.Text(),
            nullable=False,
            comment="planned, journalled, sending, delivered, dry_run, unknown, parked, settled",
        ),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("first_sent_ms", sa.BigInteger(), nullable=True),
        sa.Column("last_sent_ms", sa.BigInteger(), nullable=True),
        sa.Column("retry_ms", sa.BigInteger(), nullable=True, comment="not before this"),
        sa.Column("settled_ms", sa.BigInteger(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("planned_ms", sa.BigInteger(), nullable=False),
        sa.Column(
            "planned_from", Document, nullable=False, comment="progress per partition the plan was read at"
        ),
        sa.Column("lease_version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("posting_key", "seq", name=op.f("pk_postings")),
        sa.UniqueConstraint("identifier", name=op.f("uq_postings_identifier")),
        comment="The posting chain: seq 1..n per key, from = previous to.",
    )
    op.create_index(
        "ix_postings_customer", "postings", ["customer_id", "meter_id", "window_start_ms"], unique=False
    )
    op.create_index("ix_postings_state", "postings", ["state", "retry_ms"], unique=False)
    op.create_table(
        "progress",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False),
        sa.Column(
            "fingerprint", sa.Text(), nullable=False, comment="of record next_offset - 1, '' before the first"
        ),
        sa.Column("meters_version", sa.BigInteger(), nullable=False),
        sa.Column("received", sa.BigInteger(), nullable=False),
        sa.Column("counted", sa.BigInteger(), nullable=False),
        sa.Column("unmatched", sa.BigInteger(), nullable=False),
        sa.Column("duplicate", sa.BigInteger(), nullable=False),
        sa.Column("late", sa.BigInteger(), nullable=False),
        sa.Column("dead", sa.BigInteger(), nullable=False),
        sa.Column(
            "weak_duplicate", sa.BigInteger(), nullable=False, comment="those of duplicate whose id was weak"
        ),
        sa.Column("ingest_ms", sa.BigInteger(), nullable=False, comment="highest ingest time folded"),
        sa.Column(
            "committed_ms",
            sa.BigInteger(),
            nullable=False,
            comment="wall time of the commit; for people only",
        ),
        sa.PrimaryKeyConstraint("partition", name=op.f("pk_progress")),
        comment="Per source partition: everything below next_offset is in the ledger, and what became of it.",
    )
    op.create_table(
        "progress_epochs",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("from_offset", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("meters_version", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("partition", "from_offset", name=op.f("pk_progress_epochs")),
        comment="Which meter set folded which offsets, so that a recount can use the same.",
    )
    op.create_table(
        "progress_instances",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column(
            "rows_received", sa.BigInteger(), nullable=False, comment="rows of this instance folded so far"
        ),
        sa.Column(
            "tick_ms",
            sa.BigInteger(),
            nullable=False,
            comment="wall time of its last tick, 0 before the first",
        ),
        sa.Column(
            "tick_acknowledged",
            sa.BigInteger(),
            nullable=False,
            comment="rows it had acknowledged, said its last tick",
        ),
        sa.Column(
            "tick_received",
            sa.BigInteger(),
            nullable=False,
            comment="rows_received when that tick was folded",
        ),
        sa.PrimaryKeyConstraint("partition", "instance", name=op.f("pk_progress_instances")),
        comment="The law: tick_received >= tick_acknowledged, or the log lost records.",
    )
    op.create_table(
        "progress_totals",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("meter_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column(
            "quantity",
            Quantity(),
            nullable=False,
            comment="sum over its usage rows; 0 for max, min and latest",
        ),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("unvalued", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("partition", "meter_id", name=op.f("pk_progress_totals")),
        comment="The law: equals the sum of this partition's usage rows of this meter.",
    )
    op.create_table(
        "rejections",
        sa.Column(
            "identifier", sa.Text(), nullable=False, comment="of the meter event Stripe refused after its 2xx"
        ),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("reported_ms", sa.BigInteger(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False, comment="stripe_sync reads these in order"),
        sa.PrimaryKeyConstraint("identifier", name=op.f("pk_rejections")),
        comment="Asynchronous refusals from meter error reports; stripe_sync reopens their postings.",
    )
    op.create_table(
        "seen_ids",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column(
            "day", sa.Integer(), autoincrement=False, nullable=False, comment="event day: epoch days UTC"
        ),
        sa.Column(
            "to_offset",
            sa.BigInteger(),
            autoincrement=False,
            nullable=False,
            comment="next_offset of its flush",
        ),
        sa.Column("ids", sa.LargeBinary(), nullable=False, comment="sorted little-endian uint64"),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("partition", "day", "to_offset", name=op.f("pk_seen_ids")),
        comment="Ids counted or unmatched in [.., to_offset): what makes a later copy a duplicate.",
    )
    op.create_table(
        "sources",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "token_id",
            sa.Text(),
            nullable=False,
            comment="public part of the token, for look-up and revocation",
        ),
        sa.Column("token_sha256", sa.Text(), nullable=False),
        sa.Column("scopes", sa.Text(), nullable=False, comment="space separated: write, replay"),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("revoked_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("name", "token_id", name=op.f("pk_sources")),
    )
    op.create_table(
        "stripe_inbox",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("object_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("created_s", sa.BigInteger(), nullable=False),
        sa.Column("projected_ms", sa.BigInteger(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("event_id", name=op.f("pk_stripe_inbox")),
        comment="Webhook events already projected: dedup by event id.",
    )
    op.create_table(
        "stripe_sequence",
        sa.Column("id", sa.SmallInteger(), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_stripe_sequence_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_stripe_sequence")),
        comment="Numbers the projector's fetches: a slow fetch never overwrites a newer one.",
    )
    op.create_table(
        "subscriptions",
        sa.Column("subscription_id", sa.Text(), nullable=False),
        sa.Column("customer_id", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("start_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.Column("metadata", Document, nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=False),
        sa.Column("updated_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subscription_id", name=op.f("pk_subscriptions")),
    )
    op.create_index("ix_subscriptions_customer", "subscriptions", ["customer_id"], unique=False)
    op.create_table(
        "usage",
        sa.Column("partition", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("meter_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("window_start_ms", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("account", sa.Text(), nullable=False),
        sa.Column("dimensions", sa.Text(), nullable=False, comment="canonical JSON of group_by, '' without"),
        sa.Column("quantity", Quantity(), nullable=False),
        sa.Column("events", sa.BigInteger(), nullable=False),
        sa.Column("unvalued", sa.BigInteger(), nullable=False),
        sa.Column("latest_event_ms", sa.BigInteger(), nullable=False),
        sa.Column(
            "order_ms", sa.BigInteger(), nullable=False, comment="`latest`: event time of the value held"
        ),
        sa.Column(
            "order_offset", sa.BigInteger(), nullable=False, comment="`latest`: its offset, which breaks ties"
        ),
        sa.Column(
            "changed_offset",
            sa.BigInteger(),
            nullable=False,
            comment="next_offset of the flush that last touched it",
        ),
        sa.PrimaryKeyConstraint(
            "partition", "meter_id", "window_start_ms", "account", "dimensions", name=op.f("pk_usage")
        ),
    )
    op.create_index("ix_usage_account", "usage", ["account", "meter_id", "window_start_ms"], unique=False)
    op.create_index("ix_usage_changed", "usage", ["partition", "changed_offset"], unique=False)
    op.create_index("ix_usage_window", "usage", ["meter_id", "window_start_ms"], unique=False)
