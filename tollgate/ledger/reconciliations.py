"""Reconciliations: what the last comparison of each period found, and how many reads of Stripe they may cost.

Owns `reconciliations` and `stripe_reads`, and the one repair that no other file has: taking back a delivered posting
that Stripe turned out not to have. It refuses to compare anything and to ask Stripe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, Row, and_, delete, func, select, update

from tollgate.ledger.chunks import chunks
from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.holding import reopen_chains
from tollgate.ledger.insertion import insert_missing, put
from tollgate.ledger.posting_rows import AT_STRIPE, PostingState
from tollgate.ledger.tables import (
    postings,
    reconciliations,
    stripe_reads,
)
from tollgate.metering.reconciliation import Finding, Subject, Verdict

DAY_MS = 24 * 3600 * 1000

_READS_KEPT_DAYS = 40
"""Stripe allots reads over a month: that much of the past is worth keeping."""


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """One comparison, as it is kept. `stripe` is a double as text, `invoiced` decimal text; None: not known."""

    subject: Subject
    counted: Decimal
    delivered: Decimal
    stripe: str | None
    invoiced: str | None
    invoice_id: str | None
    invoice_status: str | None
    verdict: Verdict
    drift: Decimal
    findings: tuple[Finding, ...]
    checked_ms: int
    asked_ms: int | None
    due_ms: int | None


@dataclass(frozen=True, slots=True)
class DriftSummary:
    """What metrics show. Units of drift by Billing Meter, and when the oldest of what is due was last checked."""

    drift_by_meter: Mapping[str, Decimal]
    customers_with_drift: int
    by_verdict: Mapping[Verdict, int]
    last_checked_ms: int | None


# ----------------------------------------------------------------------------------------------- kept


def store_reconciliation(engine: Engine, found: Reconciliation) -> None:
    """Keep a comparison, unless a later one is kept already or the period was retired while it was made."""
    subject = found.subject
    row = {
        "customer_id": subject.customer_id,
        "event_name": subject.event_name,
        "period_start_ms": subject.period_start_ms,
        "period_end_ms": subject.period_end_ms,
        "counted": found.counted,
        "delivered": found.delivered,
        "stripe": found.stripe,
        "invoiced": found.invoiced,
        "invoice_id": found.invoice_id,
        "invoice_status": found.invoice_status,
        "verdict": str(found.verdict),
        "drift": f"{found.drift:f}",
        "findings": [finding.to_document() for finding in found.findings],
        "checked_ms": found.checked_ms,
        "asked_ms": found.asked_ms,
        "due_ms": found.due_ms,
    }
    with ledger_transaction(engine) as connection:
        kept = connection.execute(
            select(reconciliations.c.checked_ms, reconciliations.c.retired_ms).where(_is_of(subject))
        ).one_or_none()
        if kept is None or (kept.retired_ms is None and kept.checked_ms <= found.checked_ms):
            put(connection, reconciliations, [row])


def load_reconciliation(engine: Engine, subject: Subject) -> Reconciliation | None:
    """The last comparison of a subject."""
    with read_snapshot(engine) as connection:
        row = connection.execute(select(reconciliations).where(_is_of(subject))).one_or_none()
    return None if row is None else _to_domain(row)


def load_reconciliations(engine: Engine, subjects: Sequence[Subject]) -> list[Reconciliation]:
    """The last comparison of each subject that has one, in the same order."""
    wanted = set(subjects)
    kept: dict[Subject, Reconciliation] = {}
    with read_snapshot(engine) as connection:
        for customers in chunks(sorted({subject.customer_id for subject in wanted})):
            statement = select(reconciliations).where(reconciliations.c.customer_id.in_(customers))
            for row in connection.execute(statement):
                found = _to_domain(row)
                kept[found.subject] = found
    return [kept[subject] for subject in subjects if subject in kept]


def find_posting_findings(engine: Engine, ref: str) -> list[tuple[Reconciliation, Finding]]:
    """Every kept finding that names the posting KEY:SEQ and has a remedy, the newest check first."""
    key = ref.rpartition(":")[0]
    with read_snapshot(engine) as connection:
        owner = connection.execute(
            select(postings.c.customer_id).where(postings.c.posting_key == key).limit(1)
        ).scalar()
        rows = connection.execute(
            select(reconciliations)
            .where(reconciliations.c.customer_id == owner)
            .order_by(reconciliations.c.checked_ms.desc())
        ).all()
    return [
        (kept, finding)
        for kept in map(_to_domain, rows)
        for finding in kept.findings
        if ref in finding.postings and finding.remedy is not None
    ]


def summarise_drift(engine: Engine) -> DriftSummary:
    """What metrics show of all that is kept."""
    with read_snapshot(engine) as connection:
        counts = connection.execute(
            select(reconciliations.c.verdict, func.count()).group_by(reconciliations.c.verdict)
        ).all()
        last_ms = connection.execute(select(func.max(reconciliations.c.checked_ms))).scalar()
        meters = connection.execute(select(reconciliations.c.event_name).distinct()).scalars()
        drift = dict.fromkeys(meters, Decimal(0))
        customers = set()
        rows = connection.execute(
            select(
                reconciliations.c.customer_id, reconciliations.c.event_name, reconciliations.c.drift
            ).where(reconciliations.c.verdict == Verdict.DRIFT)
        )
        for row in rows:
            customers.add(row.customer_id)
            drift[row.event_name] += Decimal(row.drift)
    return DriftSummary(drift, len(customers), {Verdict(row[0]): row[1] for row in counts}, last_ms)


def _is_of(subject: Subject) -> Any:
    return and_(
        reconciliations.c.customer_id == subject.customer_id,
        reconciliations.c.event_name == subject.event_name,
        reconciliations.c.period_start_ms == subject.period_start_ms,
    )


def _to_domain(row: Row[Any]) -> Reconciliation:
    return Reconciliation(
        subject=Subject(row.customer_id, row.event_name, row.period_start_ms, row.period_end_ms),
        counted=row.counted,
        delivered=row.delivered,
        stripe=row.stripe,
        invoiced=row.invoiced,
        invoice_id=row.invoice_id,
        invoice_status=row.invoice_status,
        verdict=Verdict(row.verdict),
        drift=Decimal(row.drift),
        findings=tuple(Finding.from_document(document) for document in row.findings),
        checked_ms=row.checked_ms,
        asked_ms=row.asked_ms,
        due_ms=row.due_ms,
    )


# ---------------------------------------------------------------------------------------------- budget


def take_read(engine: Engine, now_ms: int, reads_max: int) -> bool:
    """Take one read of Stripe's out of today's budget (UTC); False when it is used up.

    One statement decides, so processes that share the ledger share the budget.
    """
    day = now_ms // DAY_MS
    with ledger_transaction(engine) as connection:
        _begin_day(connection, day)
        taken = connection.execute(
            update(stripe_reads)
            .where(stripe_reads.c.day == day, stripe_reads.c.reads < reads_max)
            .values(reads=stripe_reads.c.reads + 1)
        )
        return taken.rowcount == 1


def _begin_day(connection: Connection, day: int) -> None:
    if insert_missing(connection, stripe_reads, [{"day": day, "reads": 0}]):
        connection.execute(delete(stripe_reads).where(stripe_reads.c.day < day - _READS_KEPT_DAYS))


def reads_taken(engine: Engine, now_ms: int) -> int:
    """Reads taken out of today's budget so far."""
    with read_snapshot(engine) as connection:
        taken = connection.execute(
            select(stripe_reads.c.reads).where(stripe_reads.c.day == now_ms // DAY_MS)
        ).scalar()
    return taken or 0


# ---------------------------------------------------------------------------------------------- repair


def void_missing_posting(engine: Engine, posting_key: str, seq: int, checked_ms: int, now_ms: int) -> bool:
    """Take back a delivered posting that Stripe has not got, as a check at `checked_ms` found: its quantity is planned
    again under a new identifier. False when it is not delivered, or was only after that check.
    """
    with ledger_transaction(engine) as connection:
        voided = connection.execute(
            update(postings)
            .where(
                postings.c.posting_key == posting_key,
                postings.c.seq == seq,
                postings.c.state.in_([str(state) for state in AT_STRIPE]),
                func.coalesce(postings.c.settled_ms, postings.c.last_sent_ms, 0) < checked_ms,
            )
            .values(
                state=str(PostingState.VOID),
                settled_ms=now_ms,
                error="missing at Stripe, says reconciliation",
            )
        )
        if voided.rowcount != 1:
            return False
        reopen_chains(connection, [posting_key], now_ms)
        return True
