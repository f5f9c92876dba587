"""Column types that mean the same on PostgreSQL and SQLite.

Owns how an exact quantity and a JSON document are stored. It refuses to know which table uses them.
"""

from __future__ import annotations

from decimal import Context, Decimal, DivisionByZero, Inexact, InvalidOperation, Overflow
from typing import Any

from sqlalchemy import JSON, BigInteger, Integer, Numeric, Text
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

QUANTITY_SCALE = 9
"""Decimal places kept of a quantity. Digits past it are refused where they enter, never rounded here."""

QUANTITY_PRECISION = 38
"""Digits of a quantity in all: what NUMERIC(38, 9) and a 128-bit decimal hold."""

EXACT = Context(prec=100, traps=[DivisionByZero, Inexact, InvalidOperation, Overflow])
"""Arithmetic that raises instead of rounding. Python's default context silently keeps 28 digits, fewer than a quantity has."""


class Quantity(TypeDecorator[Decimal]):
    """An exact non-float number: NUMERIC(38, 9) on PostgreSQL, canonical decimal text on SQLite.

    SQLite has no exact decimals; its arithmetic on this column goes through the functions `quantity_add`,
    `quantity_max` and `quantity_min` and the aggregate `quantity_sum`, which `engine.py` registers on each connection.
    """

    impl = Text
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(Numeric(QUANTITY_PRECISION, QUANTITY_SCALE))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Decimal | int | None, dialect: Dialect) -> Decimal | str | None:
        if value is None:
            return None
        # PostgreSQL would round to the scale in silence, SQLite would keep everything: both refuse instead.
        quantity = check_quantity(Decimal(value))
        return quantity if dialect.name == "postgresql" else format_quantity(quantity)

    def process_result_value(self, value: Any, dialect: Dialect) -> Decimal | None:
        return None if value is None else normalise_quantity(Decimal(value))


def check_quantity(value: Decimal) -> Decimal:
    """The same number, normalised. Raises ValueError when NUMERIC(38, 9) cannot hold it exactly."""
    if not value.is_finite():
        raise ValueError(f"{value} is not a quantity")
    quantity = normalise_quantity(value)
    exponent = quantity.as_tuple().exponent
    if not isinstance(exponent, int) or exponent < -QUANTITY_SCALE:
        raise ValueError(f"{value} has more than {QUANTITY_SCALE} decimal places")
    if quantity.adjusted() >= QUANTITY_PRECISION - QUANTITY_SCALE:
        raise ValueError(
            f"{value} has more than {QUANTITY_PRECISION - QUANTITY_SCALE} digits before the point"
        )
    return quantity


def normalise_quantity(value: Decimal) -> Decimal:
    """The same number without trailing zeros and without an exponent, so that equal quantities print equally."""
    if value == value.to_integral_value():
        # Adding zero turns -0 into 0.
        return EXACT.add(EXACT.quantize(value, Decimal(1)), Decimal(0))
    return value.normalize(EXACT)


def format_quantity(value: Decimal) -> str:
    """The canonical text of a quantity: no exponent, no trailing zeros."""
    return f"{normalise_quantity(value):f}"


Document = JSON().with_variant(postgresql.JSONB(), "postgresql")
"""A JSON document."""

Identity = BigInteger().with_variant(Integer(), "sqlite")
"""A generated key: only INTEGER PRIMARY KEY counts up on SQLite."""
