"""`tollgate reconcile`: what was counted, posted, held by Stripe and invoiced, side by side, with what explains each gap.

Owns the command. The comparing with Stripe is done by stripe_sync's own code in a process of its own; what it found is
read from the ledger. Nothing is repaired but by `--repair`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from services.cli.console import Output, console, format_time, output_options, print_rows
from services.cli.ledger import open_book
from services.cli.moment import Moment
from services.cli.other_biller import Billed, UnreadableBill, compare_bills, read_bill
from services.cli.repair import repair_posting, spell_finding
from services.cli.settings import CliSettings
from tollgate.ledger.engine import Engine
from tollgate.ledger.meter_terms import load_meter_terms
from tollgate.ledger.reconciliation_subjects import find_subjects
from tollgate.ledger.reconciliation_views import load_view
from tollgate.ledger.reconciliations import (
    DAY_MS,
    Reconciliation,
    load_reconciliations,
)
from tollgate.metering.comparison import compare_invoice, compare_postings
from tollgate.metering.doubles import to_quantity
from tollgate.metering.reconciliation import Finding, Subject, Verdict, add_up, worst
from tollgate.runtime.clock import SystemClock
from tollgate.runtime.settings import load_settings

RECENT_DAYS = 35
"""Without --period: periods that are open, or ended at most so long ago."""


@click.command()
@click.option("--customer", help="Only this Stripe customer.")
@click.option("--meter", help="Only this meter: its name, or its event name at Stripe.")
@click.option(
    "--period", "at_ms", type=Moment(), help="Only periods that this moment lies in, e.g. 2026-11-01."
)
@click.option("--stored", is_flag=True, help="Show what was found last; ask nothing.")
@click.option("--no-stripe", is_flag=True, help="Compare ledger, postings and invoices; do not ask Stripe.")
@click.option(
    "--against",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Compare what was counted with another biller's CSV: customer,meter,period_start,quantity.",
)
@click.option(
    "--repair", metavar="POSTING", help="Do to POSTING (KEY:SEQ) what the last finding on it calls for."
)
@click.option("--yes", is_flag=True, help="With --repair: do not ask.")
@output_options
def reconcile(
    customer: str | None,
    meter: str | None,
    at_ms: int | None,
    stored: bool,
    no_stripe: bool,
    against: Path | None,
    repair: str | None,
    yes: bool,
    output: Output,
) -> None:
    """Compare what was counted, posted, held by Stripe and invoiced. Exits 1 when something differs and nothing
    explains it.

    \b
    agrees     every number is the same
    settling   postings under way, or Stripe's summaries lag behind; look again later
    explained  held, parked, rehearsed or too late for its invoice: the cause is named
    unchecked  Stripe could not be asked, or the day's reads are used up
    drift      a difference that nothing explains, with the hours and postings it is in
    """
    ways = {"--stored": stored, "--no-stripe": no_stripe, "--against": against, "--repair": repair}
    chosen = [name for name, value in ways.items() if value]
    if len(chosen) > 1:
        raise click.UsageError(f"choose one of {', '.join(chosen)}")
    settings = load_settings(CliSettings)
    theirs = _read_other_bill(against) if against is not None else None
    engine = open_book(settings)
    if repair is not None:
        repair_posting(engine, repair, yes)
        return
    now_ms = SystemClock().now_ms()
    since_ms = None if at_ms is not None or against is not None else now_ms - RECENT_DAYS * DAY_MS
    subjects = find_subjects(
        engine, customer=customer, meter=meter, at_ms=at_ms, since_ms=since_ms, retired=stored
    )
    if theirs is not None:
        _compare_with_other(engine, subjects, theirs, output)
        return
    if not (stored or no_stripe):
        _ask_stripe(customer, meter, at_ms, since_ms, len(subjects))
    rows = _compare_here(engine, subjects) if no_stripe else _kept(engine, subjects)
    _print(rows, output)
    if any(row["verdict"] == Verdict.DRIFT for row in rows):
        raise SystemExit(1)


# ------------------------------------------------------------------------------------------ with Stripe


def _ask_stripe(
    customer: str | None, meter: str | None, at_ms: int | None, since_ms: int | None, total: int
) -> None:
    """Have stripe_sync's code compare each period, showing how far it is. Raises ClickException when it cannot."""
    command = [sys.executable, "-m", "services.stripe_sync.reconcile_once"]
    for name, value in (
        ("--customer", customer),
        ("--meter", meter),
        ("--at-ms", at_ms),
        ("--since-ms", since_ms),
    ):
        if value is not None:
            # One argument: a value may begin with a dash.
            command.append(f"{name}={value}")
    terminal = console(stderr=True)
    columns = (TextColumn("Reconciling"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with (
        Progress(*columns, console=terminal, disable=not terminal.is_terminal, transient=True) as bar,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
        ) as child,
    ):
        task = bar.add_task("periods", total=total)
        assert child.stdout is not None
        assert child.stderr is not None
        for line in child.stdout:
            done, _, of = line.strip().partition(" ")
            bar.update(task, completed=int(done), total=int(of))
        said = child.stderr.read().strip()
    if child.returncode != 0:
        raise click.ClickException(said or f"comparing with Stripe ended with {child.returncode}")


def _kept(engine: Engine, subjects: Sequence[Subject]) -> list[dict[str, object]]:
    names = _meter_names(engine)
    return [_row(found, names) for found in load_reconciliations(engine, subjects)]


def _row(found: Reconciliation, names: dict[str, str]) -> dict[str, object]:
    return {
        "customer": found.subject.customer_id,
        "meter": names.get(found.subject.event_name, found.subject.event_name),
        "period_start": format_time(found.subject.period_start_ms),
        "period_end": format_time(found.subject.period_end_ms),
        "counted": found.counted,
        "delivered": found.delivered,
        "stripe": None if found.stripe is None else to_quantity(float(found.stripe)),
        "invoiced": None if found.invoiced is None else Decimal(found.invoiced),
        "verdict": str(found.verdict),
        "drift": found.drift,
        "findings": found.findings,
        "checked": format_time(found.checked_ms),
    }


def _compare_here(engine: Engine, subjects: Sequence[Subject]) -> list[dict[str, object]]:
    names = _meter_names(engine)
    now_ms = SystemClock().now_ms()
    rows = []
    for subject in subjects:
        view = load_view(engine, subject)
        posted = compare_postings(view.in_period, view.missing)
        findings = list(posted.findings)
        if view.invoice is not None:
            findings += compare_invoice(view.links, view.invoice)
        found = Reconciliation(
            subject=subject,
            counted=posted.counted,
            delivered=posted.delivered,
            stripe=None,
            invoiced=None if view.invoice is None else f"{view.invoice.quantity:f}",
            invoice_id=view.invoice_id,
            invoice_status=view.invoice_status,
            verdict=worst(findings),
            drift=add_up(abs(f.quantity) for f in findings if f.verdict is Verdict.DRIFT),
            findings=tuple(findings),
            checked_ms=now_ms,
            asked_ms=None,
            due_ms=None,
        )
        rows.append(_row(found, names))
    return rows


def _meter_names(engine: Engine) -> dict[str, str]:
    """Our name of the meter behind each Billing Meter."""
    return {terms.event_name: terms.name for _, terms in sorted(load_meter_terms(engine).items())}


# ----------------------------------------------------------------------------------------------- saying


def _print(rows: Sequence[dict[str, object]], output: Output) -> None:
    if output is Output.JSON:
        documents = [{name: _plain(value) for name, value in row.items()} for row in rows]
        click.echo(json.dumps(documents, indent=2))
        return
    shown = []
    for row in rows:
        findings = row["findings"]
        assert isinstance(findings, tuple)
        shown.append({**{k: v for k, v in row.items() if k != "findings"}, "why": _why(findings)})
    print_rows(shown, output, title="Reconciliation", empty="no period has been reconciled")


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, tuple):
        return [{**finding.to_document(), "verdict": str(finding.verdict)} for finding in value]
    return value


def _why(findings: Sequence[Finding]) -> str:
    return "; ".join(
        spell_finding(finding) for finding in sorted(findings, key=lambda f: f.verdict is not Verdict.DRIFT)
    )


# -------------------------------------------------------------------------------------- another biller


def _read_other_bill(path: Path) -> dict[Billed, Decimal]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            return read_bill(lines)
    except (UnreadableBill, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path.name}: {error}") from None


def _compare_with_other(
    engine: Engine, subjects: Sequence[Subject], theirs: dict[Billed, Decimal], output: Output
) -> None:
    """Ours beside theirs, for the meters and the span of periods that theirs names. Exits 1 when any line differs."""
    names = _meter_names(engine)
    meters = {key.meter for key in theirs}
    starts = [key.period_start_ms for key in theirs]
    ours: dict[Billed, Decimal] = {}
    why: dict[Billed, str] = {}
    for subject in subjects:
        key = Billed(subject.customer_id, names[subject.event_name], subject.period_start_ms)
        named = key.meter in meters and min(starts) <= key.period_start_ms <= max(starts)
        if key in theirs or named:
            view = load_view(engine, subject)
            posted = compare_postings(view.in_period, view.missing)
            ours[key], why[key] = posted.counted, _why(posted.findings)
    lines = compare_bills(ours, theirs)
    rows = [
        {
            "customer": line.key.customer,
            "meter": line.key.meter,
            "period_start": format_time(line.key.period_start_ms),
            "ours": line.ours,
            "theirs": line.theirs,
            "difference": line.difference,
            "result": "agrees" if line.agrees else "DIFFERS",
            "why": why.get(line.key, "there is no such period in the ledger"),
        }
        for line in lines
    ]
    print_rows(rows, output, title="Against the other biller", empty="nothing to compare")
    if not all(line.agrees for line in lines):
        raise SystemExit(1)
