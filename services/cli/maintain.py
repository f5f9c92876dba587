"""`tollgate maintain`: what has been kept long enough leaves the ledger.

Owns the command: its bounds, its progress bar and what it says. Which rows go is `tollgate.ledger.retention`, how they
go `tollgate.ledger.maintenance`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from services.cli.console import console
from services.cli.group import WrongSettings
from services.cli.ledger import open_book
from services.cli.settings import CliSettings, RetentionSettings
from tollgate.ledger.maintenance import BATCH_ROWS, STEPS, MaintenanceReport, Progressed, maintain
from tollgate.ledger.migrations import check_schema
from tollgate.ledger.retention import Retention
from tollgate.runtime.clock import SystemClock
from tollgate.runtime.settings import load_settings

UNFINISHED = 4
"""Exit code when work is left: time was up, or the ledger was busy."""


@click.command("maintain")
@click.option("--dry-run", is_flag=True, help="Count what would go; change nothing.")
@click.option(
    "--batch-rows",
    type=click.IntRange(1, 1_000_000),
    default=BATCH_ROWS,
    show_default=True,
    help="Rows one transaction removes, about: a chain is never cut.",
)
@click.option(
    "--max-seconds", type=click.FloatRange(0, min_open=True), help="Begin nothing more after so long."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def maintain_command(dry_run: bool, batch_rows: int, max_seconds: float | None, as_json: bool) -> None:
    """Remove what has been kept as long as the settings of retention say. Safe beside running services, to kill, and to
    run again.

    \b
    seen ids    of days events are no longer accepted of go; small rows become few
    billed      usage, postings and periods, billed and reconciled, after billed_days
    unbilled    usage nobody was asked to pay, after unbilled_days
    the rest    webhook events, refusals, ended invoices, instances that ended

    What may still change stays: open, unbilled or drifting periods, unsettled or held chains. Totals count what went,
    so that `tollgate verify` proves the same before and after.

    Exits 0 when nothing is left to do, 4 when time was up or the ledger was busy.
    """
    settings = load_settings(CliSettings)
    retention = to_domain(settings.retention)
    engine = open_book(settings)
    check_schema(engine)
    clock = SystemClock()
    began = clock.monotonic_seconds()
    with _shown() as show:
        report = maintain(
            engine,
            retention,
            clock.now_ms(),
            batch_rows=batch_rows,
            dry_run=dry_run,
            out_of_time=lambda: max_seconds is not None and clock.monotonic_seconds() - began > max_seconds,
            sleep_seconds=time.sleep,
            on_progress=show,
        )
    if as_json:
        click.echo(json.dumps(_document(report), indent=2))
    else:
        _say(report)
    if not report.finished:
        raise SystemExit(UNFINISHED)


def to_domain(settings: RetentionSettings) -> Retention:
    """The settings as the rules take them. Raises WrongSettings where they do not fit together."""
    try:
        return Retention(**settings.model_dump())
    except ValueError as error:
        raise WrongSettings(f"TOLLGATE_RETENTION__…: {error}") from None


class _Bar:
    """A bar over the steps, with the rows removed so far."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=len(STEPS), rows=0)
        self._rows = 0

    def __call__(self, progressed: Progressed) -> None:
        self._rows += sum(progressed.rows.values())
        self._progress.update(
            self._task, completed=progressed.number, description=progressed.step, rows=self._rows
        )


@contextmanager
def _shown() -> Iterator[_Bar]:
    terminal = console(stderr=True)
    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(),
        TextColumn("{task.fields[rows]:,} rows"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=terminal, disable=not terminal.is_terminal, transient=True) as progress:
        yield _Bar(progress)


def _document(report: MaintenanceReport) -> dict[str, object]:
    return {
        "dry_run": report.dry_run,
        "finished": report.finished,
        "out_of_time": report.out_of_time,
        "postponed": report.postponed,
        "removed": {table: rows for table, rows in sorted(report.removed.items()) if rows},
        "retired_periods": report.retired_periods,
        "waiting_periods": report.waiting_periods,
    }


def _say(report: MaintenanceReport) -> None:
    verb = "would go" if report.dry_run else "removed"
    gone = {table: rows for table, rows in sorted(report.removed.items()) if rows}
    for table, rows in gone.items():
        click.echo(f"{table:<24}{rows:>14,} rows {verb}")
    if not gone:
        click.echo("Nothing to remove.")
    if report.retired_periods:
        click.echo(f"{report.retired_periods:,} billing periods {'would be ' * report.dry_run}retired")
    if report.waiting_periods:
        click.echo(
            f"{report.waiting_periods:,} periods are past their time and stay: not billed, or not reconciled; see "
            "`tollgate reconcile --stored`"
        )
    for step, why in report.postponed.items():
        click.secho(f"left for the next run: {step}: {why}", fg="yellow", err=True)
    if report.out_of_time:
        click.secho("Time is up; run it again for the rest.", fg="yellow", err=True)
