"""`tollgate usage`: what has been counted, for people and for programs."""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any

import click

from services.cli.console import Output, format_time, output_options, print_rows
from services.cli.ledger import open_book
from services.cli.moment import Moment
from services.cli.settings import CliSettings
from tollgate.ledger.amendments import AskedAmendment, list_amendments
from tollgate.ledger.catalogue import load_meter_set
from tollgate.ledger.directory import list_mappings
from tollgate.ledger.engine import Engine
from tollgate.ledger.usage import Grouping, UsageTotal, usage_totals
from tollgate.metering.metric import MetricKind
from tollgate.runtime.settings import load_settings

GROUPS = ("meter", "customer", "account", "window", "dimensions")
NOBODY = "(no customer)"


def _parse_groups(_ctx: click.Context, _param: click.Parameter, text: str) -> tuple[str, ...]:
    groups = tuple(name.strip() for name in text.split(",") if name.strip())
    unknown = [name for name in groups if name not in GROUPS]
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(GROUPS)}")
    return groups


@click.command()
@click.option(
    "--by",
    "--group-by",
    "groups",
    default="meter,account",
    show_default=True,
    callback=_parse_groups,
    help=f"What is kept apart: of {', '.join(GROUPS)}. Meters always are.",
)
@click.option("--meter", help="Only this meter.")
@click.option("--account", help="Only this account, e.g. user:cus_123.")
@click.option("--customer", help="Only the accounts of this Stripe customer.")
@click.option("--from", "from_ms", type=Moment(), help="First window start (ISO 8601, UTC).")
@click.option("--to", "to_ms", type=Moment(), help="Windows that start before this.")
@click.option("--posted", is_flag=True, help="Only meters that go to Stripe.")
@output_options
def usage(
    groups: tuple[str, ...],
    meter: str | None,
    account: str | None,
    customer: str | None,
    from_ms: int | None,
    to_ms: int | None,
    posted: bool,
    output: Output,
) -> None:
    """Show what has been counted, combined over what it is not grouped by as each metric demands.

    Counts and sums add, max takes the largest, unique counts distinct values. Customers are those the accounts map to
    now; what was posted stays with whom it was posted to (`tollgate postings list`).
    """
    settings = load_settings(CliSettings)
    engine = open_book(settings)
    payers = {m.account: m.customer_id for m in list_mappings(engine) if m.to_ms is None}
    accounts = [account] if account else None
    if customer is not None:
        accounts = [name for name, payer in payers.items() if payer == customer and account in (None, name)]
    by: list[Grouping] = [name for name in ("account", "window", "dimensions") if name in groups]
    chosen: dict[str, Any] = {"meter": meter, "from_ms": from_ms, "to_ms": to_ms}
    found: Iterable[tuple[str | None, UsageTotal]]
    if "customer" in groups:
        found = _by_customer(engine, payers, by, accounts, chosen)
    else:
        found = ((None, total) for total in usage_totals(engine, by=by, accounts=accounts, **chosen))
    sent = _posted_meters(engine) if posted else None
    rows = [_describe(payer, total, groups) for payer, total in found if sent is None or total.meter in sent]
    amendments = [
        each
        for each in list_amendments(engine)
        if (from_ms is None or each.window_start_ms >= from_ms)
        and (to_ms is None or each.window_start_ms < to_ms)
        if accounts is None or each.account in accounts
    ]
    if amendments:
        rows = [row | {"amended": _amended(row, amendments, payers)} for row in rows]
    print_rows(rows, output, title="Usage", empty="nothing counted yet")


def _amended(
    row: Mapping[str, object], amendments: Iterable[AskedAmendment], payers: Mapping[str, str]
) -> Decimal:
    """What of a row's quantity operators have added or taken away."""
    total = Decimal(0)
    for each in amendments:
        told: dict[str, object] = {
            "meter": each.meter,
            "customer": payers.get(each.account, NOBODY),
            "account": each.account,
            "window": format_time(each.window_start_ms),
            "dimensions": "",
        }
        if all(row[name] == told[name] for name in GROUPS if name in row):
            total += each.quantity
    return total


def _posted_meters(engine: Engine) -> set[str]:
    return {
        version.meter.name
        for version in load_meter_set(engine).meters
        if version.meter.stripe is not None and version.meter.stripe.send != "off"
    }


_CustomerKey = tuple[str, str, MetricKind, str | None, int | None, str | None]
"""(customer, meter, kind, account, window start, dimensions)."""


def _by_customer(
    engine: Engine,
    payers: Mapping[str, str],
    by: list[Grouping],
    accounts: list[str] | None,
    chosen: Mapping[str, Any],
) -> Iterator[tuple[str | None, UsageTotal]]:
    """Totals per customer: per account in one query, then combined; latest and unique are asked for anew per customer
    of several accounts, since their parts do not add.
    """
    split: list[Grouping] = ["account", *(group for group in by if group != "account")]
    combined: dict[_CustomerKey, UsageTotal] = {}
    again: dict[str, set[str]] = defaultdict(set)
    for total in usage_totals(engine, by=split, accounts=accounts, **chosen):
        assert total.account is not None
        payer = payers.get(total.account, NOBODY)
        if "account" not in by:
            again[payer].add(total.account)
            total = replace(total, account=None)
        key: _CustomerKey = (
            payer,
            total.meter,
            total.kind,
            total.account,
            total.window_start_ms,
            total.dimensions,
        )
        combined[key] = _combine(combined[key], total) if key in combined else total
    for payer, members in again.items():
        if len(members) > 1:
            for total in usage_totals(engine, by=by, accounts=sorted(members), **chosen):
                if total.kind in (MetricKind.LATEST, MetricKind.UNIQUE):
                    key = (payer, total.meter, total.kind, None, total.window_start_ms, total.dimensions)
                    combined[key] = total
    for key in sorted(combined, key=str):
        yield key[0], combined[key]


def _combine(one: UsageTotal, other: UsageTotal) -> UsageTotal:
    pick: Callable[[Decimal, Decimal], Decimal] = {MetricKind.MAX: max, MetricKind.MIN: min}.get(
        one.kind, operator.add
    )
    # Nothing valued: its quantity of 0 is no minimum.
    quantities = [total.quantity for total in (one, other) if total.events]
    quantity = pick(quantities[0], quantities[1]) if len(quantities) == 2 else sum(quantities, Decimal(0))
    return replace(
        one,
        quantity=quantity,
        events=one.events + other.events,
        unvalued=one.unvalued + other.unvalued,
        latest_event_ms=max(one.latest_event_ms, other.latest_event_ms),
    )


def _describe(payer: str | None, total: UsageTotal, groups: tuple[str, ...]) -> dict[str, object]:
    row: dict[str, object] = {"meter": total.meter}
    if payer is not None:
        row["customer"] = payer
    if "account" in groups:
        row["account"] = total.account
    if "window" in groups:
        row["window"] = format_time(total.window_start_ms)
    if "dimensions" in groups:
        row["dimensions"] = total.dimensions
    return row | {
        "metric": total.kind.value,
        "quantity": total.quantity,
        "events": total.events,
        "unvalued": total.unvalued,
        "latest_event": format_time(total.latest_event_ms),
    }
