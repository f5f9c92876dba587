"""Amendments on SQLite and PostgreSQL: their trail, what they meet, and what planning makes of a fall."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

import pytest

from tests.contract.ledger.postings_world import HOUR_MS, T0, World
from tollgate.ledger.amendments import inspect_site, list_amendments, note_amendment
from tollgate.ledger.plan_rows import Slot
from tollgate.metering.closed import ClosedPolicy

A, B = "user:a", "user:b"


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    made = World.make(ledger_url)
    made.customer("cus_1", A, B)
    made.period("cus_1")
    yield made
    made.engine.dispose()


def _amend(world: World, meter: int, account: str, quantity: str, name: str = "", window: int = 0) -> Slot:
    """An operator has asked for it; what the meter service then counts is up to the test."""
    slot = Slot(meter, T0 + window * HOUR_MS, account)
    name = name or f"{account}-{window}-{quantity}"
    assert note_amendment(world.engine, name, slot, Decimal(quantity), "eve", "a test", world.now_ms)
    return slot


def test_a_fall_that_was_asked_for_is_posted(world: World) -> None:
    """10 are at Stripe, 4 are taken back: a posting of -4. Then all of the rest is."""
    meter = world.meter()
    world.use(meter, A, 10)
    world.settle_all()
    _amend(world, meter, A, "-4")
    world.use(meter, A, 6)
    world.settle_all()
    assert [p.quantity for p in world.postings()] == [Decimal(10), Decimal(-4)]
    _amend(world, meter, A, "-6")
    world.use(meter, A, 0)
    world.settle_all()
    assert world.delivered() == {("cus_1", meter): Decimal(0)}
    assert world.held() == {}
    world.check_chains()


def test_a_fall_below_nothing_is_held(world: World) -> None:
    """A negative total is a credit for an operator; what brings it back above releases it."""
    meter = world.meter()
    world.use(meter, A, 10)
    world.settle_all()
    _amend(world, meter, A, "-12")
    world.use(meter, A, -2)
    world.settle_all()
    assert world.held() == {(meter, 0, A): ("negative", Decimal(-12))}
    world.use(meter, A, 1)
    world.settle_all()
    assert world.held() == {}
    assert world.delivered() == {("cus_1", meter): Decimal(1)}


def test_a_fall_nobody_asked_for_is_held_also_beside_one_that_was(world: World) -> None:
    """More than was taken back, or another account's or window's: somebody's mistake, and no credit."""
    meter = world.meter()
    world.use(meter, A, 10)
    world.use(meter, A, 10, window=1)
    world.settle_all()
    _amend(world, meter, A, "-4")
    world.use(meter, A, 5)
    world.use(meter, A, 9, window=1)
    world.settle_all()
    assert world.held() == {
        (meter, 0, A): ("negative", Decimal(-5)),
        (meter, 1, A): ("negative", Decimal(-1)),
    }


def test_a_fall_in_a_chain_of_two_accounts_counts_both(world: World) -> None:
    """One takes back, the other grows meanwhile, and the other way round."""
    meter = world.meter()
    world.use(meter, A, 10)
    world.use(meter, B, 5)
    world.settle_all()
    _amend(world, meter, A, "-4")
    _amend(world, meter, B, "-3")
    world.use(meter, A, 6)
    world.use(meter, B, 2)
    world.settle_all()
    assert world.delivered() == {("cus_1", meter): Decimal(8)}
    assert world.held() == {}


def test_what_is_added_is_posted_like_any_usage(world: World) -> None:
    """Also for an account that had none in the window, and in a closed period by its policy."""
    meter = world.meter()
    _amend(world, meter, A, "3")
    world.use(meter, A, 3)
    world.settle_all()
    assert world.delivered() == {("cus_1", meter): Decimal(3)}


def test_the_trail_takes_an_id_once(world: World) -> None:
    """The same again changes nothing; the id with other contents is refused; a reason and a name are needed."""
    meter = world.meter()
    slot = _amend(world, meter, "odd/name", "2.50", "amendment1")
    again = ("amendment1", slot, Decimal("2.5"), "eve", "a test", world.now_ms)
    assert not note_amendment(world.engine, *again)
    with pytest.raises(ValueError, match="another amendment"):
        note_amendment(world.engine, "amendment1", slot, Decimal(3), "eve", "a test", world.now_ms)
    for who, reason in (("", "a test"), ("eve", " ")):
        with pytest.raises(ValueError, match="reason"):
            note_amendment(world.engine, "amendment2", slot, Decimal(3), who, reason, world.now_ms)
    (only,) = list_amendments(world.engine)
    assert (only.meter, only.account, only.window_start_ms) == ("calls", "odd/name", T0)
    assert only.quantity == Decimal("2.5")


def test_the_site_says_what_an_amendment_would_meet(world: World) -> None:
    """Usage so far, the payer, pinned or mapped, and whether the invoice is final."""
    meter = world.meter()
    slot = Slot(meter, T0, A)
    site = inspect_site(world.engine, slot, T0, "calls")
    assert (site.account_known, site.counted, site.customer_id, site.final) == (
        True,
        Decimal(0),
        "cus_1",
        False,
    )
    assert site.policy is None
    world.use(meter, A, 4)
    world.use(meter, A, 3, partition=1, dimensions='{"m":"x"}')
    world.settle_all()
    world.map(A, "cus_1", to_ms=0)
    world.period("cus_1", state="closed")
    site = inspect_site(world.engine, slot, T0, "calls")
    assert (site.counted, site.customer_id, site.final, site.policy) == (
        Decimal(7),
        "cus_1",
        True,
        ClosedPolicy.RESTAMP,
    )
    stranger = inspect_site(world.engine, Slot(meter, T0, "user:x"), T0, "calls")
    assert (stranger.account_known, stranger.customer_id, stranger.final) == (False, None, False)
