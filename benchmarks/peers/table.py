"""The peers' table: lines as aligned text, and as the Markdown of the documents.

Owns columns and number formats. It refuses to know where lines come from.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peers.contender import Line

HEADINGS = (
    "who",
    "mode",
    "events",
    "CPU s per million",
    "second half",
    "x Tollgate",
    "events/s",
    "broker and database, CPU s per million",
    "after one SIGKILL",
)
_TEXTS = (0, 1, len(HEADINGS) - 1)


def render_table(lines: Sequence[Line]) -> str:
    """Aligned columns for a terminal; ends with a newline. The first line is what the others are compared with."""
    cells = [HEADINGS, *(_cells(line, lines[0]) for line in lines)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEADINGS))]
    rows = [
        "  ".join(
            text.ljust(width) if column in _TEXTS else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]
    rows.insert(1, "-" * max(len(row) for row in rows))
    return "\n".join(rows) + "\n"


def render_markdown(lines: Sequence[Line]) -> str:
    """The same as a Markdown table; ends with a newline."""
    alignment = tuple("---" if column in _TEXTS else "---:" for column in range(len(HEADINGS)))
    cells = [HEADINGS, alignment, *(_cells(line, lines[0]) for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells) + "\n"


def _cells(line: Line, first: Line) -> tuple[str, ...]:
    if line.not_run:
        return (line.name, line.mode, *("-",) * (len(HEADINGS) - 3), f"not run: {line.not_run}")
    elsewhere = line.elsewhere_cpu_us
    return (
        line.name,
        line.mode,
        f"{line.events:,}",
        _number(line.cpu_us),
        _number(line.warm_cpu_us) if line.warm_cpu_us else "-",
        f"{line.cpu_us / first.cpu_us:.1f}" if first.cpu_us else "-",
        f"{line.rate:,.0f}" if line.rate else "-",
        "-" if elsewhere is None else _number(elsewhere),
        f"{line.after_kill} (killed at {line.killed_at:,})",
    )


def _number(value: float) -> str:
    """Three digits that mean something."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
