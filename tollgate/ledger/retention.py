"""Retention: which tables grow with time, what of each may go and when, and what never does.

Owns those rules as plain values, and the moments they come to on a given day. It refuses to know SQL, any clock and how
rows are removed (`maintenance.py`). Every table of the ledger has a rule here; a test says so.

The order in which things may go follows from what needs what: usage goes once its period is billed and reconciled and
nothing of its chain may change any more, its postings after it, the period's own rows after those.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from enum import StrEnum

DAY_MS = 24 * 3_600_000

JOURNAL_DAYS = 90
"""How long the journal of postings is kept: a posting that a restored ledger may find there must not be gone here."""

RESENT_DAYS = 35
"""How far back Stripe's webhook events are resent, listed, or kept on their topic, and stamps are taken."""


class Growth(StrEnum):
    """What makes a table larger."""

    FIXED = "fixed"
    """Nothing: its rows are known at the start."""
    OPERATORS = "operators"
    """What operators declare: meters, tokens, prices."""
    CUSTOMERS = "customers"
    """Customers that come and go; not their calls."""
    TIME = "time"
    """Every day adds rows for as long as anything happens."""


@dataclass(frozen=True, slots=True)
class TableRule:
    """What becomes of one table's rows. `owner` writes it, and so removes from it."""

    table: str
    owner: str
    growth: Growth
    removed: str
    """What may go, and when; '' when nothing ever does."""
    kept: str
    """What never goes, or why nothing does."""
    settings: tuple[str, ...] = ()
    """Those of `Retention` that say when."""


@dataclass(frozen=True, slots=True)
class Retention:
    """How long what is kept, in days of 24 hours. Zero means for ever."""

    billed_days: int = 400
    """After the end of a billing period: its usage and postings, once it is billed, reconciled and settled. Thirteen
    months show the same month of the year before."""
    unbilled_days: int = 800
    """After its window: usage nobody was ever asked to pay (held, or of a meter that is not sent)."""
    evidence_days: int = 2_557
    """After the end of a billing period: the result of its reconciliation, with the totals. Seven years."""
    inbox_days: int = 60
    """Ids of webhook events that are done, against their being sent again."""
    rejections_days: int = 120
    """What Stripe refused after its 2xx, once its posting has been taken back."""
    instances_days: int = 35
    """Ticks of ingest instances that ended; what they sent is then added up in one row a partition."""
    audit_days: int = 0
    """What operators changed by hand."""

    def __post_init__(self) -> None:
        """Raises ValueError naming everything that does not fit together."""
        problems = [
            f"{name} must be 0 (for ever) or at least {least}, not {getattr(self, name)}"
            for name, least in (
                # A day more than each, since days are cut at different moments.
                ("billed_days", JOURNAL_DAYS + RESENT_DAYS),
                ("inbox_days", RESENT_DAYS + 1),
                ("rejections_days", RESENT_DAYS + 1),
            )
            if 0 < getattr(self, name) < least
        ]
        for name, than in (
            ("unbilled_days", "billed_days"),
            ("evidence_days", "billed_days"),
            ("audit_days", "unbilled_days"),
        ):
            # Zero is longer than anything.
            kept, other = getattr(self, name) or math.inf, getattr(self, than) or math.inf
            if kept < other:
                problems.append(f"{name}, {kept}, must be 0 (for ever) or at least {than}, {other}")
        problems += [
            f"{field.name} must not be negative" for field in fields(self) if getattr(self, field.name) < 0
        ]
        if problems:
            raise ValueError("; ".join(problems))

    def before_ms(self, setting: str, now_ms: int) -> int:
        """What lies before this (epoch ms) has been kept as long as `setting` says; 0 when it is kept for ever."""
        days: int = getattr(self, setting)
        return max(0, now_ms - days * DAY_MS) if days else 0


RULES: tuple[TableRule, ...] = (
    # ------------------------------------------------------------------------------------------ catalogue
    TableRule("pins", "catalogue", Growth.FIXED, "", "What the ledger belongs to."),
    TableRule("catalogue_state", "catalogue", Growth.FIXED, "", "One row."),
    TableRule("meter_sets", "catalogue", Growth.OPERATORS, "", "A recount needs the set of its time."),
    TableRule("meters", "catalogue", Growth.OPERATORS, "", "Usage and totals name their meter for ever."),
    TableRule("sources", "catalogue", Growth.OPERATORS, "", "Revoked tokens stay known as revoked."),
    TableRule(
        "audit",
        "catalogue",
        Growth.OPERATORS,
        "Entries past audit_days whose usage and postings are gone.",
        "Everything by default; what planning still reads (amendments of usage there is, released postings).",
        ("audit_days",),
    ),
    # ---------------------------------------------------------------------------------------------- meter
    TableRule("progress", "meter", Growth.FIXED, "", "One row a partition: the law."),
    TableRule(
        "progress_instances",
        "meter",
        Growth.TIME,
        "Instances silent for instances_days on every partition, that lost nothing: their counts are added up in one "
        "row a partition.",
        "Living instances; one whose acknowledged rows were not all received; one that never ticked.",
        ("instances_days",),
    ),
    TableRule("progress_totals", "meter", Growth.OPERATORS, "", "The law: one row a partition and meter."),
    TableRule("progress_epochs", "meter", Growth.OPERATORS, "", "A recount needs to know which set counted."),
    TableRule(
        "usage",
        "meter",
        Growth.TIME,
        "Whole chains whose every link was stamped in a retired period (billed_days); what was never posted after "
        "unbilled_days. What goes is added to usage_retired in the same transaction.",
        "Usage of open, unbilled, unreconciled or drifting periods, of chains with an unsettled link or a hold, and "
        "what planning has not read.",
        ("billed_days", "unbilled_days"),
    ),
    TableRule(
        "distinct_values",
        "meter",
        Growth.TIME,
        "With its usage row.",
        "As usage: a value seen must stay seen while its window is there.",
        ("billed_days", "unbilled_days"),
    ),
    TableRule("usage_retired", "meter", Growth.OPERATORS, "", "The law: one row a partition and meter."),
    TableRule(
        "seen_ids",
        "meter",
        Growth.TIME,
        "Event days older than events are accepted. Rows of small flushes become few of many ids.",
        "Every id of a day whose events are still accepted.",
    ),
    # ------------------------------------------------------------------------------------------- webhooks
    TableRule("stripe_sequence", "webhooks", Growth.FIXED, "", "One row."),
    TableRule(
        "stripe_inbox",
        "webhooks",
        Growth.TIME,
        "Projected events after inbox_days.",
        "Events that could not be projected: they wait for an operator.",
        ("inbox_days",),
    ),
    TableRule(
        "customers", "webhooks", Growth.CUSTOMERS, "", "Deleted ones too: postings and mappings name them."
    ),
    TableRule(
        "subscriptions", "webhooks", Growth.CUSTOMERS, "", "What a customer once had explains its bills."
    ),
    TableRule(
        "item_periods",
        "webhooks",
        Growth.TIME,
        "Closed and removed periods past billed_days: reconciled ones once their postings are gone, others when nothing "
        "was ever posted in them.",
        "Open periods, and any that usage may still be placed in or compared with.",
        ("billed_days",),
    ),
    TableRule(
        "invoices",
        "webhooks",
        Growth.TIME,
        "Paid, void and uncollectible ones past billed_days, once the periods they bill are gone.",
        "Drafts and unpaid ones.",
        ("billed_days",),
    ),
    TableRule(
        "invoice_lines", "webhooks", Growth.TIME, "With their invoice.", "As invoices.", ("billed_days",)
    ),
    TableRule(
        "rejections",
        "webhooks",
        Growth.TIME,
        "After rejections_days, when no posting of that identifier waits to be taken back.",
        "Those that planning has not acted on.",
        ("rejections_days",),
    ),
    TableRule("imports", "webhooks", Growth.FIXED, "", "An import removes its own row at its end."),
    TableRule("directory_state", "webhooks", Growth.FIXED, "", "One row."),
    TableRule(
        "mappings", "webhooks", Growth.CUSTOMERS, "", "Ended ones too: they say whose usage was whose."
    ),
    # ---------------------------------------------------------------------------------------- stripe_sync
    TableRule("leases", "stripe_sync", Growth.FIXED, "", "One row a lease."),
    TableRule("controls", "stripe_sync", Growth.OPERATORS, "", "A few rows a meter and partition."),
    TableRule("plan_cursors", "stripe_sync", Growth.FIXED, "", "One row a partition."),
    TableRule(
        "attributions",
        "stripe_sync",
        Growth.TIME,
        "With the postings of their chain; those nothing was posted of once their usage is gone.",
        "As postings: a slot once posted stays with its customer.",
        ("billed_days",),
    ),
    TableRule(
        "holds",
        "stripe_sync",
        Growth.TIME,
        "Once their usage is gone.",
        "As usage: what is held waits for a decision.",
        ("unbilled_days",),
    ),
    TableRule(
        "postings",
        "stripe_sync",
        Growth.TIME,
        "Whole chains, once their usage is retired: never a part of one.",
        "Chains with an unsettled link, a hold, usage, or a link stamped in a period that is not retired.",
        ("billed_days",),
    ),
    TableRule(
        "finalization_delays",
        "stripe_sync",
        Growth.TIME,
        "Those that are over, once their invoice is gone.",
        "Delays of invoices there are.",
        ("billed_days",),
    ),
    TableRule(
        "reconciliations",
        "stripe_sync",
        Growth.TIME,
        "After evidence_days, once everything else of their period is gone.",
        "Those of periods that are not retired, and every drift.",
        ("evidence_days",),
    ),
    TableRule("prices", "stripe_sync", Growth.OPERATORS, "", "Their amounts never change."),
    TableRule("stripe_reads", "stripe_sync", Growth.FIXED, "", "Forty days, kept by the budget itself."),
)
"""Every table, by owner."""


# ------------------------------------------------------------------------------------------- seen ids

IDS_A_ROW = 1 << 19
"""Ids one row of seen ids holds at most after compaction: 4 MiB, read and written in tens of milliseconds."""

ROWS_WORTH_IT = 64
"""Rows of small flushes that are merged at once: each id is then rewritten a few times in its life, not every minute."""

ROWS_A_MERGE = 4_096
"""Rows one merge reads at most."""


@dataclass(frozen=True, slots=True)
class SeenRow:
    """One row of a partition's seen ids of one event day: `count` ids, those below `to_offset` above the row before."""

    to_offset: int
    count: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive rows, from the one that ends at `first_offset` to the one that ends at `last_offset`."""

    first_offset: int
    last_offset: int
    rows: int


def find_stretches(
    rows: list[SeenRow],
    *,
    ids_max: int = IDS_A_ROW,
    rows_min: int = ROWS_WORTH_IT,
    rows_max: int = ROWS_A_MERGE,
    closed: bool = False,
) -> list[Stretch]:
    """Which consecutive `rows` (ascending by offset) are to become one row each.

    1. A row of half of `ids_max` or more is never touched again. 2. Between such rows, stretches are cut at `ids_max`
    ids and `rows_max` rows. 3. The last stretch still grows: it waits for `rows_min` rows, and leaves out leading rows
    that hold more than all that follow, so that an id is rewritten as often as the logarithm of its neighbours. With
    `closed` (nothing more will be added) it does not wait. Applied until it finds nothing, at most
    `4 * ids / ids_max + rows_min + log2(ids_max) + 1` rows are left, with `closed` the first and last terms alone.
    """
    found: list[Stretch] = []
    open_: list[SeenRow] = []
    ids = 0

    def end(*, growing: bool) -> None:
        nonlocal ids
        kept = open_[:]
        if growing and not closed:
            after = ids
            while kept and kept[0].count > (after := after - kept[0].count):
                del kept[0]
        if len(kept) >= (rows_min if growing and not closed else 2):
            found.append(Stretch(kept[0].to_offset, kept[-1].to_offset, len(kept)))
        open_.clear()
        ids = 0

    for row in rows:
        if 2 * row.count >= ids_max:
            end(growing=False)
            continue
        if ids + row.count > ids_max or len(open_) == rows_max:
            end(growing=False)
        open_.append(row)
        ids += row.count
    end(growing=True)
    return found
