"""Random expressions a meter may hold, and random events to run them on: ordinary, empty and hostile values alike."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.unit.metering.rows import NOW_MS, Row, row

PROPERTIES = ("tokens", "tier", "model")

_TEXT_COLUMNS = ("route", "company", "account", "method")
_INTEGER_COLUMNS = ("status", "latency_ms", "request_bytes", "weight", "id_hash")
_WORDS = ("/v1/chat", "GET", "a", "A", "gold", "it''s", "", "5", "ß", "a.b", "x%")
_NUMBERS = ("0", "1", "2", "5", "200", "0.5", "1.25", "1000000000000", "999999999999999999")
_PATTERNS = ("%", "a%", "%b", "a_b", "/v1/%", "", "A%")
_REGEXES = ("^a", "b$", "^/v1/[a-z]+$", "\\d+", "a.b", "(?:a|b)*", "")

text_columns = st.sampled_from([*_TEXT_COLUMNS, *(f"properties.{name}" for name in PROPERTIES)])
number_columns = st.sampled_from([*_INTEGER_COLUMNS, "properties.tokens", "properties.tier"])
words = st.sampled_from(_WORDS).map(lambda word: f"'{word}'")
literals = st.sampled_from(_NUMBERS)


@st.composite
def texts(draw: st.DrawFn) -> str:
    """An expression that yields text."""
    column = draw(text_columns)
    shape = draw(st.sampled_from(["{c}", "{c}", "LOWER({c})", "UPPER({c})", "COALESCE({c}, {w})"]))
    return shape.format(c=column, w=draw(words))


@st.composite
def numbers(draw: st.DrawFn, depth: int = 2) -> str:
    """An expression that yields a number; some are refused for overflow or too many digits."""
    if depth == 0:
        return draw(st.one_of(number_columns, literals))
    kind = draw(st.sampled_from(["leaf", "leaf", "add", "sub", "mul", "neg", "case", "coalesce", "length"]))
    if kind == "leaf":
        return draw(st.one_of(number_columns, literals))
    if kind == "length":
        return f"LENGTH({draw(text_columns)})"
    one = draw(numbers(depth - 1))
    if kind == "neg":
        return f"-({one})"
    other = draw(numbers(depth - 1))
    if kind == "case":
        return f"CASE WHEN {draw(conditions(0))} THEN {one} ELSE {other} END"
    if kind == "coalesce":
        return f"COALESCE({one}, {other})"
    sign = {"add": "+", "sub": "-", "mul": "*"}[kind]
    return f"({one} {sign} {other})"


@st.composite
def tests(draw: st.DrawFn) -> str:
    """One test of a column."""
    kind = draw(
        st.sampled_from(
            ["text", "number", "in", "in_number", "between", "null", "like", "regex", "weak", "starts"]
        )
    )
    comparison = draw(st.sampled_from(["=", "<>", "<", "<=", ">", ">=", "IS DISTINCT FROM"]))
    negated = draw(st.sampled_from(["", "NOT "]))
    if kind == "text":
        return f"{draw(texts())} {comparison} {draw(st.one_of(words, texts()))}"
    if kind == "number":
        return f"{draw(numbers(1))} {comparison} {draw(numbers(1))}"
    if kind == "in":
        return f"{draw(texts())} {negated}IN ({draw(words)}, {draw(words)})"
    if kind == "in_number":
        return f"{draw(numbers(1))} {negated}IN ({draw(literals)}, -{draw(literals)})"
    if kind == "between":
        return f"{draw(numbers(1))} {negated}BETWEEN {draw(literals)} AND {draw(literals)}"
    if kind == "null":
        return f"{draw(st.one_of(text_columns, number_columns, numbers(1)))} IS {negated}NULL"
    if kind == "like":
        word = draw(st.sampled_from(["LIKE", "ILIKE"]))
        return f"{draw(texts())} {negated}{word} '{draw(st.sampled_from(_PATTERNS))}'"
    if kind == "regex":
        return f"{draw(texts())} ~ '{draw(st.sampled_from(_REGEXES))}'"
    if kind == "starts":
        return f"{draw(st.sampled_from(['STARTS_WITH', 'ENDS_WITH']))}({draw(texts())}, {draw(words)})"
    return draw(
        st.sampled_from(["id_weak", "id_weak = FALSE", "id_weak IS TRUE", "(status > 5) IS NOT TRUE"])
    )


@st.composite
def conditions(draw: st.DrawFn, depth: int = 2) -> str:
    """An expression that is true, false or NULL."""
    if depth == 0:
        return draw(tests())
    kind = draw(st.sampled_from(["test", "and", "or", "not"]))
    if kind == "test":
        return draw(tests())
    if kind == "not":
        return f"NOT ({draw(conditions(depth - 1))})"
    return f"({draw(conditions(depth - 1))} {kind.upper()} {draw(conditions(depth - 1))})"


_texts = st.one_of(
    st.none(),
    st.sampled_from(["/v1/chat", "GET", "a", "A", "gold", "it's", "", "a\nb", "axb", "ß", "SS", "x%", "5"]),
)
_property_texts = st.one_of(
    _texts,
    st.sampled_from(
        [
            "0",
            "7",
            "12.5",
            "-3",
            "+4",
            "1e3",
            "NaN",
            "inf",
            " 1",
            "1 ",
            "1\n",
            "1.",
            ".5",
            "00012",
            "1_000",
            "٣",
        ]
    ),
    st.sampled_from(
        ["1.123456789", "1.1234567891", "1.12345", "1000000000000", "1000000000001", "9" * 19, "9" * 40]
    ),
    st.decimals(allow_nan=False, allow_infinity=False, places=4, min_value=-10, max_value=10**6).map(str),
)


def _integers(bits: int) -> st.SearchStrategy[int | None]:
    return st.one_of(
        st.none(),
        st.integers(-3, 600),
        st.sampled_from([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1, 2 ** (bits // 2)]),
    )


@st.composite
def events(draw: st.DrawFn, id_hash: int) -> Row:
    """One event. A property may be missing altogether: not captured."""
    properties: dict[str, Any] = {name: draw(_property_texts) for name in PROPERTIES}
    return row(
        id_hash,
        time_ms=NOW_MS + draw(st.integers(-5_000_000, 290_000)),
        account=draw(st.sampled_from(["user:a", "user:b"])),
        route=draw(_texts),
        company=draw(_texts),
        method=draw(_texts),
        status=draw(_integers(16)),
        latency_ms=draw(_integers(64)),
        request_bytes=draw(_integers(64)),
        weight=draw(
            st.one_of(st.integers(-2, 5), st.sampled_from([10**12, 10**12 + 1, -(2**63), 2**63 - 1]))
        ),
        id_weak=draw(st.booleans()),
        properties=properties,
    )
