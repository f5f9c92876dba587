"""Projector, consumer and the real ledger: whatever the order of webhooks, one state."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.webhooks.event import event_from
from services.webhooks.metrics import Metrics
from services.webhooks.projector import Batch, Projector
from tests.unit.webhooks.fakes import FakeStripe, customer_body, invoice_body, subscription_body
from tollgate.ledger.billing import Receipt
from tollgate.ledger.customers import CustomerBook
from tollgate.ledger.directory import MappingRule, list_customers, list_mappings
from tollgate.ledger.engine import Engine, open_ledger
from tollgate.ledger.init import Pins, initialise
from tollgate.runtime.clock import ManualClock
from tollgate.runtime.faults import Faults

NOW_S = 1_800_000_000
DAY_S = 86_400
PINS = Pins("cluster", "gateway.events", 1, "acct_1", "test", "seed", "ledger_1")


@pytest.fixture
def engine(ledger_url: str) -> Iterator[Engine]:
    """A ledger as `tollgate init` leaves it."""
    opened = open_ledger(ledger_url)
    initialise(opened, PINS, 1, now_ms=0)
    yield opened
    opened.dispose()


def projector(stripe: FakeStripe, engine: Engine, clock: ManualClock) -> Projector:
    book = CustomerBook(engine, list(MappingRule))
    return Projector(stripe, book, clock, Metrics(CollectorRegistry()), Faults())


def history(stripe: FakeStripe, clock: ManualClock) -> list[dict[str, Any]]:
    """A customer's two days: signed up, billed for a day, cancelled and deleted. The events, in order."""
    first, second = (NOW_S, NOW_S + DAY_S), (NOW_S + DAY_S, NOW_S + 2 * DAY_S)
    events = [
        stripe.put(customer_body("cus_1", "a@example.com"), "customer.created"),
        stripe.put(subscription_body([("si_1", *first)]), "customer.subscription.created"),
    ]
    clock.advance_ms(DAY_S * 1000)
    events += [
        stripe.put(subscription_body([("si_1", *second)]), "customer.subscription.updated"),
        stripe.put(invoice_body("in_1", "draft", first), "invoice.created"),
    ]
    clock.advance_ms(3_600_000)
    events.append(stripe.put(invoice_body("in_1", "paid", first), "invoice.finalized"))
    ended = NOW_S + DAY_S + 7200
    clock.advance_ms(3_600_000)
    cancelled = subscription_body([("si_1", *second)], status="canceled", ended_at=ended)
    events.append(stripe.put(cancelled, "customer.subscription.deleted"))
    return events


def state(engine: Engine) -> tuple[Any, ...]:
    """What others read: customers, mappings, periods; without numbers of fetches and times of writing."""
    with engine.connect() as connection:
        periods = connection.exec_driver_sql(
            "SELECT item_id, period_start_ms, period_end_ms, customer_id, event_name, state "
            "FROM item_periods ORDER BY 1, 2"
        ).fetchall()
        billed = connection.exec_driver_sql(
            "SELECT invoice_id, status, period_end_ms, finalized_ms FROM invoices ORDER BY 1"
        ).fetchall()
        connection.rollback()
    return (
        [(entry.customer_id, entry.email, entry.deleted, entry.accounts) for entry in list_customers(engine)],
        [(row.account, row.customer_id, row.from_ms, row.to_ms) for row in list_mappings(engine)],
        [tuple(row) for row in periods],
        [tuple(row) for row in billed],
    )


def empty(engine: Engine) -> None:
    """Forget everything, so that one database serves many orders."""
    with engine.begin() as connection:
        for table in ("customers", "subscriptions", "invoices", "item_periods", "mappings", "stripe_inbox"):
            connection.exec_driver_sql(f"DELETE FROM {table}")


EXPECTED_PERIODS = [
    ("si_1", NOW_S * 1000, (NOW_S + DAY_S) * 1000, "cus_1", "calls", "closed"),
    ("si_1", (NOW_S + DAY_S) * 1000, (NOW_S + 2 * DAY_S) * 1000, "cus_1", "calls", "removed"),
]
EXPECTED_MAPPINGS = [
    ("company:cus_1", "cus_1", 0, None),
    ("company:sub_1", "cus_1", 0, (NOW_S + DAY_S + 7200) * 1000),
    ("user:a@example.com", "cus_1", 0, None),
    ("user:cus_1", "cus_1", 0, None),
]


async def test_every_order_of_late_webhooks_ends_in_one_state(engine: Engine) -> None:
    """Five webhooks arrive after the story is over, in each of their 120 orders, one of them twice."""
    clock = ManualClock(NOW_S * 1000)
    stripe = FakeStripe(clock)
    events = [event for event in history(stripe, clock) if event["type"] != "invoice.created"]
    rng = random.Random(3)
    for order in itertools.permutations(events):
        empty(engine)
        target = projector(stripe, engine, clock)
        for event in [*order, rng.choice(order)]:
            await target.project(event_from(event), Batch())
        customers, mappings, periods, billed = state(engine)
        assert customers == [
            ("cus_1", "a@example.com", False, ("company:cus_1", "user:a@example.com", "user:cus_1"))
        ]
        assert mappings == EXPECTED_MAPPINGS
        # The first day was over before anybody looked: it is learnt from its invoice.
        assert periods == EXPECTED_PERIODS
        assert billed == [("in_1", "paid", (NOW_S + DAY_S) * 1000, (NOW_S + DAY_S + 3600) * 1000)]


@pytest.mark.parametrize("seed", range(12))
async def test_slow_fetches_side_by_side_end_in_one_state(engine: Engine, seed: int) -> None:
    """Webhooks are projected while the story goes on, twice each, each read answering late by chance."""
    rng = random.Random(seed)
    clock = ManualClock(NOW_S * 1000)
    stripe = FakeStripe(clock)
    events = history(stripe, ManualClock(NOW_S * 1000))
    # The story again, event by event, while earlier ones are still being projected.
    final = dict(stripe.objects)
    stripe.objects.clear()
    target = projector(stripe, engine, clock)
    running: list[asyncio.Task[str]] = []
    for event in events:
        body = event["data"]["object"]
        stripe.objects[body["id"]] = body
        stripe.delays_seconds[body["id"]] = [rng.uniform(0.5, 90) for _ in range(2)]
        running += [asyncio.create_task(target.project(event_from(event), Batch())) for _ in range(2)]
        await asyncio.sleep(0.02)
        clock.advance_ms(rng.randrange(60_000))
        rng.shuffle(running)
    assert stripe.objects == final
    while not all(task.done() for task in running):
        await asyncio.sleep(0.01)
        clock.advance_ms(10_000)
    outcomes = [task.result() for task in running]
    assert set(outcomes) <= {"projected", "superseded", "duplicate"}
    customers, mappings, periods, _ = state(engine)
    assert [row[0] for row in customers] == ["cus_1"]
    assert mappings == EXPECTED_MAPPINGS
    assert periods == EXPECTED_PERIODS
    book = CustomerBook(engine, list(MappingRule))
    assert book.done_events([event["id"] for event in events]) == {event["id"] for event in events}


async def test_a_crash_between_ledger_and_offset_changes_nothing(engine: Engine) -> None:
    """The same events again, from the beginning of the topic, leave everything as it was."""
    clock = ManualClock(NOW_S * 1000)
    stripe = FakeStripe(clock)
    events = history(stripe, clock)
    target = projector(stripe, engine, clock)
    for event in events:
        await target.project(event_from(event), Batch())
    before, reads = state(engine), len(stripe.reads)
    for event in events:
        assert await target.project(event_from(event), Batch()) == "duplicate"
    assert state(engine) == before
    assert len(stripe.reads) == reads


def test_a_receipt_holds_what_the_poll_compares(engine: Engine) -> None:
    """A parked event is known to the poll and not to the projector."""
    book = CustomerBook(engine, list(MappingRule))
    book.park(Receipt("evt_1", "customer.updated", "cus_1", "cus_1", NOW_S), "internal", NOW_S * 1000)
    assert book.done_events(["evt_1"]) == frozenset()
    assert book.done_events(["evt_1"], with_failed=True) == {"evt_1"}
    assert book.newest_event_s() == NOW_S
