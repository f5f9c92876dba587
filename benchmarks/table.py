"""The table: rows as aligned text, and as the Markdown of the documents.

Owns its columns. It refuses to know where rows come from.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.layout import align, markdown, three_digits
from benchmarks.row import Measure, Row

HEADINGS = (
    "stage",
    "rate",
    "CPU s per million",
    "floor",
    "target",
    "reached",
    "bare limit",
    "ratio",
)


def render_table(rows: Sequence[Row]) -> str:
    """Aligned columns for a terminal; ends with a newline."""
    return align([HEADINGS, *map(_cells, rows)])


def render_markdown(rows: Sequence[Row]) -> str:
    """The same as a Markdown table; ends with a newline."""
    return markdown([HEADINGS, *map(_cells, rows)])


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.rate:,.0f} {row.unit}s/s",
        three_digits(row.cpu_us),
        "-" if row.bound.floor is None else _limit(row.bound.measure, row.bound.floor),
        _limit(row.bound.measure, row.bound.target),
        row.verdict,
        "-" if row.bare_us is None else f"{three_digits(row.bare_us)} ({row.bare})",
        "-" if row.ratio is None else f"{row.ratio:.1f}",
    )


def _limit(measure: Measure, limit: float) -> str:
    if measure is Measure.RATE:
        return f"≥ {limit:,.0f}/s"
    if measure is Measure.FRESHNESS:
        return f"p99 ≤ {limit:g} s"
    return f"≤ {three_digits(limit)}"
