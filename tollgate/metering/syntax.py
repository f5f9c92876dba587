"""The SQL syntax of a meter's expressions, as a tree.

Owns parsing within bounds and the few questions asked of a tree (its columns, its branches, its conjuncts). It refuses
to know which trees are allowed (`grammar`) and how they are written for Polars (`rendering`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum

import pyarrow as pa
import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from tollgate.metering.errors import InvalidMeter
from tollgate.metering.event import SCHEMA

DIALECT = "postgres"
TEXT_LENGTH_MAX = 4_000
NODES_MAX = 400
DEPTH_MAX = 40
"""Deeper than any filter a person writes; far from the parser's and Polars' recursion limits."""


class Kind(Enum):
    """What an expression yields."""

    TEXT = "text"
    NUMBER = "a number"
    TRUTH = "true or false"
    PROPERTY = "a property"
    """Text that is read as a number where a number is wanted."""
    NULL = "NULL"
    UNKNOWN = "unknown"
    """Of something already reported."""


def _kind_of_type(data_type: pa.DataType) -> Kind:
    if pa.types.is_boolean(data_type):
        return Kind.TRUTH
    return Kind.NUMBER if pa.types.is_integer(data_type) else Kind.TEXT


COLUMN_KINDS: dict[str, Kind] = {column.name: _kind_of_type(column.type) for column in SCHEMA}
"""The fixed columns of an event and what each holds."""


NEVER_NULL = frozenset(column.name for column in SCHEMA if not column.nullable)
"""Columns every event has."""

COMPARISONS: dict[type[exp.Expression], str] = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
    exp.NullSafeEQ: "IS NOT DISTINCT FROM",
    exp.NullSafeNEQ: "IS DISTINCT FROM",
}
EQUALITIES = (exp.EQ, exp.NEQ, exp.NullSafeEQ, exp.NullSafeNEQ)
ARITHMETIC: dict[type[exp.Expression], str] = {exp.Add: "+", exp.Sub: "-", exp.Mul: "*"}
CONNECTORS = (exp.And, exp.Or)


def parse_tree(text: str) -> exp.Expression:
    if len(text) > TEXT_LENGTH_MAX:
        raise InvalidMeter([f"the expression is longer than {TEXT_LENGTH_MAX} characters"])
    if "\x00" in text:
        raise InvalidMeter(["the expression holds a NUL character"])
    try:
        trees = [tree for tree in sqlglot.parse(text, dialect=DIALECT) if isinstance(tree, exp.Expression)]
        depth = _depth(trees[0]) if trees else 0
    except SqlglotError as error:
        raise InvalidMeter([f"not an SQL expression: {_first_line(error)}"]) from error
    except RecursionError as error:
        raise InvalidMeter([f"the expression is nested deeper than {DEPTH_MAX} levels"]) from error
    if len(trees) != 1 or isinstance(trees[0], exp.Block):
        raise InvalidMeter(["exactly one expression is wanted"])
    if depth > DEPTH_MAX:
        raise InvalidMeter([f"the expression is nested deeper than {DEPTH_MAX} levels"])
    if sum(1 for _ in trees[0].walk()) > NODES_MAX:
        raise InvalidMeter([f"the expression has more than {NODES_MAX} parts"])
    return trees[0]


def _first_line(error: Exception) -> str:
    # sqlglot underlines with terminal escapes; a problem is one plain line.
    return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip().splitlines()[0]


def _depth(tree: exp.Expression) -> int:
    """Nesting of an expression, where a run of ANDs, ORs or sums counts once."""
    flat = (*CONNECTORS, exp.Add, exp.Sub, exp.Paren)
    deepest, todo = 0, [(tree, 1)]
    while todo:
        node, depth = todo.pop()
        deepest = max(deepest, depth)
        todo.extend(
            (child, depth if isinstance(node, flat) and isinstance(child, flat) else depth + 1)
            for child in node.iter_expressions()
        )
    return deepest


def column_name(node: exp.Expression) -> str:
    """`route`, or `properties.a.b` however it was quoted."""
    if isinstance(node, exp.Dot):
        return f"{column_name(node.this)}.{node.expression.name}"
    return ".".join(part.name for part in node.parts)  # type: ignore[attr-defined]


def columns_of(tree: exp.Expression) -> frozenset[str]:
    """Every column an expression reads."""
    return frozenset(column_name(node) for node in _column_nodes(tree))


def _column_nodes(tree: exp.Expression) -> Iterator[exp.Expression]:
    for node in tree.walk(prune=lambda found: isinstance(found, exp.Column | exp.Dot)):
        if isinstance(node, exp.Column | exp.Dot):
            yield node


def conjuncts_of(tree: exp.Expression) -> list[exp.Expression]:
    found: list[exp.Expression] = []
    todo = [tree]
    while todo:
        node = todo.pop()
        inner = node.unnest() if isinstance(node, exp.Paren) else node
        if isinstance(inner, exp.And):
            todo += [inner.expression, inner.this]
        else:
            found.append(node)
    return found


def is_plain_integer(node: exp.Expression) -> bool:
    """True for what needs no decimals: a signed integer column, an integer, a length."""
    if isinstance(node, exp.Paren):
        return is_plain_integer(node.this)
    if isinstance(node, exp.Neg):
        return isinstance(node.this, exp.Literal) and is_plain_integer(node.this)
    if isinstance(node, exp.Literal):
        return not node.is_string and "." not in node.name
    if isinstance(node, exp.Column | exp.Dot):
        name = column_name(node)
        # id_hash is unsigned: comparing it with a signed column would go through floats.
        return COLUMN_KINDS.get(name) is Kind.NUMBER and name != "id_hash"
    return isinstance(node, exp.Length)


def branches_of(node: exp.Expression) -> list[exp.Expression]:
    """The values COALESCE, CASE or IF may yield."""
    if isinstance(node, exp.Coalesce):
        return [node.this, *node.expressions]
    if isinstance(node, exp.Case):
        default = node.args.get("default")
        return [
            *(part.args["true"] for part in node.args["ifs"]),
            *([default] if default is not None else []),
        ]
    if isinstance(node, exp.If):
        other = node.args.get("false")
        return [node.args["true"], *([other] if other is not None else [])]
    return []


def conditions_of(node: exp.Expression) -> list[exp.Expression]:
    """The conditions of CASE or IF, a `CASE x WHEN y` as `x = y`."""
    if isinstance(node, exp.If):
        return [node.this]
    if isinstance(node, exp.Case):
        subject = node.args.get("this")
        return [
            part.this if subject is None else exp.EQ(this=subject.copy(), expression=part.this.copy())
            for part in node.args["ifs"]
        ]
    return []


def negations_of(tree: exp.Expression) -> list[tuple[str, str]]:
    """Negated tests and the column whose NULL makes each of them NULL too, unless the tree tests that column for NULL."""
    tested = {
        column_name(node.this)
        for node in tree.find_all(exp.Is)
        if isinstance(node.expression, exp.Null) and isinstance(node.this, exp.Column | exp.Dot)
    }
    found = []
    for node in tree.find_all(exp.NEQ, exp.Not, exp.Like, exp.ILike):
        negated = isinstance(node, exp.NEQ | exp.Not) or node.args.get("negate")
        if not negated or node.find(exp.Is, exp.Coalesce):
            continue
        columns = sorted(columns_of(node) - tested - NEVER_NULL)
        if columns and not node.find_ancestor(exp.Not):
            found.append((node.sql(DIALECT), columns[0]))
    return found
