"""A SQL expression over an event's columns: parsed, checked, and written back as SQL that cannot fail.

Owns the whole and its forms: a condition, a number, a value. It refuses to know meters, and what NULL means to one.

Only total functions are let through (`grammar`), so no event's content can make an expression raise; numbers are
exact decimals (`rendering`), text properties are read as numbers by `operand`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlglot import exp

from tollgate.metering.errors import InvalidMeter
from tollgate.metering.grammar import Checker
from tollgate.metering.operand import SCALE
from tollgate.metering.rendering import Inexact, Writer, Written, as_decimal
from tollgate.metering.syntax import (
    DIALECT,
    Kind,
    column_name,
    columns_of,
    conjuncts_of,
    is_plain_integer,
    parse_tree,
)


@dataclass(frozen=True, slots=True)
class Expression:
    """A checked expression."""

    text: str
    tree: exp.Expression
    kind: Kind
    columns: frozenset[str]

    def truth_sql(self, absent: Collection[str] = (), *, at_least: bool = True) -> Written:
        """SQL of a condition. Raises ValueError when this is none.

        With columns `absent`, whatever depends on them is unknown: the SQL is then the least (`at_least`) or the most
        true the condition can be, in the order FALSE < NULL < TRUE that AND, OR and NOT keep.
        """
        if self.kind is not Kind.TRUTH:
            raise ValueError(f"{self.text!r} is {self.kind.value}, not true or false")
        writer = Writer(frozenset(absent))
        return Written(writer.truth(self.tree, at_least), frozenset(writer.operands))

    def number_sql(self) -> Written:
        """SQL of a metric's value: a decimal of at most nine places, each operand within the bound, else NULL."""
        writer = Writer(frozenset())
        sql = writer.decimal(self.tree, SCALE, bounded=True)
        return Written(as_decimal(sql, SCALE), frozenset(writer.operands))

    def value_sql(self) -> Written:
        """SQL of a value that is only compared for equality: text, an integer column, a decimal or a truth."""
        writer = Writer(frozenset())
        if self.kind is Kind.TRUTH:
            sql = writer.truth(self.tree, True)
        elif self.kind is Kind.NUMBER:
            plain = is_plain_integer(self.tree)
            sql = writer.integer(self.tree) if plain else writer.decimal(self.tree, SCALE, bounded=False)
        else:
            sql = writer.text(self.tree)
        return Written(sql, frozenset(writer.operands))

    @property
    def clauses(self) -> tuple[Expression, ...]:
        """The conditions that are AND-ed at the top, each with its own columns."""
        return tuple(
            Expression(part.sql(DIALECT), part, self.kind, columns_of(part))
            for part in conjuncts_of(self.tree)
        )


def check_expression(text: str, properties: Collection[str] | None = None) -> Expression:
    """Parse and check one expression.

    `properties` are the captured property names; None allows any. Raises InvalidMeter with every problem found.
    """
    tree = parse_tree(text)
    checker = Checker(None if properties is None else frozenset(properties))
    kind = checker.kind(tree)
    if not checker.problems and kind is Kind.NULL:
        checker.problems.append("NULL alone says nothing")
    if checker.problems:
        raise InvalidMeter(checker.problems)
    expression = Expression(text, tree, kind, columns_of(tree))
    try:
        # Writing it once finds what could overflow or lose digits.
        expression.truth_sql() if kind is Kind.TRUTH else expression.value_sql()
    except Inexact as error:
        raise InvalidMeter([str(error)]) from error
    return expression


def check_column(text: str, properties: Collection[str] | None = None) -> str:
    """The column a `group_by` entry names. Raises InvalidMeter when it is not exactly one column."""
    expression = check_expression(text, properties)
    if not isinstance(expression.tree, exp.Column | exp.Dot):
        raise InvalidMeter([f"{text!r} is not a column: group_by takes columns, not expressions"])
    return column_name(expression.tree)
