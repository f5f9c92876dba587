"""Pricing against tables worked by hand: every model, three shapes of tiers, quantities at and around each bound."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.metering.price_tables import (
    DOZENS,
    FREE_THEN_PAID,
    GRADUATED,
    ONE_TIER,
    PACKAGES,
    STANDARD,
    STEPS,
    VOLUME,
)
from tollgate.metering.price import Interval, Package, Price, PriceModel, Tier
from tollgate.metering.pricing import (
    AmountPart,
    ForeignPrice,
    price_from_fields,
    price_quantity,
    price_to_fields,
)

MONTH = Interval("month")
D = Decimal


def standard(unit: str, currency: str = "usd") -> Price:
    return Price(PriceModel.STANDARD, currency, MONTH, D(unit))


def package(unit: str, size: int, rounding: Any) -> Price:
    return Price(PriceModel.PACKAGE, "usd", MONTH, D(unit), Package(size, rounding))


def tiered(model: PriceModel, *tiers: tuple[int | None, str, str]) -> Price:
    return Price(
        model, "usd", MONTH, tiers=tuple(Tier(up_to, D(unit), D(flat)) for up_to, unit, flat in tiers)
    )


@pytest.mark.parametrize(
    ("unit", "quantity", "amount"),
    STANDARD,
)
def test_a_standard_price_is_the_product_rounded_half_up(unit: str, quantity: str, amount: int) -> None:
    """One multiplication, one rounding."""
    assert price_quantity(standard(unit), D(quantity)).amount == amount


def test_a_zero_decimal_currency_needs_no_other_rule() -> None:
    """A yen is its own minor unit: 3 yen a unit, 7 units, 21 yen."""
    assert price_quantity(standard("3", "jpy"), 7).amount == 21


@pytest.mark.parametrize(
    ("rounding", "quantity", "packages"),
    PACKAGES,
)
def test_a_package_is_due_when_begun_or_when_full(rounding: str, quantity: str, packages: int) -> None:
    """Thousands of units at 2.5 cents the package."""
    line = price_quantity(package("2.5", 1000, rounding), D(quantity))
    assert line.exact == D("2.5") * packages
    assert line.parts[0].units == packages
    assert line.quantity == D(quantity)


@pytest.mark.parametrize(("quantity", "amount"), DOZENS)
def test_a_package_at_a_fraction_of_a_cent_is_rounded_once(quantity: str, amount: int) -> None:
    """Packages are whole; what they cost together is rounded at the end."""
    assert price_quantity(package("2.5", 12, "up"), D(quantity)).amount == amount


@pytest.mark.parametrize(("tiers", "quantity", "amount"), GRADUATED)
def test_graduated_charges_each_unit_in_its_tier(tiers: Any, quantity: str, amount: int) -> None:
    """A tier's last unit is in it; its fee is due once it is reached, the first tier's always."""
    assert price_quantity(tiered(PriceModel.GRADUATED, *tiers), D(quantity)).amount == amount


@pytest.mark.parametrize(("tiers", "quantity", "amount"), VOLUME)
def test_volume_charges_all_units_in_the_tier_of_the_total(tiers: Any, quantity: str, amount: int) -> None:
    """One tier alone, and its fee."""
    line = price_quantity(tiered(PriceModel.VOLUME, *tiers), D(quantity))
    assert (line.amount, len(line.parts)) == (amount, 1)


def test_a_line_spells_out_its_tiers() -> None:
    """Units, amounts and bounds of each tier that was reached, exact, for a preview to print."""
    line = price_quantity(tiered(PriceModel.GRADUATED, *STEPS), 21)
    assert line.parts == (
        AmountPart(0, 10, D(10), D(100), D(500), D(1500)),
        AmountPart(10, 20, D(10), D(50), D(0), D(500)),
        AmountPart(20, None, D(1), D("10.5"), D(7), D("17.5")),
    )
    assert (line.quantity, line.exact, line.amount) == (D(21), D("2017.5"), 2018)


def test_tiers_that_were_not_reached_are_not_listed() -> None:
    """At the bound the next tier has not begun."""
    assert len(price_quantity(tiered(PriceModel.GRADUATED, *STEPS), 10).parts) == 1
    assert len(price_quantity(tiered(PriceModel.GRADUATED, *STEPS), 0).parts) == 1


def test_the_largest_numbers_stay_exact() -> None:
    """38 digits of usage at twelve places of price, to the last digit."""
    quantity = D("99999999999999999999999999999.999999999")
    line = price_quantity(standard("999999999999999.999999999999"), quantity)
    # In whole numbers: usage in units of 10^-9, the price in units of 10^-12.
    assert int(f"{line.exact:f}".replace(".", "")) == (10**38 - 1) * (10**27 - 1)


@pytest.mark.parametrize("quantity", ["NaN", "Infinity"])
def test_what_is_no_number_has_no_price(quantity: str) -> None:
    """It raises, rather than billing nothing."""
    with pytest.raises(ValueError, match="not a quantity"):
        price_quantity(standard("1"), D(quantity))


@given(
    quantity=st.decimals(0, 10**15, places=9),
    more=st.decimals(0, 10**15, places=9),
    shape=st.sampled_from([ONE_TIER, FREE_THEN_PAID, STEPS]),
)
def test_more_usage_never_costs_less_in_graduated_tiers(quantity: Decimal, more: Decimal, shape: Any) -> None:
    """Every tier only adds; the parts' units add up to the quantity."""
    price = tiered(PriceModel.GRADUATED, *shape)
    line, larger = price_quantity(price, quantity), price_quantity(price, quantity + more)
    assert line.exact <= larger.exact
    assert sum(part.units for part in line.parts) == quantity


FIELDS: dict[str, Any] = {
    "id": "price_1",
    "object": "price",
    "currency": "usd",
    "nickname": None,
    "billing_scheme": "per_unit",
    "recurring": {"interval": "month", "interval_count": 3, "usage_type": "metered", "meter": "mtr_1"},
    "transform_quantity": None,
    "tiers": None,
    "tiers_mode": None,
    "unit_amount": None,
    "unit_amount_decimal": D("0.4"),
}


def test_a_price_object_of_stripe_is_read() -> None:
    """Per unit, by package, and tiered with either spelling of amounts; what is absent of a tier is nothing."""
    assert price_from_fields(FIELDS) == Price(
        PriceModel.STANDARD, "usd", Interval("month", 3), unit_amount=D("0.4")
    )
    packed = price_from_fields({**FIELDS, "transform_quantity": {"divide_by": 10, "round": "down"}})
    assert packed.package == Package(10, "down")
    read = price_from_fields(
        {
            **FIELDS,
            "nickname": "Chat",
            "billing_scheme": "tiered",
            "tiers_mode": "volume",
            "unit_amount_decimal": None,
            "tiers": [
                {
                    "up_to": 5,
                    "unit_amount": 2,
                    "unit_amount_decimal": "2",
                    "flat_amount": None,
                    "flat_amount_decimal": None,
                },
                {
                    "up_to": None,
                    "unit_amount": None,
                    "unit_amount_decimal": None,
                    "flat_amount": 9,
                    "flat_amount_decimal": "9",
                },
            ],
        }
    )
    assert read == Price(
        PriceModel.VOLUME,
        "usd",
        Interval("month", 3),
        tiers=(Tier(5, D(2)), Tier(None, D(0), D(9))),
        description="Chat",
    )


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"recurring": None}, "one-time"),
        ({"recurring": {**FIELDS["recurring"], "usage_type": "licensed"}}, "licensed"),
        ({"billing_scheme": "tiered", "tiers_mode": "volume"}, "not asked for"),
        ({"unit_amount_decimal": None}, "no unit amount"),
        ({"custom_unit_amount": {"maximum": 5}}, "customer's choice"),
        ({"recurring": {**FIELDS["recurring"], "interval": "decade"}}, "no known kind"),
    ],
)
def test_a_price_that_is_not_ours_is_said_to_be_foreign(changed: dict[str, Any], reason: str) -> None:
    """Nothing is guessed about terms no meter's price has."""
    with pytest.raises(ForeignPrice, match=reason):
        price_from_fields({**FIELDS, **changed})


@pytest.mark.parametrize(
    "price",
    [
        standard("0.000000000001"),
        standard("1E+3"),
        package("5", 1000, "up"),
        tiered(PriceModel.GRADUATED, *STEPS),
        tiered(PriceModel.VOLUME, *FREE_THEN_PAID),
        Price(PriceModel.STANDARD, "jpy", Interval("year", 3), D(1), description="Per call"),
    ],
)
def test_fields_and_documents_round_trip(price: Price) -> None:
    """What is sent to Stripe, and what the ledger keeps, read back as the same price; no exponents on the wire."""
    fields = price_to_fields(price)
    assert "E" not in str(fields.get("unit_amount_decimal"))
    assert price_from_fields(fields) == price
    assert Price.from_document(price.to_document()) == price
