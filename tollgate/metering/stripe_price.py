"""A price in Stripe's fields, and back.

Owns that one conversion, over plain data. It refuses to know how the fields were come by, and everything about a price
at Stripe that is not its terms: its id, its product, its meter.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, cast

from tollgate.metering.price import (
    Interval,
    IntervalUnit,
    Package,
    Price,
    PriceModel,
    Rounding,
    Tier,
    plain_decimal,
)


class ForeignPrice(ValueError):
    """A price at Stripe that has no equal here; the message says what about it."""


def price_from_fields(fields: Mapping[str, Any]) -> Price:
    """The terms of a price object of Stripe's (its `tiers` must have been asked for: they are not sent by themselves).

    Decimal fields may be text or Decimal. Raises ForeignPrice for a price that is not recurring and metered, or has
    terms that no meter's price has.
    """
    recurring = fields.get("recurring")
    if not recurring:
        raise ForeignPrice("it is a one-time price")
    if recurring.get("usage_type") != "metered":
        raise ForeignPrice("it is licensed, not metered")
    if fields.get("custom_unit_amount"):
        raise ForeignPrice("its amount is the customer's choice")
    transform = fields.get("transform_quantity")
    try:
        interval = Interval(cast("IntervalUnit", recurring["interval"]), int(recurring["interval_count"]))
        common: dict[str, Any] = {
            "currency": str(fields["currency"]),
            "interval": interval,
            "description": fields.get("nickname") or None,
        }
        if fields.get("billing_scheme") == "tiered":
            if not fields.get("tiers"):
                raise ForeignPrice("its tiers were not asked for")
            model = PriceModel(fields["tiers_mode"])
            return Price(model, tiers=tuple(_tier(tier) for tier in fields["tiers"]), **common)
        amount = _amount(fields, "unit_amount")
        if amount is None:
            raise ForeignPrice("it has no unit amount")
        if transform:
            package = Package(int(transform["divide_by"]), cast("Rounding", transform["round"]))
            return Price(PriceModel.PACKAGE, unit_amount=amount, package=package, **common)
        return Price(PriceModel.STANDARD, unit_amount=amount, **common)
    except ForeignPrice:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise ForeignPrice(f"its terms are of no known kind ({error})") from error


def price_to_fields(price: Price) -> dict[str, Any]:
    """The parameters that make such a price at Stripe; product, meter and names are the caller's to add.

    Amounts are always given as decimals: what Stripe then shows as whole is the same.
    """
    fields: dict[str, Any] = {
        "currency": price.currency,
        "recurring": {
            "interval": price.interval.unit,
            "interval_count": price.interval.every,
            "usage_type": "metered",
        },
    }
    if price.description is not None:
        fields["nickname"] = price.description
    if price.model.tiered:
        fields["billing_scheme"] = "tiered"
        fields["tiers_mode"] = str(price.model)
        fields["tiers"] = [
            {
                "up_to": "inf" if tier.up_to is None else tier.up_to,
                "unit_amount_decimal": plain_decimal(tier.unit_amount),
                "flat_amount_decimal": plain_decimal(tier.flat_amount),
            }
            for tier in price.tiers
        ]
        return fields
    assert price.unit_amount is not None, "checked when the price was made"
    fields["billing_scheme"] = "per_unit"
    fields["unit_amount_decimal"] = plain_decimal(price.unit_amount)
    if price.package is not None:
        fields["transform_quantity"] = {"divide_by": price.package.size, "round": price.package.round}
    return fields


def _tier(fields: Mapping[str, Any]) -> Tier:
    up_to = fields["up_to"]
    return Tier(
        up_to=None if up_to in (None, "inf") else int(up_to),
        unit_amount=_amount(fields, "unit_amount") or Decimal(0),
        flat_amount=_amount(fields, "flat_amount") or Decimal(0),
    )


def _amount(fields: Mapping[str, Any], name: str) -> Decimal | None:
    """The decimal form where there is one: the whole form is empty for a fraction of a cent."""
    for key in (f"{name}_decimal", name):
        if fields.get(key) is not None:
            return Decimal(str(fields[key]))
    return None
