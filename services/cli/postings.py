"""`tollgate postings`: every intended call to Stripe, and what became of it."""

from __future__ import annotations

import click

from services.cli.console import Output, format_time, output_options, print_rows
from services.cli.group import Group
from services.cli.ledger import open_book
from services.cli.operator import operator_name
from services.cli.settings import CliSettings
from tollgate.ledger.anomalies import release_anomaly
from tollgate.ledger.posting_rows import Posting, PostingState
from tollgate.ledger.postings import (
    list_postings,
    park_posting,
    posting_summary,
    resume_posting,
    settle_posting,
)
from tollgate.runtime.clock import SystemClock
from tollgate.runtime.settings import load_settings


@click.group(cls=Group)
def postings() -> None:
    """Show, park and resume what goes to Stripe."""


@postings.command(name="list")
@click.option("--state", type=click.Choice([state.value for state in PostingState]), help="Only this state.")
@click.option("--customer", help="Only this Stripe customer.")
@click.option("--key", help="Only this chain.")
@click.option(
    "-n", "--limit", type=int, default=50, show_default=True, help="At most this many, newest first."
)
@output_options
def list_(state: str | None, customer: str | None, key: str | None, limit: int, output: Output) -> None:
    """List postings, newest first: the chain, what it adds, its state, attempts and Stripe's last answer."""
    settings = load_settings(CliSettings)
    engine = open_book(settings)
    rows = [
        {
            "posting": f"{posting.posting_key}:{posting.seq}",
            "customer": posting.customer_id,
            "meter": posting.meter_id,
            "window": format_time(posting.window_start_ms),
            "from": posting.quantity_from,
            "to": posting.quantity_to,
            "state": posting.state.value,
            "late": _describe_late(posting),
            "attempts": posting.attempts,
            "sent": format_time(posting.last_sent_ms),
            "identifier": posting.identifier,
            "request": posting.request_id or "",
            "error": posting.error or "",
        }
        for posting in list_postings(engine, state=state, customer=customer, limit=limit, posting_key=key)
    ]
    print_rows(rows, output, title="Postings", empty="none")


def _describe_late(posting: Posting) -> str:
    """How it is billed, if not with the usage of its own period."""
    if posting.for_period_ms is None:
        return ""
    how = "restamped, of" if "payload" in posting.body else "invoice item, for"
    return f"{how} {format_time(posting.for_period_ms)}"


@postings.command()
@output_options
def summary(output: Output) -> None:
    """Count postings and units by state."""
    settings = load_settings(CliSettings)
    rows = [
        {"state": entry.state.value, "postings": entry.postings, "units": entry.quantity}
        for entry in posting_summary(open_book(settings))
    ]
    print_rows(rows, output, title="Postings by state", empty="none yet")


def _parse_posting(text: str) -> tuple[str, int]:
    key, _, seq = text.rpartition(":")
    if not key or not seq.isdigit():
        raise click.BadParameter(f"{text!r} is not KEY:SEQ as `postings list` prints it")
    return key, int(seq)


@postings.command()
@click.argument("posting")
@click.option("--reason", default="by an operator", show_default=True, help="Why, for those who wonder.")
def park(posting: str, reason: str) -> None:
    """Stop POSTING (KEY:SEQ), and with it its chain, until it is resumed."""
    settings = load_settings(CliSettings)
    key, seq = _parse_posting(posting)
    if not park_posting(open_book(settings), key, seq, reason):
        raise click.ClickException(f"{posting} is not there, is being sent, or is settled")
    click.echo(f"parked {posting}")


@postings.command()
@click.argument("posting")
def resume(posting: str) -> None:
    """Let a parked POSTING (KEY:SEQ) go on, with its old identifier."""
    settings = load_settings(CliSettings)
    key, seq = _parse_posting(posting)
    if not resume_posting(open_book(settings), key, seq):
        raise click.ClickException(f"{posting} is not parked")
    click.echo(f"resumed {posting}")


@postings.command()
@click.argument("key")
@click.option("--reason", required=True, help="Why it is no anomaly. Kept in the audit trail.")
@click.option("--by", help="Who says so. Without it, whoever runs this.")
def release(key: str, reason: str, by: str | None) -> None:
    """Let the posting of chain KEY go that is far above what its customer used before.

    The chain is not stopped for that again.
    """
    settings = load_settings(CliSettings)
    chain = key.partition(":")[0]
    if not reason.strip():
        raise click.UsageError("--reason: say why")
    engine = open_book(settings)
    seq = release_anomaly(engine, chain, by or operator_name(), reason, SystemClock().now_ms())
    if seq is None:
        raise click.ClickException(f"no posting of {chain} waits as an anomaly")
    click.echo(f"released {chain}:{seq}")


@postings.command()
@click.argument("posting")
@click.option(
    "--delivered/--not-delivered", required=True, help="Whether Stripe has it: look in its dashboard."
)
def settle(posting: str, delivered: bool) -> None:
    """Say of a parked POSTING (KEY:SEQ) whether Stripe has it. What it has not is planned again."""
    settings = load_settings(CliSettings)
    key, seq = _parse_posting(posting)
    engine = open_book(settings)
    if not settle_posting(engine, key, seq, delivered=delivered, now_ms=SystemClock().now_ms()):
        raise click.ClickException(f"{posting} is not parked")
    click.echo(f"settled {posting} as {'delivered' if delivered else 'not delivered'}")
