"""`tollgate sync`: stop, go on, or hurry the posting of usage to Stripe."""

from __future__ import annotations

import click

from services.cli.group import Group
from services.cli.ledger import open_book
from services.cli.settings import CliSettings
from tollgate.ledger.controls import request_sync_now, set_paused
from tollgate.runtime.clock import SystemClock
from tollgate.runtime.settings import load_settings


@click.group(cls=Group)
def sync() -> None:
    """Pause, resume or hurry the posting to Stripe."""


@sync.command()
@click.option("--reason", default="by an operator", show_default=True, help="Why, for those who wonder.")
def pause(reason: str) -> None:
    """Send nothing from now on. Counting goes on; usage waits in the ledger."""
    settings = load_settings(CliSettings)
    set_paused(open_book(settings), True, SystemClock().now_ms(), reason)
    click.echo("paused: nothing is sent to Stripe until `tollgate sync resume`")


@sync.command()
def resume() -> None:
    """Send again, everything that has been counted since."""
    settings = load_settings(CliSettings)
    set_paused(open_book(settings), False, SystemClock().now_ms())
    click.echo("resumed")


@sync.command()
def now() -> None:
    """Plan and send at once instead of at the next cadence."""
    settings = load_settings(CliSettings)
    request_sync_now(open_book(settings), SystemClock().now_ms())
    click.echo("requested; stripe_sync sees it within a second")
