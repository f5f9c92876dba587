"""Doubles: what a floating-point number said by somebody else tells about an exact quantity.

Owns the one rule of comparing the two. It refuses to know who said it. Stripe adds meter events up in doubles and
says the sum as one; the ledger's quantities are exact, and nothing of ours is ever a float.

- An exact quantity that is whole and at most 2^53 has exactly one double, and so has every partial sum on the way to
  it: the two must be equal, to the unit.
- For any other quantity (decimals, or past 2^53) the nearest double is meant; one unit in its last place is allowed
  either way, which is what one rounded addition may lose. No wider: a difference that matters would hide in it.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal

DOUBLE_WHOLE_MAX = 2**53
"""The largest whole number below which every whole number is a double."""

_WIDE = Context(prec=1100)
"""Every double is a decimal of at most 767 significant digits; differences of two need no more than this."""


def is_exact(quantity: Decimal) -> bool:
    """Whether a double must say this quantity to the unit."""
    return quantity == quantity.to_integral_value() and abs(quantity) <= DOUBLE_WHOLE_MAX


def says(said: float, quantity: Decimal) -> bool:
    """Whether the double `said` means `quantity`. Never for NaN and infinities."""
    if not math.isfinite(said):
        return False
    exactly = Decimal(said)
    if is_exact(quantity):
        return exactly == quantity
    return abs(_WIDE.subtract(exactly, quantity)) <= Decimal(math.ulp(float(quantity)))


def to_quantity(said: float) -> Decimal:
    """The shortest decimal that a double is written as: what a person would read it as. Raises ValueError for NaN
    and infinities."""
    if not math.isfinite(said):
        raise ValueError(f"{said} is not a quantity")
    quantity = Decimal(repr(said))
    whole = quantity.to_integral_value()
    # Without the ".0" that every double is written with.
    return whole if quantity == whole else quantity
