"""The curve: points side by side, and how flat the cost is in the number of partitions.

Owns the table and that judgement. It refuses to know how a point is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

HEADINGS = (
    "partitions",
    "workers",
    "CPU us an event",
    "of the first",
    "bare limit",
    "ratio",
    "PostgreSQL us",
    "events/s, one core",
    "flushes",
    "usage rows",
    "by worker",
)


class Measured(Protocol):
    """What of a point is shown."""

    @property
    def partitions(self) -> int: ...
    @property
    def workers(self) -> int: ...
    @property
    def cpu_us(self) -> float: ...
    @property
    def bare_us(self) -> float: ...
    @property
    def ratio(self) -> float: ...
    @property
    def database_us(self) -> float | None: ...
    @property
    def rate(self) -> float: ...
    @property
    def flushes(self) -> int: ...
    @property
    def usage_rows(self) -> int: ...
    @property
    def shares(self) -> tuple[int, ...]: ...


def render_curve(points: Sequence[Measured]) -> str:
    """A Markdown table that reads well in a terminal too; ends with a newline."""
    cells = [HEADINGS, *(_cells(point, points[0]) for point in points)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(HEADINGS))]
    lines = [
        "| " + " | ".join(t.rjust(w) for t, w in zip(line, widths, strict=True)) + " |" for line in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 1) + ":" for width in widths) + "|")
    return "\n".join(lines) + "\n"


def find_spread(points: Sequence[Measured]) -> dict[int, float]:
    """By number of workers, the dearest point's cost over the cheapest's: 1 is flat in the number of partitions.

    Costs are taken beside the bare limit of the same minutes, so that a machine that was slower for one point does not
    look like a cost of partitions.
    """
    found: dict[int, list[float]] = {}
    for point in points:
        found.setdefault(point.workers, []).append(point.ratio)
    return {workers: max(ratios) / min(ratios) for workers, ratios in sorted(found.items())}


def _cells(point: Measured, first: Measured) -> tuple[str, ...]:
    return (
        str(point.partitions),
        str(point.workers),
        f"{point.cpu_us:.2f}",
        f"{point.cpu_us / first.cpu_us:.2f}",
        f"{point.bare_us:.3f}",
        f"{point.ratio:.1f}",
        "-" if point.database_us is None else f"{point.database_us:.2f}",
        f"{point.rate:,.0f}",
        str(point.flushes),
        f"{point.usage_rows:,}",
        " + ".join(f"{share:,}" for share in point.shares),
    )
