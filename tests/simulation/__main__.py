"""`python -m tests.simulation`: many runs, or one again.

Owns the command line. Exit code 0 when every run held and every situation of `sometimes.py` was met; 1 otherwise.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console

from tests.simulation.plan import draw_plan
from tests.simulation.report import Tally, tell_failure, tell_shrunk, tell_tally, watched
from tests.simulation.shrink import shrink_plan
from tests.simulation.warm import Warm
from tests.simulation.world import Outcome, run_plan

SET_RUNS_MIN = 150
"""A set of fewer runs is not expected to have met every rare situation."""

SURROUNDINGS = {
    # Sets of texts are walked in the order of their hashes.
    "PYTHONHASHSEED": "0",
    # Frames of a few rows: threads and streaming cost more than they bring.
    "POLARS_MAX_THREADS": "1",
    "POLARS_ENGINE_AFFINITY": "in-memory",
}
"""What a run depends on and can only be set before Python starts."""

_warm: Warm | None = None


def _run_seed(seed: int) -> Outcome:
    global _warm
    if _warm is None:
        _warm = Warm()
    return run_plan(draw_plan(seed), _warm)


def _outcomes(seeds: Sequence[int], jobs: int) -> Iterator[Outcome]:
    if jobs == 1:
        yield from map(_run_seed, seeds)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap(_run_seed, seeds, chunksize=4)


@click.command(help=__doc__.split("\n")[0] if __doc__ else None)
@click.option("--seeds", default=200, show_default=True, help="How many runs.")
@click.option("--from", "first", default=0, show_default=True, help="The first seed.")
@click.option("--seed", default=None, type=int, help="This one alone, and shrink it if it fails.")
@click.option("--only", default=None, help="These seeds, separated by commas.")
@click.option("--expect-all", is_flag=True, help="Expect every rare situation, however few the runs.")
@click.option("--choose", is_flag=True, help="Name the fewest seeds that meet every situation.")
@click.option("--jobs", default=1, show_default=True, help="Processes side by side.")
@click.option("--quiet", is_flag=True, help="Say nothing; the exit code does.")
@click.option(
    "--fail-fast/--keep-going", default=True, show_default=True, help="End at the first failing run."
)
@click.option("--shrink/--no-shrink", default=True, show_default=True, help="Make a failing plan smaller.")
@click.option(
    "--sometimes/--no-sometimes", default=True, show_default=True, help="Expect every rare situation."
)
def main(
    seeds: int,
    first: int,
    seed: int | None,
    only: str | None,
    expect_all: bool,
    choose: bool,
    jobs: int,
    quiet: bool,
    fail_fast: bool,
    shrink: bool,
    sometimes: bool,
) -> None:
    console = Console(quiet=quiet)
    # What killed processes would have unwound is nobody's.
    sys.unraisablehook = lambda _: None
    warnings.simplefilter("ignore")
    chosen = list(range(first, first + seeds)) if seed is None else [seed]
    if only is not None:
        chosen = [int(each) for each in only.split(",")]
    tally, began = Tally(), time.process_time()
    for outcome in watched(console, _outcomes(chosen, jobs), len(chosen)):
        tally.add(outcome)
        if outcome.failures:
            tell_failure(console, outcome)
            if fail_fast:
                break
    spent = time.process_time() - began
    whole_set = sometimes and (expect_all or len(chosen) >= SET_RUNS_MIN) and not tally.failed
    tell_tally(console, tally, spent, whole_set=whole_set)
    if choose:
        console.print(",".join(map(str, tally.cover())))
    if tally.failed and shrink and not quiet:
        warm = _warm or Warm()
        tell_shrunk(
            console, shrink_plan(tally.failed[0].plan, lambda plan: bool(run_plan(plan, warm).failures))
        )
    sys.exit(1 if tally.failed or (whole_set and tally.never) else 0)


def _start_anew() -> None:
    """Start Python again with the surroundings a run depends on."""
    root = str(Path(__file__).resolve().parents[2])
    wanted = {**os.environ, **SURROUNDINGS, "PYTHONPATH": root}
    os.execve(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]], wanted)


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in SURROUNDINGS.items()):
        _start_anew()
    main()
