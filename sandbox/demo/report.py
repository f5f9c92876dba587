"""What the demo prints at its end: outcomes, usage beside Stripe's, the law in numbers.

Owns the tables only; the numbers are handed in.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

Totals = Mapping[tuple[str, str], Decimal]
"""(customer, meter) -> units."""


def print_outcomes(console: Console, outcomes: Mapping[str, int], expected: Mapping[str, int]) -> bool:
    """What became of every accepted event; returns whether it is what was sent."""
    table = Table(
        box=SIMPLE_HEAD, title="What became of every accepted event", title_justify="left", pad_edge=False
    )
    table.add_column("outcome")
    table.add_column("Tollgate", justify="right")
    table.add_column("history file", justify="right")
    table.add_column("")
    good = True
    for name in ("received", "counted", "unmatched", "duplicate", "late", "dead"):
        same = outcomes.get(name, 0) == expected.get(name, 0)
        good &= same
        table.add_row(name, f"{outcomes.get(name, 0):,}", f"{expected.get(name, 0):,}", _mark(same))
    console.print(table)
    return good


def print_usage(
    console: Console, names: Mapping[str, str], ledger: Totals, stripe: Totals, truth: Totals
) -> bool:
    """Usage per customer and meter in the ledger, at Stripe and by the history; returns whether all agree."""
    table = Table(box=SIMPLE_HEAD, title="Usage per customer and meter", title_justify="left", pad_edge=False)
    for heading in ("customer", "meter"):
        table.add_column(heading)
    for heading in ("ledger", "Stripe", "history file"):
        table.add_column(heading, justify="right")
    table.add_column("")
    good = True
    for customer, meter in sorted(set(ledger) | set(stripe) | set(truth)):
        counts = [source.get((customer, meter), Decimal(0)) for source in (ledger, stripe, truth)]
        same = counts[0] == counts[1] == counts[2]
        good &= same
        table.add_row(names.get(customer, customer), meter, *(f"{count:,f}" for count in counts), _mark(same))
    console.print(table)
    return good


def _mark(good: bool) -> str:
    return "[green]equal[/]" if good else "[bold red]DIFFERS[/]"
