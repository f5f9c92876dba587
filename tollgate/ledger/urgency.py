"""Urgency: whose usage goes first, because an invoice or a period's end is near.

Owns who is urgent, and taking their unplanned usage into a planning transaction before everybody else's. It refuses
to know what is decided about a slot.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, Engine, and_, exists, select

from tollgate.ledger.billing import PeriodState
from tollgate.ledger.candidates import Candidates
from tollgate.ledger.chunks import CHUNK
from tollgate.ledger.completeness import PlannedAhead, unplanned_usage
from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.plan_rows import HoldReason, Slot
from tollgate.ledger.posting_rows import UNSETTLED
from tollgate.ledger.tables import attributions, holds, invoices, item_periods, postings

URGENT_MAX = CHUNK
"""Customers given precedence at once: the nearest. With all of them first, nobody would be."""


def load_urgent(engine: Engine, now_ms: int, near_ms: int) -> tuple[str, ...]:
    """Customers with a draft invoice that will become final by itself, and those with a period that ends in less than
    `near_ms`; the nearest moment first, at most `URGENT_MAX`.
    """
    with read_snapshot(engine) as connection:
        drafts = connection.execute(
            select(invoices.c.customer_id)
            .where(
                invoices.c.status == "draft",
                invoices.c.finalizes_ms.is_not(None),
                invoices.c.subscription_id.is_not(None),
            )
            .order_by(invoices.c.finalizes_ms)
            .limit(URGENT_MAX)
        ).scalars()
        found = dict.fromkeys([*drafts, *_ending(connection, now_ms, near_ms)])
        return tuple(found)[:URGENT_MAX]


def load_ending(engine: Engine, now_ms: int, near_ms: int) -> tuple[str, ...]:
    """Customers with a period that ends in less than `near_ms`, the nearest first, at most `URGENT_MAX`."""
    with read_snapshot(engine) as connection:
        return tuple(dict.fromkeys(_ending(connection, now_ms, near_ms)))


def _ending(connection: Connection, now_ms: int, near_ms: int) -> list[str]:
    return list(
        connection.execute(
            select(item_periods.c.customer_id)
            .where(
                item_periods.c.state == PeriodState.OPEN,
                item_periods.c.period_end_ms > now_ms,
                item_periods.c.period_end_ms <= now_ms + near_ms,
            )
            .order_by(item_periods.c.period_end_ms)
            .limit(URGENT_MAX)
        ).scalars()
    )


def has_unplanned(engine: Engine, customers: Sequence[str], ahead: PlannedAhead | None = None) -> bool:
    """Whether any usage of `customers` was counted since planning last looked at it."""
    if not customers:
        return False
    with read_snapshot(engine) as connection:
        return bool(unplanned_usage(connection, customers, ahead=ahead))


def gather_urgent(
    connection: Connection,
    switched_on: Sequence[int],
    customers: Sequence[str],
    found: Candidates,
    rows_max: int,
) -> bool:
    """Unplanned usage of `customers`, and what of theirs waited for a posting that has settled; False if some is left.

    Wherever the planning cursors stand; they are not moved by it.
    """
    if not customers:
        return True
    changed = unplanned_usage(connection, customers, rows_max)
    blocked = exists().where(
        and_(postings.c.posting_key == attributions.c.posting_key, postings.c.state.in_(UNSETTLED))
    )
    same_slot = and_(
        attributions.c.meter_id == holds.c.meter_id,
        attributions.c.window_start_ms == holds.c.window_start_ms,
        attributions.c.account == holds.c.account,
    )
    freed = connection.execute(
        select(holds.c.meter_id, holds.c.window_start_ms, holds.c.account)
        .join_from(holds, attributions, same_slot)
        .where(holds.c.reason == HoldReason.IN_FLIGHT, attributions.c.customer_id.in_(customers), ~blocked)
        .limit(rows_max)
    ).all()
    slots = {Slot(row.meter_id, row.window_start_ms, row.account) for _, row in changed}
    slots |= {Slot(*row) for row in freed}
    found.slots.update(slot for slot in slots if slot.meter_id in switched_on)
    return len(changed) < rows_max and len(freed) < rows_max
