"""`python -m benchmarks.scale`: what an event costs at each number of partitions and workers.

Owns the command line, the parts' lives and the output. Exits 1 when a count is off, 2 when a part cannot run here.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.parts import Parts
    from benchmarks.scale.spread import Point

RESULTS = Path(__file__).parents[1] / "results" / "scale.json"


def _numbers(text: str) -> list[int]:
    found = sorted({int(part) for part in text.split(",")})
    if not found or found[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers from 1 on")
    return found


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale",
        description="The same events through N partitions and M meter processes, on real Kafka and PostgreSQL: CPU an "
        "event of all workers together, beside the bare limit of the same minutes. Every count is compared with an "
        "independent one; exit code 1 when one is off.",
        epilog="All workers share one core, broker and database the others: what is shown is what an event costs, not "
        "what more machines would do. KAFKA_BOOTSTRAP_SERVERS and DATABASE_URL name parts somebody else runs.",
    )
    parser.add_argument("--partitions", type=_numbers, default=[8, 24, 96], help="(default: 8,24,96)")
    parser.add_argument("--workers", type=_numbers, default=[1, 2], help="(default: 1,2)")
    parser.add_argument("--events", type=int, default=800_000, help="of each point (default: %(default)s)")
    parser.add_argument(
        "--rounds",
        type=int,
        default=2,
        help="times each point is measured; the cheapest is shown (default: %(default)s)",
    )
    parser.add_argument(
        "--json", type=Path, default=RESULTS, help="where the results go (default: results/scale.json)"
    )
    chosen = parser.parse_args(arguments)
    if chosen.events < 10_000:
        parser.error("--events must be 10000 or more")
    if chosen.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if max(chosen.workers) > min(chosen.partitions):
        parser.error("each worker needs a partition")
    return chosen


def main(arguments: list[str] | None = None) -> int:
    """Run every point; returns the exit code."""
    chosen = _parse(arguments)
    # Before Polars is imported, here and in what is started from here: one thread, as in the meter.
    os.environ["POLARS_MAX_THREADS"] = "1"
    from benchmarks.installation import NotCaughtUp
    from benchmarks.parts import start_parts
    from benchmarks.row import CountsDiffer
    from sandbox.child import PartFailed, PartUnavailable

    points: list[Point] = []
    try:
        with start_parts("scale") as parts:
            _run(parts, chosen, points)
    except CountsDiffer as error:
        sys.stderr.write(f"A count is off: {error}\n")
        return 1
    except (NotCaughtUp, PartUnavailable, PartFailed) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    finally:
        _report(points, chosen)
    return 0


def _run(parts: Parts, chosen: argparse.Namespace, points: list[Point]) -> None:
    """Measure point after point into `points`."""
    from benchmarks.installation import Ground
    from benchmarks.scale.spread import count_spread, prepare
    from sandbox.stack import StackSettings
    from tollgate.contracts.events import derive_seed

    # Every installation of the sandbox has the same seed: one backlog is made for all that count it.
    id_seed = derive_seed(StackSettings(parts.directory, parts.bootstrap, "", "").id_seed)
    for partitions in chosen.partitions:
        ground = Ground.of(parts, partitions)
        prepared = prepare(id_seed, partitions, chosen.events)
        for workers in chosen.workers:
            sys.stderr.write(f"{partitions} partitions, {workers} workers …\n")
            rounds = [count_spread(ground, prepared, workers) for _ in range(chosen.rounds)]
            # Whatever else the machine did only ever adds to the cost.
            points.append(min(rounds, key=lambda point: point.cpu_us))


def _report(points: list[Point], chosen: argparse.Namespace) -> None:
    """Print the curve and write the JSON of the points that were completed."""
    from benchmarks.document import write_document
    from benchmarks.scale.curve import find_spread, render_curve

    if not points:
        return
    sys.stdout.write(render_curve(points))
    for workers, (by_cpu, by_ratio) in find_spread(points).items():
        sys.stdout.write(
            f"{workers} workers: the dearest number of partitions costs {by_cpu:.2f} x the cheapest "
            f"({by_ratio:.2f} x beside the bare limit)\n"
        )
    write_document(chosen.json, points=[point.to_document() for point in points])
    sys.stdout.write(f"Counts of every point were equal to an independent count. Details: {chosen.json}\n")


if __name__ == "__main__":
    sys.exit(main())
