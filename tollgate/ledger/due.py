"""What waits to be sent, and the ledger's side of settling what is doubtful.

Owns the reads of the sender. It refuses to know what an answer of Stripe means, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from decimal import Decimal
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, Engine, Integer, Select, and_, bindparam, case, func, select

from tollgate.ledger.controls import HALTED, PAUSED, read_controls
from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.meter_terms import load_terms
from tollgate.ledger.posting_rows import (
    AT_STRIPE,
    SENDABLE,
    UNSETTLED,
    DuePosting,
    Posting,
    PostingMode,
    SettlementView,
    posting_from_row,
)
from tollgate.ledger.superseding import has_its_turn
from tollgate.ledger.tables import customers, holds, item_periods, postings

_NEVER_MS = 2**62
"""Sorts what was never sent behind what was."""


def load_due(
    engine: Engine,
    now_ms: int,
    limit: int,
    busy: Collection[tuple[str, str]] = (),
    first: Collection[str] = (),
) -> list[DuePosting]:
    """The first posting that may be sent now of each lane (customer, meter) that is not `busy`.

    `busy`: (customer, event name) of calls under way in this process. A posting left in `sending` by a process that
    died is due, as is one whose outcome is unknown; those come first, then by stamp. Before all of them come the lanes
    of the customers in `first` (a few hundred). Nothing is due while paused, nor
    for a meter that is halted or not live. One row a lane: a customer's backlog never hides another customer.
    Of a chain of totals that replace, the newest, once nothing before it is at Stripe or with an operator.
    """
    with read_snapshot(engine) as connection:
        controls = read_controls(connection)
        if PAUSED in controls:
            return []
        halted = {name.removeprefix(HALTED) for name in controls if name.startswith(HALTED)}
        terms = load_terms(connection)
        sendable = [m for m, t in terms.items() if t.event_name not in halted and t.send == "live"]
        rows = connection.execute(
            _due_statement(bool(first)),
            {
                "sendable": sendable,
                "at_ms": now_ms,
                "rows_max": limit + len(busy),
                **({"first": sorted(first)} if first else {}),
            },
        ).all()
    return [
        DuePosting(
            posting_from_row(row), terms[row.meter_id].event_name, bool(row.deleted), row.period_end_ms
        )
        for row in rows
        if (row.customer_id, terms[row.meter_id].event_name) not in busy
    ]


@cache
def _due_statement(has_first: bool) -> Select[Any]:
    """The statement of `load_due`. Kept: it is asked several times a second, and building it took half of its time."""
    order = (func.coalesce(postings.c.first_sent_ms, _NEVER_MS), postings.c.timestamp_s, postings.c.seq)
    before: list[ColumnElement[int]] = []
    if has_first:
        wanted = postings.c.customer_id.in_(bindparam("first", expanding=True))
        before = [case((wanted, 0), else_=1)]
    ranked = (
        select(
            postings.c.posting_key,
            postings.c.seq,
            func.row_number()
            .over(partition_by=(postings.c.customer_id, postings.c.meter_id), order_by=order)
            .label("place"),
        )
        .where(
            and_(
                postings.c.state.in_(SENDABLE),
                has_its_turn(),
                postings.c.meter_id.in_(bindparam("sendable", expanding=True)),
                func.coalesce(postings.c.retry_ms, 0) <= bindparam("at_ms"),
            )
        )
        .subquery()
    )
    open_period = (
        select(func.min(item_periods.c.period_end_ms))
        .where(
            and_(
                item_periods.c.customer_id == postings.c.customer_id,
                item_periods.c.state == "open",
                item_periods.c.period_start_ms <= postings.c.timestamp_s * 1000,
                item_periods.c.period_end_ms > postings.c.timestamp_s * 1000,
            )
        )
        .scalar_subquery()
    )
    return (
        select(postings, open_period.label("period_end_ms"), customers.c.deleted)
        .join_from(
            postings,
            ranked,
            and_(ranked.c.posting_key == postings.c.posting_key, ranked.c.seq == postings.c.seq),
        )
        .join(customers, customers.c.customer_id == postings.c.customer_id, isouter=True)
        .where(ranked.c.place == 1)
        .order_by(*before, *order)
        .limit(bindparam("rows_max", type_=Integer))
    )


def load_settlement(engine: Engine, posting: Posting, event_name: str) -> SettlementView:
    """The ledger's side of the comparison with Stripe's summary of the posting's UTC hour."""
    hour_s = posting.timestamp_s - posting.timestamp_s % 3600
    with read_snapshot(engine) as connection:
        terms = load_terms(connection)
        same_meter = [meter_id for meter_id, t in terms.items() if t.event_name == event_name]
        rows = connection.execute(
            select(postings).where(
                and_(
                    postings.c.customer_id == posting.customer_id,
                    postings.c.meter_id.in_(same_meter),
                    postings.c.mode == PostingMode.DELTA,
                    postings.c.timestamp_s >= hour_s,
                    postings.c.timestamp_s < hour_s + 3600,
                )
            )
        )
        found = [posting_from_row(row) for row in rows]
    return SettlementView(
        delivered=sum((p.quantity for p in found if p.state in AT_STRIPE), Decimal(0)),
        # Parked ones that were tried belong here too: what they were parked for does not say where they are.
        unsure=tuple(p for p in found if p.state in UNSETTLED and p.first_sent_ms is not None),
        newest_ms=max((p.last_sent_ms or 0 for p in found), default=0),
    )


def load_period_settlement(
    engine: Engine, posting: Posting, event_name: str, start_s: int, end_s: int
) -> SettlementView:
    """The ledger's side of the comparison with the usage recorded in `[start_s, end_s)` on the posting's item.

    Each chain's last total counts. `unsure` are the links that may or may not have replaced it.
    """
    with read_snapshot(engine) as connection:
        terms = load_terms(connection)
        rows = connection.execute(
            select(postings)
            .where(
                and_(
                    postings.c.customer_id == posting.customer_id,
                    postings.c.meter_id.in_([m for m, t in terms.items() if t.event_name == event_name]),
                    postings.c.mode == PostingMode.USAGE_RECORD,
                    postings.c.timestamp_s >= start_s,
                    postings.c.timestamp_s < end_s,
                )
            )
            .order_by(postings.c.posting_key, postings.c.seq)
        )
        found = [posting_from_row(row) for row in rows]
    held = {p.posting_key: p.quantity_to for p in found if p.state in AT_STRIPE}
    return SettlementView(
        delivered=sum(held.values(), Decimal(0)),
        unsure=tuple(p for p in found if p.state in UNSETTLED and p.first_sent_ms is not None),
        newest_ms=max((p.last_sent_ms or 0 for p in found), default=0),
        delivered_by_chain=held,
    )


def count_states(engine: Engine) -> tuple[dict[str, int], dict[str, int], int | None]:
    """Unsettled postings by state, holds by reason, and when the oldest unsettled posting was planned (epoch ms)."""
    with read_snapshot(engine) as connection:
        states = connection.execute(
            select(postings.c.state, func.count(), func.min(postings.c.planned_ms))
            .where(postings.c.state.in_(UNSETTLED))
            .group_by(postings.c.state)
        ).all()
        reasons = connection.execute(select(holds.c.reason, func.count()).group_by(holds.c.reason)).all()
    oldest = min((row[2] for row in states), default=None)
    return {row[0]: row[1] for row in states}, {row[0]: row[1] for row in reasons}, oldest
