"""The peers' table: lines as aligned text, and as the Markdown of the documents.

Owns its columns. It refuses to know where lines come from.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.layout import Cells, align, markdown, three_digits
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
    return align(_all_cells(lines), _TEXTS)


def render_markdown(lines: Sequence[Line]) -> str:
    """The same as a Markdown table; ends with a newline."""
    return markdown(_all_cells(lines), _TEXTS)


def _all_cells(lines: Sequence[Line]) -> Cells:
    return [HEADINGS, *(_cells(line, lines[0]) for line in lines)]


def _cells(line: Line, first: Line) -> tuple[str, ...]:
    if line.not_run:
        return (line.name, line.mode, *("-",) * (len(HEADINGS) - 3), f"not run: {line.not_run}")
    elsewhere = line.elsewhere_cpu_us
    return (
        line.name,
        line.mode,
        f"{line.events:,}",
        three_digits(line.cpu_us),
        three_digits(line.warm_cpu_us) if line.warm_cpu_us else "-",
        f"{line.cpu_us / first.cpu_us:.1f}" if first.cpu_us else "-",
        f"{line.rate:,.0f}" if line.rate else "-",
        "-" if elsewhere is None else three_digits(elsewhere),
        f"{line.after_kill} (killed at {line.killed_at:,})",
    )
