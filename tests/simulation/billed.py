"""What Stripe must hold when a run has drained, and whether it does.

Owns the comparison of what was used in truth with what Stripe has, customer by customer and hour by hour, and of who
was charged with who may be. It refuses to know how postings came about. Of the ledger it reads who was chosen to pay
(`attributions`), what is held and which mappings there were; every quantity is the model's and Stripe's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal
from typing import TYPE_CHECKING

from tests.simulation.metered import USERS
from tests.simulation.model import Counted
from tests.simulation.traffic import CUSTOMERS, MAILBOXES

if TYPE_CHECKING:
    from tests.simulation.world import World

Slot = tuple[int, int, str]
"""Meter id, window start, account."""

Total = tuple[str, str, int]
"""Meter name, customer, hour (epoch seconds); -1 where hours do not matter."""

SHOWN = 6


def judge_billing(world: World, truth: Counted) -> list[str]:
    """Everything that is wrong between usage and Stripe (O1, O3)."""
    used = _used(truth)
    payers = {
        (meter, window, account): customer
        for meter, window, account, customer in world.ledger.query(
            "SELECT meter_id, window_start_ms, account, customer_id FROM attributions"
        )
    }
    found = [f"Stripe: {violation}" for violation in world.stripe.violations]
    found += _unpaid(world, used, payers)
    found += _wrong_payers(world, payers)
    expected = _expected(world, truth, used, payers)
    held = _held_at_stripe(world, expected)
    found += [
        f"Stripe holds {held.get(key, Decimal(0))} of {key[0]} for {key[1]}"
        + (f" in hour {key[2]}" if key[2] >= 0 else "")
        + f", {expected.get(key, Decimal(0))} were used"
        for key in sorted(held.keys() | expected.keys())
        if held.get(key, Decimal(0)) != expected.get(key, Decimal(0))
    ][:SHOWN]
    return found


def _used(truth: Counted) -> dict[Slot, int]:
    """An account's usage lies in one partition."""
    return {key[1:]: quantity for key, quantity in truth.usage.items()}


def _unpaid(world: World, used: dict[Slot, int], payers: dict[Slot, str]) -> list[str]:
    """Usage nobody pays for must be held, for a reason that the mappings bear out."""
    holds = {
        (meter, window, account): reason
        for meter, window, account, reason in world.ledger.query(
            "SELECT meter_id, window_start_ms, account, reason FROM holds"
        )
    }
    found = []
    for slot, quantity in sorted(used.items()):
        if slot in payers or not quantity:
            continue
        reason, mapped = holds.get(slot), len(_holders(world, slot[2], slot[1]))
        excused = (reason == "no_mapping" and mapped == 0) or (reason == "ambiguous" and mapped > 1)
        if not excused:
            found.append(
                f"{quantity} used in {slot} are charged to nobody, held as {reason}, {mapped} mappings"
            )
    for slot, reason in sorted(holds.items()):
        if slot in payers and reason != "negative":
            found.append(f"usage of {slot} is still held: {reason}")
    return found[:SHOWN]


def _holders(world: World, account: str, at_ms: int) -> set[str]:
    rows: Iterable[tuple[str]] = world.ledger.query(
        "SELECT customer_id FROM mappings WHERE account = ? AND from_ms <= ? AND (to_ms IS NULL OR ? < to_ms)",
        account,
        at_ms,
        at_ms,
    )
    return {row[0] for row in rows}


def _wrong_payers(world: World, payers: dict[Slot, str]) -> list[str]:
    """Who pays was the account's customer; where nothing was moved, the one there is."""
    found = []
    for slot, customer in sorted(payers.items()):
        account = slot[2]
        name = account.removeprefix("user:")
        if name in CUSTOMERS:
            may = {name}
        elif account in world.director.moved:
            may = set(CUSTOMERS)
        else:
            may = {CUSTOMERS[MAILBOXES.index(name)]}
        if customer not in may:
            found.append(f"{slot} is charged to {customer}")
    return found[:SHOWN]


def _expected(
    world: World, truth: Counted, used: dict[Slot, int], payers: dict[Slot, str]
) -> dict[Total, Decimal]:
    """By hour where postings are stamped within their window; in all where periods or closed invoices move stamps."""
    names = {rule.meter_id: rule.name for rule in world.rules}
    moved = {
        row[0]
        for row in world.ledger.query("SELECT customer_id FROM postings WHERE for_period_ms IS NOT NULL")
    }
    expected: dict[Total, Decimal] = {}
    values: dict[str, set[str]] = {}
    for slot, customer in payers.items():
        name = names[slot[0]]
        if name == USERS:
            for partition in world.log.partitions:
                values.setdefault(customer, set()).update(truth.values.get((partition, *slot), ()))
            continue
        whole = customer in moved or (name == "weight" and world.plan.profile == "usage_record")
        key = name, customer, -1 if whole else slot[1] // 1000
        expected[key] = expected.get(key, Decimal(0)) + used.get(slot, 0)
    expected |= {(USERS, customer, -1): Decimal(len(found)) for customer, found in values.items()}
    return {key: quantity for key, quantity in expected.items() if quantity}


def _held_at_stripe(world: World, expected: dict[Total, Decimal]) -> dict[Total, Decimal]:
    whole = {key[:2] for key in expected if key[2] < 0}
    held: dict[Total, Decimal] = {}
    for (name, customer, hour), quantity in world.stripe.totals().items():
        key = name, customer, -1 if (name, customer) in whole else hour
        held[key] = held.get(key, Decimal(0)) + quantity
    for item_id in world.stripe.records:
        customer, _, name = item_id.removeprefix("si_").rpartition("_")
        key = name, customer, -1
        held[key] = held.get(key, Decimal(0)) + world.stripe.recorded(item_id)
    return {key: quantity for key, quantity in held.items() if quantity}
