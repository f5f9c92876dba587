"""Usage of closed periods on SQLite and PostgreSQL: restamped, charged by invoice items, or held."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal

import pytest

from services.stripe_sync.journal import entry_from_posting
from services.stripe_sync.plan import Rules
from tests.contract.ledger.postings_world import HOUR_MS, LEDGER_ID, T0, World
from tollgate.ledger.leases import LeaseLost, read_lease, take_lease
from tollgate.ledger.posting_journal import import_journal
from tollgate.ledger.posting_rows import Outcome, Posting, PostingMode, PostingState
from tollgate.ledger.postings import park_posting, resume_posting
from tollgate.ledger.prices import FetchedPrice, store_prices, wanted_prices
from tollgate.ledger.sending import mark_sending, record_outcomes
from tollgate.metering.closed import ClosedPolicy
from tollgate.metering.price import Interval, Price, PriceModel, Tier

A, B = "user:a", "user:b"
DAY_MS = 24 * HOUR_MS
P1 = T0 - 10 * HOUR_MS
"""The first period is [P1, P2); the next one is open."""
P2 = T0 + 2 * HOUR_MS

GRADUATED = Price(
    PriceModel.GRADUATED,
    "usd",
    Interval("month"),
    tiers=(Tier(10, Decimal(10)), Tier(20, Decimal(5), Decimal(7)), Tier(None, Decimal("0.5"))),
)
"""Ten units at 10 cents; then 7 cents at once and 5 each up to 20; then half a cent each."""


@pytest.fixture
def world(ledger_url: str) -> Iterator[World]:
    made = World.make(ledger_url)
    made.customer("cus_1", A, B)
    made.period("cus_1", start_ms=P1, end_ms=P2, item="si")
    made.now_ms = P2 + HOUR_MS
    yield made
    made.engine.dispose()


def _close(world: World, state: str = "closed") -> None:
    """The first period's invoice is final, the next period has begun."""
    world.period("cus_1", start_ms=P1, end_ms=P2, item="si", state=state)
    world.period("cus_1", start_ms=P2, end_ms=P2 + 30 * DAY_MS, item="si")


def _policy(world: World, closed: ClosedPolicy) -> None:
    world.rules = Rules(LEDGER_ID, closed)


def _price(world: World, price: Price | None = GRADUATED, problem: str = "") -> None:
    store_prices(world.engine, world.lease, [FetchedPrice("price_1", price, problem)], world.now_ms)


def _stamped(world: World, start_ms: int, end_ms: int) -> Decimal:
    """Units of meter events stamped in a period: what its invoice bills."""
    return sum(
        (
            p.quantity
            for p in world.postings()
            if p.mode is PostingMode.DELTA and start_ms <= p.timestamp_s * 1000 < end_ms
        ),
        Decimal(0),
    )


def _items(world: World) -> list[Posting]:
    return sorted(
        (p for p in world.postings() if p.mode is PostingMode.INVOICE_ITEM),
        key=lambda p: (p.planned_ms, p.window_start_ms, p.seq),
    )


def _amounts(world: World) -> list[int]:
    return [json.loads(p.body)["amount"] for p in _items(world)]


def test_late_usage_is_stamped_into_the_current_period(world: World) -> None:
    """Its own link of its own chain, marked with the period it makes up for; the final invoice's part stays."""
    meter = world.meter()
    world.use(meter, A, 10)
    world.settle_all()
    _close(world)
    world.use(meter, A, 14)
    world.settle_all()
    first, second = world.postings()
    assert first.posting_key == second.posting_key
    assert (first.quantity, first.for_period_ms) == (Decimal(10), None)
    assert (second.quantity, second.for_period_ms, second.mode) == (Decimal(4), P1, PostingMode.DELTA)
    assert second.timestamp_s == world.now_ms // 1000
    assert json.loads(second.body)["timestamp"] == second.timestamp_s
    assert _stamped(world, P1, P2) == 10
    assert _stamped(world, P2, P2 + 30 * DAY_MS) == 4
    assert world.held() == {}


def test_more_late_usage_adds_only_what_is_new(world: World) -> None:
    """However often it grows, and a period later still, each unit is billed once and stays where it was billed."""
    meter = world.meter()
    world.use(meter, A, 10)
    world.settle_all()
    _close(world)
    for total in (14, 15, 40):
        world.now_ms += HOUR_MS
        world.use(meter, A, total)
        world.use(meter, B, total)
        world.settle_all()
        world.settle_all()
    assert _stamped(world, P2, P2 + 30 * DAY_MS) == (40 - 10) + 40
    # The second period closes as well, and more comes.
    world.period("cus_1", start_ms=P2, end_ms=P2 + 30 * DAY_MS, item="si", state="closed")
    world.period("cus_1", start_ms=P2 + 30 * DAY_MS, end_ms=P2 + 60 * DAY_MS, item="si")
    world.now_ms = P2 + 31 * DAY_MS
    world.use(meter, A, 41)
    world.settle_all()
    assert _stamped(world, P1, P2) == 10
    assert _stamped(world, P2, P2 + 30 * DAY_MS) == 70
    assert _stamped(world, P2 + 30 * DAY_MS, P2 + 60 * DAY_MS) == 1
    assert {p.for_period_ms for p in world.postings()} == {None, P1}
    world.check_chains()


def test_a_restamped_posting_that_was_refused_is_stamped_anew(world: World) -> None:
    """Void, taken back, and posted again under a new identifier with the time it is then."""
    meter = world.meter()
    _close(world)
    world.use(meter, A, 5)
    world.plan()
    (refused,) = world.journal()
    world.state(refused, PostingState.VOID, error="settled")
    world.now_ms += HOUR_MS
    world.settle_all()
    world.settle_all()
    void, reversal, again = world.postings()
    assert [p.state for p in (void, reversal, again)] == [
        PostingState.VOID,
        PostingState.REVERSAL,
        PostingState.DELIVERED,
    ]
    assert again.identifier != refused.identifier
    assert (again.quantity, again.timestamp_s) == (Decimal(5), world.now_ms // 1000)


def test_without_a_current_period_it_waits_for_one(world: World) -> None:
    """Held as closed; the next period's arrival releases it."""
    meter = world.meter()
    world.period("cus_1", start_ms=P1, end_ms=P2, item="si", state="closed")
    world.use(meter, A, 5)
    world.plan()
    assert world.held() == {(meter, 0, A): ("closed", Decimal(5))}
    world.period("cus_1", start_ms=P2, end_ms=P2 + 30 * DAY_MS, item="si")
    world.settle_all()
    assert world.held() == {}
    assert _stamped(world, P2, P2 + 30 * DAY_MS) == 5


def test_of_two_items_the_period_of_its_own_is_taken(world: World) -> None:
    """Another item of the same meter is no place for it while its own has a period; two others are ambiguous."""
    meter = world.meter()
    world.period("cus_1", start_ms=P1, end_ms=P2, item="si", state="closed")
    world.period("cus_1", start_ms=P2, end_ms=P2 + DAY_MS, item="other")
    world.period("cus_1", start_ms=P2, end_ms=P2 + 9 * DAY_MS, item="third")
    world.use(meter, A, 5)
    world.plan()
    assert world.held() == {(meter, 0, A): ("closed", Decimal(5))}
    world.period("cus_1", start_ms=P2, end_ms=P2 + 30 * DAY_MS, item="si")
    world.settle_all()
    assert world.held() == {}


def test_the_period_alone_decides_until_it_is_closed(world: World) -> None:
    """A period that has ended with its invoice still a draft takes its late usage itself."""
    meter = world.meter()
    _close(world, state="open")
    world.use(meter, A, 5)
    world.settle_all()
    (only,) = world.postings()
    assert only.for_period_ms is None
    assert P1 <= only.timestamp_s * 1000 < P2


def test_a_fall_in_a_closed_period_is_a_credit_for_an_operator(world: World) -> None:
    """Nothing of it is restamped or put on an item."""
    meter = world.meter()
    world.use(meter, A, 10)
    world.settle_all()
    _close(world)
    for policy in ClosedPolicy:
        _policy(world, policy)
        world.use(meter, A, 7)
        world.settle_all()
        assert world.held() == {(meter, 0, A): ("negative", Decimal(-3))}
    assert len(world.postings()) == 1


def test_a_meter_may_choose_for_itself(world: World) -> None:
    """Its own policy goes before the installation's."""
    held, restamped = world.meter("held", closed=ClosedPolicy.HOLD), world.meter("restamped")
    for name in ("held", "restamped"):
        world.period("cus_1", name, P1, P2, "closed", item=name)
        world.period("cus_1", name, P2, P2 + DAY_MS, item=name)
    world.use(held, A, 3)
    world.use(restamped, A, 4)
    world.settle_all()
    assert world.held() == {(held, 0, A): ("closed", Decimal(3))}
    assert world.delivered() == {("cus_1", restamped): Decimal(4)}


def test_a_changed_policy_reaches_what_is_held(world: World) -> None:
    """hold -> restamp: what was held is posted at the next planning, without anything else changing."""
    meter = world.meter()
    _policy(world, ClosedPolicy.HOLD)
    _close(world)
    world.use(meter, A, 5)
    world.settle_all()
    assert world.held() == {(meter, 0, A): ("closed", Decimal(5))}
    _policy(world, ClosedPolicy.RESTAMP)
    world.settle_all()
    assert world.held() == {}
    assert world.plan().candidates == 0


def test_an_item_costs_what_it_would_have_added_to_the_final_invoice(world: World) -> None:
    """8 units were invoiced: 80 cents. 5 more reach the second tier: 100 + 7 + 3 x 5 = 122, so the item is 42."""
    _policy(world, ClosedPolicy.INVOICE_ITEM)
    meter = world.meter()
    world.use(meter, A, 8)
    world.settle_all()
    _close(world)
    world.use(meter, A, 13)
    world.plan()
    assert world.held() == {(meter, 0, A): ("no_price", Decimal(5))}
    assert wanted_prices(world.engine) == ["price_1"]
    _price(world)
    assert wanted_prices(world.engine) == []
    world.plan()
    (item,) = _items(world)
    assert json.loads(item.body) == {
        "amount": 42,
        "currency": "usd",
        "customer": "cus_1",
        "description": "calls: 5 of 2027-01-14 to 2027-01-15, not on that invoice",
        "metadata": {
            "tollgate_identifier": item.identifier,
            "tollgate_meter": "calls",
            "tollgate_quantity": "5",
        },
        "period": {"end": P2 // 1000, "start": P1 // 1000},
    }
    assert (item.quantity, item.for_period_ms, item.state) == (Decimal(5), P1, PostingState.PLANNED)
    assert world.held() == {}


def test_items_build_on_each_other_to_the_cent(world: World) -> None:
    """Two windows in one planning, then more of one of them: together what one invoice of all would have said.

    8 invoiced: 80. Then 3 + 4 more (15 in all): 100 + 7 + 25 = 132, so 52 over both items. Then 10 more (25): the
    second tier is full with 100 + 7 + 50 = 157, and 5 x 0.5 = 2.5 make 159.5, rounded 160: 28.
    """
    _policy(world, ClosedPolicy.INVOICE_ITEM)
    meter = world.meter()
    _price(world)
    world.use(meter, A, 8)
    world.settle_all()
    _close(world)
    world.use(meter, A, 11)
    world.use(meter, A, 4, window=1)
    world.settle_all()
    assert sum(_amounts(world)) == 52
    world.now_ms += HOUR_MS
    world.use(meter, B, 10)
    world.settle_all()
    assert _amounts(world)[-1] == 28
    assert sum(_amounts(world)) == 160 - 80
    assert sum(p.quantity for p in _items(world)) == 17
    assert _stamped(world, P1, P2) == 8
    world.check_chains()


def test_what_was_restamped_into_a_period_belongs_to_its_bill(world: World) -> None:
    """The second period's invoice has the first one's late units: its own late ones are priced on top of them.

    6 restamped into the second period and 4 of its own fill the first tier; 1 more late one costs 7 + 5.
    """
    meter = world.meter()
    _price(world)
    _close(world)
    world.use(meter, A, 6)
    world.use(meter, A, 4, window=2)
    world.settle_all()
    world.period("cus_1", start_ms=P2, end_ms=P2 + 30 * DAY_MS, item="si", state="closed")
    world.period("cus_1", start_ms=P2 + 30 * DAY_MS, end_ms=P2 + 60 * DAY_MS, item="si")
    world.now_ms = P2 + 31 * DAY_MS
    _policy(world, ClosedPolicy.INVOICE_ITEM)
    world.use(meter, A, 5, window=2)
    world.settle_all()
    assert _amounts(world) == [12]


def test_an_item_that_is_not_there_is_taken_back_and_made_again(world: World) -> None:
    """Its quantity is no part of the bill while it is void: the new one has the same amount, another identifier."""
    _policy(world, ClosedPolicy.INVOICE_ITEM)
    meter = world.meter()
    _price(world)
    _close(world)
    world.use(meter, A, 12)
    world.plan()
    (lost,) = world.journal()
    world.state(lost, PostingState.VOID, error="not_delivered")
    world.settle_all()
    world.settle_all()
    assert [json.loads(p.body)["amount"] for p in _items(world)] == [117, 117]
    assert [p.state for p in _items(world)] == [PostingState.VOID, PostingState.DELIVERED]
    assert len({p.identifier for p in _items(world)}) == 2


def test_a_price_that_cannot_be_worked_with_keeps_it_held(world: World) -> None:
    """And it is not asked for again and again."""
    _policy(world, ClosedPolicy.INVOICE_ITEM)
    meter = world.meter()
    _close(world)
    world.use(meter, A, 5)
    world.plan()
    _price(world, None, "it is licensed, not metered")
    world.settle_all()
    assert world.held() == {(meter, 0, A): ("no_price", Decimal(5))}
    assert wanted_prices(world.engine) == []


@pytest.mark.parametrize("mode", ["window_total", "usage_record"])
def test_totals_that_replace_are_never_stamped_elsewhere(world: World, mode: str) -> None:
    """restamp would replace what is there: they are charged by an item, 2 of 9 units at 10 cents."""
    meter = world.meter(mode=mode)
    _price(world)
    world.now_ms = T0 + HOUR_MS
    world.use(meter, A, 7)
    world.settle_all()
    _close(world)
    world.now_ms = P2 + HOUR_MS
    world.use(meter, A, 9)
    world.settle_all()
    assert _amounts(world) == [20]
    total, item = world.postings()
    assert (total.quantity_to, item.quantity) == (Decimal(7), Decimal(2))
    assert item.for_period_ms == P1


def test_what_usage_records_are_late_for_becomes_an_item_before_the_invoice_is_final(world: World) -> None:
    """They have no grace: from the period's end on the rest is an item, at the period's price."""
    meter = world.meter(mode="usage_record")
    _price(world)
    _close(world, state="open")
    world.use(meter, A, 3)
    world.settle_all()
    assert _amounts(world) == [30]


def test_a_dry_run_rehearses_items_and_restamps(world: World) -> None:
    """Nothing is sent; amounts build on what was rehearsed before."""
    meter = world.meter(send="dry_run")
    _price(world)
    _policy(world, ClosedPolicy.INVOICE_ITEM)
    world.use(meter, A, 8)
    world.settle_all()
    _close(world)
    world.use(meter, A, 13)
    world.settle_all()
    rehearsed = world.postings()[-1]
    assert rehearsed.state is PostingState.DRY_RUN
    assert (json.loads(rehearsed.body)["amount"], rehearsed.for_period_ms) == (42, P1)


def test_a_rehearsal_is_no_part_of_a_live_bill(world: World) -> None:
    """8 units were only rehearsed: the first 4 that are charged cost 10 cents each."""
    meter = world.meter(send="dry_run")
    _price(world)
    world.use(meter, A, 8)
    world.settle_all()
    _close(world)
    world.switch(meter, "live")
    _policy(world, ClosedPolicy.INVOICE_ITEM)
    world.use(meter, A, 4, window=1)
    world.settle_all()
    assert _amounts(world) == [40]


def test_what_never_arrived_elsewhere_is_no_part_of_a_bill(world: World) -> None:
    """9 were restamped into the next period and refused; taken back, they are charged from nothing: 90 cents."""
    meter = world.meter()
    _price(world)
    _close(world)
    world.use(meter, A, 9)
    world.plan()
    (refused,) = world.journal()
    world.state(refused, PostingState.VOID, error="settled")
    _policy(world, ClosedPolicy.INVOICE_ITEM)
    world.settle_all()
    world.settle_all()
    assert _amounts(world) == [90]


def test_after_a_restore_an_item_is_looked_for_before_it_is_made_again(world: World) -> None:
    """The journal's item comes back as unknown and past Stripe's horizon, with the period it is for."""
    _policy(world, ClosedPolicy.INVOICE_ITEM)
    meter = world.meter()
    _price(world)
    _close(world)
    world.use(meter, A, 5)
    world.plan()
    (lost,) = world.journal()
    world.forget({lost.posting_key: 0})
    import_journal(world.engine, world.lease, [entry_from_posting(lost)], {}, world.now_ms)
    (found,) = world.postings()
    assert (found.state, found.for_period_ms, found.body) == (PostingState.UNKNOWN, P1, lost.body)
    assert found.first_sent_ms is not None
    assert world.now_ms - found.first_sent_ms >= 20 * HOUR_MS


def test_an_item_that_may_be_there_keeps_its_key_when_it_is_resumed(world: World) -> None:
    """Another key could make it twice; one that certainly is not there gets a new one, as any posting."""
    _policy(world, ClosedPolicy.INVOICE_ITEM)
    meter = world.meter()
    _price(world)
    _close(world)
    world.use(meter, A, 5)
    world.plan()
    (item,) = world.journal()
    mark_sending(world.engine, world.lease, [item.ref], world.now_ms)
    unknown = Outcome(*item.ref, PostingState.UNKNOWN)
    record_outcomes(world.engine, world.lease, [unknown], world.now_ms)
    assert park_posting(world.engine, *item.ref, "by an operator")
    assert resume_posting(world.engine, *item.ref)
    assert world.postings()[0].idempotency_key == item.idempotency_key
    refused = replace(unknown, state=PostingState.PARKED, certain=True)
    record_outcomes(world.engine, world.lease, [refused], world.now_ms)
    assert resume_posting(world.engine, *item.ref)
    assert world.postings()[0].idempotency_key != item.idempotency_key


def test_prices_are_kept_under_the_lease(world: World) -> None:
    """A process that no longer leads stores nothing."""
    seen = read_lease(world.engine, "stripe_sync")
    assert take_lease(world.engine, "stripe_sync", "two", seen, world.now_ms + DAY_MS) is not None
    with pytest.raises(LeaseLost):
        _price(world)
