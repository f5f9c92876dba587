"""Finalizations: draft invoices that Stripe will finalize by itself, and what was done to put that off.

Owns the rows of `finalization_delays`. It refuses to know when a draft may become final (`tollgate.metering.finalization`)
and how Stripe is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, Row, or_, select, tuple_

from tollgate.ledger.chunks import chunks
from tollgate.ledger.completeness import Span
from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.insertion import put
from tollgate.ledger.leases import Lease, fence
from tollgate.ledger.tables import finalization_delays, invoice_lines, invoices
from tollgate.metering.finalization import Draft, Incomplete


class DelayState(StrEnum):
    """What became of a delay."""

    DELAYED = "delayed"
    RELEASED = "released"
    """Its usage is complete; it becomes final shortly."""
    GIVEN_UP = "given_up"
    """It waited as long as it may, and becomes final without the rest."""
    REFUSED = "refused"
    """Stripe would not put it off."""


@dataclass(frozen=True, slots=True)
class DraftInvoice:
    """A draft and the metered usage it bills."""

    invoice_id: str
    customer_id: str
    draft: Draft
    spans: tuple[Span, ...]
    state: DelayState | None = None
    """None: nothing was done about it."""
    retry_ms: int | None = None

    @property
    def period_end_ms(self) -> int:
        """When the last of its spans ended."""
        return max(span.end_ms for span in self.spans)


@dataclass(frozen=True, slots=True)
class Delay:
    """A delay as it is kept. Times are epoch milliseconds."""

    invoice_id: str
    customer_id: str
    planned_ms: int
    until_ms: int
    reason: Incomplete
    state: DelayState
    delays: int
    since_ms: int
    retry_ms: int | None = None
    error: str | None = None


After = tuple[int, str]
"""Where a page of drafts ends: moment of finalization and invoice."""


@dataclass(frozen=True, slots=True)
class DraftPage:
    """Some drafts, the nearest first, and where the next page begins; None after the last."""

    drafts: tuple[DraftInvoice, ...]
    next_after: After | None


def load_drafts(
    engine: Engine, limit: int, after: After | None = None, *, delayed_only: bool = False
) -> DraftPage:
    """Drafts that bill metered usage of a period that is over, at most `limit`, by when they become final.

    `delayed_only`: those that were put off, or should have been. Left out: drafts somebody has taken off automatic
    finalization, and those whose delay has come to an end.
    """
    over = (DelayState.RELEASED, DelayState.GIVEN_UP)
    known = finalization_delays.c.state
    query = (
        select(invoices, finalization_delays.c.planned_ms, finalization_delays.c.until_ms, known,
               finalization_delays.c.retry_ms)
        .join(finalization_delays, finalization_delays.c.invoice_id == invoices.c.invoice_id, isouter=True)
        .where(
            invoices.c.status == "draft",
            invoices.c.subscription_id.is_not(None),
            invoices.c.finalizes_ms.is_not(None),
            known.not_in(over) if delayed_only else or_(known.is_(None), known.not_in(over)),
        )
        .order_by(invoices.c.finalizes_ms, invoices.c.invoice_id)
        .limit(limit)
    )  # fmt: skip
    if after is not None:
        query = query.where(tuple_(invoices.c.finalizes_ms, invoices.c.invoice_id) > tuple_(*after))
    with read_snapshot(engine) as connection:
        rows = connection.execute(query).all()
        spans = _load_spans(connection, rows)
    return DraftPage(
        tuple(_to_draft(row, spans[row.invoice_id]) for row in rows if spans[row.invoice_id]),
        (rows[-1].finalizes_ms, rows[-1].invoice_id) if len(rows) == limit else None,
    )


def _load_spans(connection: Connection, drafts: Sequence[Row[Any]]) -> dict[str, list[Span]]:
    """What each draft bills of periods that were over when it was made."""
    created_ms = {row.invoice_id: row.created_ms for row in drafts}
    found: dict[str, list[Span]] = defaultdict(list)
    for chunk in chunks(sorted(created_ms)):
        for row in connection.execute(select(invoice_lines).where(invoice_lines.c.invoice_id.in_(chunk))):
            if row.period_start_ms < row.period_end_ms <= created_ms[row.invoice_id]:
                found[row.invoice_id].append(
                    Span(row.customer_id, row.event_name, row.period_start_ms, row.period_end_ms)
                )
    return found


def _to_draft(row: Row[Any], spans: Sequence[Span]) -> DraftInvoice:
    state = None if row.state is None else DelayState(row.state)
    # The webhook that tells of our own change may be a while in coming.
    finalizes_ms = max(row.finalizes_ms, row.until_ms or 0)
    planned_ms = row.planned_ms if state is DelayState.DELAYED else None
    return DraftInvoice(
        row.invoice_id,
        row.customer_id,
        Draft(row.created_ms, finalizes_ms, planned_ms),
        tuple(sorted(spans)),
        state,
        row.retry_ms,
    )


def record_delay(engine: Engine, lease: Lease, delay: Delay) -> None:
    """Keep what was done about a draft. Raises LeaseLost, LedgerUnavailable, CommitUnknown."""
    with ledger_transaction(engine) as connection:
        fence(connection, lease)
        row = {name: getattr(delay, name) for name in Delay.__slots__}
        put(
            connection, finalization_delays, [{**row, "reason": str(delay.reason), "state": str(delay.state)}]
        )


def load_delay(engine: Engine, invoice_id: str) -> Delay | None:
    """What was done about a draft, if anything."""
    with read_snapshot(engine) as connection:
        row = connection.execute(
            select(finalization_delays).where(finalization_delays.c.invoice_id == invoice_id)
        ).first()
    return None if row is None else _to_delay(row)


def list_delays(engine: Engine, *, waiting_only: bool = False) -> list[Delay]:
    """Every delay, newest first; `waiting_only`: those of invoices that are still drafts."""
    query = select(finalization_delays).order_by(finalization_delays.c.since_ms.desc())
    if waiting_only:
        query = query.join(invoices, invoices.c.invoice_id == finalization_delays.c.invoice_id).where(
            invoices.c.status == "draft"
        )
    with read_snapshot(engine) as connection:
        return [_to_delay(row) for row in connection.execute(query)]


def _to_delay(row: Row[Any]) -> Delay:
    values = {name: getattr(row, name) for name in Delay.__slots__}
    return Delay(**{**values, "reason": Incomplete(row.reason), "state": DelayState(row.state)})
