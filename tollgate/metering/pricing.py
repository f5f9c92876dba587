"""Pricing: a quantity and a price to an amount, by Stripe's formulae, with every tier spelled out.

Owns the four formulae and the one rounding. It refuses to know where quantities come from and what an invoice is.

Everything is exact; an amount is rounded to whole minor units once a line, half up. At Stripe a period's total below
zero bills as zero, and so it does here.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal, Inexact, localcontext

from tollgate.metering.price import Package, Price, PriceModel, Tier
from tollgate.metering.stripe_price import ForeignPrice, price_from_fields, price_to_fields

__all__ = [
    "AmountPart",
    "ForeignPrice",
    "LineAmount",
    "Price",
    "price_from_fields",
    "price_quantity",
    "price_to_fields",
]

_EXACT = Context(prec=200, traps=[Inexact])
"""Room for 38 digits of quantity times 27 of price. Should that ever not do, it raises rather than rounds."""


@dataclass(frozen=True, slots=True)
class AmountPart:
    """What one tier (or the one unit price) comes to. Amounts in minor units, exact."""

    over: int
    """The units that lie in tiers below; 0 for the first, and for all of a volume price."""
    up_to: int | None
    """The tier's last unit; None when it has no end."""
    units: Decimal
    """Units charged in it; packages, for a package price."""
    unit_amount: Decimal
    flat_amount: Decimal
    amount: Decimal
    """`units x unit_amount + flat_amount`."""


@dataclass(frozen=True, slots=True)
class LineAmount:
    """One line of an invoice."""

    quantity: Decimal
    """What is billed: never below zero."""
    parts: tuple[AmountPart, ...]
    exact: Decimal
    """The sum of the parts, minor units."""
    amount: int
    """The same, rounded half up to whole minor units: what the line costs."""


def price_quantity(price: Price, quantity: Decimal | int) -> LineAmount:
    """What `quantity` units cost. Raises ValueError for a quantity that is no number."""
    units = Decimal(quantity)
    if not units.is_finite():
        raise ValueError(f"not a quantity: {quantity}")
    with localcontext(_EXACT):
        units = max(units, Decimal(0))
        parts = _parts(price, units)
        exact = sum((part.amount for part in parts), Decimal(0))
        # `to_integral_value` rounds without a signal: this is the one place where rounding is meant.
        return LineAmount(units, parts, exact, int(exact.to_integral_value(rounding=ROUND_HALF_UP)))


def _parts(price: Price, units: Decimal) -> tuple[AmountPart, ...]:
    if price.model is PriceModel.GRADUATED:
        return _graduated(price.tiers, units)
    if price.model is PriceModel.VOLUME:
        return (_volume(price.tiers, units),)
    assert price.unit_amount is not None, "checked when the price was made"
    if price.package is not None:
        units = _packages(price.package, units)
    return (_part(0, Tier(None, price.unit_amount), units),)


def _packages(package: Package, units: Decimal) -> Decimal:
    full, rest = divmod(units, package.size)
    return full + 1 if rest and package.round == "up" else full


def _graduated(tiers: tuple[Tier, ...], units: Decimal) -> tuple[AmountPart, ...]:
    """Every tier that is reached; a tier is reached by the first unit above the one before."""
    parts: list[AmountPart] = []
    over = 0
    for tier in tiers:
        if parts and units <= over:
            break
        within = units if tier.up_to is None else min(units, Decimal(tier.up_to))
        parts.append(_part(over, tier, within - over))
        over = over if tier.up_to is None else tier.up_to
    return tuple(parts)


def _volume(tiers: tuple[Tier, ...], units: Decimal) -> AmountPart:
    """The tier of the total. Its bound is in it."""
    reached = next(tier for tier in tiers if tier.up_to is None or units <= tier.up_to)
    return _part(0, reached, units)


def _part(over: int, tier: Tier, units: Decimal) -> AmountPart:
    return AmountPart(
        over=over,
        up_to=tier.up_to,
        units=units,
        unit_amount=tier.unit_amount,
        flat_amount=tier.flat_amount,
        amount=units * tier.unit_amount + tier.flat_amount,
    )
