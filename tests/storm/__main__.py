"""`python -m tests.storm --minutes 20 --seed N`: blow once, print tables, exit 1 when anything is off."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sandbox.child import PartFailed, PartUnavailable
from tests.storm.course import Plan, Watcher, run_storm
from tests.storm.injector import Injected
from tests.storm.report import StormReport, print_report
from tests.storm.schedule import Cast, draw_schedule, from_json, make_deck, to_json

_SCHEDULE = "schedule.json"


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.storm", description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0, help="how long to send (default: %(default)s)")
    parser.add_argument("--seed", type=int, required=True, help="of the schedule and of the traffic")
    parser.add_argument(
        "--events-per-second", type=float, default=400.0, help="the most that is sent (default: %(default)s)"
    )
    parser.add_argument(
        "--meters", type=int, default=3, help="meter processes, two to four (default: %(default)s)"
    )
    parser.add_argument("--schedule", type=Path, help="play this stored schedule instead of drawing one")
    parser.add_argument("--report", type=Path, help="write the report there, as JSON")
    parser.add_argument("--keep", type=Path, help="leave logs, history and schedule in this directory")
    chosen = parser.parse_args(argv)
    # Ended from outside, everything that was started has to end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # The harness' own look at brokers that are killed on purpose; services keep their logs to themselves.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    console = Console()
    cast = Cast(meter=("meter", *(f"meter-{number}" for number in range(2, chosen.meters + 1))))
    if chosen.schedule:
        schedule = from_json(json.loads(chosen.schedule.read_text()))
    else:
        schedule = draw_schedule(chosen.seed, chosen.minutes * 60, make_deck(cast))
    directory = Path(tempfile.mkdtemp(prefix="tollgate-storm-"))
    # PostgreSQL runs as another account when we are root, and its data lies below.
    directory.chmod(0o755)
    (directory / _SCHEDULE).write_text(json.dumps(to_json(schedule), indent=1) + "\n")
    console.print(f"Storm     seed {chosen.seed}, {chosen.minutes:g} minutes, {len(schedule)} faults:")
    for fault in schedule:
        console.print(
            f"  {fault.at_seconds:7.1f} s  {fault.lasts_seconds:4.1f} s  {fault.place:8} {fault.kind:16} {fault.target}",
            highlight=False,
        )
    plan = Plan(chosen.seed, chosen.minutes, chosen.events_per_second, schedule, cast, directory)
    try:
        report = _run(plan, console)
    except (PartUnavailable, PartFailed) as error:
        console.print(f"[red]The storm could not begin:[/] {error}")
        return 2
    finally:
        if chosen.keep:
            _keep(directory, chosen.keep)
        shutil.rmtree(directory, ignore_errors=True)
    if chosen.report:
        report.write(chosen.report)
    print_report(console, report)
    return 0 if report.withstood else 1


def _run(plan: Plan, console: Console) -> StormReport:
    columns = (TextColumn("Sending  "), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task: TaskID | None = None

        def on_step(words: str) -> None:
            console.print(f"          {words}")

        def on_progress(seconds: float, events: int, in_force: list[Injected]) -> None:
            nonlocal task
            if task is None:
                task = progress.add_task("", total=plan.minutes * 60)
            faults = ", ".join(str(each.fault) for each in in_force) or "calm"
            progress.update(task, completed=seconds, description=f"{events:,} events, {faults}")

        return run_storm(plan, Watcher(on_step, on_progress))


def _keep(directory: Path, target: Path) -> None:
    """Logs, history and schedule; not the parts' own data."""
    target.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        if path.is_file() and path.suffix in (".log", ".json", ".jsonl"):
            shutil.copy(path, target / path.name)
    for log in directory.glob("*/*.log"):
        shutil.copy(log, target / f"{log.parent.name}-{log.name}")


if __name__ == "__main__":
    sys.exit(main())
