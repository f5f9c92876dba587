"""What there is to reconcile: the periods that are due, and those an operator asks for.

Owns that choice, and its order. It refuses to compare anything, and writes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, Select, and_, case, exists, func, or_, select

from tollgate.ledger.billing import FINALIZED_STATUSES
from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.meter_terms import load_terms
from tollgate.ledger.reconciliations import DAY_MS
from tollgate.ledger.tables import invoice_lines, invoices, item_periods, postings, reconciliations
from tollgate.metering.reconciliation import Subject


def due_subjects(engine: Engine, now_ms: int, limit: int) -> list[Subject]:
    """What to compare now, the most pressing first; at most `limit`.

    1. final invoices not compared yet (they cost no read); 2. drafts of which the ledger has heard since the last
    look, the one that becomes final first; 3. what is due by its last check, and what was never checked: the one
    checked longest ago first. A period nothing was ever posted in is nobody's business but an operator's.
    """
    found: list[tuple[tuple[int, int, str, int], Subject]] = []
    with read_snapshot(engine) as connection:
        meter_ids = defaultdict(list)
        for meter_id, terms in load_terms(connection).items():
            meter_ids[terms.event_name].append(meter_id)
        for event_name, ids in sorted(meter_ids.items()):
            for row in connection.execute(_due(event_name, ids, now_ms).limit(limit)):
                subject = Subject(row.customer_id, event_name, row.period_start_ms, row.period_end_ms)
                found.append(((row.rank, row.place, row.customer_id, row.period_start_ms), subject))
    return [subject for _, subject in sorted(found)[:limit]]


def _due(event_name: str, meter_ids: Sequence[int], now_ms: int) -> Select[Any]:
    periods = (
        select(
            item_periods.c.customer_id,
            item_periods.c.period_start_ms,
            func.max(item_periods.c.period_end_ms).label("period_end_ms"),
        )
        .where(item_periods.c.event_name == event_name, item_periods.c.period_start_ms <= now_ms)
        .group_by(item_periods.c.customer_id, item_periods.c.period_start_ms)
        .subquery()
    )
    billed = (
        select(
            invoice_lines.c.customer_id,
            invoice_lines.c.period_start_ms,
            func.max(case((invoices.c.status.in_(sorted(FINALIZED_STATUSES)), 1), else_=0)).label("final"),
            func.max(case((invoices.c.status == "draft", 1), else_=0)).label("draft"),
            func.min(invoices.c.finalizes_ms).label("finalizes_ms"),
        )
        .join_from(invoice_lines, invoices, invoices.c.invoice_id == invoice_lines.c.invoice_id)
        .where(
            invoice_lines.c.event_name == event_name,
            invoice_lines.c.period_end_ms > invoice_lines.c.period_start_ms,
        )
        .group_by(invoice_lines.c.customer_id, invoice_lines.c.period_start_ms)
        .subquery()
    )
    last = reconciliations
    posted = exists().where(
        and_(postings.c.customer_id == periods.c.customer_id, postings.c.meter_id.in_(meter_ids))
    )
    compare_final = and_(billed.c.final == 1, or_(last.c.checked_ms.is_(None), last.c.invoiced.is_(None)))
    compare_draft = and_(
        billed.c.draft == 1, or_(last.c.checked_ms.is_(None), last.c.invoice_id.is_(None)), posted
    )
    by_last_check = or_(
        last.c.due_ms <= now_ms,
        and_(last.c.checked_ms.is_(None), posted, periods.c.period_end_ms > now_ms - 35 * DAY_MS),
    )
    rank = case((compare_final, 0), (compare_draft, 1), else_=2)
    place = case(
        (compare_final, 0),
        (compare_draft, func.coalesce(billed.c.finalizes_ms, 0)),
        else_=func.coalesce(last.c.checked_ms, 0),
    )
    return (
        select(periods, rank.label("rank"), place.label("place"))
        .select_from(periods)
        .outerjoin(
            billed,
            and_(
                billed.c.customer_id == periods.c.customer_id,
                billed.c.period_start_ms == periods.c.period_start_ms,
            ),
        )
        .outerjoin(
            last,
            and_(
                last.c.customer_id == periods.c.customer_id,
                last.c.event_name == event_name,
                last.c.period_start_ms == periods.c.period_start_ms,
            ),
        )
        .where(last.c.retired_ms.is_(None), or_(compare_final, compare_draft, by_last_check))
        .order_by("rank", "place", periods.c.customer_id, periods.c.period_start_ms)
    )


def find_subjects(
    engine: Engine,
    *,
    customer: str | None = None,
    meter: str | None = None,
    at_ms: int | None = None,
    since_ms: int | None = None,
    retired: bool = False,
) -> list[Subject]:
    """Every period that fits: of a customer, of a meter (its name or its event name), that `at_ms` lies in, that ends
    after `since_ms`. By customer, meter, start. Those whose postings may be removed already only with `retired`: what
    was last found of them stands, and there is nothing left to compare."""
    with read_snapshot(engine) as connection:
        names = {terms.event_name for terms in load_terms(connection).values()}
        if meter is not None:
            names = {
                terms.event_name
                for terms in load_terms(connection).values()
                if meter in (terms.name, terms.event_name)
            }
        wanted = (
            select(
                item_periods.c.customer_id,
                item_periods.c.event_name,
                item_periods.c.period_start_ms,
                func.max(item_periods.c.period_end_ms).label("period_end_ms"),
            )
            .where(item_periods.c.event_name.in_(sorted(names)))
            .group_by(item_periods.c.customer_id, item_periods.c.event_name, item_periods.c.period_start_ms)
            .order_by(item_periods.c.customer_id, item_periods.c.event_name, item_periods.c.period_start_ms)
        )
        if not retired:
            gone = exists().where(
                reconciliations.c.customer_id == item_periods.c.customer_id,
                reconciliations.c.event_name == item_periods.c.event_name,
                reconciliations.c.period_start_ms == item_periods.c.period_start_ms,
                reconciliations.c.retired_ms.is_not(None),
            )
            wanted = wanted.where(~gone)
        if customer is not None:
            wanted = wanted.where(item_periods.c.customer_id == customer)
        if at_ms is not None:
            wanted = wanted.where(
                item_periods.c.period_start_ms <= at_ms, item_periods.c.period_end_ms > at_ms
            )
        if since_ms is not None:
            wanted = wanted.where(item_periods.c.period_end_ms > since_ms)
        return [Subject(*row) for row in connection.execute(wanted)]
