"""Usage whose period takes no more: stamped into the customer's current period, charged by an invoice item, or held.

Owns that decision and an item's words. It refuses to know how a chain stands otherwise (`plan.py`), SQL and Stripe's
client. Whatever is chosen is the next link of the usage's own chain, so that more of it later adds only what is new,
and nothing that was charged is charged anew elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

from tollgate.ledger.plan_rows import (
    Hold,
    HoldReason,
    LateCharge,
    MeterTerms,
    NextLink,
    PeriodRow,
    Placement,
)
from tollgate.ledger.posting_rows import REPLACING_MODES, PostingMode
from tollgate.ledger.types import format_quantity
from tollgate.metering.closed import ClosedPolicy, late_amount

METADATA_IDENTIFIER = "tollgate_identifier"
"""Stripe's metadata key by which an invoice item is found again: items have no identifier of their own."""


def effective_policy(terms: MeterTerms, default: ClosedPolicy) -> ClosedPolicy:
    """What is done for a meter: its own choice, else the installation's.

    A total that replaces cannot be stamped elsewhere, since it would replace what is there: an item takes its place.
    """
    policy = terms.closed or default
    if policy is ClosedPolicy.RESTAMP and terms.mode in REPLACING_MODES:
        return ClosedPolicy.INVOICE_ITEM
    return policy


def charge_closed(
    terms: MeterTerms,
    default: ClosedPolicy,
    missing: Decimal,
    carried: NextLink,
    placement: Placement,
    reason: HoldReason,
    now_ms: int,
) -> NextLink | Hold:
    """The link that charges `missing` of a closed period, or why it is held.

    `carried`: the link as it would be in an open period. A fall is a credit, which nothing here gives by itself.
    """
    policy = effective_policy(terms, default)
    if missing < 0:
        return Hold(HoldReason.NEGATIVE, missing)
    if policy is ClosedPolicy.HOLD:
        return Hold(reason, missing)
    if policy is ClosedPolicy.RESTAMP:
        current = current_period(placement.period, placement.later, now_ms)
        if current is None:
            return Hold(reason, missing)
        return replace(carried, stamp_ms=now_ms, for_period_ms=placement.period.start_ms)
    bill = placement.bill
    if bill is None or bill.price is None:
        return Hold(HoldReason.NO_PRICE, missing)
    period = placement.period
    return replace(
        carried,
        mode=PostingMode.INVOICE_ITEM if terms.send == "live" else PostingMode.DRY_RUN,
        for_period_ms=period.start_ms,
        item=LateCharge(late_amount(bill.price, bill.billed, missing), bill.price.currency, period.end_ms),
    )


def current_period(closed: PeriodRow, later: Sequence[PeriodRow], now_ms: int) -> PeriodRow | None:
    """The open period `now_ms` lies in: of the same item, else of the only other one; None without exactly one."""
    running = [p for p in later if p.state == "open" and p.start_ms <= now_ms < p.end_ms]
    same_item = [p for p in running if p.item_id == closed.item_id]
    found = same_item or running
    return found[0] if len(found) == 1 else None


def item_body(
    terms: MeterTerms,
    customer_id: str,
    identifier: str,
    quantity: Decimal,
    for_period_ms: int,
    charge: LateCharge,
) -> dict[str, object]:
    """The parameters of an invoice item over `quantity` units."""
    units = format_quantity(quantity)
    span = f"{_day(for_period_ms)} to {_day(charge.period_end_ms)}"
    return {
        "amount": charge.amount,
        "currency": charge.currency,
        "customer": customer_id,
        "description": f"{terms.name}: {units} of {span}, not on that invoice",
        "metadata": {
            METADATA_IDENTIFIER: identifier,
            "tollgate_meter": terms.event_name,
            "tollgate_quantity": units,
        },
        "period": {"end": charge.period_end_ms // 1000, "start": for_period_ms // 1000},
    }


def _day(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%d")
