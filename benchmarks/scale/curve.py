"""The curve: points side by side, and how flat the cost is in the number of partitions.

Owns the table and that judgement. It refuses to know how a point is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from benchmarks.layout import aligned_markdown

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
    return aligned_markdown([HEADINGS, *(_cells(point, points[0]) for point in points)])


def find_spread(points: Sequence[Measured]) -> dict[int, tuple[float, float]]:
    """By number of workers, the dearest point's cost over the cheapest's: by CPU, and beside the bare limit of the same
    minutes. 1 is flat in the number of partitions.

    Neither alone is to be believed on a shared machine: it may be slower for one point, and the bare limit is short.
    """
    found: dict[int, list[Measured]] = {}
    for point in points:
        found.setdefault(point.workers, []).append(point)
    return {
        workers: (
            max(each.cpu_us for each in of) / min(each.cpu_us for each in of),
            max(each.ratio for each in of) / min(each.ratio for each in of),
        )
        for workers, of in sorted(found.items())
    }


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
