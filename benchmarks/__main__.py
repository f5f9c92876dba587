"""`python -m benchmarks`: the speed table, on real Kafka and PostgreSQL.

Owns the command line, the parts' lives and the output. Exits 1 when a count is off, 2 when a part cannot run here.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.row import Row

RESULTS = Path(__file__).with_name("results") / "latest.json"

DEFAULT_EVENTS = {
    "ingest-batches": 200_000,
    "ingest-singles": 100_000,
    "meter-batches": 3_000_000,
    "meter-singles": 40_000,
    "chain": 200_000,
    "planning": 100_000,
    "unchanged": 10_000_000,
    "history": 100_000_000,
}
"""Units of each row (customers of `planning`, usage rows of `unchanged`, ids seen of `history`): enough for ten seconds or so of the measured
part on one core of 2026."""


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure CPU and rate of each stage on real Kafka and PostgreSQL, beside the bare limit of the "
        "same run. Every count is compared with an independent one; exit code 1 when one is off.",
        epilog="KAFKA_BOOTSTRAP_SERVERS and DATABASE_URL name parts somebody else runs; without them both are "
        "started here and removed afterwards.",
    )
    parser.add_argument(
        "--rows",
        default=",".join(DEFAULT_EVENTS),
        help="rows to run, separated by commas (default: %(default)s)",
    )
    parser.add_argument(
        "--events", type=int, help="events (requests, records) of each row, instead of its own"
    )
    parser.add_argument(
        "--partitions", type=int, default=24, help="partitions of gateway.events (default: %(default)s)"
    )
    parser.add_argument(
        "--json", type=Path, default=RESULTS, help="where the results go (default: latest.json)"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument(
        "--profile", type=Path, help="directory for CPU profiles of the services; they make the figures worse"
    )
    chosen = parser.parse_args(arguments)
    chosen.rows = [name.strip() for name in chosen.rows.split(",") if name.strip()]
    unknown = sorted(set(chosen.rows) - DEFAULT_EVENTS.keys())
    if unknown:
        parser.error(f"unknown rows {', '.join(unknown)}; there are {', '.join(DEFAULT_EVENTS)}")
    if chosen.events is not None and chosen.events < 1000:
        parser.error("--events must be 1000 or more")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """Run the rows chosen; returns the exit code."""
    chosen = _parse(arguments)
    # Before Polars is imported, here and in what is started from here: one thread, as in the meter.
    os.environ["POLARS_MAX_THREADS"] = "1"
    from benchmarks.chain_row import whole_chain
    from benchmarks.ingest_rows import ingest_batches, ingest_singles
    from benchmarks.installation import Ground, NotCaughtUp
    from benchmarks.meter_rows import TooFew, meter_batches, meter_history, meter_singles
    from benchmarks.parts import start_parts
    from benchmarks.planning_rows import everybody_planned, nothing_changed
    from benchmarks.row import CountsDiffer
    from sandbox.child import PartFailed, PartUnavailable

    rows: dict[str, Callable[[Ground, int], Row]] = {
        "ingest-batches": ingest_batches,
        "ingest-singles": ingest_singles,
        "meter-batches": meter_batches,
        "meter-singles": meter_singles,
        "chain": whole_chain,
        "planning": everybody_planned,
        "unchanged": nothing_changed,
        "history": meter_history,
    }
    if chosen.profile is not None:
        chosen.profile = chosen.profile.resolve()
        chosen.profile.mkdir(parents=True, exist_ok=True)
    done: list[Row] = []
    try:
        with start_parts("benchmarks") as parts:
            ground = Ground.of(parts, chosen.partitions, chosen.profile)
            for name in chosen.rows:
                sys.stderr.write(f"{name} …\n")
                done.append(rows[name](ground, chosen.events or DEFAULT_EVENTS[name]))
    except CountsDiffer as error:
        sys.stderr.write(f"A count is off: {error}\n")
        return 1
    except (NotCaughtUp, PartUnavailable, PartFailed, TooFew) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    finally:
        _report(done, chosen)
    return 0


def _report(rows: list[Row], chosen: argparse.Namespace) -> None:
    """Print the table and write the JSON of the rows that were completed."""
    from benchmarks.document import write_document
    from benchmarks.table import render_markdown, render_table

    if not rows:
        return
    sys.stdout.write(render_markdown(rows) if chosen.markdown else render_table(rows))
    write_document(chosen.json, profiled=chosen.profile is not None, rows=[row.to_document() for row in rows])
    sys.stdout.write(f"Details: {chosen.json}\n")


if __name__ == "__main__":
    sys.exit(main())
