"""The part of SQL a meter may use.

Owns what is allowed and what each part yields; it finds every problem at once. It refuses to know how a tree is
parsed (`syntax`) and written (`rendering`).
"""

from __future__ import annotations

import difflib
import re

from sqlglot import exp

from tollgate.metering.event import PROPERTY_PREFIX
from tollgate.metering.syntax import (
    ARITHMETIC,
    COLUMN_KINDS,
    COMPARISONS,
    DIALECT,
    EQUALITIES,
    Kind,
    branches_of,
    column_name,
    conditions_of,
)

_INTEGER_LITERAL_MAX = 10**18
_NUMBER_TEXT = re.compile(r"[0-9]{1,19}(\.[0-9]{1,9})?")
_PATTERN_TEXT = re.compile(r"(?:[^\\(\x00-\x1f\x7f-\U0010ffff]|\\[dD\\.^$|?*+()\[\]{}/-]|\((?!\?)|\(\?:)*")
"""Regular expressions mean the same everywhere in this part of their language: printable ASCII, \\d, escaped signs."""


class Checker:
    """Finds the kind of every part, and everything that is not allowed."""

    def __init__(self, properties: frozenset[str] | None) -> None:
        self.problems: list[str] = []
        self._properties = properties

    def kind(self, node: exp.Expression) -> Kind:
        if isinstance(node, exp.Paren):
            return self.kind(node.this)
        if isinstance(node, exp.Column | exp.Dot):
            return self._column(node)
        if isinstance(node, exp.Literal):
            return Kind.TEXT if node.is_string else self._number(node)
        if isinstance(node, exp.Boolean):
            return Kind.TRUTH
        if isinstance(node, exp.Null):
            return Kind.NULL
        if isinstance(node, exp.Not | exp.And | exp.Or):
            self._want_each(node, Kind.TRUTH)
            return Kind.TRUTH
        if type(node) in COMPARISONS:
            return self._comparison(node)
        if isinstance(node, exp.Neg) or type(node) in ARITHMETIC:
            self._want_each(node, Kind.NUMBER)
            return Kind.NUMBER
        return self._predicate_or_function(node)

    def _column(self, node: exp.Expression) -> Kind:
        name = column_name(node)
        if name in COLUMN_KINDS:
            return COLUMN_KINDS[name]
        if name.startswith(PROPERTY_PREFIX) and len(name) > len(PROPERTY_PREFIX):
            if self._properties is None or name.removeprefix(PROPERTY_PREFIX) in self._properties:
                return Kind.PROPERTY
            self.problems.append(
                f"property {name!r} is not captured{_near(name, self._all_columns())}; captured are: "
                f"{', '.join(sorted(self._properties)) or 'none'}"
            )
            return Kind.UNKNOWN
        if f"{PROPERTY_PREFIX}{name}" in self._all_columns():
            self.problems.append(f"no column {name!r}: did you mean {PROPERTY_PREFIX}{name}?")
        else:
            self.problems.append(f"no column {name!r}{_near(name, self._all_columns())}")
        return Kind.UNKNOWN

    def _all_columns(self) -> list[str]:
        return [*COLUMN_KINDS, *(PROPERTY_PREFIX + name for name in sorted(self._properties or ()))]

    def _number(self, node: exp.Expression) -> Kind:
        whole = node.name.partition(".")[0]
        if not _NUMBER_TEXT.fullmatch(node.name) or int(whole) >= _INTEGER_LITERAL_MAX:
            self.problems.append(
                f"number {node.name}: write at most 18 digits and 9 decimal places, no exponent"
            )
            return Kind.UNKNOWN
        return Kind.NUMBER

    def _want_each(self, node: exp.Expression, wanted: Kind) -> None:
        for part in node.iter_expressions():
            self._want(part, wanted)

    def _want(self, node: exp.Expression, wanted: Kind) -> None:
        found = self.kind(node)
        readable = {wanted, Kind.UNKNOWN} | ({Kind.PROPERTY} if wanted in (Kind.NUMBER, Kind.TEXT) else set())
        if found not in readable:
            self.problems.append(f"{node.sql(DIALECT)} is {found.value} where {wanted.value} is wanted")

    def _same(self, nodes: list[exp.Expression], whole: exp.Expression, *, nullable: bool = False) -> Kind:
        """The one kind several parts have together."""
        kinds = {self.kind(node) for node in nodes}
        if Kind.UNKNOWN in kinds:
            return Kind.UNKNOWN
        if Kind.NULL in kinds and not nullable:
            self.problems.append(f"{whole.sql(DIALECT)}: nothing equals NULL; use IS NULL or IS NOT NULL")
            return Kind.UNKNOWN
        firm = kinds - {Kind.NULL, Kind.PROPERTY}
        if len(firm) > 1 or (firm == {Kind.TRUTH} and Kind.PROPERTY in kinds):
            sides = ", ".join(f"{node.sql(DIALECT)} is {self.kind(node).value}" for node in nodes)
            self.problems.append(f"{whole.sql(DIALECT)}: {sides}; they cannot be compared")
            return Kind.UNKNOWN
        if firm:
            return firm.pop()
        return Kind.PROPERTY if Kind.PROPERTY in kinds else Kind.NULL

    def _comparison(self, node: exp.Expression) -> Kind:
        kind = self._same([node.this, node.expression], node)
        if kind is Kind.TRUTH and not isinstance(node, EQUALITIES):
            self.problems.append(f"{node.sql(DIALECT)}: true and false have no order")
        return Kind.TRUTH

    def _predicate_or_function(self, node: exp.Expression) -> Kind:
        if isinstance(node, exp.In):
            self._membership(node)
        elif isinstance(node, exp.Between) and not node.args.get("symmetric"):
            if self._same([node.this, node.args["low"], node.args["high"]], node) is Kind.TRUTH:
                self.problems.append(f"{node.sql(DIALECT)}: true and false have no order")
        elif isinstance(node, exp.Is):
            self._is(node)
        elif isinstance(node, exp.Like | exp.ILike):
            self._want(node.this, Kind.TEXT)
            self._pattern(node, regular=False)
        elif isinstance(node, exp.RegexpLike) and not node.args.get("flag"):
            self._want(node.this, Kind.TEXT)
            self._pattern(node, regular=True)
        elif isinstance(node, exp.StartsWith | exp.EndsWith):
            self._want(node.this, Kind.TEXT)
            self._want(node.expression, Kind.TEXT)
        elif isinstance(node, exp.Lower | exp.Upper):
            self._want(node.this, Kind.TEXT)
            return Kind.TEXT
        elif isinstance(node, exp.Length):
            self._want(node.this, Kind.TEXT)
            return Kind.NUMBER
        elif isinstance(node, exp.Coalesce | exp.Case | exp.If):
            for condition in conditions_of(node):
                self._want(condition, Kind.TRUTH)
            return self._same(branches_of(node), node, nullable=True)
        else:
            self._refuse(node)
            return Kind.UNKNOWN
        return Kind.TRUTH

    def _membership(self, node: exp.In) -> None:
        members = list(node.expressions)
        if not members or any(node.args.get(key) for key in ("query", "unnest", "field", "is_global")):
            self.problems.append(f"{node.sql(DIALECT)}: IN takes a list of values, not a query")
            return
        for member in members:
            value = member.this if isinstance(member, exp.Neg) else member
            if not isinstance(value, exp.Literal | exp.Boolean | exp.Null):
                self.problems.append(f"{member.sql(DIALECT)}: IN takes plain values")
        self._same([node.this, *members], node)

    def _is(self, node: exp.Is) -> None:
        if isinstance(node.expression, exp.Boolean):
            self._want(node.this, Kind.TRUTH)
        elif isinstance(node.expression, exp.Null):
            self.kind(node.this)
        else:
            self._refuse(node)

    def _pattern(self, node: exp.Expression, *, regular: bool) -> None:
        pattern = node.expression
        if not isinstance(pattern, exp.Literal) or not pattern.is_string:
            self.problems.append(f"{node.sql(DIALECT)}: the pattern must be a plain text")
        elif not regular and "\\" in pattern.name:
            self.problems.append(
                f"{node.sql(DIALECT)}: LIKE has no escapes here; use ~ for a regular expression"
            )
        elif regular:
            problem = _pattern_problem(pattern.name)
            if problem:
                self.problems.append(f"{node.sql(DIALECT)}: {problem}")

    def _refuse(self, node: exp.Expression) -> None:
        shown = node.sql(DIALECT)
        if isinstance(node, exp.AggFunc | exp.Window):
            self.problems.append(f"{shown}: the metric aggregates; an expression sees one event at a time")
        elif isinstance(node, exp.Query | exp.Subquery | exp.Exists):
            self.problems.append(f"{shown}: no subqueries")
        elif isinstance(node, exp.Div | exp.Mod):
            self.problems.append(f"{shown}: no division (it can fail, and its digits do not end)")
        elif isinstance(node, exp.Cast):
            self.problems.append(f"{shown}: no CAST; a property is read as a number where one is wanted")
        else:
            self.problems.append(f"{shown}: {type(node).__name__.upper()} cannot be used in a meter")


_DIVERGING = re.compile(r"[*+?}][+]|\[[^\]]*(\[|&&|--|~~)")
"""Possessive repeats and set operations: Rust and other engines read these differently."""


def _pattern_problem(pattern: str) -> str | None:
    if not _PATTERN_TEXT.fullmatch(pattern):
        return "use printable ASCII, \\d and escaped signs; no flags, look-around, \\w, \\s or \\b"
    if _DIVERGING.search(pattern):
        return "no repeats of repeats, and no sets within sets"
    try:
        re.compile(pattern)
    except re.error as error:
        return f"not a regular expression: {error}"
    return None


def _near(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f": did you mean {' or '.join(close)}?" if close else ""


def kind_of(node: exp.Expression) -> Kind:
    """What a checked part yields."""
    return Checker(None).kind(node)
