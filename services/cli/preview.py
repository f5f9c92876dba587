"""`tollgate preview`: a customer's coming invoices, item by item, beside Stripe's own preview.

Owns the command and its printing. What the coming lines are is `preview_lines`, how they compare is
`tollgate.metering.preview`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal

import click
from rich.box import SIMPLE_HEAD
from rich.table import Table

from services.cli.console import console, format_time
from services.cli.gateway import StripeUnreachable
from services.cli.ledger import open_book
from services.cli.pinned_stripe import pinned_stripe
from services.cli.preview_lines import CustomerUnknown, ItemPreview, SubscriptionPreview, preview_customer
from services.cli.settings import CliSettings
from tollgate.metering.currency import format_amount
from tollgate.metering.preview import Agreement
from tollgate.metering.pricing import AmountPart
from tollgate.runtime.clock import SystemClock
from tollgate.runtime.settings import load_settings


@click.command()
@click.argument("customer")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--lag-minutes",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="How far Stripe's sums may be behind: a difference that young is explained.",
)
def preview(customer: str, as_json: bool, lag_minutes: float) -> None:
    """Show the coming invoices of a Stripe CUSTOMER: what the ledger says, tier by tier, next to Stripe's own preview.

    \b
    posted    delivered to Stripe
    pending   counted, and on its way: it will be on the invoice
    held      counted, and on no invoice until somebody decides; the reason is named

    \b
    Exit code
    0  every line agrees with Stripe's, or its difference is explained
    1  a difference that nothing explains, or Stripe or the ledger cannot be asked
    """
    settings = load_settings(CliSettings)
    engine = open_book(settings)
    try:
        with pinned_stripe(engine, settings.stripe) as stripe:
            found = preview_customer(
                engine, stripe, customer, SystemClock().now_ms(), int(lag_minutes * 60_000)
            )
    except (StripeUnreachable, CustomerUnknown) as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps([_document(subscription) for subscription in found], indent=2))
    else:
        _print(customer, found)
    if any(item.compared.agreement is Agreement.DIFFERS for each in found for item in each.items):
        raise SystemExit(1)


# ------------------------------------------------------------------------------------------------ people


def _print(customer: str, found: Sequence[SubscriptionPreview]) -> None:
    terminal = console()
    if not found:
        terminal.print(f"{customer} has no subscription: no invoice is coming")
    for subscription in found:
        terminal.print(
            f"{subscription.subscription_id} ({subscription.status}): invoice of "
            f"{format_time(subscription.period_start_ms)} to {format_time(subscription.period_end_ms)}"
        )
        for item in subscription.items:
            terminal.print(f"\n{item.meter} ({item.item_id}, {item.model}): {item.compared.agreement}")
            terminal.print(_item_table(item))
            for reason in item.compared.why:
                terminal.print(f"  {reason}")
            if item.problem:
                terminal.print(f"  {item.problem}")
        for description, amount in subscription.others:
            terminal.print(f"  {description}: {format_amount(amount, subscription.currency)}")
        terminal.print(
            f"total  ours {format_amount(subscription.our_total, subscription.currency)}, "
            f"Stripe {format_amount(subscription.stripe_total, subscription.currency)}\n"
        )


def _item_table(item: ItemPreview) -> Table:
    """What one item comes to: its quantities, then each tier."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("units", justify="right")
    table.add_column("at", justify="right")
    table.add_column("amount", justify="right")
    table.add_row("posted", f"{item.line.posted:,f}", "", "")
    table.add_row("pending", f"{item.line.pending:,f}", "", "")
    for reason, quantity in sorted(item.line.held.items()):
        table.add_row(f"held: {reason}", f"{quantity:,f}", "", "")
    for part in item.parts:
        at = format_amount(part.unit_amount, item.currency)
        if part.flat_amount:
            at += f" + {format_amount(part.flat_amount, item.currency)}"
        table.add_row(_span(part), f"{part.units:,f}", at, format_amount(part.amount, item.currency))
    if item.our_amount is not None:
        table.add_row(
            "coming",
            f"{item.line.coming:,f}",
            "",
            format_amount(item.our_amount, item.currency),
            style="bold",
        )
    if item.stripe_quantity is not None and item.stripe_amount is not None:
        table.add_row(
            "Stripe by now",
            f"{item.stripe_quantity:,f}",
            "",
            format_amount(item.stripe_amount, item.currency),
        )
    return table


def _span(part: AmountPart) -> str:
    if part.up_to is None:
        return "all units" if part.over == 0 else f"from {part.over + 1:,} on"
    return f"{part.over + 1:,} to {part.up_to:,}"


# ---------------------------------------------------------------------------------------------- programs


def _document(found: SubscriptionPreview) -> dict[str, object]:
    return {
        "subscription": found.subscription_id,
        "status": found.status,
        "period_start_ms": found.period_start_ms,
        "period_end_ms": found.period_end_ms,
        "currency": found.currency,
        "items": [_item_document(item) for item in found.items],
        "other_lines": [{"description": text, "amount": amount} for text, amount in found.others],
        "our_total": found.our_total,
        "stripe_total": found.stripe_total,
    }


def _item_document(item: ItemPreview) -> dict[str, object]:
    return {
        "item": item.item_id,
        "meter": item.meter,
        "event_name": item.event_name,
        "price": item.price_id,
        "model": item.model,
        "period_start_ms": item.start_ms,
        "period_end_ms": item.end_ms,
        "posted": _plain(item.line.posted),
        "pending": _plain(item.line.pending),
        "held": {reason: _plain(quantity) for reason, quantity in sorted(item.line.held.items())},
        "coming": _plain(item.line.coming),
        "amount": item.our_amount,
        "tiers": [
            {
                "over": part.over,
                "up_to": part.up_to,
                "units": _plain(part.units),
                "unit_amount": _plain(part.unit_amount),
                "flat_amount": _plain(part.flat_amount),
                "amount": _plain(part.amount),
            }
            for part in item.parts
        ],
        "stripe": None
        if item.stripe_quantity is None
        else {"quantity": _plain(item.stripe_quantity), "amount": item.stripe_amount},
        "result": str(item.compared.agreement),
        "why": [*item.compared.why, *([item.problem] if item.problem else [])],
    }


def _plain(quantity: Decimal) -> str:
    return f"{quantity:f}"
