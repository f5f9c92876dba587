"""`tollgate meters`: what is counted. Apply a file, list what is in force, explain one event."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path
from typing import Any

import click

from services.cli.console import Output, format_time, output_options, print_rows
from services.cli.group import Group
from services.cli.ledger import open_book
from services.cli.meter_apply import EXIT_PENDING, How, apply_file
from services.cli.meter_file import parse_file
from services.cli.settings import CliSettings
from tollgate.ledger.catalogue import load_meter_set
from tollgate.metering.explain import explain as explain_event
from tollgate.metering.meter import lint_meters
from tollgate.runtime.settings import load_settings

_METERS_FILE = click.argument(
    "path", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=Path("meters.yaml")
)


@click.group(cls=Group)
def meters() -> None:
    """Apply, list and explain meters."""


@meters.command()
@_METERS_FILE
@click.option("--plan", "plan_only", is_flag=True, help="Say what would be done, and do nothing.")
@click.option(
    "--exit-code", is_flag=True, help=f"With --plan: end with {EXIT_PENDING} when something would be changed."
)
@click.option("--yes", is_flag=True, help="Do not ask before meters are removed or prices are replaced.")
@click.option("--ledger-only", is_flag=True, help="Leave Stripe out, even if there is a key.")
@click.option("--json", "as_json", is_flag=True, help="Print plan and outcome as JSON.")
def apply(path: Path, plan_only: bool, exit_code: bool, yes: bool, ledger_only: bool, as_json: bool) -> None:
    """Make the meters of PATH (meters.yaml without it) the ones in force, and what they need at Stripe.

    At Stripe: the product, Billing Meter and price of each meter are created, or adopted when they are there and fit.
    A price cannot be edited; other terms make a new one, which gets the lookup key, and existing subscriptions keep
    the old. Without a key (STRIPE_API_KEY) this half is left out, and said to be.

    In the ledger: a new meter counts at once. A changed filter, metric, window or group is a new version from a
    future window boundary in event time on; what has been counted stays. A changed price is no new version.

    Stripe comes first, and a refusal there changes nothing anywhere. Applying the same file again changes nothing;
    interrupted, apply it again.

    \b
    Exit codes: 0 done (or planned), 1 refused or failed, 2 wrong use, 3 with --plan --exit-code: changes are pending.
    """
    if exit_code and not plan_only:
        raise click.UsageError("--exit-code goes with --plan")
    parsed = parse_file(path)
    for warning in lint_meters(parsed):
        click.echo(f"warning: {warning}", err=True)
    settings = load_settings(CliSettings)
    how = How(plan_only, exit_code, yes, as_json, ledger_only)
    apply_file(settings, open_book(settings), path, parsed, how)


@meters.command(name="list")
@output_options
def list_(output: Output) -> None:
    """List the meters in force, and versions that are about to begin or end."""
    settings = load_settings(CliSettings)
    engine = open_book(settings)
    rows = []
    for version in load_meter_set(engine).meters:
        meter = version.meter
        rows.append(
            {
                "id": version.meter_id,
                "meter": meter.name,
                "metric": f"{meter.metric.kind}"
                + (f" {meter.metric.expression}" if meter.metric.expression else ""),
                "window": meter.window.value,
                "where": meter.where or "",
                "group_by": ", ".join(meter.group_by),
                "stripe": f"{meter.stripe.event_name} ({meter.stripe.send})"
                if meter.stripe
                else "not posted",
                "from": format_time(version.from_ms),
                "until": format_time(version.to_ms),
            }
        )
    print_rows(
        rows, output, title="Meters", empty="none yet; apply some with `tollgate meters apply meters.yaml`"
    )


@meters.command()
@_METERS_FILE
@click.option("--event", "event_text", help="The event as JSON, as `events tail` prints it; - reads it.")
@click.option("--id", "event_id", help="The event's id: looked up in the log, or in the archive.")
@click.option(
    "--from-archive",
    "archive_at",
    metavar="DIR",
    help="With --id: look there (a directory, or a URL Arrow knows).",
)
@click.option("--meter", "name", help="Only this meter.")
def explain(
    path: Path, event_text: str | None, event_id: str | None, archive_at: str | None, name: str | None
) -> None:
    """Say for one event what each meter of PATH makes of it: every clause, the values it saw, whether it held.

    Of an event that came more than once, the first copy is explained: the others are duplicates.
    """
    if (event_text is None) == (event_id is None):
        raise click.UsageError("name the event by --event or by --id")
    if archive_at is not None and event_id is None:
        raise click.UsageError("--from-archive goes with --id")
    event = _look_up(event_id, archive_at) if event_text is None else _read_event(event_text)
    for meter in parse_file(path):
        if name is None or meter.name == name:
            click.echo(str(explain_event(meter, event)))


def _look_up(event_id: str | None, archive_at: str | None) -> dict[str, Any]:
    from services.cli.archived import Archive
    from services.cli.lookup import Wanted, find_events

    settings = load_settings(CliSettings)
    archive = None if archive_at is None else Archive.open(archive_at)

    async def first() -> dict[str, Any] | None:
        matches = find_events(Wanted(event_id=event_id), archive, settings.kafka)
        async with contextlib.aclosing(matches):
            async for event in matches:
                return event
        return None

    found = asyncio.run(first())
    if found is None:
        raise click.ClickException(f"no event {event_id} in the {'log' if archive is None else 'archive'}")
    click.echo(json.dumps(found, separators=(",", ":"), default=str))
    return found


def _read_event(event_text: str) -> dict[str, Any]:
    text = click.get_text_stream("stdin").read() if event_text == "-" else event_text
    try:
        event = json.loads(text)
    except ValueError as error:
        raise click.ClickException(f"the event is not JSON: {error}") from None
    if not isinstance(event, dict):
        raise click.ClickException("the event is not a JSON object")
    return event
