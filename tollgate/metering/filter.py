"""A meter's filter: which events it counts.

Owns what TRUE, FALSE, NULL and a missing column mean to a meter. It refuses to know SQL (`expression`) and metrics.

An event matches when the condition is TRUE; NULL does not match. Where a record was written without capturing a
property, what depends on it is unknown: the event matches or not when the rest of the condition decides, else it is
`undecided`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import polars as pl

from tollgate.metering.errors import InvalidMeter
from tollgate.metering.expression import Expression, check_expression
from tollgate.metering.operand import Operand
from tollgate.metering.syntax import Kind


@dataclass(frozen=True, slots=True)
class Verdict:
    """A condition as two Polars expressions without NULLs, and the operands they refer to."""

    surely: pl.Expr
    """TRUE whatever the absent columns hold."""
    possibly: pl.Expr | None
    """TRUE for something the absent columns could hold; None when that is the same as `surely`."""
    operands: frozenset[Operand]


@dataclass(frozen=True, slots=True)
class Filter:
    """A checked condition, or None: every event."""

    condition: Expression | None

    @property
    def columns(self) -> frozenset[str]:
        """The columns it reads."""
        return self.condition.columns if self.condition else frozenset()

    def verdict(self, absent: Collection[str] = ()) -> Verdict:
        """How to run it on records that lack the columns `absent`."""
        if self.condition is None:
            return Verdict(pl.lit(True), None, frozenset())
        least = self.condition.truth_sql(absent)
        surely = pl.sql_expr(least.sql).fill_null(False)
        if not self.columns & frozenset(absent):
            return Verdict(surely, None, least.operands)
        most = self.condition.truth_sql(absent, at_least=False)
        return Verdict(surely, pl.sql_expr(most.sql).fill_null(False), least.operands | most.operands)


def check_filter(where: str | None, properties: Collection[str] | None = None) -> Filter:
    """The filter a meter's `where` says. Raises InvalidMeter with every problem."""
    if where is None:
        return Filter(None)
    condition = check_expression(where, properties)
    if condition.kind is not Kind.TRUTH:
        raise InvalidMeter([f"{where} is {condition.kind.value}, not a condition"])
    return Filter(condition)
