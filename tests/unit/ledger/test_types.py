"""Quantities: exact, canonical, and refused where they would have to be rounded."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollgate.ledger.types import check_quantity, format_quantity, normalise_quantity

_quantities = st.decimals(
    min_value=Decimal(-99999999999999999999999999999),
    max_value=Decimal(99999999999999999999999999999),
    places=9,
    allow_nan=False,
    allow_infinity=False,
)


@given(_quantities)
def test_text_and_back_is_the_same_number(value: Decimal) -> None:
    """No digit is lost, also past the 28 that Python's default context keeps."""
    text = format_quantity(value)
    assert Decimal(text) == value
    assert "E" not in text
    assert text == format_quantity(Decimal(text))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0", "0"),
        ("-0", "0"),
        ("0.000", "0"),
        ("1E+3", "1000"),
        ("10.50", "10.5"),
        ("-2.000000001", "-2.000000001"),
    ],
)
def test_equal_quantities_print_equally(value: str, text: str) -> None:
    """Canonical text: no exponent, no trailing zeros, no negative zero."""
    assert format_quantity(Decimal(value)) == text
    assert normalise_quantity(Decimal(value)) == Decimal(text)


@pytest.mark.parametrize("value", ["1E-10", "1E+29", "-1E+29", "NaN", "Infinity", "-Infinity", "sNaN"])
def test_what_does_not_fit_is_refused(value: str) -> None:
    """Never rounded, never stored as something else."""
    with pytest.raises(ValueError, match=r"quantity|decimal places|digits"):
        check_quantity(Decimal(value))


@pytest.mark.parametrize("value", ["1E-9", "99999999999999999999999999999.999999999"])
def test_what_just_fits_is_kept(value: str) -> None:
    """The edges of NUMERIC(38, 9)."""
    assert check_quantity(Decimal(value)) == Decimal(value)
