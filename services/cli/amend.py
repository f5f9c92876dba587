"""`tollgate amend`: a signed correction of what was counted, with a reason, on the same road as any event.

Owns what is refused before anything is written, and the order: audit trail, then log. It refuses to count.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

import click

from services.cli.console import format_time
from services.cli.ledger import open_book
from services.cli.log import NoSuchTopic, reaching_broker
from services.cli.moment import Moment
from services.cli.operator import operator_name
from services.cli.settings import CliSettings
from tollgate.contracts.amendments import (
    ACCOUNT_BYTES_MAX,
    AMENDMENT_HEADERS,
    Amendment,
    encode_amendment,
)
from tollgate.contracts.events import assign_partition
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.ledger.amendments import AmendmentSite, inspect_site, note_amendment
from tollgate.ledger.catalogue import load_meter_set
from tollgate.ledger.engine import Engine
from tollgate.ledger.init import check_pins
from tollgate.ledger.plan_rows import Slot
from tollgate.ledger.types import check_quantity, format_quantity
from tollgate.metering.amending import AMENDABLE, QUANTITY_MAX
from tollgate.metering.closed import ClosedPolicy
from tollgate.metering.definition import MeterVersion
from tollgate.metering.metric import MetricKind
from tollgate.metering.window import assign_window
from tollgate.runtime.clock import SystemClock
from tollgate.runtime.kafka import new_producer, topic_partitions
from tollgate.runtime.settings import load_settings

_ID = re.compile(r"[0-9a-zA-Z_-]{8,64}")


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What the operator asked for, checked."""

    version: MeterVersion
    slot: Slot
    time_ms: int
    quantity: Decimal


@click.command()
@click.argument("meter")
@click.argument("account")
@click.option("--window", "window_ms", type=Moment(), help="Start of the window that is amended.")
@click.option("--time", "time_ms", type=Moment(), help="A moment inside it, instead.")
@click.option("--quantity", required=True, help="What is added; below zero: taken away.")
@click.option("--reason", required=True, help="Why. Kept in the audit trail and on the log.")
@click.option("--by", help="Who says so. Without it, whoever runs this.")
@click.option("--force-account", is_flag=True, help="Also an account that nobody has heard of.")
@click.option("--id", "amendment_id", help="Of an amendment whose sending failed: it counts once.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def amend(
    meter: str,
    account: str,
    window_ms: int | None,
    time_ms: int | None,
    quantity: str,
    reason: str,
    by: str | None,
    force_account: bool,
    amendment_id: str | None,
    yes: bool,
) -> None:
    """Correct what was counted of METER for ACCOUNT in one window, by a signed quantity.

    The amendment goes on the log and is counted by the meter service like an event; what it changes is posted as any
    other change. Nothing that was counted or posted is edited.
    """
    settings = load_settings(CliSettings)
    if not reason.strip():
        raise click.UsageError("--reason: say why")
    if (window_ms is None) == (time_ms is None):
        raise click.UsageError("name the --window, or a --time inside it")
    if amendment_id is not None and not _ID.fullmatch(amendment_id):
        raise click.UsageError(f"--id: {amendment_id!r} is no amendment's")
    amount = _parse_quantity(quantity)
    engine = open_book(settings)
    now_ms = SystemClock().now_ms()
    wanted = _find_window(engine, meter, account, window_ms, time_ms, amount, now_ms)
    target = wanted.version.meter.stripe
    site = inspect_site(
        engine,
        wanted.slot,
        wanted.time_ms,
        None if target is None or target.send == "off" else target.event_name,
    )
    if not site.account_known and not force_account:
        raise click.ClickException(
            f"account {account} has no usage and no customer; --force-account amends it all the same"
        )
    consequence = _consequence(wanted, site)
    partitions = asyncio.run(_count_partitions(settings))
    click.echo(
        f"{meter}, {account}, {format_time(wanted.slot.window_start_ms)}: {format_quantity(site.counted)} counted, "
        f"{format_quantity(amount)} to be added\n{consequence}"
    )
    if not yes:
        click.confirm("Amend?", abort=True)
    amendment_id = amendment_id or uuid.uuid4().hex
    who = by or operator_name()
    try:
        note_amendment(engine, amendment_id, wanted.slot, amount, who, reason, now_ms)
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    amendment = Amendment(
        amendment_id=amendment_id,
        meter_id=wanted.version.meter_id,
        meter=meter,
        account=account,
        window_start_ms=wanted.slot.window_start_ms,
        time_ms=wanted.time_ms,
        quantity=format_quantity(amount),
        reason=reason,
        by=who,
        written_ms=now_ms,
    )
    # A cut-over may have come between: the account may live in another partition now.
    check_pins(engine, partitions=partitions)
    try:
        place = asyncio.run(_produce(settings, amendment, partitions))
    except Exception as error:
        raise click.ClickException(
            f"whether the amendment is on the log is not known ({type(error).__name__}: {error}); run the same again "
            f"with --id {amendment_id}: it counts once"
        ) from error
    click.echo(f"amended {amendment_id}, on the log at {place[0]}:{place[1]}")


def _parse_quantity(text: str) -> Decimal:
    try:
        quantity = check_quantity(Decimal(text))
    except (InvalidOperation, ValueError):
        raise click.UsageError(f"--quantity: {text!r} is no number of at most nine decimal places") from None
    if quantity == 0:
        raise click.UsageError("--quantity: zero changes nothing")
    if abs(quantity) > QUANTITY_MAX:
        raise click.UsageError(f"--quantity: {text} is beyond {QUANTITY_MAX:.0e}")
    return quantity


def _find_window(
    engine: Engine,
    meter: str,
    account: str,
    window_ms: int | None,
    time_ms: int | None,
    quantity: Decimal,
    now_ms: int,
) -> _Wanted:
    """The meter version and its window. Raises ClickException for what cannot be amended."""
    if not account or "\x00" in account or len(account.encode()) > ACCOUNT_BYTES_MAX:
        raise click.UsageError(f"ACCOUNT: {account[:40]!r} is no account's name")
    versions = [version for version in load_meter_set(engine).meters if version.meter.name == meter]
    if not versions:
        raise click.ClickException(f"there is no meter {meter!r}; `tollgate meters list` names them")
    at_ms = time_ms if window_ms is None else window_ms
    assert at_ms is not None, "one of the two is given"
    holding = [v for v in versions if v.from_ms <= at_ms and (v.to_ms is None or at_ms < v.to_ms)]
    if not holding:
        raise click.ClickException(f"{meter} does not count {format_time(at_ms)}")
    version = holding[0]
    kind, size_ms = version.meter.metric.kind, version.meter.window.size_ms
    if kind not in AMENDABLE:
        raise click.ClickException(f"{meter} is a {kind}: only counts and sums can be amended")
    if kind is MetricKind.COUNT and quantity != quantity.to_integral_value():
        raise click.ClickException(f"{meter} is a count: {format_quantity(quantity)} is not whole")
    start_ms = assign_window(at_ms, size_ms)
    if window_ms is not None and start_ms != window_ms:
        raise click.ClickException(
            f"no window of {meter} (one an {version.meter.window}) begins at {format_time(window_ms)}; "
            f"that moment lies in the one of {format_time(start_ms)}"
        )
    if at_ms > now_ms:
        raise click.ClickException(f"{format_time(at_ms)} is still to come")
    return _Wanted(version, Slot(version.meter_id, start_ms, account), at_ms, quantity)


def _consequence(wanted: _Wanted, site: AmendmentSite) -> str:
    """What will happen to it, in words. Raises ClickException where a final invoice leaves nothing to happen."""
    if wanted.version.meter.stripe is None or wanted.version.meter.stripe.send == "off":
        return "It is counted; nothing of this meter goes to Stripe."
    if site.customer_id is None:
        return "It is counted, and held until the account has one customer for that time."
    if not site.final:
        if site.counted + wanted.quantity < 0:
            return "It leaves less than nothing: it is counted, and held as `negative`."
        return f"It is posted to {site.customer_id} like any change."
    if wanted.quantity < 0:
        raise click.ClickException(
            f"the invoice of {site.customer_id} for that time is final: give the credit at Stripe, by a credit note"
        )
    if site.policy is ClosedPolicy.RESTAMP:
        return f"The invoice for that time is final: it is billed with {site.customer_id}'s current period."
    if site.policy is ClosedPolicy.INVOICE_ITEM:
        return f"The invoice for that time is final: {site.customer_id} gets an item on the next one."
    why = "nothing says yet what becomes of it" if site.policy is None else "the policy for that is to hold"
    raise click.ClickException(f"the invoice of {site.customer_id} for that time is final, and {why}")


async def _count_partitions(settings: CliSettings) -> int:
    with reaching_broker(settings.kafka):
        partitions = await topic_partitions(settings.kafka, GATEWAY_EVENTS.name)
    if partitions is None:
        raise NoSuchTopic(
            f"there is no topic {settings.kafka.topic_name(GATEWAY_EVENTS.name)}: run `tollgate init`"
        )
    return partitions


async def _produce(settings: CliSettings, amendment: Amendment, partitions: int) -> tuple[int, int]:
    """Write it to its account's partition; returns where it is once the broker has it."""
    producer = new_producer(
        settings.kafka,
        idempotent=not settings.ephemeral,
        ephemeral=settings.ephemeral,
        client_id="tollgate-amend",
    )
    await producer.start()
    try:
        record = await producer.send_and_wait(
            settings.kafka.topic_name(GATEWAY_EVENTS.name),
            value=encode_amendment(amendment),
            partition=assign_partition(amendment.account, partitions),
            headers=AMENDMENT_HEADERS,
        )
    finally:
        await producer.stop()
    return record.partition, record.offset
