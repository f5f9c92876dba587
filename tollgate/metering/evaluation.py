"""A meter's expression as a plain Python function of one event.

Owns a reading of the expressions that shares nothing with the one the fold runs: trees walked by hand, exact decimals,
SQL's three-valued logic. It refuses to know meters and windows. Only the recount uses it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from decimal import Context, Decimal
from typing import TypeVar

import pyarrow as pa
import sqlglot
from sqlglot import exp

from tollgate.metering.event import PROPERTY_PREFIX, SCHEMA

Row = Mapping[str, object]
"""One event's columns. A property its record does not carry is a missing key."""

FALSE, NULL, TRUE = 0, 1, 2
Span = tuple[int, int]
"""The least and the most true a condition can be, in the order FALSE < NULL < TRUE."""

Truth = Callable[[Row], Span]
Number = Callable[[Row], Decimal | None]
Text = Callable[[Row], str | None]

_T = TypeVar("_T")

EXACT = Context(prec=80)
BOUND = Decimal(10) ** 12
PLACES = 9
_INTEGERS = frozenset(column.name for column in SCHEMA if pa.types.is_integer(column.type))
_TRUTHS = frozenset(column.name for column in SCHEMA if pa.types.is_boolean(column.type))


def parse(text: str) -> exp.Expr:
    return sqlglot.parse_one(text, dialect="postgres")


def column_of(node: exp.Expr) -> str:
    if isinstance(node, exp.Paren):
        return column_of(node.this)
    if isinstance(node, exp.Dot):
        return f"{column_of(node.this)}.{node.expression.name}"
    if isinstance(node, exp.Column):
        return ".".join(part.name for part in node.parts)
    raise ValueError(f"{node.sql()} is no column")


def columns_in(tree: exp.Expr) -> set[str]:
    if isinstance(tree, exp.Column | exp.Dot):
        return {column_of(tree)}
    return {name for part in tree.iter_expressions() for name in columns_in(part)}


def _cases(node: exp.Expr) -> tuple[list[tuple[exp.Expr, exp.Expr]], exp.Expr | None]:
    """(condition, value) pairs and the default of CASE and IF."""
    if isinstance(node, exp.If):
        return [(node.this, node.args["true"])], node.args.get("false")
    subject = node.args.get("this")
    pairs = [
        (part.this if subject is None else exp.EQ(this=subject, expression=part.this), part.args["true"])
        for part in node.args["ifs"]
    ]
    return pairs, node.args.get("default")


def _alternatives(node: exp.Expr) -> list[exp.Expr]:
    if isinstance(node, exp.Coalesce):
        return [node.this, *node.expressions]
    if isinstance(node, exp.Case | exp.If):
        pairs, default = _cases(node)
        return [value for _, value in pairs] + ([default] if default is not None else [])
    return []


def is_number(node: exp.Expr) -> bool:
    if isinstance(node, exp.Paren):
        return is_number(node.this)
    if isinstance(node, exp.Literal):
        return not node.is_string
    if isinstance(node, exp.Column | exp.Dot):
        return column_of(node) in _INTEGERS
    if isinstance(node, exp.Add | exp.Sub | exp.Mul | exp.Neg | exp.Length):
        return True
    return any(is_number(part) for part in _alternatives(node))


def is_truth(node: exp.Expr) -> bool:
    if isinstance(node, exp.Paren):
        return is_truth(node.this)
    if isinstance(node, exp.Column | exp.Dot):
        return column_of(node) in _TRUTHS
    if _alternatives(node):
        return any(is_truth(part) for part in _alternatives(node))
    return isinstance(
        node, exp.Predicate | exp.Connector | exp.Not | exp.Boolean | exp.StartsWith | exp.EndsWith
    )


# ------------------------------------------------------------------------------------------- true or false


def truth_of(node: exp.Expr) -> Truth:
    if isinstance(node, exp.Paren):
        return truth_of(node.this)
    if isinstance(node, exp.And | exp.Or):
        left, right, pick = (
            truth_of(node.this),
            truth_of(node.expression),
            min if isinstance(node, exp.And) else max,
        )

        def connect(row: Row) -> Span:
            (low, high), (other_low, other_high) = left(row), right(row)
            return pick(low, other_low), pick(high, other_high)

        return connect
    if isinstance(node, exp.Not):
        return _not(truth_of(node.this))
    atom = _atom(node)
    if node.args.get("negate"):
        atom = _not(atom)
    needed = [name for name in columns_in(node) if name.startswith(PROPERTY_PREFIX)]
    if not needed:
        return atom
    return lambda row: atom(row) if all(name in row for name in needed) else (FALSE, TRUE)


def _not(inner: Truth) -> Truth:
    def negate(row: Row) -> Span:
        low, high = inner(row)
        return 2 - high, 2 - low

    return negate


def _certain(value: bool | None) -> Span:
    truth = NULL if value is None else TRUE if value else FALSE
    return truth, truth


def _atom(node: exp.Expr) -> Truth:
    if isinstance(node, exp.Boolean):
        return lambda _row: _certain(bool(node.this))
    if isinstance(node, exp.Null):
        return lambda _row: _certain(None)
    if isinstance(node, exp.Column | exp.Dot):
        name = column_of(node)
        return lambda row: _certain(None if row.get(name) is None else bool(row[name]))
    if isinstance(node, exp.Is):
        return _is(node)
    if isinstance(node, exp.Case | exp.If | exp.Coalesce):
        chosen = _choose(node, _truth_value)
        return lambda row: _certain(chosen(row))
    if isinstance(node, exp.In):
        tests = [
            _compare(exp.EQ, node.this, member, [node.this, *node.expressions]) for member in node.expressions
        ]
        return lambda row: max(test(row) for test in tests)
    if isinstance(node, exp.Between):
        parts = [node.this, node.args["low"], node.args["high"]]
        above, below = (
            _compare(exp.GTE, parts[0], parts[1], parts),
            _compare(exp.LTE, parts[0], parts[2], parts),
        )
        return lambda row: min(above(row), below(row))
    if isinstance(node, exp.Like | exp.ILike | exp.RegexpLike | exp.StartsWith | exp.EndsWith):
        return _match(node)
    return _compare(type(node), node.this, node.expression, [node.this, node.expression])


def _truth_value(node: exp.Expr) -> Callable[[Row], bool | None]:
    truth = truth_of(node)
    return lambda row: {FALSE: False, NULL: None, TRUE: True}[truth(row)[0]]


def _is(node: exp.Is) -> Truth:
    if isinstance(node.expression, exp.Null):
        value = _value(node.this, [node.this])
        return lambda row: _certain(value(row) is None)
    truth, wanted = truth_of(node.this), TRUE if node.expression.this else FALSE
    return lambda row: _certain(truth(row)[0] == wanted)


def _value(node: exp.Expr, beside: list[exp.Expr]) -> Callable[[Row], object]:
    """The value of a part, in the type it has beside the parts it is compared with."""
    if any(is_truth(part) for part in beside):
        return _truth_value(node)
    if any(is_number(part) for part in beside):
        return number_of(node, PLACES, bounded=False)
    return text_of(node)


_TESTS: dict[type[exp.Expr], Callable[[int], bool]] = {
    exp.EQ: lambda order: order == 0,
    exp.NEQ: lambda order: order != 0,
    exp.LT: lambda order: order < 0,
    exp.LTE: lambda order: order <= 0,
    exp.GT: lambda order: order > 0,
    exp.GTE: lambda order: order >= 0,
}


def _compare(kind: type[exp.Expr], left: exp.Expr, right: exp.Expr, beside: list[exp.Expr]) -> Truth:
    first, second = _value(left, beside), _value(right, beside)
    if kind in (exp.NullSafeEQ, exp.NullSafeNEQ):
        return lambda row: _certain((first(row) == second(row)) is (kind is exp.NullSafeEQ))
    if kind not in _TESTS:
        raise ValueError(f"{kind.__name__} is not something a meter tests")
    test = _TESTS[kind]

    def compare(row: Row) -> Span:
        one, other = first(row), second(row)
        if one is None or other is None:
            return _certain(None)
        order = (one > other) - (one < other)  # type: ignore[operator]
        return _certain(test(order))

    return compare


def _match(node: exp.Expr) -> Truth:
    subject, pattern = text_of(node.this), text_of(node.expression)
    if isinstance(node, exp.StartsWith | exp.EndsWith):
        start = isinstance(node, exp.StartsWith)

        def affix(row: Row) -> Span:
            text, part = subject(row), pattern(row)
            if text is None or part is None:
                return _certain(None)
            return _certain(text.startswith(part) if start else text.endswith(part))

        return affix
    source, folded = node.expression.name, isinstance(node, exp.ILike)
    if isinstance(node, exp.RegexpLike):
        # A dollar means the very end, as in Rust; a class or a backslash takes it literally.
        source = re.sub(r"(\\.|\[\^?\]?[^\]]*\])|\$", lambda found: found[1] or r"\Z", source)
        find = re.compile(source).search
    else:
        wild = {"%": ".*", "_": "."}
        source = "".join(wild.get(sign) or re.escape(sign) for sign in (source.lower() if folded else source))
        find = re.compile(source, re.DOTALL).fullmatch

    def match(row: Row) -> Span:
        text = subject(row)
        if text is None:
            return _certain(None)
        return _certain(find(text.lower() if folded else text) is not None)

    return match


def _choose(
    node: exp.Expr, build: Callable[[exp.Expr], Callable[[Row], _T | None]]
) -> Callable[[Row], _T | None]:
    if isinstance(node, exp.Coalesce):
        parts = [build(part) for part in _alternatives(node)]

        def first(row: Row) -> _T | None:
            return next((value for part in parts if (value := part(row)) is not None), None)

        return first
    pairs, default = _cases(node)
    tests = [(truth_of(condition), build(value)) for condition, value in pairs]
    otherwise = build(default) if default is not None else None

    def choose(row: Row) -> _T | None:
        for test, value in tests:
            if test(row)[0] == TRUE:
                return value(row)
        return otherwise(row) if otherwise else None

    return choose


# --------------------------------------------------------------------------------------- text and numbers


def text_of(node: exp.Expr) -> Text:
    if isinstance(node, exp.Paren):
        return text_of(node.this)
    if isinstance(node, exp.Literal):
        return lambda _row: node.name
    if isinstance(node, exp.Null):
        return lambda _row: None
    if isinstance(node, exp.Column | exp.Dot):
        name = column_of(node)
        return lambda row: None if row.get(name) is None else str(row[name])
    if isinstance(node, exp.Lower | exp.Upper):
        inner, lower = text_of(node.this), isinstance(node, exp.Lower)

        def fold_case(row: Row) -> str | None:
            text = inner(row)
            return None if text is None else text.lower() if lower else text.upper()

        return fold_case
    if not _alternatives(node):
        raise ValueError(f"{node.sql()} is not a text a meter reads")
    return _choose(node, text_of)


def number_of(node: exp.Expr, places: int, *, bounded: bool) -> Number:
    """`places`: decimal digits a property may have here. `bounded`: it stands in arithmetic or is a metric's value."""
    if isinstance(node, exp.Paren):
        return number_of(node.this, places, bounded=bounded)
    if isinstance(node, exp.Literal):
        literal = Decimal(node.name)
        return lambda _row: literal
    if isinstance(node, exp.Null):
        return lambda _row: None
    if isinstance(node, exp.Length):
        text = text_of(node.this)
        return lambda row: None if (found := text(row)) is None else Decimal(len(found))
    if isinstance(node, exp.Neg):
        inner = number_of(node.this, places, bounded=True)
        return lambda row: None if (found := inner(row)) is None else EXACT.minus(found)
    if isinstance(node, exp.Add | exp.Sub):
        operate = EXACT.add if isinstance(node, exp.Add) else EXACT.subtract
        return _both(
            operate, [number_of(part, places, bounded=True) for part in (node.this, node.expression)]
        )
    if isinstance(node, exp.Mul):
        return _product(node, places)
    if isinstance(node, exp.Column | exp.Dot):
        return _column_number(column_of(node), places, bounded=bounded)
    if not _alternatives(node):
        raise ValueError(f"{node.sql()} is not a number a meter reads")
    return _choose(node, lambda part: number_of(part, places, bounded=bounded))


def _both(operate: Callable[[Decimal, Decimal], Decimal], parts: list[Number]) -> Number:
    def reduce(row: Row) -> Decimal | None:
        total: Decimal | None = None
        for place, part in enumerate(parts):
            value = part(row)
            if value is None:
                return None
            total = value if place == 0 or total is None else operate(total, value)
        return total

    return reduce


def _product(node: exp.Expr, places: int) -> Number:
    """Each factor that reads properties may have an equal share of the digits the literals leave."""
    factors: list[exp.Expr] = []
    todo = [node]
    while todo:
        part = todo.pop()
        inner = part.unnest()
        if isinstance(inner, exp.Mul):
            todo += [inner.expression, inner.this]
        else:
            factors.append(part)
    literal_places = [_literal_places(factor) for factor in factors]
    reading = [any(name.startswith(PROPERTY_PREFIX) for name in columns_in(factor)) for factor in factors]
    share = (places - sum(literal_places)) // max(sum(reading), 1)
    return _both(
        EXACT.multiply,
        [
            number_of(factor, own + (share if reads else 0), bounded=True)
            for factor, own, reads in zip(factors, literal_places, reading, strict=True)
        ],
    )


def _literal_places(node: exp.Expr) -> int:
    if isinstance(node, exp.Literal):
        return len(node.name.partition(".")[2])
    if isinstance(node, exp.Mul):
        return _literal_places(node.this) + _literal_places(node.expression)
    if isinstance(node, exp.Paren | exp.Neg):
        return _literal_places(node.this)
    parts = [node.this, node.expression] if isinstance(node, exp.Add | exp.Sub) else _alternatives(node)
    return max((_literal_places(part) for part in parts), default=0)


def _column_number(name: str, places: int, *, bounded: bool) -> Number:
    written = re.compile(r"[+-]?[0-9]{1,19}" + (rf"(\.[0-9]{{1,{places}}})?" if places else ""))
    is_property = name.startswith(PROPERTY_PREFIX)

    def read(row: Row) -> Decimal | None:
        value = row.get(name)
        if value is None or (is_property and not written.fullmatch(str(value))):
            return None
        number = Decimal(str(value))
        return None if bounded and abs(number) > BOUND else number

    return read
