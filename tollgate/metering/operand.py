"""A numeric operand: a column of the event read as an exact number.

Owns what counts as a number in property text, and the bounds that keep arithmetic from overflowing.
It refuses to know the expression it stands in.

A property is text. It is a number when it is written with digits only: an optional sign, up to 19 digits, and up to
`scale` digits after a point. An exponent, a blank, `NaN` or one digit too many is no number: the operand is then NULL,
which a filter does not match and a metric counts as `unvalued`. Nothing is ever rounded or cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import polars as pl

from tollgate.metering.event import PROPERTY_PREFIX

SCALE = 9
"""Decimal places of every quantity: enough for nano-units, and 10^28 still fits a 128-bit decimal."""

PRECISION = 38
"""Digits of a 128-bit decimal."""

OPERAND_BOUND = 10**12
"""Largest magnitude an operand of arithmetic, or a metric's value, may have. A sum of 10^16 such values still fits."""

MAGNITUDE_MAX = 10**28
"""No intermediate of an expression may be able to pass this: Decimal(38, 9) raises at 10^29."""

QUANTITY = pl.Decimal(PRECISION, SCALE)
"""The type of every quantity."""


@dataclass(frozen=True, slots=True, order=True)
class Operand:
    """One column as a decimal of `scale` places; `bounded` when it stands in arithmetic or is a metric's value."""

    column: str
    scale: int
    bounded: bool

    @property
    def name(self) -> str:
        """The name its computed column has beside the event's own columns."""
        return f"number:{self.scale}:{'bounded' if self.bounded else 'any'}:{self.column}"

    def read(self, bound: int) -> pl.Expr:
        """The operand's values: decimals, NULL where the column holds no such number."""
        value = pl.col(self.column)
        number = value.cast(pl.Decimal(PRECISION, self.scale), strict=False)
        if not self.column.startswith(PROPERTY_PREFIX):
            # Integers are compared as integers: cheaper, and the cast itself cannot fail.
            return (pl.when(value.is_between(-bound, bound)).then(number) if self.bounded else number).alias(
                self.name
            )
        fraction = rf"(\.[0-9]{{1,{self.scale}}})?" if self.scale else ""
        # \z, not $: a number followed by a line break is not a number.
        valid = value.str.contains(rf"^[+-]?[0-9]{{1,19}}{fraction}\z")
        if self.bounded:
            dtype = pl.Decimal(PRECISION, self.scale)
            valid &= number.is_between(pl.lit(-Decimal(bound), dtype), pl.lit(Decimal(bound), dtype))
        return pl.when(valid).then(number).alias(self.name)
