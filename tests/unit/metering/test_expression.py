from __future__ import annotations

import re

import pytest

from tollgate.metering.errors import InvalidMeter
from tollgate.metering.expression import check_column, check_expression
from tollgate.metering.syntax import DEPTH_MAX, Kind

PROPERTIES = ("tokens_in", "tokens_out", "model", "a.b")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rout = 'x'", "did you mean route?"),
        ("properties.tokens_im > 1", "did you mean properties.tokens_in"),
        ("tokens_in > 1", "did you mean properties.tokens_in?"),
        ("sum(status) > 3", "aggregates"),
        ("row_number() over () > 1", "aggregates"),
        ("status IN (SELECT 1)", "not a query"),
        ("EXISTS (SELECT 1)", "no subqueries"),
        ("status / 2 > 1", "no division"),
        ("status % 2 = 1", "no division"),
        ("properties.tokens_in::int > 1", "no CAST"),
        ("CAST(route AS int) = 1", "no CAST"),
        ("status = '200'", "cannot be compared"),
        ("route > 5", "cannot be compared"),
        ("user + 1 > 2", "is text where a number is wanted"),
        ("status AND id_weak", "where true or false is wanted"),
        ("status = NULL", "use IS NULL"),
        ("status IN (200, NULL)", "use IS NULL"),
        ("id_weak > TRUE", "no order"),
        ("route LIKE method", "plain text"),
        ("route LIKE 'a\\_b'", "no escapes"),
        ("path ~ '(?i)x'", "printable ASCII"),
        ("path ~ '\\w+'", "printable ASCII"),
        ("path ~ 'a++'", "no repeats of repeats"),
        ("path ~ '('", "not a regular expression"),
        ("status > 1e3", "no exponent"),
        ("status > 1.0123456789", "9 decimal places"),
        ("status > 1000000000000000000", "at most 18 digits"),
        ("RANDOM() > 1", "cannot be used"),
        ("CURRENT_TIMESTAMP > 1", "cannot be used"),
        ("route || 'x' = 'y'", "cannot be used"),
        ("NULL", "says nothing"),
        ("status = 200; status = 1", "exactly one expression"),
        ("", "exactly one expression"),
        ("status =", "not an SQL expression"),
        ("route = 'a\x00b'", "NUL"),
        ("x" * 5_000, "longer than"),
        ("(" * 3_000 + "1" + ")" * 900, "nested deeper"),
        ("NOT " * (DEPTH_MAX + 5) + "id_weak", "nested deeper"),
        (" OR ".join(["status = 1"] * 200), "more than 400 parts"),
        ("latency_ms * request_bytes * response_bytes > 1", "10^28"),
        ("0.00001 * 0.00001 * status > 1", "decimal places"),
    ],
)
def test_what_a_meter_may_not_say(text: str, problem: str) -> None:
    """Anything that could fail, cost without bound or surprise is refused, saying why."""
    with pytest.raises(InvalidMeter, match=re.escape(problem)):
        check_expression(text, PROPERTIES)


def test_every_problem_is_named() -> None:
    """Two mistakes give two problems."""
    with pytest.raises(InvalidMeter) as caught:
        check_expression("rout = 'x' AND statu = 5", PROPERTIES)
    assert caught.value.problems == [
        "no column 'rout': did you mean route?",
        "no column 'statu': did you mean status?",
    ]


@pytest.mark.parametrize(
    ("text", "kind", "columns"),
    [
        ("user = 'x'", Kind.TRUTH, {"user"}),
        ("properties.a.b = 'x'", Kind.TRUTH, {"properties.a.b"}),
        ("properties.\"a.b\" = 'x'", Kind.TRUTH, {"properties.a.b"}),
        ("\"properties.a.b\" = 'x'", Kind.TRUTH, {"properties.a.b"}),
        ("properties.tokens_in * 2", Kind.NUMBER, {"properties.tokens_in"}),
        ("properties.model", Kind.PROPERTY, {"properties.model"}),
        ("COALESCE(properties.tokens_in, 0)", Kind.NUMBER, {"properties.tokens_in"}),
        ("LOWER(method)", Kind.TEXT, {"method"}),
    ],
)
def test_kinds_and_columns(text: str, kind: Kind, columns: set[str]) -> None:
    """An expression knows what it yields and what it reads, however columns are quoted."""
    expression = check_expression(text, PROPERTIES)
    assert (expression.kind, set(expression.columns)) == (kind, columns)


def test_clauses_are_the_and_ed_parts() -> None:
    """Only ANDs at the top split a condition, through parentheses."""
    found = check_expression("route = 'a' AND (status = 1 AND (weight = 2 OR id_weak))").clauses
    assert [clause.text for clause in found] == ["route = 'a'", "status = 1", "(weight = 2 OR id_weak)"]


def test_quotes_in_names_and_texts_stay_inside() -> None:
    """Neither a text nor a property's name can break out of the SQL it is written into."""
    expression = check_expression('"properties.x""y" = \'it\'\'s "--\'')
    assert expression.truth_sql().sql == '("properties.x""y" = \'it\'\'s "--\')'


def test_group_by_takes_columns_only() -> None:
    """A dimension is a column, not an expression."""
    assert check_column("properties.model", PROPERTIES) == "properties.model"
    with pytest.raises(InvalidMeter, match="group_by takes columns"):
        check_column("status + 1")
