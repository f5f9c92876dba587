"""A double of Stripe's means an exact quantity, or it does not."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest

from tollgate.metering.doubles import DOUBLE_WHOLE_MAX, is_exact, says, to_quantity


@pytest.mark.parametrize("whole", [0, 1, -7, 10**12, DOUBLE_WHOLE_MAX])
def test_whole_numbers_are_said_to_the_unit(whole: int) -> None:
    """Not one more, not one less, not the next double."""
    assert is_exact(Decimal(whole))
    assert says(float(whole), Decimal(whole))
    assert not says(float(whole) - 1, Decimal(whole))
    assert not says(math.nextafter(float(whole), -math.inf), Decimal(whole))


@pytest.mark.parametrize("text", ["0.1", "0.3", "1234567.891", "9007199254740993", "1e29"])
def test_other_quantities_may_be_one_unit_in_the_last_place_off(text: str) -> None:
    """What one rounded addition may lose, and nothing more."""
    quantity = Decimal(text)
    near = float(text)
    assert says(near, quantity)
    assert says(math.nextafter(near, math.inf), quantity) or says(math.nextafter(near, -math.inf), quantity)
    assert not says(near + 3 * math.ulp(near), quantity)
    assert not says(near - 3 * math.ulp(near), quantity)


def test_a_sum_in_doubles_is_the_sum() -> None:
    """0.1 + 0.2 is not 0.3 in doubles, and means it."""
    assert 0.1 + 0.2 != 0.3
    assert says(0.1 + 0.2, Decimal("0.3"))


@pytest.mark.parametrize("said", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_says_nothing(said: float) -> None:
    """And is never read as a quantity."""
    assert not says(said, Decimal(0))
    with pytest.raises(ValueError, match="not a quantity"):
        to_quantity(said)


def test_a_double_is_read_as_it_is_written() -> None:
    """The shortest decimal, without an exponent's trace in arithmetic."""
    assert to_quantity(0.1) == Decimal("0.1")
    assert to_quantity(1e22) == Decimal(10) ** 22
