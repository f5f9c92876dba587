"""What the ledger knows of one customer's usage of one meter in one period, for reconciliation to compare.

Owns reading it: postings by their stamp, what the invoice bills, and beside them the usage (`reconciliation_usage.py`).
It refuses to compare (`tollgate.metering.comparison`, `tollgate.metering.drift`) and to know Stripe.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, Row, select

from tollgate.ledger.billing import FINALIZED_STATUSES
from tollgate.ledger.chunks import chunks
from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.meter_terms import load_terms
from tollgate.ledger.posting_rows import AT_STRIPE, PostingState
from tollgate.ledger.reconciliation_usage import load_missing, load_slots
from tollgate.ledger.tables import (
    invoice_lines,
    invoices,
    postings,
)
from tollgate.metering.comparison import carry_superseded
from tollgate.metering.drift import summary_span_s
from tollgate.metering.reconciliation import (
    EFFECTS,
    EXACT,
    Effect,
    InvoiceLines,
    Link,
    Missing,
    Standing,
    Subject,
    add_up,
)

_STANDINGS: Mapping[PostingState, Standing] = {
    **dict.fromkeys(AT_STRIPE, Standing.AT_STRIPE),
    PostingState.SENDING: Standing.DOUBTFUL,
    PostingState.UNKNOWN: Standing.DOUBTFUL,
    PostingState.PLANNED: Standing.WAITING,
    PostingState.JOURNALLED: Standing.WAITING,
    PostingState.PARKED: Standing.PARKED,
    PostingState.DRY_RUN: Standing.REHEARSED,
    PostingState.VOID: Standing.VOID,
    PostingState.REVERSAL: Standing.REVERSAL,
    PostingState.SUPERSEDED: Standing.SUPERSEDED,
}


@dataclass(frozen=True, slots=True)
class SubjectView:
    """Everything of one moment. `links`: of every chain concerned, whatever their stamp."""

    subject: Subject
    meters: tuple[str, ...]
    """Names of the meters whose usage goes to the Billing Meter."""
    live: bool
    """Whether any of them sends to Stripe."""
    links: tuple[Link, ...]
    missing: tuple[Missing, ...]
    invoice: InvoiceLines | None
    """The final one."""
    invoice_id: str | None
    """The newest invoice of the period, draft or final, and its status."""
    invoice_status: str | None

    @property
    def in_period(self) -> list[Link]:
        """The links stamped in the period."""
        start_ms, end_ms = self.subject.period_start_ms, self.subject.period_end_ms
        return [link for link in self.links if start_ms <= link.stamp_s * 1000 < end_ms]


def load_view(engine: Engine, subject: Subject) -> SubjectView:
    """The view of one subject. Raises LedgerUnavailable."""
    with read_snapshot(engine) as connection:
        terms = {
            meter_id: meter
            for meter_id, meter in load_terms(connection).items()
            if meter.event_name == subject.event_name
        }
        stamped = _stamped_keys(connection, subject, list(terms))
        slots = load_slots(connection, subject, terms)
        keys = {*stamped, *(row.posting_key for row in slots if row.posting_key is not None)}
        links = _links(connection, sorted(keys))
        missing = load_missing(connection, subject, terms, slots, links)
        final, newest = _invoice(connection, subject)
    return SubjectView(
        subject=subject,
        meters=tuple(sorted({meter.name for meter in terms.values()})),
        live=any(meter.send == "live" for meter in terms.values()),
        links=tuple(link for members in links.values() for link in members),
        missing=tuple(missing),
        invoice=final,
        invoice_id=None if newest is None else newest.invoice_id,
        invoice_status=None if newest is None else newest.status,
    )


# --------------------------------------------------------------------------------------------- postings


def _stamped_keys(connection: Connection, subject: Subject, meter_ids: Sequence[int]) -> set[str]:
    """Chains with a posting stamped in the hours around the period."""
    start_s, end_s = summary_span_s(subject.period_start_ms, subject.period_end_ms)
    rows = connection.execute(
        select(postings.c.posting_key)
        .where(
            postings.c.customer_id == subject.customer_id,
            postings.c.meter_id.in_(meter_ids),
            postings.c.timestamp_s >= start_s,
            postings.c.timestamp_s < end_s,
        )
        .distinct()
    )
    return set(rows.scalars())


def _links(connection: Connection, keys: Sequence[str]) -> dict[str, list[Link]]:
    found: dict[str, list[Link]] = defaultdict(list)
    for chunk in chunks(keys):
        rows = connection.execute(
            select(postings)
            .where(postings.c.posting_key.in_(chunk))
            .order_by(postings.c.posting_key, postings.c.seq)
        )
        for row in rows:
            found[row.posting_key].append(_link(row))
    return {key: carry_superseded(chain) for key, chain in found.items()}


def _link(row: Row[Any]) -> Link:
    state = PostingState(row.state)
    standing = _STANDINGS[state]
    if standing in (Standing.WAITING, Standing.PARKED) and row.first_sent_ms is not None:
        standing = Standing.DOUBTFUL
    quantity = EXACT.subtract(row.quantity_to, row.quantity_from)
    return Link(
        posting_key=row.posting_key,
        seq=row.seq,
        stamp_s=row.timestamp_s,
        quantity=quantity,
        sent=_sent(row.body, quantity),
        effect=EFFECTS.get(row.mode, Effect.ELSEWHERE),
        standing=standing,
        state=str(state),
        last_sent_ms=row.last_sent_ms,
        settled_ms=row.settled_ms,
    )


def _sent(body: str, quantity: Decimal) -> Decimal:
    """The value a posting's exact body tells Stripe: what it adds, or the total it sets."""
    document = json.loads(body)
    value = (document.get("payload") or {}).get("value", document.get("quantity"))
    return quantity if value is None else Decimal(str(value))


# ---------------------------------------------------------------------------------------------- invoice


def _invoice(connection: Connection, subject: Subject) -> tuple[InvoiceLines | None, Any]:
    """What the final invoice bills of lines that begin in the period, and the newest invoice of all."""
    rows = connection.execute(
        select(
            invoice_lines.c.period_start_ms,
            invoice_lines.c.period_end_ms,
            invoice_lines.c.quantity,
            invoices.c.invoice_id,
            invoices.c.status,
            invoices.c.finalized_ms,
            invoices.c.created_ms,
        )
        .join_from(invoice_lines, invoices, invoices.c.invoice_id == invoice_lines.c.invoice_id)
        .where(
            invoice_lines.c.customer_id == subject.customer_id,
            invoice_lines.c.event_name == subject.event_name,
            invoice_lines.c.period_start_ms >= subject.period_start_ms,
            invoice_lines.c.period_start_ms < subject.period_end_ms,
            invoice_lines.c.period_end_ms > invoice_lines.c.period_start_ms,
        )
        .order_by(invoices.c.created_ms, invoices.c.invoice_id)
    ).all()
    if not rows:
        return None, None
    final = [row for row in rows if row.status in FINALIZED_STATUSES]
    lines = None
    if final:
        lines = InvoiceLines(
            invoice_id=final[-1].invoice_id,
            start_ms=min(row.period_start_ms for row in final),
            end_ms=max(row.period_end_ms for row in final),
            quantity=add_up(Decimal(row.quantity) for row in final),
            finalized_ms=max(row.finalized_ms or row.created_ms for row in final),
        )
    return lines, rows[-1]
