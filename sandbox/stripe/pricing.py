"""Stripe's price formulae, in exact decimals of the currency's minor unit.

Owns: quantity x price -> amount. Refuses to know: where quantities come from; in particular it shares no line
with the program under test, which has its own formulae.
"""

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_UP, Context, Decimal, localcontext

from sandbox.stripe.errors import JsonObject

_PRECISION = (
    60  # 15 digits of quantity times 12 + 12 digits of price leaves ample room: nothing is rounded early
)


def line_amount(price: JsonObject, quantity: Decimal) -> int:
    """The amount of one invoice line, in minor units, rounded half up once at the end.

    A negative quantity bills as zero. Whatever the usage, the first tier's flat fee is due.
    """
    with localcontext(Context(prec=_PRECISION)):
        units = max(quantity, Decimal(0))
        if price["billing_scheme"] == "tiered":
            tiers = price["tiers"]
            exact = _graduated(tiers, units) if price["tiers_mode"] == "graduated" else _volume(tiers, units)
        else:
            exact = _units_after_transform(price, units) * Decimal(price["unit_amount_decimal"])
        return int(exact.to_integral_value(rounding=ROUND_HALF_UP))


def _units_after_transform(price: JsonObject, units: Decimal) -> Decimal:
    """Package pricing: how many packages the units fill, rounded up or down."""
    transform = price.get("transform_quantity")
    if transform is None:
        return units
    rounding = ROUND_CEILING if transform["round"] == "up" else ROUND_FLOOR
    return (units / Decimal(transform["divide_by"])).to_integral_value(rounding=rounding)


def _tier_part(tier: JsonObject, name: str) -> Decimal:
    value = tier.get(f"{name}_decimal")
    return Decimal(0) if value is None else Decimal(value)


def _graduated(tiers: list[JsonObject], units: Decimal) -> Decimal:
    """Each unit at the price of the tier it falls in; each tier entered adds its flat fee."""
    total, lower = Decimal(0), Decimal(0)
    for index, tier in enumerate(tiers):
        if index > 0 and units <= lower:
            break
        upper = units if tier["up_to"] is None else min(units, Decimal(tier["up_to"]))
        total += (upper - lower) * _tier_part(tier, "unit_amount") + _tier_part(tier, "flat_amount")
        lower = Decimal(tier["up_to"]) if tier["up_to"] is not None else units
    return total


def _volume(tiers: list[JsonObject], units: Decimal) -> Decimal:
    """Every unit at the price of the one tier the total falls in, plus that tier's flat fee."""
    for tier in tiers:
        if tier["up_to"] is None or units <= Decimal(tier["up_to"]):
            return units * _tier_part(tier, "unit_amount") + _tier_part(tier, "flat_amount")
    # A price's last tier is unbounded, which its creation checked.
    raise AssertionError("tiers without an unbounded last tier")
