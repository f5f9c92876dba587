"""`tollgate customers`: whom usage is billed to, and by which account names they are known."""

from __future__ import annotations

import os
import sys
import time

import click

from services.cli.cancel import NotCancelled, flush_then_cancel
from services.cli.console import Output, format_time, output_options, print_rows
from services.cli.gateway import StripeUnreachable
from services.cli.group import Group
from services.cli.ledger import open_book
from services.cli.pinned_stripe import pinned_stripe
from services.cli.settings import CliSettings
from tollgate.ledger.directory import list_customers, list_mappings
from tollgate.metering.currency import format_amount
from tollgate.runtime.clock import SystemClock
from tollgate.runtime.settings import load_settings


@click.group(cls=Group)
def customers() -> None:
    """Show and import Stripe customers and their accounts, and end subscriptions."""


@customers.command(name="list")
@output_options
def list_(output: Output) -> None:
    """List customers with their subscriptions and accounts."""
    settings = load_settings(CliSettings)
    rows = [
        {
            "customer": entry.customer_id,
            "name": entry.name or "",
            "email": entry.email or "",
            "deleted": entry.deleted,
            "subscriptions": ", ".join(entry.subscription_ids),
            "accounts": ", ".join(entry.accounts),
            "updated": format_time(entry.updated_ms),
        }
        for entry in list_customers(open_book(settings))
    ]
    print_rows(
        rows, output, title="Customers", empty="none; `tollgate customers import` fetches those at Stripe"
    )


@customers.command()
@click.option("--account", help="Only this account, e.g. user:cus_123.")
@click.option("--customer", help="Only this customer.")
@output_options
def mappings(account: str | None, customer: str | None, output: Output) -> None:
    """List which customer pays for an account, and from when to when (event time)."""
    settings = load_settings(CliSettings)
    engine = open_book(settings)
    rows = [
        {
            "account": mapping.account,
            "customer": mapping.customer_id,
            "from": format_time(mapping.from_ms) or "ever",
            "until": format_time(mapping.to_ms),
            "rule": mapping.rule,
        }
        for mapping in list_mappings(engine, account=account, customer_id=customer)
    ]
    print_rows(rows, output, title="Mappings", empty="none")


@customers.command()
@click.argument("subscription")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--drain-seconds",
    type=click.FloatRange(min=0),
    default=15.0,
    show_default=True,
    help="How long after now events of before may still come in from the gateway.",
)
@click.option(
    "--timeout-minutes",
    type=click.FloatRange(min=0),
    default=15.0,
    show_default=True,
    help="How long to wait for the usage to be at Stripe.",
)
@click.option("--anyway", is_flag=True, help="Cancel even if usage is held, or not at Stripe in time.")
def cancel(subscription: str, yes: bool, drain_seconds: float, timeout_minutes: float, anyway: bool) -> None:
    """End a Stripe SUBSCRIPTION now, and bill what was used: all usage is sent first, and the last invoice is made
    with it. Shut the customer's access at the gateway before: what is used after this is on no invoice.

    Needs ingest, meter, stripe_sync and webhooks running. Exit code 1: nothing was cancelled, and why.
    """
    settings = load_settings(CliSettings)
    engine = open_book(settings)
    if not yes:
        click.confirm(f"End {subscription} now, with a last invoice?", abort=True)
    try:
        with pinned_stripe(engine, settings.stripe) as stripe:
            ended = flush_then_cancel(
                engine,
                stripe,
                subscription,
                now_ms=SystemClock().now_ms,
                wait=time.sleep,
                say=lambda text: click.echo(text, err=True),
                drain_ms=int(drain_seconds * 1000),
                timeout_ms=int(timeout_minutes * 60_000),
                anyway=anyway,
            )
    except (NotCancelled, StripeUnreachable) as error:
        raise click.ClickException(str(error)) from None
    click.echo(
        f"{ended.subscription_id} of {ended.customer_id} has ended; "
        f"last invoice {ended.invoice_id or 'none'}: {format_amount(ended.amount, ended.currency)}"
    )


@customers.command(name="import")
@click.option("--from-start", is_flag=True, help="Begin at the beginning, wherever the last import was.")
def import_(from_start: bool) -> None:
    """Fetch the customers and subscriptions that exist at Stripe.

    Page by page, remembering each: after a failure, or a kill, run it again and it goes on where it was.
    """
    words = ["-m", "services.webhooks", "import", *(["--from-start"] if from_start else [])]
    os.execv(sys.executable, [sys.executable, *words])  # noqa: S606
