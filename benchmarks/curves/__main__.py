"""`python -m benchmarks.curves`: what an event costs in the fold, by what installations differ in.

Owns the command line and the output. Exits 1 when a count is off.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.curves.varied import Point

TITLES = (
    "meters",
    "unique meters of ten",
    "accounts",
    "events a record",
    "share of duplicates",
    "ids seen before",
)
RESULTS = Path(__file__).parents[1] / "results" / "curves.json"


def main(arguments: list[str] | None = None) -> int:
    """Measure every curve; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.curves",
        description="CPU of the fold an event over the number of meters, unique meters, accounts, events a record, "
        "duplicates and ids seen before, one varied at a time. Every total is compared with an independent count; "
        "exit code 1 when one is off.",
    )
    parser.add_argument(
        "--curves", default=",".join(TITLES), help="which, separated by commas (default: %(default)s)"
    )
    parser.add_argument("--events", type=int, default=240_000, help="of each point (default: %(default)s)")
    parser.add_argument(
        "--seen-max",
        type=int,
        default=300_000_000,
        help="the most ids seen before; 300 million take 4 GB (default: %(default)s)",
    )
    parser.add_argument(
        "--json", type=Path, default=RESULTS, help="where the results go (default: curves.json)"
    )
    chosen = parser.parse_args(arguments)
    if chosen.events < 1_000:
        parser.error("--events must be 1000 or more")
    titles = [title.strip() for title in chosen.curves.split(",")]
    if unknown := sorted({*titles} - {*TITLES}):
        parser.error(f"unknown curves {', '.join(unknown)}; there are {', '.join(TITLES)}")
    # Before Polars is imported: one thread, as in the meter.
    os.environ["POLARS_MAX_THREADS"] = "1"
    from benchmarks.curves.varied import curves
    from benchmarks.document import write_document
    from benchmarks.row import CountsDiffer

    drawn: dict[str, list[dict[str, object]]] = {}
    try:
        for title in titles:
            points = curves(chosen.events, chosen.seen_max)[title]
            sys.stdout.write(f"\n{title}\n{'-' * 60}\n")
            drawn[title] = []
            for point in points:
                sys.stdout.write(_line(point))
                sys.stdout.flush()
                drawn[title].append(_document(point))
    except CountsDiffer as error:
        sys.stderr.write(f"A count is off: {error}\n")
        return 1
    write_document(chosen.json, curves=drawn)
    sys.stdout.write(f"\nDetails: {chosen.json}\n")
    return 0


def _line(point: Point) -> str:
    value = f"{point.value:,}" if isinstance(point.value, int) else f"{point.value:.0%}"
    notes = ", ".join(f"{name} {number:,}" for name, number in point.notes.items())
    return f"{value:>12}  {point.folded.cpu_us:8.3f} us an event  {notes}\n"


def _document(point: Point) -> dict[str, object]:
    return {
        "value": point.value,
        "events": point.folded.events,
        "flushes": point.folded.flushes,
        "cpu_us": round(point.folded.cpu_us, 3),
        **point.notes,
    }


if __name__ == "__main__":
    sys.exit(main())
