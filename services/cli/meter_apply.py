"""`tollgate meters apply`: one plan for the ledger and for Stripe, shown, agreed to, and carried out.

Owns the order and the exit codes. It refuses to know how either half decides.

1. Everything that can be refused is refused before anything is changed: the file, the key's account and mode against
   the ledger's pins, what Stripe has against what is declared.
2. Stripe comes first. Usage is posted by what the ledger says, so a meter is in the ledger only once its Billing Meter
   is there; what was made at Stripe and never used does no harm.
3. Then the ledger, in one transaction.

Interrupted anywhere, the same command goes on: what is done is found again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from services.cli.catalogue import Action, Declared, Found, Plan, declare
from services.cli.catalogue_plan import plan_catalogue
from services.cli.catalogue_stripe import carry_out, count_subscribers, find_catalogue
from services.cli.catalogue_text import describe_plan, plan_document
from services.cli.console import format_time
from services.cli.gateway import StripeAccount, StripeGateway, StripeUnreachable, key_mode
from services.cli.settings import CliSettings
from tollgate.ledger.catalogue import apply_meters, load_meter_set
from tollgate.ledger.engine import Engine
from tollgate.ledger.init import check_pins
from tollgate.ledger.meter_changes import MeterChanges, StoredMeter, plan_changes
from tollgate.metering.meter import Meter, MeterSet
from tollgate.runtime.clock import SystemClock

EXIT_PENDING = 3
"""`--plan --exit-code`: something would be changed. 2 is taken: wrong use."""


@dataclass(frozen=True, slots=True)
class How:
    """The options of the command."""

    plan_only: bool
    exit_code: bool
    yes: bool
    json: bool
    ledger_only: bool


@dataclass(frozen=True, slots=True)
class _StripeHalf:
    """What is to be done at Stripe, or why nothing is."""

    plan: Plan
    account: StripeAccount | None = None
    why_not: str = ""


def apply_file(settings: CliSettings, engine: Engine, path: Path, meters: Sequence[Meter], how: How) -> None:
    """Apply the meters read from `path`. Raises SystemExit with the command's exit code, click.Abort when not agreed."""
    before = load_meter_set(engine)
    changes = plan_changes(
        [StoredMeter(each.meter_id, each.meter, each.from_ms, each.to_ms) for each in before.meters],
        meters,
        SystemClock().now_ms(),
    )
    declared = declare(meters)
    try:
        half = _plan_stripe(settings, engine, declared, before, how)
        if how.plan_only or half.plan.refused:
            _show_plan(before.version, changes, half, how)
            return
        _agree(path, changes, half, how)
        _carry_out_stripe(settings, half, how)
    except StripeUnreachable as error:
        raise click.ClickException(
            f"Stripe: {error}. The ledger was not changed; run this again, or --ledger-only to leave Stripe out"
        ) from None
    report = apply_meters(engine, meters, path.read_text(), SystemClock().now_ms())
    if how.json:
        _print_document(before.version, report.version, changes, half, done=True)
        return
    unchanged = " (unchanged)" if report.version == report.version_before else ""
    click.echo(f"Meters  version {report.version}{unchanged}")
    for line in describe_changes(changes):
        click.echo(line)


def _plan_stripe(
    settings: CliSettings, engine: Engine, declared: Sequence[Declared], before: MeterSet, how: How
) -> _StripeHalf:
    if not declared:
        return _StripeHalf(Plan(()), why_not="no meter is sent to Stripe")
    if how.ledger_only:
        return _StripeHalf(Plan(()), why_not="left out, as asked")
    if settings.stripe.api_key is None:
        return _StripeHalf(Plan(()), why_not="not done: there is no key; set STRIPE_API_KEY and apply again")
    # Before the first call: a live key is not tried out on a test ledger.
    check_pins(engine, stripe_mode=key_mode(settings.stripe.api_key.get_secret_value()))
    with StripeGateway(settings.stripe) as stripe:
        account = stripe.account()
        check_pins(engine, stripe_account=account.account, stripe_mode=account.mode)
        known = {each.meter.stripe.event_name for each in before.meters if each.meter.stripe is not None}
        found: Found = find_catalogue(stripe, declared)
        plan = plan_catalogue(declared, found, known)
        if plan.replaced:
            counts = {price_id: count_subscribers(stripe, price_id) for price_id in plan.replaced}
            plan = plan_catalogue(declared, found, known, counts)
    return _StripeHalf(plan, account)


def _show_plan(version: int, changes: MeterChanges, half: _StripeHalf, how: How) -> None:
    """Print what would be done, and end with the exit code that says so."""
    if how.json:
        _print_document(version, version, changes, half, done=False)
    else:
        for line in _describe_stripe(half):
            click.echo(line, err=bool(half.plan.refused))
        click.echo(f"Meters  version {version}{' (unchanged)' if changes.empty else ' and these changes'}")
        for line in describe_changes(changes):
            click.echo(line)
    if half.plan.refused:
        click.echo("refused: nothing was changed, neither at Stripe nor in the ledger", err=True)
        raise SystemExit(1)
    if how.exit_code and (half.plan.calls or not changes.empty):
        raise SystemExit(EXIT_PENDING)


def _agree(path: Path, changes: MeterChanges, half: _StripeHalf, how: How) -> None:
    """Ask before a meter ends or a price is replaced."""
    if how.yes:
        return
    gone = sorted(end.name for end in changes.removed)
    if gone:
        click.confirm(f"{path} no longer has {', '.join(gone)}: stop counting?", abort=True, err=how.json)
    replaced = [step.name for step in half.plan.steps if step.replaces is not None]
    if replaced:
        for line in describe_plan(Plan(tuple(step for step in half.plan.steps if step.replaces is not None))):
            click.echo(line, err=True)
        click.confirm(f"Sell {', '.join(replaced)} at a new price from now on?", abort=True, err=how.json)


def _carry_out_stripe(settings: CliSettings, half: _StripeHalf, how: How) -> None:
    if not how.json:
        for line in _describe_stripe(half):
            click.echo(line)
    if not half.plan.calls:
        return
    with StripeGateway(settings.stripe) as stripe:
        carry_out(
            stripe,
            half.plan,
            lambda step, made: None if how.json else click.echo(f"  done: {step.noun} {step.name} {made}"),
        )


def _describe_stripe(half: _StripeHalf) -> list[str]:
    if half.account is None:
        return [f"Stripe  {half.why_not}"] if half.why_not else []
    return [f"Stripe  account {half.account.account}, {half.account.mode} mode", *describe_plan(half.plan)]


def describe_changes(changes: MeterChanges) -> list[str]:
    """What becomes of the meters in the ledger, a line for each."""

    def since(at_ms: int) -> str:
        return f"from {format_time(at_ms)}" if at_ms else "at once"

    lines = [f"  + {begin.meter.name}, counted {since(begin.from_ms)}" for begin in changes.added]
    lines += [f"  ~ {end.name}, a new version {since(end.to_ms)}" for end, _ in changes.changed]
    lines += [f"  ~ {change.meter.name}, sent or priced differently" for change in changes.retargeted]
    lines += [f"  - {end.name}, counted until {format_time(end.to_ms)}" for end in changes.removed]
    if changes.kept:
        lines.append(f"  = {', '.join(changes.kept)}")
    return lines


def _print_document(
    version_before: int, version: int, changes: MeterChanges, half: _StripeHalf, *, done: bool
) -> None:
    document = {
        "done": done,
        "ledger": {
            "version_before": version_before,
            "version": version,
            "added": [{"meter": begin.meter.name, "from_ms": begin.from_ms} for begin in changes.added],
            "changed": [{"meter": end.name, "from_ms": end.to_ms} for end, _ in changes.changed],
            "retargeted": [change.meter.name for change in changes.retargeted],
            "removed": [{"meter": end.name, "to_ms": end.to_ms} for end in changes.removed],
            "kept": list(changes.kept),
        },
        "stripe": {
            "account": half.account.account if half.account else None,
            "mode": half.account.mode if half.account else None,
            "why_not": half.why_not or None,
            "pending": len([step for step in half.plan.steps if step.action is not Action.NOTHING]),
            "steps": plan_document(half.plan),
        },
    }
    click.echo(json.dumps(document, indent=2))
