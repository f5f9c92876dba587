"""Stripe's price formulae, against amounts worked out by hand."""

from decimal import Decimal
from typing import Any

import pytest

from sandbox.stripe.pricing import line_amount

TIERS = [
    {"up_to": 10, "unit_amount_decimal": "100", "flat_amount_decimal": "500"},
    {"up_to": 20, "unit_amount_decimal": "50", "flat_amount_decimal": None},
    {"up_to": None, "unit_amount_decimal": "10.5", "flat_amount_decimal": "7"},
]


def _price(**terms: Any) -> dict[str, Any]:
    return {"billing_scheme": "per_unit", "transform_quantity": None, **terms}


@pytest.mark.parametrize(
    ("unit", "quantity", "amount"),
    [
        ("2", "7", 14),
        ("0.5", "1", 1),
        ("0.5", "3", 2),
        ("0.000000000001", "999999999999999", 1000),
        ("3", "-5", 0),
        ("3", "2.5", 8),
    ],
)
def test_unit_prices_round_half_up_once(unit: str, quantity: str, amount: int) -> None:
    """The product is exact and rounded at the end; below zero nothing is due."""
    assert line_amount(_price(unit_amount_decimal=unit), Decimal(quantity)) == amount


@pytest.mark.parametrize(
    ("rounding", "quantity", "packages"),
    [("up", 0, 0), ("up", 1, 1), ("up", 1000, 1), ("up", 1001, 2), ("down", 999, 0), ("down", 1999, 1)],
)
def test_packages(rounding: str, quantity: int, packages: int) -> None:
    """A package counts when begun, or when full."""
    price = _price(unit_amount_decimal="3", transform_quantity={"divide_by": 1000, "round": rounding})
    assert line_amount(price, Decimal(quantity)) == 3 * packages


@pytest.mark.parametrize(
    ("quantity", "amount"),
    [
        (0, 500),
        (10, 500 + 1000),
        (11, 500 + 1000 + 50),
        (20, 500 + 1000 + 500),
        (22, 500 + 1000 + 500 + 7 + 21),
    ],
)
def test_graduated_tiers(quantity: int, amount: int) -> None:
    """Each unit in its own tier; every tier entered adds its flat fee."""
    price = _price(billing_scheme="tiered", tiers_mode="graduated", tiers=TIERS)
    assert line_amount(price, Decimal(quantity)) == amount


@pytest.mark.parametrize(("quantity", "amount"), [(0, 500), (10, 1500), (11, 550), (20, 1000), (22, 7 + 231)])
def test_volume_tiers(quantity: int, amount: int) -> None:
    """All units in the tier of the total."""
    price = _price(billing_scheme="tiered", tiers_mode="volume", tiers=TIERS)
    assert line_amount(price, Decimal(quantity)) == amount
