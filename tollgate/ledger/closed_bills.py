"""What an invoice item for a closed period is priced from: the period's price, and what has been billed for it.

Owns reading both inside the planning transaction, and that items decided in one transaction build on each other. It
refuses to know amounts (`tollgate.metering.closed`) and when an item is due.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal

from sqlalchemy import Connection, select

from tollgate.ledger.candidates import look_at_holds_again
from tollgate.ledger.plan_rows import ClosedBill, MeterTerms, PeriodRow, Placement
from tollgate.ledger.posting_rows import PostingState
from tollgate.ledger.prices import load_prices
from tollgate.ledger.tables import postings
from tollgate.ledger.types import EXACT
from tollgate.metering.closed import ClosedPolicy

POLICIES = "closed_policies"
"""Control: what was done with usage for final invoices, by meter id, when planning last looked."""

_Bill = tuple[str, str, int, int]
"""Customer, event name, and the period's start and end (epoch ms)."""


class ClosedBills:
    """The bills of one planning transaction. `wanted`: ids of prices that are not in the ledger."""

    def __init__(self, connection: Connection, terms: Mapping[int, MeterTerms]) -> None:
        self._connection = connection
        self._terms = terms
        self._billed: dict[_Bill, Decimal] = {}
        self.wanted: set[str] = set()

    def fill(self, terms: MeterTerms, customer_id: str, placement: Placement) -> Placement:
        """The placement with its bill."""
        period = placement.period
        found = load_prices(self._connection, [period.price_id]).get(period.price_id)
        if found is None:
            self.wanted.add(period.price_id)
        bill = _bill(terms, customer_id, period)
        if bill not in self._billed:
            self._billed[bill] = self._load(terms, customer_id, period)
        return replace(placement, bill=ClosedBill(found.price if found else None, self._billed[bill]))

    def add(self, terms: MeterTerms, customer_id: str, period: PeriodRow, quantity: Decimal) -> None:
        """An item over `quantity` units has been decided."""
        bill = _bill(terms, customer_id, period)
        self._billed[bill] = EXACT.add(self._billed[bill], quantity)

    def _load(self, terms: MeterTerms, customer_id: str, period: PeriodRow) -> Decimal:
        """Units of every link that is billed for the period: stamped in it, as items for it are as well.

        Rehearsed links count among themselves only. Void links and their reversals cancel out.
        """
        same_meter = [m for m, other in self._terms.items() if other.event_name == terms.event_name]
        left_out = [PostingState.VOID, PostingState.REVERSAL]
        if terms.send == "live":
            left_out.append(PostingState.DRY_RUN)
        rows = self._connection.execute(
            select(postings.c.quantity_from, postings.c.quantity_to).where(
                postings.c.customer_id == customer_id,
                postings.c.meter_id.in_(same_meter),
                postings.c.timestamp_s >= -(-period.start_ms // 1000),
                postings.c.timestamp_s < -(-period.end_ms // 1000),
                postings.c.state.not_in([str(state) for state in left_out]),
            )
        )
        return _sum(EXACT.subtract(row.quantity_to, row.quantity_from) for row in rows)


def revise_policies(controls: Mapping[str, str], policies: Mapping[int, ClosedPolicy]) -> dict[str, str]:
    """Controls to write when `policies` are not those of the last planning: held usage is looked at again."""
    said = json.dumps({str(meter_id): str(policy) for meter_id, policy in sorted(policies.items())})
    if controls.get(POLICIES) == said:
        return {}
    return {POLICIES: said} | look_at_holds_again(controls)


def _bill(terms: MeterTerms, customer_id: str, period: PeriodRow) -> _Bill:
    return customer_id, terms.event_name, period.start_ms, period.end_ms


def _sum(quantities: Iterable[Decimal]) -> Decimal:
    total = Decimal(0)
    for quantity in quantities:
        total = EXACT.add(total, quantity)
    return total
