"""Every table of the ledger and its one owning service.

Owns names, columns, keys and indexes. It refuses to know any transaction: those are in the owner's module beside it.
Times are integer epoch milliseconds unless a name says seconds.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
)

from tollgate.ledger.types import Document, Identity, Quantity

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# --------------------------------------------------------------------------------------------- catalogue

pins = Table(
    "pins",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    comment="What this ledger belongs to: Kafka cluster, topic, partitions, Stripe account and mode, id seed, itself.",
)

catalogue_state = Table(
    "catalogue_state",
    metadata,
    Column("id", SmallInteger, primary_key=True),
    Column("meters_version", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
    comment="The version of the meter set in force. A flush takes it FOR SHARE; `meters apply` updates it.",
)

meter_sets = Table(
    "meter_sets",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("applied_ms", BigInteger, nullable=False),
    Column("source", Text, nullable=False, comment="meters.yaml as it was applied"),
    Column(
        "partitions",
        Integer,
        nullable=True,
        comment="of the log while it is in force: records written for another number are dead; NULL: any",
    ),
)

meters = Table(
    "meters",
    metadata,
    Column("meter_id", Identity, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False),
    Column("definition", Document, nullable=False, comment="canonical JSON of the meter"),
    Column("from_ms", BigInteger, nullable=False, comment="first event time it counts"),
    Column("to_ms", BigInteger, nullable=True, comment="first event time it no longer counts"),
    Column("since_version", BigInteger, nullable=False, comment="meter set that brought it"),
    Column(
        "ended_version",
        BigInteger,
        nullable=True,
        comment="meter set that gave it its end; to_ms is NULL in sets before",
    ),
    Column("until_version", BigInteger, nullable=True, comment="first meter set without it"),
    Index("ix_meters_name", "name"),
    comment="One row per version of a meter; immutable but for its end.",
)

sources = Table(
    "sources",
    metadata,
    Column("name", Text, primary_key=True),
    Column(
        "token_id", Text, primary_key=True, comment="public part of the token, for look-up and revocation"
    ),
    Column("token_sha256", Text, nullable=False),
    Column("scopes", Text, nullable=False, comment="space separated: write, replay"),
    Column("created_ms", BigInteger, nullable=False),
    Column("revoked_ms", BigInteger, nullable=True),
)

audit = Table(
    "audit",
    metadata,
    Column("audit_id", Text, primary_key=True, comment="random"),
    Column("at_ms", BigInteger, nullable=False),
    Column("who", Text, nullable=False),
    Column("action", Text, nullable=False, comment="amend, release_posting, cutover"),
    Column("subject", Text, nullable=False, comment="what was acted on: a posting key, a meter and account"),
    Column("reason", Text, nullable=False),
    Column("details", Document, nullable=False),
    Index("ix_audit_at", "at_ms"),
    Index("ix_audit_subject", "subject", "action"),
    comment="What operators have changed by hand: who, when, what and why. Rows are only ever added.",
)

# ------------------------------------------------------------------------------------------------- meter

progress = Table(
    "progress",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("next_offset", BigInteger, nullable=False),
    Column("fingerprint", Text, nullable=False, comment="of record next_offset - 1, '' before the first"),
    Column("meters_version", BigInteger, nullable=False),
    Column("received", BigInteger, nullable=False),
    Column("counted", BigInteger, nullable=False),
    Column("unmatched", BigInteger, nullable=False),
    Column("duplicate", BigInteger, nullable=False),
    Column("late", BigInteger, nullable=False),
    Column("dead", BigInteger, nullable=False),
    Column("weak_duplicate", BigInteger, nullable=False, comment="those of duplicate whose id was weak"),
    Column("ingest_ms", BigInteger, nullable=False, comment="highest ingest time folded"),
    Column("committed_ms", BigInteger, nullable=False, comment="wall time of the commit; for people only"),
    comment="Per source partition: everything below next_offset is in the ledger, and what became of it.",
)

progress_instances = Table(
    "progress_instances",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("instance", Text, primary_key=True),
    Column("rows_received", BigInteger, nullable=False, comment="rows of this instance folded so far"),
    Column("tick_ms", BigInteger, nullable=False, comment="wall time of its last tick, 0 before the first"),
    Column(
        "tick_acknowledged",
        BigInteger,
        nullable=False,
        comment="rows it had acknowledged, said its last tick",
    ),
    Column("tick_received", BigInteger, nullable=False, comment="rows_received when that tick was folded"),
    comment="The law: tick_received >= tick_acknowledged, or the log lost records.",
)

progress_totals = Table(
    "progress_totals",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("meter_id", BigInteger, primary_key=True, autoincrement=False),
    Column(
        "quantity", Quantity, nullable=False, comment="sum over its usage rows; 0 for max, min and latest"
    ),
    Column("events", BigInteger, nullable=False),
    Column("unvalued", BigInteger, nullable=False),
    comment="The law: equals the sum of this partition's usage rows of this meter, there or retired.",
)

progress_epochs = Table(
    "progress_epochs",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("from_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("meters_version", BigInteger, nullable=False),
    comment="Which meter set folded which offsets, so that a recount can use the same.",
)

usage = Table(
    "usage",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("meter_id", BigInteger, primary_key=True, autoincrement=False),
    Column("window_start_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("account", Text, primary_key=True),
    Column("dimensions", Text, primary_key=True, comment="canonical JSON of group_by, '' without"),
    Column("quantity", Quantity, nullable=False),
    Column("events", BigInteger, nullable=False),
    Column("unvalued", BigInteger, nullable=False),
    Column("latest_event_ms", BigInteger, nullable=False),
    Column("order_ms", BigInteger, nullable=False, comment="`latest`: event time of the value held"),
    Column("order_offset", BigInteger, nullable=False, comment="`latest`: its offset, which breaks ties"),
    Column(
        "changed_offset", BigInteger, nullable=False, comment="next_offset of the flush that last touched it"
    ),
    Index("ix_usage_changed", "partition", "changed_offset"),
    Index("ix_usage_account", "account", "meter_id", "window_start_ms"),
    Index("ix_usage_window", "meter_id", "window_start_ms"),
)

usage_retired = Table(
    "usage_retired",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("meter_id", BigInteger, primary_key=True, autoincrement=False),
    Column("quantity", Quantity, nullable=False, comment="of rows removed; 0 for max, min and latest"),
    Column("events", BigInteger, nullable=False),
    Column("unvalued", BigInteger, nullable=False),
    Column("usage_rows", BigInteger, nullable=False, comment="rows removed so far"),
    Column(
        "before_ms", BigInteger, nullable=False, comment="every window that lost a row begins before this"
    ),
    comment="The law: totals are the sum of the usage rows there are and of those removed for their age.",
)

distinct_values = Table(
    "distinct_values",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("meter_id", BigInteger, primary_key=True, autoincrement=False),
    Column("window_start_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("account", Text, primary_key=True),
    Column("dimensions", Text, primary_key=True),
    Column("value_hash", BigInteger, primary_key=True, autoincrement=False, comment="xxh3_64, as signed"),
    comment="What a unique metric has seen.",
)

seen_ids = Table(
    "seen_ids",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("day", Integer, primary_key=True, autoincrement=False, comment="event day: epoch days UTC"),
    Column(
        "to_offset", BigInteger, primary_key=True, autoincrement=False, comment="next_offset of its flush"
    ),
    Column("ids", LargeBinary, nullable=False, comment="sorted little-endian uint64"),
    Column("count", Integer, nullable=False),
    comment="Ids counted or unmatched in [.., to_offset): what makes a later copy a duplicate.",
)

# ---------------------------------------------------------------------------------------------- webhooks

stripe_sequence = Table(
    "stripe_sequence",
    metadata,
    Column("id", SmallInteger, primary_key=True),
    Column("value", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
    comment="Numbers the projector's fetches: a slow fetch never overwrites a newer one.",
)

stripe_inbox = Table(
    "stripe_inbox",
    metadata,
    Column("event_id", Text, primary_key=True),
    Column("type", Text, nullable=False),
    Column("object_id", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("created_s", BigInteger, nullable=False),
    Column("projected_ms", BigInteger, nullable=False),
    Column("outcome", Text, nullable=False),
    comment="Webhook events already projected: dedup by event id.",
)

customers = Table(
    "customers",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("email", Text, nullable=True),
    Column("name", Text, nullable=True),
    Column("deleted", Boolean, nullable=False),
    Column("metadata", Document, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Index("ix_customers_email", "email"),
)

subscriptions = Table(
    "subscriptions",
    metadata,
    Column("subscription_id", Text, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("start_ms", BigInteger, nullable=False),
    Column("ended_ms", BigInteger, nullable=True),
    Column("metadata", Document, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
    Index("ix_subscriptions_customer", "customer_id"),
)

item_periods = Table(
    "item_periods",
    metadata,
    Column("item_id", Text, primary_key=True),
    Column("period_start_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("period_end_ms", BigInteger, nullable=False),
    Column("subscription_id", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("price_id", Text, nullable=False),
    Column("event_name", Text, nullable=False, comment="of the Billing Meter behind the price"),
    Column("state", Text, nullable=False, comment="open, closed (its invoice is finalized), removed"),
    Column("sequence", BigInteger, nullable=False),
    Index("ix_item_periods_customer", "customer_id", "event_name"),
    Index("ix_item_periods_end", "state", "period_end_ms"),
)

invoices = Table(
    "invoices",
    metadata,
    Column("invoice_id", Text, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("subscription_id", Text, nullable=True),
    Column("status", Text, nullable=False),
    Column("billing_reason", Text, nullable=True),
    Column("period_start_ms", BigInteger, nullable=False),
    Column("period_end_ms", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("finalizes_ms", BigInteger, nullable=True, comment="automatically_finalizes_at of a draft"),
    Column("finalized_ms", BigInteger, nullable=True),
    Column("sequence", BigInteger, nullable=False),
    Index("ix_invoices_customer", "customer_id"),
    Index("ix_invoices_status", "status", "finalizes_ms"),
)

invoice_lines = Table(
    "invoice_lines",
    metadata,
    Column("invoice_id", Text, primary_key=True),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("line_id", Text, nullable=False),
    Column("customer_id", Text, nullable=False),
    Column("item_id", Text, nullable=False),
    Column("price_id", Text, nullable=False),
    Column("event_name", Text, nullable=False, comment="of the Billing Meter behind the price"),
    Column("period_start_ms", BigInteger, nullable=False),
    Column("period_end_ms", BigInteger, nullable=False),
    Column(
        "quantity", Text, nullable=False, comment="decimal text as Stripe wrote it; of a draft, so far only"
    ),
    Index("ix_invoice_lines_customer", "customer_id", "event_name", "period_start_ms"),
    comment="What an invoice bills of metered usage, as last fetched: what reconciliation compares postings with.",
)

rejections = Table(
    "rejections",
    metadata,
    Column("identifier", Text, primary_key=True, comment="of the meter event Stripe refused after its 2xx"),
    Column("event_id", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("reported_ms", BigInteger, nullable=False),
    Column("sequence", BigInteger, nullable=False, comment="stripe_sync reads these in order"),
    comment="Asynchronous refusals from meter error reports; stripe_sync reopens their postings.",
)

imports = Table(
    "imports",
    metadata,
    Column("name", Text, primary_key=True, comment="what is imported: customers"),
    Column("bookmark", Text, nullable=False, comment="where an interrupted import goes on"),
    Column("customers", BigInteger, nullable=False, comment="written so far"),
    Column("subscriptions", BigInteger, nullable=False, comment="written so far"),
    Column("updated_ms", BigInteger, nullable=False),
    comment="Imports that have begun and not ended.",
)

# --------------------------------------------------------------------------------------------- directory

directory_state = Table(
    "directory_state",
    metadata,
    Column("id", SmallInteger, primary_key=True),
    Column("version", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
    comment="Raised with every change to mappings or item periods: tells stripe_sync to look at what it holds.",
)

mappings = Table(
    "mappings",
    metadata,
    Column("account", Text, primary_key=True),
    Column("customer_id", Text, primary_key=True),
    Column("from_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("to_ms", BigInteger, nullable=True, comment="first event time it no longer holds for"),
    Column("rule", Text, nullable=False, comment="the mapping rule that made it, e.g. user=customer.id"),
    Column("created_ms", BigInteger, nullable=False),
    Index("ix_mappings_customer", "customer_id"),
    comment="Which customer pays for an account, for event times in [from_ms, to_ms).",
)

# ------------------------------------------------------------------------------------------- stripe_sync

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column(
        "version", BigInteger, nullable=False, comment="raised at each take-over; fences every state change"
    ),
    Column("expires_ms", BigInteger, nullable=False),
)

controls = Table(
    "controls",
    metadata,
    Column("name", Text, primary_key=True, comment="paused, sync_now, halted:<meter>"),
    Column("value", Text, nullable=False),
    Column("changed_ms", BigInteger, nullable=False),
)

plan_cursors = Table(
    "plan_cursors",
    metadata,
    Column("partition", Integer, primary_key=True, autoincrement=False),
    Column("planned_offset", BigInteger, nullable=False, comment="usage changed up to here has been planned"),
)

attributions = Table(
    "attributions",
    metadata,
    Column("meter_id", BigInteger, primary_key=True, autoincrement=False),
    Column("window_start_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("account", Text, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("posting_key", Text, nullable=False),
    Index("ix_attributions_posting_key", "posting_key"),
    comment="Whose customer an account's window was posted to: pinned at its first posting.",
)

holds = Table(
    "holds",
    metadata,
    Column("meter_id", BigInteger, primary_key=True, autoincrement=False),
    Column("window_start_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("account", Text, primary_key=True),
    Column(
        "reason",
        Text,
        nullable=False,
        comment="no_mapping, no_item, closed, no_price, ambiguous, negative, period_over, inexact, too_old, in_flight, "
        "dry_run",
    ),
    Column("quantity", Quantity, nullable=False, comment="what is not posted"),
    Column("since_ms", BigInteger, nullable=False),
    Index("ix_holds_reason", "reason"),
)

postings = Table(
    "postings",
    metadata,
    Column("posting_key", Text, primary_key=True, comment="hash of customer, meter and window"),
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("customer_id", Text, nullable=False),
    Column("meter_id", BigInteger, nullable=False),
    Column("window_start_ms", BigInteger, nullable=False),
    Column("quantity_from", Quantity, nullable=False),
    Column("quantity_to", Quantity, nullable=False),
    Column(
        "mode",
        Text,
        nullable=False,
        comment="delta, window_total, usage_record, invoice_item, dry_run, reversal",
    ),
    Column("identifier", Text, nullable=False, unique=True),
    Column("idempotency_key", Text, nullable=False),
    Column("timestamp_s", BigInteger, nullable=False),
    Column("body", Text, nullable=False, comment="exact JSON of the request's parameters"),
    Column(
        "state",
        Text,
        nullable=False,
        comment="planned, journalled, sending, delivered, dry_run, unknown, parked, settled, void, reversal, "
        "superseded",
    ),
    Column("attempts", Integer, nullable=False),
    Column("first_sent_ms", BigInteger, nullable=True),
    Column("last_sent_ms", BigInteger, nullable=True),
    Column("retry_ms", BigInteger, nullable=True, comment="not before this"),
    Column("settled_ms", BigInteger, nullable=True),
    Column("request_id", Text, nullable=True),
    Column("error", Text, nullable=True),
    Column("planned_ms", BigInteger, nullable=False),
    Column("planned_from", Document, nullable=False, comment="progress per partition the plan was read at"),
    Column("lease_version", BigInteger, nullable=False),
    Column(
        "for_period_ms",
        BigInteger,
        nullable=True,
        comment="start of the finalized period it makes up for; NULL when its own period bills it",
    ),
    Index("ix_postings_state", "state", "retry_ms"),
    Index("ix_postings_customer", "customer_id", "meter_id", "window_start_ms"),
    comment="The posting chain: seq 1..n per key, from = previous to.",
)

finalization_delays = Table(
    "finalization_delays",
    metadata,
    Column("invoice_id", Text, primary_key=True),
    Column("customer_id", Text, nullable=False),
    Column("planned_ms", BigInteger, nullable=False, comment="when Stripe meant to finalize it"),
    Column("until_ms", BigInteger, nullable=False, comment="when it becomes final as we last set it"),
    Column("reason", Text, nullable=False, comment="counting, planning, posting, parked"),
    Column("delays", Integer, nullable=False, comment="how often it was put off"),
    Column("since_ms", BigInteger, nullable=False),
    Column("state", Text, nullable=False, comment="delayed, released, given_up, refused"),
    Column("retry_ms", BigInteger, nullable=True, comment="not before this, after Stripe would not have it"),
    Column("error", Text, nullable=True),
    comment="Draft invoices whose finalization was put off because usage of their period was still on its way.",
)

reconciliations = Table(
    "reconciliations",
    metadata,
    Column("customer_id", Text, primary_key=True),
    Column("event_name", Text, primary_key=True, comment="of the Billing Meter"),
    Column("period_start_ms", BigInteger, primary_key=True, autoincrement=False),
    Column("period_end_ms", BigInteger, nullable=False),
    Column("counted", Quantity, nullable=False, comment="usage in the ledger"),
    Column("delivered", Quantity, nullable=False, comment="what of it Stripe has taken"),
    Column("stripe", Text, nullable=True, comment="Stripe's summary, a double as text; NULL when not asked"),
    Column("invoiced", Text, nullable=True, comment="on the final invoice, decimal text; NULL before"),
    Column("invoice_id", Text, nullable=True),
    Column("invoice_status", Text, nullable=True, comment="as it was at this check"),
    Column("verdict", Text, nullable=False, comment="agrees, settling, explained, unchecked, drift"),
    Column("drift", Text, nullable=False, comment="units nothing explains, decimal text"),
    Column("findings", Document, nullable=False, comment="each difference with its cause, hour and postings"),
    Column("checked_ms", BigInteger, nullable=False),
    Column("asked_ms", BigInteger, nullable=True, comment="when Stripe was last asked"),
    Column("due_ms", BigInteger, nullable=True, comment="next check; NULL when there is none to come"),
    Column(
        "retired_ms", BigInteger, nullable=True, comment="since when its usage and postings may be removed"
    ),
    Column("emptied_ms", BigInteger, nullable=True, comment="when the last of its postings was removed"),
    Index("ix_reconciliations_due", "due_ms"),
    Index("ix_reconciliations_verdict", "verdict"),
    comment="The last comparison of ledger, postings, Stripe's summaries and invoice, per customer, meter and period.",
)

prices = Table(
    "prices",
    metadata,
    Column("price_id", Text, primary_key=True),
    Column("terms", Document, nullable=True, comment="NULL when nothing here can express it"),
    Column("problem", Text, nullable=False, comment="why not, else ''"),
    Column("fetched_ms", BigInteger, nullable=False),
    comment="Stripe's prices that invoice items were worked out from. Their amounts never change.",
)

stripe_reads = Table(
    "stripe_reads",
    metadata,
    Column("day", Integer, primary_key=True, autoincrement=False, comment="epoch days UTC"),
    Column("reads", Integer, nullable=False),
    comment="Reads of Stripe's summaries that reconciliation has spent, against its budget.",
)

OWNERS: Mapping[str, tuple[Table, ...]] = {
    "catalogue": (pins, catalogue_state, meter_sets, meters, sources, audit),
    "meter": (
        progress,
        progress_instances,
        progress_totals,
        progress_epochs,
        usage,
        usage_retired,
        distinct_values,
        seen_ids,
    ),
    "webhooks": (
        stripe_sequence,
        stripe_inbox,
        customers,
        subscriptions,
        item_periods,
        invoices,
        invoice_lines,
        rejections,
        imports,
        directory_state,
        mappings,
    ),
    "stripe_sync": (
        leases,
        controls,
        plan_cursors,
        attributions,
        holds,
        postings,
        finalization_delays,
        reconciliations,
        prices,
        stripe_reads,
    ),
}
"""Each table's one writer. In PostgreSQL each owner is a role that may write these tables only."""
