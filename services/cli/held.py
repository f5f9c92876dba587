"""`tollgate held`: usage that is counted and not posted, each with its reason."""

from __future__ import annotations

import click

from services.cli.console import Output, format_time, output_options, print_rows
from services.cli.ledger import open_book
from services.cli.settings import CliSettings
from tollgate.ledger.plan_rows import HoldReason
from tollgate.ledger.postings import list_holds
from tollgate.runtime.settings import load_settings

WHAT_TO_DO = {
    HoldReason.NO_MAPPING: "no customer has this account name; see `tollgate customers mappings`",
    HoldReason.NO_ITEM: "the customer has no subscription item on this meter for that time",
    HoldReason.CLOSED: "its invoice is final, and the policy is to hold, or there is no current period to bill it with",
    HoldReason.NO_PRICE: "its invoice is final, and the price for an invoice item is not known",
    HoldReason.AMBIGUOUS: "two customers, or two items of one, could be meant",
    HoldReason.NEGATIVE: "the count went down",
    HoldReason.PERIOD_OVER: "its period has ended, and usage records have no grace",
    HoldReason.INEXACT: "a fraction of a unit, or more digits, than the meter's mode can carry",
    HoldReason.TOO_OLD: "older than Stripe takes (35 days)",
    HoldReason.DRY_RUN: "the meter went live after a dry run",
    HoldReason.IN_FLIGHT: "waits for an earlier posting of its chain",
}


@click.command()
@click.option(
    "--reason", type=click.Choice([reason.value for reason in HoldReason]), help="Only this reason."
)
@click.option(
    "-n", "--limit", type=int, default=1000, show_default=True, help="At most this many, oldest first."
)
@output_options
def held(reason: str | None, limit: int, output: Output) -> None:
    """Show usage that is not posted, oldest first, and why.

    A new customer, subscription or mapping releases what waited for it by itself.
    """
    settings = load_settings(CliSettings)
    engine = open_book(settings)
    rows = [
        {
            "account": hold.slot.account,
            "meter": hold.meter,
            "window": format_time(hold.slot.window_start_ms),
            "quantity": hold.quantity,
            "reason": hold.reason.value,
            "since": format_time(hold.since_ms),
            "what_it_means": WHAT_TO_DO[hold.reason],
        }
        for hold in list_holds(engine, reason=reason, limit=limit)
    ]
    print_rows(rows, output, title="Held usage", empty="none")
