"""`python -m benchmarks.peers`: Tollgate's meter and what one would otherwise use, in one run on the same events.

Owns the command line, the parts' lives and the output. Exits 1 when a count without a kill is off (or Tollgate's with
one), 2 when a part cannot run here.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.peers.contender import Line

_CHECKOUT = Path(__file__).resolve().parents[2]
RESULTS = _CHECKOUT / "benchmarks" / "results" / "peers.json"
PYTHON = _CHECKOUT / ".tollgate" / "peers" / "bin" / "python"
OWN_EVENTS = 1_000_000
PARTITIONS = 4
"""For everybody. A Streams task and a RocksDB a partition: with more, the peers would pay for cores they have not."""


def _parse(arguments: list[str] | None, names: tuple[str, ...]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description="The ten meters of benchmarks/meters.yaml over the same events: Tollgate's meter, a hand-written "
        "loop, Quix Streams, a plain Faust table and Kafka Streams. CPU, rate, and what each has lost or doubled "
        "after one SIGKILL. `make bench-peers` installs what they need.",
    )
    parser.add_argument(
        "--peers", default=",".join(names), help="who, separated by commas (default: %(default)s)"
    )
    parser.add_argument("--events", type=int, help="events of everybody, instead of each one's own")
    parser.add_argument(
        "--json", type=Path, default=RESULTS, help="where the results go (default: peers.json)"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument(
        "--python",
        type=Path,
        default=PYTHON,
        help="the Python that has the peers' packages (default: %(default)s)",
    )
    chosen = parser.parse_args(arguments)
    chosen.peers = [name.strip() for name in chosen.peers.split(",") if name.strip()]
    unknown = sorted(set(chosen.peers) - set(names))
    if unknown:
        parser.error(f"unknown peers {', '.join(unknown)}; there are {', '.join(names)}")
    if chosen.events is not None and chosen.events < 10_000:
        parser.error("--events must be 10000 or more")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """Measure Tollgate's meter and the peers chosen; returns the exit code."""
    # Before Polars is imported, here and in what is started from here: one thread, as in the meter.
    os.environ["POLARS_MAX_THREADS"] = "1"
    from benchmarks.installation import Ground, NotCaughtUp
    from benchmarks.parts import start_parts
    from benchmarks.peers.contender import SMALL_EVENTS, Contender, Line, measure
    from benchmarks.peers.events import Span
    from benchmarks.peers.own_meter import OwnMeter
    from benchmarks.peers.roster import EVENTS, TITLES, make_peers
    from benchmarks.peers.running import Logs
    from benchmarks.peers.watching import Meanwhile, StoodStill
    from benchmarks.row import CountsDiffer
    from sandbox.child import PartFailed, PartUnavailable

    chosen = _parse(arguments, tuple(TITLES))
    if not chosen.python.exists():
        sys.stderr.write(
            f"{chosen.python} is missing: `make bench-peers` makes it, --python names another.\n"
        )
        return 2
    now_ms = time.time_ns() // 1_000_000
    small = Span(SMALL_EVENTS, PARTITIONS, now_ms)
    lines: list[Line] = []

    def run(contender: Contender, events: int) -> None:
        sys.stderr.write(f"{contender.name}, {contender.mode} …\n")
        lines.append(measure(contender, small, Span(chosen.events or events, PARTITIONS, now_ms)))

    try:
        with start_parts("peers") as parts:
            ground = Ground.of(parts, PARTITIONS)
            meanwhile = None
            if parts.kafka is not None and not parts.postgres.external:
                meanwhile = Meanwhile((parts.kafka.pid, parts.postgres.pid))
            logs = Logs(ground, chosen.python)
            run(OwnMeter(ground, meanwhile), OWN_EVENTS)
            for name in chosen.peers:
                try:
                    peers = make_peers(
                        name, logs, meanwhile, chosen.python.parents[1].with_name("peers-streams")
                    )
                except PartUnavailable as error:
                    lines.append(Line(TITLES[name], "-", not_run=str(error)))
                    continue
                for peer in peers:
                    run(peer, EVENTS[name])
    except CountsDiffer as error:
        sys.stderr.write(f"A count is off: {error}\n")
        return 1
    except (PartUnavailable, PartFailed, StoodStill, NotCaughtUp) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    finally:
        _report(lines, chosen)
    return 0


def _report(lines: list[Line], chosen: argparse.Namespace) -> None:
    """Print the table and write the JSON of what was completed."""
    from benchmarks.document import write_document
    from benchmarks.peers.roster import package_versions
    from benchmarks.peers.table import render_markdown, render_table

    if not lines:
        return
    sys.stdout.write(render_markdown(lines) if chosen.markdown else render_table(lines))
    write_document(
        chosen.json,
        peers_packages=package_versions(chosen.python),
        partitions=PARTITIONS,
        lines=[line.to_document() for line in lines],
    )
    sys.stdout.write(f"Details: {chosen.json}\n")


if __name__ == "__main__":
    sys.exit(main())
