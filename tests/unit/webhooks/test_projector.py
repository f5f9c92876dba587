"""The projector's steps, over fakes and virtual time."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.webhooks.errors import Permanent, PermanentReason, Transient, TransientReason
from services.webhooks.event import StripeEvent, event_from
from services.webhooks.metrics import Metrics
from services.webhooks.projector import Batch, Projector
from tests.unit.webhooks.fakes import (
    FakeBook,
    FakeStripe,
    customer_body,
    invoice_body,
    subscription_body,
    until,
)
from tollgate.ledger.billing import Customer, Invoice, Subscription
from tollgate.ledger.errors import CommitUnknown, LedgerRefused, LedgerUnavailable
from tollgate.runtime.clock import ManualClock
from tollgate.runtime.faults import Faults

NOW_MS = 1_800_000_000_000
DAY_S = 86_400


class Bench:
    """A projector with fakes around it."""

    def __init__(self) -> None:
        self.clock = ManualClock(NOW_MS)
        self.stripe = FakeStripe(self.clock)
        self.book = FakeBook()
        self.registry = CollectorRegistry()
        self.projector = Projector(self.stripe, self.book, self.clock, Metrics(self.registry), Faults())

    async def project(self, event: dict[str, Any] | StripeEvent, batch: Batch | None = None) -> str:
        if not isinstance(event, StripeEvent):
            event = event_from(event)
        return await self.projector.project(event, batch or Batch())

    def count(self, subject: str, outcome: str) -> float | None:
        return self.registry.get_sample_value(
            "tollgate_webhooks_events_projected_total", {"subject": subject, "outcome": outcome}
        )


@pytest.fixture
def bench() -> Bench:
    """A fresh one."""
    return Bench()


async def test_the_object_is_fetched_not_believed(bench: Bench) -> None:
    """What is stored is what Stripe says now, not what the event said then."""
    event = bench.stripe.put(customer_body(email="old@example.com"), "customer.updated")
    bench.stripe.put(customer_body(email="new@example.com"), "customer.updated")
    assert await bench.project(event) == "projected"
    assert bench.book.rows["cus_1"][1] == Customer("cus_1", "new@example.com")
    assert bench.count("customer", "projected") == 1


async def test_a_duplicate_costs_no_read(bench: Bench) -> None:
    """The inbox is asked before Stripe."""
    event = bench.stripe.put(customer_body(), "customer.created")
    await bench.project(event)
    assert await bench.project(event) == "duplicate"
    assert bench.stripe.reads == ["cus_1"]


async def test_the_number_is_taken_before_the_fetch(bench: Bench) -> None:
    """A fetch that looked first and answers last does not win, however the two overlap."""
    first = bench.stripe.put(customer_body(email="old@example.com"), "customer.created")
    bench.stripe.delays_seconds["cus_1"] = [10.0]
    slow = asyncio.create_task(bench.project(first))
    await until(lambda: bench.clock.sleepers > 0)
    second = bench.stripe.put(customer_body(email="new@example.com"), "customer.updated")
    assert await bench.project(second) == "projected"
    bench.clock.advance_ms(10_000)
    assert await slow == "superseded"
    assert bench.book.rows["cus_1"] == (2, Customer("cus_1", "new@example.com"))


async def test_events_read_together_share_a_fetch(bench: Bench) -> None:
    """Both were made before either was projected; each is remembered."""
    events = [bench.stripe.put(customer_body(), "customer.updated") for _ in range(3)]
    batch = Batch()
    assert [await bench.project(event, batch) for event in events] == ["projected", "covered", "covered"]
    assert bench.stripe.reads == ["cus_1"]
    assert set(bench.book.inbox) == {"evt_000", "evt_001", "evt_002"}
    later = bench.stripe.put(customer_body(), "customer.updated")
    assert await bench.project(later) == "projected"


async def test_a_deletion_is_never_covered(bench: Bench) -> None:
    """It alone says when."""
    updated = bench.stripe.put(customer_body(), "customer.updated")
    deleted = bench.stripe.put(customer_body(deleted=True), "customer.deleted")
    bench.clock.advance_ms(60_000)
    batch = Batch()
    await bench.project(updated, batch)
    assert bench.book.deletions == {}
    await bench.project(deleted, batch)
    assert bench.book.deletions == {"cus_1": NOW_MS}


async def test_a_failed_fetch_covers_nothing(bench: Bench) -> None:
    """The next event of the batch looks for itself."""
    events = [bench.stripe.put(customer_body(), "customer.updated") for _ in range(2)]
    bench.stripe.failures = [Transient(TransientReason.RATE_LIMITED, "")]
    batch = Batch()
    with pytest.raises(Transient):
        await bench.project(events[0], batch)
    assert bench.book.inbox == {}
    assert await bench.project(events[1], batch) == "projected"


async def test_an_unknown_customer_is_learnt_with_its_subscription(bench: Bench) -> None:
    """It may be from before our time; the next event finds it known."""
    bench.stripe.put(customer_body(), "customer.created")
    event = bench.stripe.put(subscription_body([("si_1", 1, 2)]), "customer.subscription.updated")
    await bench.project(event)
    again = bench.stripe.put(subscription_body([("si_1", 2, 3)]), "customer.subscription.updated")
    await bench.project(again)
    assert bench.stripe.reads == ["sub_1", "cus_1", "sub_1"]


async def test_an_unknown_customer_that_is_nowhere_stops_nothing(bench: Bench) -> None:
    """The subscription is projected all the same."""
    event = bench.stripe.put(subscription_body([("si_1", 1, 2)]), "customer.subscription.updated")
    assert await bench.project(event) == "projected"


async def test_a_price_change_is_dated_by_the_event_that_tells_of_it(bench: Bench) -> None:
    """The items whose price it says was another; a fetch for any other event does not know since when."""
    bench.stripe.put(customer_body(), "customer.created")
    body = subscription_body([("si_1", 10, 20), ("si_2", 10, 20)])
    event = bench.stripe.put(body, "customer.subscription.updated")
    before = [{"id": "si_1", "price": {"id": "price_old"}}, {"id": "si_2", "price": {"id": "price_calls"}}]
    event["data"]["previous_attributes"] = {"items": {"data": before}}
    event["created"] = 15
    await bench.project(event)
    stored = bench.book.rows["sub_1"][1]
    assert isinstance(stored, Subscription)
    assert {item.item_id: item.price_since_ms for item in stored.items} == {"si_1": 15_000, "si_2": None}
    await bench.project(bench.stripe.put(body, "customer.subscription.updated"))
    stored = bench.book.rows["sub_1"][1]
    assert isinstance(stored, Subscription)
    assert {item.price_since_ms for item in stored.items} == {None}


async def test_a_deleted_draft_is_kept_as_deleted(bench: Bench) -> None:
    """Its event has the last words on it."""
    bench.stripe.put(customer_body(), "customer.created")
    event = bench.stripe.put(invoice_body("in_1", "draft", (0, DAY_S)), "invoice.deleted")
    bench.stripe.forget("in_1")
    assert await bench.project(event) == "projected"
    stored = bench.book.rows["in_1"][1]
    assert isinstance(stored, Invoice)
    assert (stored.status, stored.subscription_id, stored.period_end_ms) == ("deleted", "sub_1", DAY_S * 1000)


async def test_a_finalized_invoice_that_is_nowhere_is_an_error(bench: Bench) -> None:
    """Only drafts can be deleted; this is another account's key."""
    event = bench.stripe.put(invoice_body("in_1", "open", (0, DAY_S)), "invoice.finalized")
    bench.stripe.forget("in_1")
    with pytest.raises(Permanent) as raised:
        await bench.project(event)
    assert raised.value.reason is PermanentReason.NOT_FOUND


@pytest.mark.parametrize(
    ("event_type", "outcome"),
    [
        ("customer.tax_id.created", "seen"),
        ("billing.meter.deactivated", "seen"),
        ("charge.succeeded", "ignored"),
    ],
)
async def test_what_changes_nothing_is_recorded(bench: Bench, event_type: str, outcome: str) -> None:
    """No number, no read, one inbox entry."""
    event = bench.stripe.put({"id": "x_1", "object": "x"}, event_type)
    assert await bench.project(event) == outcome
    assert (bench.book.inbox, bench.stripe.reads, bench.book.sequence) == ({"evt_000": outcome}, [], 0)


async def test_a_meter_error_report_becomes_rejections(bench: Bench) -> None:
    """Samples with an identifier are rejections; what names none is counted, never silent."""
    bench.stripe.meter_errors["evt_9"] = {
        "reason": {
            "error_count": 7,
            "error_types": [
                {
                    "code": "archived_meter",
                    "error_count": 5,
                    "sample_errors": [
                        {"error_message": "archived", "request": {"identifier": "id_1"}},
                        {"error_message": "archived", "request": {"idempotency_key": "key_1"}},
                        {"error_message": "again", "request": {"identifier": "id_1"}},
                    ],
                },
                {"code": "brand_new_code", "error_count": 2, "sample_errors": []},
            ],
        }
    }
    event = {
        "id": "evt_9",
        "object": "v2.core.event",
        "type": "v1.billing.meter.error_report_triggered",
        "created": "2027-01-15T08:00:00Z",
        "related_object": {"id": "mtr_1", "type": "billing.meter"},
    }
    assert await bench.project(event) == "projected"
    [rejection] = bench.book.rejections
    assert (rejection.identifier, rejection.code, rejection.message) == ("id_1", "archived_meter", "archived")
    assert rejection.reported_ms == 1_800_000_000_000

    def errors(code: str) -> float | None:
        return bench.registry.get_sample_value("tollgate_webhooks_meter_errors_total", {"code": code})

    assert (errors("archived_meter"), errors("other")) == (5, 2)
    assert bench.registry.get_sample_value("tollgate_webhooks_meter_errors_anonymous_total") == 1


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (LedgerUnavailable("down"), Transient),
        (CommitUnknown("?"), Transient),
        (LedgerRefused("bug"), Permanent),
    ],
)
async def test_the_ledgers_errors_are_translated(
    bench: Bench, error: Exception, expected: type[Exception]
) -> None:
    """Only a refusal is final."""
    event = bench.stripe.put(customer_body(), "customer.updated")
    bench.book.failures = [error]
    with pytest.raises(expected):
        await bench.project(event)
    assert await bench.project(event) == "projected"


async def test_parking_that_fails_is_transient_whatever_the_ledger_says(bench: Bench) -> None:
    """An event that cannot even be parked is not passed over."""
    event = event_from(bench.stripe.put(customer_body(), "customer.updated"))
    bench.book.failures = [LedgerRefused("read only role")]
    with pytest.raises(Transient):
        await bench.projector.park(event.to_receipt(), PermanentReason.NOT_FOUND)
    await bench.projector.park(event.to_receipt(), PermanentReason.NOT_FOUND)
    assert bench.book.inbox == {"evt_000": "failed:not_found"}
