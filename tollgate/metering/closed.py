"""What becomes of usage whose invoice is already final: the choices, and what an invoice item for it comes to.

Owns the policies and the amount. It refuses to know chains, Stripe's calls and where prices are kept.
"""

from __future__ import annotations

from decimal import Context, Decimal, Inexact
from enum import StrEnum

from tollgate.metering.price import Price
from tollgate.metering.pricing import price_quantity

_EXACT = Context(prec=60, traps=[Inexact])


class ClosedPolicy(StrEnum):
    """How usage that was counted after its period's invoice became final is charged."""

    RESTAMP = "restamp"
    """With the usage of the customer's current period, at that period's tiers."""
    INVOICE_ITEM = "invoice_item"
    """By an item on the customer's next invoice, of what it would have added to the final one."""
    HOLD = "hold"
    """Not at all, until an operator decides."""


def late_amount(price: Price, billed: Decimal, late: Decimal) -> int:
    """What `late` units more would have added to a line that bills `billed` units, in whole minor units.

    The difference of two rounded lines: items for the same period add up to what one invoice of it all would have
    said, whatever they were split into. Raises ValueError for what is no number.
    """
    after = price_quantity(price, _EXACT.add(billed, late)).amount
    return after - price_quantity(price, billed).amount
