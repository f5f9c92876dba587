"""The table: rows as aligned text, and as the Markdown of the documents.

Owns widths and number formats. It refuses to know where rows come from.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    cells = [HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    lines = [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines) + "\n"


def render_markdown(rows: Sequence[Row]) -> str:
    """The same as a Markdown table; ends with a newline."""
    cells = [HEADINGS, ("---", *("---:" for _ in HEADINGS[1:])), *(_cells(row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.rate:,.0f} {row.unit}s/s",
        _number(row.cpu_us),
        "-" if row.bound.floor is None else _limit(row.bound.measure, row.bound.floor),
        _limit(row.bound.measure, row.bound.target),
        row.verdict,
        "-" if row.bare_us is None else f"{_number(row.bare_us)} ({row.bare})",
        "-" if row.ratio is None else f"{row.ratio:.1f}",
    )


def _limit(measure: Measure, limit: float) -> str:
    if measure is Measure.RATE:
        return f"≥ {limit:,.0f}/s"
    if measure is Measure.FRESHNESS:
        return f"p99 ≤ {limit:g} s"
    return f"≤ {_number(limit)}"


def _number(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
