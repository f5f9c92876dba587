"""The history of billing periods: when usage of a subscription's item could reach which invoice.

Owns the rows of `item_periods`, on a transaction of the caller who holds the directory's lock. It refuses to know
customers, mappings and usage. Stripe keeps only an item's current period; the earlier ones live here alone.

An item's periods never overlap: usage stamped at one moment has one place to go, or none. A price that changes within
a period cuts it: Stripe bills what it knows of the old price at that moment and takes nothing more for it, so the part
before is closed, and the part after is a period of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, and_, exists, insert, select, update

from tollgate.ledger.billing import (
    ENDED_STATUSES,
    FINALIZED_STATUSES,
    Invoice,
    InvoiceLine,
    Item,
    PeriodState,
    Subscription,
)
from tollgate.ledger.tables import invoices, item_periods

CLOSING_REASONS = frozenset({"subscription_cycle", "subscription_update", "subscription"})
"""Billing reasons of the invoices that end a period. A subscription's first invoice ends none."""


def apply_items(connection: Connection, subscription: Subscription, sequence: int, now_ms: int) -> bool:
    """Bring the periods in line with a subscription as fetched under `sequence`; True if anything changed.

    1. each metered item's current period is opened, or its end brought up to date, or cut where its price changed;
    2. an earlier period that reached into it is cut at its start (the billing anchor was moved);
    3. a period of an item that is gone ends as `removed`, unless it was over before: then its invoice decides;
    4. periods whose invoice is already finalized are closed, in whichever order the two were heard of.
    """
    rows = _rows_of(connection, item_periods.c.subscription_id == subscription.subscription_id)
    metered = {item.item_id: item for item in subscription.items if item.event_name is not None}
    gone_since_ms = _ended_ms(subscription, now_ms)
    changed = False
    for item in metered.values():
        state = PeriodState.OPEN
        if gone_since_ms is not None and item.period_end_ms > gone_since_ms:
            state = PeriodState.REMOVED
        row = _pop_current(rows, item)
        if row is not None and _is_repriced(row, item):
            at_ms = now_ms if item.price_since_ms is None else item.price_since_ms
            if row["period_start_ms"] < at_ms < item.period_end_ms:
                ended = {"period_end_ms": at_ms, "state": PeriodState.CLOSED}
                _update_period(connection, row, ended, sequence)
                row, item = None, replace(item, period_start_ms=at_ms)
        changed = _put_period(connection, row, item, subscription, state, sequence) or changed
    for (item_id, start_ms), row in rows.items():
        current = metered.get(item_id)
        values = _past_period(row, start_ms, current, now_ms if gone_since_ms is None else gone_since_ms)
        changed = _update_period(connection, row, values, sequence) or changed
    return close_invoiced_periods(connection, subscription.subscription_id, sequence) or changed


def apply_invoice_lines(connection: Connection, invoice: Invoice, sequence: int) -> bool:
    """Learn periods from an invoice as fetched under `sequence`; True if anything changed.

    A line names exactly the item and the period it bills. A period nobody saw while it was current (webhooks were
    down over its whole length) is learnt from here, so that its usage can still be posted while the invoice is a
    draft. Lines of periods that had not ended when the invoice was made (first invoices) end nothing.
    """
    if invoice.subscription_id is None:
        return False
    changed = False
    for line in invoice.lines:
        if not line.period_start_ms < line.period_end_ms <= invoice.created_ms:
            continue
        row = connection.execute(
            select(item_periods).where(
                item_periods.c.item_id == line.item_id,
                item_periods.c.period_start_ms == line.period_start_ms,
            )
        ).mappings().first()  # fmt: skip
        if row is None:
            changed = _learn_period(connection, invoice, line, sequence) or changed
        elif invoice.finalized:
            closed = {"state": PeriodState.CLOSED}
            changed = _update_period(connection, dict(row), closed, sequence) or changed
    return close_invoiced_periods(connection, invoice.subscription_id, sequence) or changed


def close_invoiced_periods(connection: Connection, subscription_id: str, sequence: int) -> bool:
    """Close the periods of a subscription that end where one of its finalized invoices ends.

    `closed` wins over `removed` everywhere in this file, so that the two may be heard of in either order.
    """
    closed = connection.execute(
        update(item_periods)
        .where(
            item_periods.c.subscription_id == subscription_id,
            item_periods.c.state != PeriodState.CLOSED,
            exists().where(
                and_(
                    invoices.c.subscription_id == subscription_id,
                    invoices.c.status.in_(sorted(FINALIZED_STATUSES)),
                    invoices.c.billing_reason.in_(sorted(CLOSING_REASONS)),
                    invoices.c.period_end_ms == item_periods.c.period_end_ms,
                )
            ),
        )
        .values(state=PeriodState.CLOSED, sequence=sequence)
    )
    return closed.rowcount > 0


def remove_unfinished_periods(
    connection: Connection, customer_id: str, deleted_ms: int, sequence: int
) -> bool:
    """End the open periods of a deleted customer that were not over when it was deleted."""
    removed = connection.execute(
        update(item_periods)
        .where(
            item_periods.c.customer_id == customer_id,
            item_periods.c.state == PeriodState.OPEN,
            item_periods.c.period_end_ms > deleted_ms,
        )
        .values(state=PeriodState.REMOVED, sequence=sequence)
    )
    return removed.rowcount > 0


def _rows_of(connection: Connection, condition: Any) -> dict[tuple[str, int], Mapping[str, Any]]:
    found = connection.execute(select(item_periods).where(condition)).mappings()
    return {(row["item_id"], row["period_start_ms"]): dict(row) for row in found}


def _pop_current(rows: dict[tuple[str, int], Mapping[str, Any]], item: Item) -> Mapping[str, Any] | None:
    """The row of an item's current period, its last part where prices cut it; taken out of `rows` with the others."""
    current = rows.pop((item.item_id, item.period_start_ms), None)
    while current is not None and current["state"] == PeriodState.CLOSED:
        following = rows.get((item.item_id, current["period_end_ms"]))
        if following is None or following["price_id"] == current["price_id"]:
            break
        current = rows.pop((item.item_id, current["period_end_ms"]))
    return current


def _is_repriced(row: Mapping[str, Any], item: Item) -> bool:
    """Whether an open period's price is no longer its item's."""
    return bool(row["state"] == PeriodState.OPEN and row["price_id"] != item.price_id)


def _ended_ms(subscription: Subscription, now_ms: int) -> int | None:
    if subscription.ended_ms is not None:
        return subscription.ended_ms
    return now_ms if subscription.status in ENDED_STATUSES else None


def _put_period(
    connection: Connection,
    row: Mapping[str, Any] | None,
    item: Item,
    subscription: Subscription,
    state: PeriodState,
    sequence: int,
) -> bool:
    values = {
        "period_end_ms": item.period_end_ms,
        "subscription_id": subscription.subscription_id,
        "customer_id": subscription.customer_id,
        "price_id": item.price_id,
        "event_name": item.event_name,
        "state": state,
    }
    if row is None:
        connection.execute(
            insert(item_periods).values(
                item_id=item.item_id, period_start_ms=item.period_start_ms, sequence=sequence, **values
            )
        )
        return True
    if row["state"] == PeriodState.CLOSED:
        values["state"] = PeriodState.CLOSED
    return _update_period(connection, row, values, sequence)


def _past_period(
    row: Mapping[str, Any], start_ms: int, current: Item | None, gone_since_ms: int
) -> dict[str, Any]:
    """What becomes of a period that is not its item's current one."""
    open_now = row["state"] == PeriodState.OPEN
    if current is None:
        return {"state": PeriodState.REMOVED} if open_now and row["period_end_ms"] > gone_since_ms else {}
    if start_ms < current.period_start_ms < row["period_end_ms"]:
        return {"period_end_ms": current.period_start_ms}
    if open_now and current.period_start_ms < start_ms < current.period_end_ms:
        # Stripe moved the item's period back over this one: what it says now is what it will bill.
        return {"state": PeriodState.REMOVED}
    return {}


def _update_period(
    connection: Connection, row: Mapping[str, Any], values: Mapping[str, Any], sequence: int
) -> bool:
    if all(row[name] == value for name, value in values.items()):
        return False
    connection.execute(
        update(item_periods)
        .where(
            item_periods.c.item_id == row["item_id"],
            item_periods.c.period_start_ms == row["period_start_ms"],
        )
        .values(sequence=sequence, **values)
    )
    return True


def _learn_period(connection: Connection, invoice: Invoice, line: InvoiceLine, sequence: int) -> bool:
    overlapping = connection.scalar(
        select(item_periods.c.item_id)
        .where(
            item_periods.c.item_id == line.item_id,
            item_periods.c.period_start_ms < line.period_end_ms,
            item_periods.c.period_end_ms > line.period_start_ms,
        )
        .limit(1)
    )
    if overlapping is not None:
        return False
    connection.execute(
        insert(item_periods).values(
            item_id=line.item_id,
            period_start_ms=line.period_start_ms,
            period_end_ms=line.period_end_ms,
            subscription_id=invoice.subscription_id,
            customer_id=invoice.customer_id,
            price_id=line.price_id,
            event_name=line.event_name,
            state=PeriodState.CLOSED if invoice.finalized else PeriodState.OPEN,
            sequence=sequence,
        )
    )
    return True
