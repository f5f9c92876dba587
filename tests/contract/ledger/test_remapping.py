"""Mappings that change, on SQLite and PostgreSQL: what was posted stays, what comes goes where it belongs, to the unit."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest
from sqlalchemy import select

from tests.contract.ledger.postings_world import HOUR_MS, T0, World
from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.tables import attributions

A, B = "user:a", "user:b"


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    """Two customers, each with an open period; account A is the first one's from the beginning."""
    made = World.make(ledger_url)
    made.customer("cus_1")
    made.customer("cus_2")
    made.period("cus_1")
    made.period("cus_2")
    made.map(A, "cus_1")
    yield made
    made.engine.dispose()


def _move(world: World, account: str, from_customer: str, to_customer: str, at_ms: int) -> None:
    """From event time `at_ms` on, somebody else pays for the account."""
    world.map(account, from_customer, to_ms=at_ms)
    world.map(account, to_customer, from_ms=at_ms)


def _paid(world: World) -> dict[str, Decimal]:
    found: dict[str, Decimal] = {}
    for (customer, _), quantity in world.delivered().items():
        found[customer] = found.get(customer, Decimal(0)) + quantity
    return found


def _pins(world: World) -> dict[tuple[str, int], str]:
    """Customer by account and window number."""
    with read_snapshot(world.engine) as connection:
        return {
            (row.account, (row.window_start_ms - T0) // HOUR_MS): row.customer_id
            for row in connection.execute(select(attributions))
        }


def test_later_usage_of_a_posted_window_stays_with_whom_it_was_posted_to(world: World) -> None:
    """The mapping moves into the past: windows posted before it stay, the others move."""
    meter = world.meter()
    world.use(meter, A, 10)
    world.settle_all()
    _move(world, A, "cus_1", "cus_2", T0)
    world.use(meter, A, 13)
    world.use(meter, A, 5, window=1)
    world.settle_all()
    assert _paid(world) == {"cus_1": 13, "cus_2": 5}
    assert _pins(world) == {(A, 0): "cus_1", (A, 1): "cus_2"}
    assert world.held() == {}


def test_back_again_is_as_well_only_for_windows_to_come(world: World) -> None:
    """cus_1 -> cus_2 -> cus_1: each window is paid by one of them, and every unit once."""
    meter = world.meter()
    world.use(meter, A, 1)
    world.settle_all()
    _move(world, A, "cus_1", "cus_2", T0 + HOUR_MS)
    world.use(meter, A, 20, window=1)
    world.settle_all()
    world.map(A, "cus_2", from_ms=T0 + HOUR_MS, to_ms=T0 + 2 * HOUR_MS)
    world.map(A, "cus_1", from_ms=T0 + 2 * HOUR_MS)
    for window, quantity in enumerate((3, 27, 300)):
        world.use(meter, A, quantity, window=window)
    world.settle_all()
    assert _paid(world) == {"cus_1": 3 + 300, "cus_2": 27}
    world.check_chains()


def test_a_window_nobody_posted_goes_to_who_has_it_when_it_is(world: World) -> None:
    """Held for want of a mapping, then for want of an item: it is pinned to nobody until it is posted."""
    meter = world.meter()
    world.use(meter, B, 7)
    world.settle_all()
    assert world.held() == {(meter, 0, B): ("no_mapping", Decimal(7))}
    world.customer("cus_3")
    world.map(B, "cus_3")
    world.settle_all()
    assert world.held() == {(meter, 0, B): ("no_item", Decimal(7))}
    assert _pins(world) == {}
    world.map(B, "cus_3", to_ms=0)
    world.map(B, "cus_2", from_ms=1)
    world.settle_all()
    assert _paid(world) == {"cus_2": 7}
    assert _pins(world) == {(B, 0): "cus_2"}


def test_a_mapping_that_begins_inside_a_window_takes_the_next_one(world: World) -> None:
    """A window is one customer's as a whole: whose mapping holds at its start."""
    meter = world.meter()
    _move(world, A, "cus_1", "cus_2", T0 + HOUR_MS // 2)
    world.use(meter, A, 10, at_ms=T0 + HOUR_MS - 1)
    world.use(meter, A, 1, window=1)
    world.settle_all()
    assert _paid(world) == {"cus_1": 10, "cus_2": 1}


def test_two_accounts_of_one_chain_part_without_a_unit_lost(world: World) -> None:
    """B leaves for another customer: what the common chain had of B's window stays in it, and grows there."""
    meter = world.meter()
    world.map(B, "cus_1")
    world.use(meter, A, 10)
    world.use(meter, B, 5)
    world.settle_all()
    assert _paid(world) == {"cus_1": 15}
    _move(world, B, "cus_1", "cus_2", T0)
    world.use(meter, A, 11)
    world.use(meter, B, 8)
    world.use(meter, A, 100, window=1)
    world.use(meter, B, 200, window=1)
    world.settle_all()
    assert _paid(world) == {"cus_1": 11 + 8 + 100, "cus_2": 200}
    world.check_chains()


def test_an_account_that_joins_adds_to_the_chain_it_finds(world: World) -> None:
    """B comes to A's customer: B's earlier windows stay where they are, later ones are one chain with A's."""
    meter = world.meter()
    world.map(B, "cus_2")
    world.use(meter, A, 10)
    world.use(meter, B, 5)
    world.use(meter, A, 3, window=1)
    world.settle_all()
    _move(world, B, "cus_2", "cus_1", T0 + HOUR_MS)
    world.use(meter, B, 6)
    world.use(meter, B, 4, window=1)
    world.settle_all()
    assert _paid(world) == {"cus_1": 10 + 3 + 4, "cus_2": 6}
    chains = {p.posting_key for p in world.postings() if p.customer_id == "cus_1"}
    assert len(chains) == 2


def test_a_mapping_that_ends_with_no_other_holds_only_what_comes_after(world: World) -> None:
    """The posted window still grows with its customer; the next one is held without a mapping."""
    meter = world.meter()
    world.use(meter, A, 10)
    world.settle_all()
    world.map(A, "cus_1", to_ms=T0)
    world.use(meter, A, 12)
    world.use(meter, A, 1, window=1)
    world.settle_all()
    assert _paid(world) == {"cus_1": 12}
    assert world.held() == {(meter, 1, A): ("no_mapping", Decimal(1))}


def test_a_closed_window_is_made_up_for_by_whom_it_was_posted_to(world: World) -> None:
    """Late usage of the old customer's final invoice is the old customer's, in its own current period."""
    meter = world.meter()
    world.use(meter, A, 10)
    world.settle_all()
    edge_ms = T0 + HOUR_MS
    for customer in ("cus_1", "cus_2"):
        world.period(customer, end_ms=edge_ms, state="closed")
        world.period(customer, start_ms=edge_ms)
    _move(world, A, "cus_1", "cus_2", T0)
    world.use(meter, A, 14)
    world.settle_all()
    late = [p for p in world.postings() if p.for_period_ms is not None]
    assert [(p.customer_id, p.quantity) for p in late] == [("cus_1", Decimal(4))]
    assert _paid(world) == {"cus_1": 14}
