"""A checked expression, written as SQL that Polars runs and that cannot fail on any event.

Owns exactness: each number is a decimal, a product gives each factor its share of the nine places, and what could
overflow or lose digits is refused. It refuses to know where the expression came from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from sqlglot import exp

from tollgate.metering.event import PROPERTY_PREFIX
from tollgate.metering.grammar import kind_of
from tollgate.metering.operand import MAGNITUDE_MAX, OPERAND_BOUND, PRECISION, SCALE, Operand
from tollgate.metering.syntax import (
    ARITHMETIC,
    COMPARISONS,
    CONNECTORS,
    DIALECT,
    Kind,
    branches_of,
    column_name,
    columns_of,
    conditions_of,
    is_plain_integer,
)

_INT64_MAGNITUDE = 10**20
"""Above every 64-bit integer and every property of 19 digits."""


@dataclass(frozen=True, slots=True)
class Written:
    """SQL for Polars and the computed columns it refers to."""

    sql: str
    operands: frozenset[Operand]


class Inexact(Exception):
    """An expression that could overflow, or need more decimal places than there are."""


@dataclass(slots=True)
class Writer:
    """Writes a checked tree as Polars SQL, collecting the operands it refers to."""

    absent: frozenset[str]
    operands: set[Operand] = field(default_factory=set)

    # -- true or false

    def truth(self, node: exp.Expression, at_least: bool) -> str:
        if isinstance(node, exp.Paren):
            return self.truth(node.this, at_least)
        if isinstance(node, CONNECTORS):
            word = "AND" if isinstance(node, exp.And) else "OR"
            return f"({self.truth(node.this, at_least)} {word} {self.truth(node.expression, at_least)})"
        if isinstance(node, exp.Not):
            return f"(NOT {self.truth(node.this, not at_least)})"
        if self.absent and columns_of(node) & self.absent:
            return "FALSE" if at_least else "TRUE"
        sql = self._atom(node)
        # sqlglot keeps `x IS NOT y` and `x NOT LIKE y` as a flag.
        return f"(NOT ({sql}))" if node.args.get("negate") else f"({sql})"

    def _atom(self, node: exp.Expression) -> str:
        if isinstance(node, exp.Boolean):
            return "TRUE" if node.this else "FALSE"
        if isinstance(node, exp.Null):
            return "CAST(NULL AS BOOLEAN)"
        if isinstance(node, exp.Column | exp.Dot):
            return _quote(column_name(node))
        if type(node) in COMPARISONS:
            left, right = self._alike([node.this, node.expression])
            return f"{left} {COMPARISONS[type(node)]} {right}"
        if isinstance(node, exp.In):
            subject, *members = self._alike([node.this, *node.expressions])
            return f"{subject} IN ({', '.join(members)})"
        if isinstance(node, exp.Between):
            subject, low, high = self._alike([node.this, node.args["low"], node.args["high"]])
            return f"{subject} BETWEEN {low} AND {high}"
        if isinstance(node, exp.Is):
            if isinstance(node.expression, exp.Null):
                return f"{self._any(node.this)} IS NULL"
            # Polars answers NULL to `NULL IS TRUE`; SQL answers FALSE.
            inner = self.truth(node.this, True)
            return f"COALESCE({inner if node.expression.this else f'(NOT {inner})'}, FALSE)"
        if isinstance(node, exp.Like):
            return f"{self.text(node.this)} LIKE {_text_literal(node.expression.name)}"
        if isinstance(node, exp.ILike):
            return f"LOWER({self.text(node.this)}) LIKE {_text_literal(node.expression.name.lower())}"
        if isinstance(node, exp.RegexpLike):
            return f"REGEXP_LIKE({self.text(node.this)}, {_text_literal(node.expression.name)})"
        if isinstance(node, exp.StartsWith | exp.EndsWith):
            name = "STARTS_WITH" if isinstance(node, exp.StartsWith) else "ENDS_WITH"
            return f"{name}({self.text(node.this)}, {self.text(node.expression)})"
        return self._choice(node, lambda part: self.truth(part, True))

    def _alike(self, nodes: list[exp.Expression]) -> list[str]:
        """Parts that are compared with each other, in one type."""
        kinds = {kind_of(node) for node in nodes}
        if Kind.TRUTH in kinds:
            return [self.truth(node, True) for node in nodes]
        if Kind.NUMBER not in kinds:
            return [self.text(node) for node in nodes]
        if all(is_plain_integer(node) for node in nodes):
            return [self.integer(node) for node in nodes]
        return [as_decimal(self.decimal(node, SCALE, bounded=False), SCALE) for node in nodes]

    def _any(self, node: exp.Expression) -> str:
        kind = kind_of(node)
        if kind is Kind.TRUTH:
            return self.truth(node, True)
        if kind is Kind.NUMBER:
            return self.integer(node) if is_plain_integer(node) else self.decimal(node, SCALE, bounded=False)
        return self.text(node)

    # -- text

    def text(self, node: exp.Expression) -> str:
        if isinstance(node, exp.Paren):
            return self.text(node.this)
        if isinstance(node, exp.Column | exp.Dot):
            return _quote(column_name(node))
        if isinstance(node, exp.Literal):
            return _text_literal(node.name)
        if isinstance(node, exp.Null):
            return "CAST(NULL AS VARCHAR)"
        if isinstance(node, exp.Lower | exp.Upper):
            return f"{'LOWER' if isinstance(node, exp.Lower) else 'UPPER'}({self.text(node.this)})"
        return self._choice(node, self.text)

    # -- numbers

    def integer(self, node: exp.Expression) -> str:
        if isinstance(node, exp.Paren):
            return self.integer(node.this)
        if isinstance(node, exp.Neg):
            return f"(-{self.integer(node.this)})"
        if isinstance(node, exp.Length):
            return f"CHAR_LENGTH({self.text(node.this)})"
        return node.name if isinstance(node, exp.Literal) else _quote(column_name(node))

    def decimal(self, node: exp.Expression, scale: int, *, bounded: bool) -> str:
        """A decimal of `scale` places at most. Raises Inexact when it could need more, or overflow."""
        if _fixed_scale(node) > scale:
            raise Inexact(f"{node.sql(DIALECT)}: the product can have more than {SCALE} decimal places")
        if _magnitude(node, bounded) > MAGNITUDE_MAX:
            raise Inexact(f"{node.sql(DIALECT)}: could pass 10^28 with operands up to 10^12")
        if isinstance(node, exp.Paren):
            return self.decimal(node.this, scale, bounded=bounded)
        if isinstance(node, exp.Neg):
            return f"(-{self.decimal(node.this, scale, bounded=True)})"
        if isinstance(node, exp.Add | exp.Sub):
            sign = ARITHMETIC[type(node)]
            left, right = (
                as_decimal(self.decimal(part, scale, bounded=True), scale) for part in _sides(node)
            )
            return f"({left} {sign} {right})"
        if isinstance(node, exp.Mul):
            return self._product(node, scale)
        if isinstance(node, exp.Length):
            return as_decimal(self.integer(node), 0)
        if isinstance(node, exp.Literal):
            return as_decimal(f"'{node.name}'", _fixed_scale(node))
        if isinstance(node, exp.Null):
            return as_decimal("NULL", scale)
        if isinstance(node, exp.Column | exp.Dot):
            name = column_name(node)
            operand = Operand(name, scale if name.startswith(PROPERTY_PREFIX) else 0, bounded)
            self.operands.add(operand)
            return _quote(operand.name)
        return self._choice(node, lambda part: as_decimal(self.decimal(part, scale, bounded=bounded), scale))

    def _product(self, node: exp.Expression, scale: int) -> str:
        """Factors whose places add up to `scale`: what literals leave is shared by the factors that read properties."""
        factors = _factors(node)
        spare = scale - sum(_fixed_scale(factor) for factor in factors)
        flexible = sum(1 for factor in factors if _reads_property(factor))
        share = spare // flexible if flexible else 0
        written = []
        for factor in factors:
            places = _fixed_scale(factor) + (share if _reads_property(factor) else 0)
            written.append(as_decimal(self.decimal(factor, places, bounded=True), places))
        return f"({' * '.join(written)})"

    def _choice(self, node: exp.Expression, write: Callable[[exp.Expression], str]) -> str:
        values = [write(part) for part in branches_of(node)]
        if isinstance(node, exp.Coalesce):
            return f"COALESCE({', '.join(values)})"
        tests = [self.truth(part, True) for part in conditions_of(node)]
        default = f" ELSE {values[len(tests)]}" if len(values) > len(tests) else ""
        pairs = " ".join(f"WHEN {test} THEN {value}" for test, value in zip(tests, values, strict=False))
        return f"CASE {pairs}{default} END"


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text_literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def as_decimal(sql: str, scale: int) -> str:
    return f"CAST({sql} AS DECIMAL({PRECISION}, {scale}))"


def _sides(node: exp.Expression) -> tuple[exp.Expression, exp.Expression]:
    return node.this, node.expression


def _factors(node: exp.Expression) -> list[exp.Expression]:
    if isinstance(node, exp.Paren):
        return _factors(node.this) if isinstance(node.unnest(), exp.Mul) else [node]
    if isinstance(node, exp.Mul):
        return [*_factors(node.this), *_factors(node.expression)]
    return [node]


def _reads_property(node: exp.Expression) -> bool:
    return any(name.startswith(PROPERTY_PREFIX) for name in columns_of(node))


def _fixed_scale(node: exp.Expression) -> int:
    """Decimal places a part has whatever the event: those of its literals."""
    if isinstance(node, exp.Literal):
        return len(node.name.partition(".")[2])
    if isinstance(node, exp.Mul):
        return _fixed_scale(node.this) + _fixed_scale(node.expression)
    if isinstance(node, exp.Paren | exp.Neg):
        return _fixed_scale(node.this)
    if isinstance(node, exp.Add | exp.Sub):
        return max(_fixed_scale(part) for part in _sides(node))
    return max((_fixed_scale(part) for part in branches_of(node)), default=0)


def _magnitude(node: exp.Expression, bounded: bool) -> int:
    """The largest absolute value a part can have, given that operands of arithmetic are bounded."""
    if isinstance(node, exp.Literal):
        return int(node.name.partition(".")[0]) + 1
    if isinstance(node, exp.Mul):
        return _magnitude(node.this, True) * _magnitude(node.expression, True)
    if isinstance(node, exp.Add | exp.Sub):
        return sum(_magnitude(part, True) for part in _sides(node))
    if isinstance(node, exp.Neg):
        return _magnitude(node.this, True)
    if isinstance(node, exp.Paren):
        return _magnitude(node.this, bounded)
    branches = branches_of(node)
    if branches:
        return max(_magnitude(part, bounded) for part in branches)
    return OPERAND_BOUND if bounded else _INT64_MAGNITUDE
