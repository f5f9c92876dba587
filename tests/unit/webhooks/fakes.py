"""Twins of what services/webhooks talks to: Stripe, the ledger's book, the store and the log."""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiokafka import TopicPartition

from services.webhooks import objects
from services.webhooks.errors import Permanent, PermanentReason
from services.webhooks.event import StripeEvent, event_from
from services.webhooks.gateway import Page
from services.webhooks.store import StoreUnavailable
from tollgate.ledger.billing import Customer, Invoice, Receipt, Rejection, Subscription
from tollgate.runtime.clock import Clock

Json = dict[str, Any]


async def until(done: Callable[[], bool], turns_max: int = 10_000) -> None:
    """Let others run until `done()`; a millisecond a turn, since some work is in threads."""
    for _ in range(turns_max):
        if done():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it never came to that")


class FakeStripe:
    """Objects that change, and the events each change sends. Reads may be made slow or fail."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.objects: dict[str, Json] = {}
        self.events: list[Json] = []
        self.thin_events: list[Json] = []
        self.reads: list[str] = []
        self.delays_seconds: dict[str, list[float]] = {}
        """By object id: how long each next read takes between looking and answering."""
        self.failures: list[Exception] = []
        """Raised by the next reads, in order."""
        self.meter_errors: dict[str, Json] = {}

    def put(self, body: Json, event_type: str) -> Json:
        """Change an object and send the event."""
        self.objects[body["id"]] = copy.deepcopy(body)
        event: Json = {
            "id": f"evt_{len(self.events):03}",
            "object": "event",
            "type": event_type,
            "created": self._clock.now_ms() // 1000,
            "data": {"object": copy.deepcopy(body)},
        }
        self.events.append(event)
        return event

    def forget(self, object_id: str) -> None:
        """The object is gone, as a deleted draft is."""
        del self.objects[object_id]

    async def _read(self, object_id: str) -> Json:
        self.reads.append(object_id)
        if self.failures:
            raise self.failures.pop(0)
        found = copy.deepcopy(self.objects.get(object_id))
        delays = self.delays_seconds.get(object_id)
        if delays:
            await self._clock.sleep_seconds(delays.pop(0))
        if found is None:
            raise Permanent(PermanentReason.NOT_FOUND, object_id)
        return found

    async def customer(self, customer_id: str) -> Customer:
        return objects.customer_to_domain(await self._read(customer_id))

    async def subscription(self, subscription_id: str) -> Subscription:
        body = await self._read(subscription_id)
        return objects.subscription_to_domain(body, body["items"]["data"], {"price_calls": "calls"})

    async def invoice(self, invoice_id: str) -> Invoice:
        body = await self._read(invoice_id)
        return objects.invoice_to_domain(body, body["lines"]["data"], {"price_calls": "calls"})

    async def meter_error_data(self, event_id: str) -> Mapping[str, Any]:
        self.reads.append(event_id)
        return self.meter_errors[event_id]

    def report_meter_errors(self) -> Json:
        """A meter error report, which only the list of thin events has."""
        created = datetime.fromtimestamp(self._clock.now_ms() // 1000, UTC)
        event: Json = {
            "id": f"evt_thin_{len(self.thin_events):03}",
            "object": "v2.core.event",
            "type": "v1.billing.meter.error_report_triggered",
            "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "related_object": {"id": "mtr_1", "type": "billing.meter"},
        }
        self.thin_events.append(event)
        return event

    async def event_page(self, created_from_s: int, created_before_s: int, after: str | None) -> Page:
        """Newest first, two to a page."""
        self.reads.append(f"events {created_from_s}..{created_before_s} after {after}")
        return self._page(self.events, created_from_s, created_before_s, after)

    async def thin_event_page(self, created_from_s: int, created_before_s: int, after: str | None) -> Page:
        """The same of the thin ones."""
        self.reads.append(f"thin {created_from_s}..{created_before_s} after {after}")
        return self._page(self.thin_events, created_from_s, created_before_s, after)

    def _page(self, events: list[Json], from_s: int, before_s: int, after: str | None) -> Page:
        if self.failures:
            raise self.failures.pop(0)
        listed = [e for e in reversed(events) if from_s <= event_from(e).created_s < before_s]
        begin = 0 if after is None else [e["id"] for e in listed].index(after) + 1
        page = tuple(listed[begin : begin + 2])
        more = begin + 2 < len(listed)
        return Page(page, page[-1]["id"] if more else None)


def customer_body(customer_id: str = "cus_1", email: str | None = None, **more: Any) -> Json:
    return {"id": customer_id, "object": "customer", "email": email, "name": None, "metadata": {}, **more}


def subscription_body(
    items: Sequence[tuple[str, int, int]],
    *,
    status: str = "active",
    ended_at: int | None = None,
    subscription_id: str = "sub_1",
    customer_id: str = "cus_1",
) -> Json:
    """A subscription with items as (id, period start, period end) in epoch seconds."""
    return {
        "id": subscription_id,
        "object": "subscription",
        "customer": customer_id,
        "status": status,
        "start_date": items[0][1] if items else 1,
        "ended_at": ended_at,
        "metadata": {},
        "items": {
            "data": [
                {
                    "id": item_id,
                    "price": {"id": "price_calls", "recurring": {"meter": "mtr_1"}},
                    "current_period_start": start,
                    "current_period_end": end,
                }
                for item_id, start, end in items
            ]
        },
    }


def invoice_body(
    invoice_id: str, status: str, period: tuple[int, int], *, reason: str = "subscription_cycle"
) -> Json:
    """The invoice of item si_1 over `period` (epoch seconds)."""
    start, end = period
    return {
        "id": invoice_id,
        "object": "invoice",
        "customer": "cus_1",
        "parent": {"subscription_details": {"subscription": "sub_1"}},
        "status": status,
        "billing_reason": reason,
        "period_start": start,
        "period_end": end,
        "created": end,
        "automatically_finalizes_at": end + 3600 if status == "draft" else None,
        "status_transitions": {"finalized_at": None if status == "draft" else end + 3600},
        "lines": {
            "data": [
                {
                    "parent": {"subscription_item_details": {"subscription_item": "si_1"}},
                    "pricing": {"price_details": {"price": "price_calls"}},
                    "period": {"start": start, "end": end},
                }
            ]
        },
    }


@dataclass
class FakeBook:
    """The guard and the inbox of `CustomerBook` over dicts; periods and mappings are not its business."""

    sequence: int = 0
    rows: dict[str, tuple[int, object]] = field(default_factory=dict)
    inbox: dict[str, str] = field(default_factory=dict)
    newest_s: int | None = None
    rejections: list[Rejection] = field(default_factory=list)
    deletions: dict[str, int] = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)
    """Raised by the next calls that write, in order."""

    def done_events(self, event_ids: Collection[str], *, with_failed: bool = False) -> frozenset[str]:
        return frozenset(
            event_id
            for event_id in event_ids
            if event_id in self.inbox and (with_failed or not self.inbox[event_id].startswith("failed:"))
        )

    def newest_event_s(self) -> int | None:
        return self.newest_s

    def knows_customer(self, customer_id: str) -> bool:
        return customer_id in self.rows

    def take_sequence(self) -> int:
        self.sequence += 1
        return self.sequence

    def _write(self, key: str, value: object, sequence: int, receipt: Receipt | None) -> str:
        if self.failures:
            raise self.failures.pop(0)
        stored = self.rows.get(key)
        outcome = "superseded"
        if stored is None or stored[0] < sequence:
            self.rows[key] = (sequence, value)
            outcome = "projected"
        if receipt is not None:
            self.inbox[receipt.event_id] = outcome
        return outcome

    def apply_customer(
        self,
        customer: Customer,
        *,
        sequence: int,
        now_ms: int,
        deleted_ms: int | None = None,
        receipt: Receipt | None = None,
    ) -> str:
        if deleted_ms is not None:
            self.deletions[customer.customer_id] = deleted_ms
        return self._write(customer.customer_id, customer, sequence, receipt)

    def apply_subscription(
        self, subscription: Subscription, *, sequence: int, now_ms: int, receipt: Receipt | None = None
    ) -> str:
        return self._write(subscription.subscription_id, subscription, sequence, receipt)

    def apply_invoice(
        self, invoice: Invoice, *, sequence: int, now_ms: int, receipt: Receipt | None = None
    ) -> str:
        return self._write(invoice.invoice_id, invoice, sequence, receipt)

    def apply_rejections(self, found: Sequence[Rejection], *, now_ms: int, receipt: Receipt) -> int:
        self.rejections += found
        self.inbox[receipt.event_id] = "projected"
        return len(found)

    def record(self, receipt: Receipt, outcome: str, now_ms: int) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.inbox[receipt.event_id] = outcome

    def park(self, receipt: Receipt, reason: str, now_ms: int) -> None:
        self.record(receipt, f"failed:{reason}", now_ms)


class FakeStore:
    """Keeps what is put; fails while `down`."""

    def __init__(self) -> None:
        self.down = False
        self.stored: list[tuple[StripeEvent, bytes]] = []
        self.gate: asyncio.Event | None = None
        self.waiting = 0

    async def put(self, event: StripeEvent, body: bytes, received_ms: int) -> None:
        if self.gate is not None:
            self.waiting += 1
            await self.gate.wait()
        if self.down:
            raise StoreUnavailable("KafkaTimeoutError")
        self.stored.append((event, body))


@dataclass(frozen=True)
class FakeRecord:
    """A record of the log."""

    offset: int
    value: bytes


class FakeLog:
    """A consumer over lists: positions, pauses and commits, without a broker."""

    def __init__(self, *partitions: Sequence[Json | bytes]) -> None:
        self.parts = [TopicPartition("stripe.events", number) for number in range(len(partitions))]
        self.records = {
            part: [
                FakeRecord(offset, value if isinstance(value, bytes) else json.dumps(value).encode())
                for offset, value in enumerate(values)
            ]
            for part, values in zip(self.parts, partitions, strict=True)
        }
        self.positions = dict.fromkeys(self.parts, 0)
        self.paused: set[TopicPartition] = set()
        self.committed: dict[TopicPartition, int] = {}
        self.commit_failures: list[Exception] = []

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> dict[TopicPartition, list[FakeRecord]]:
        taken = {}
        for part in self.parts:
            if part not in self.paused:
                records = self.records[part][self.positions[part] :][:max_records]
                if records:
                    taken[part] = records
                    self.positions[part] += len(records)
        await asyncio.sleep(0)
        return taken

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self.parts)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.positions[partition] = offset

    def pause(self, *partitions: TopicPartition) -> None:
        self.paused.update(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self.paused.difference_update(partitions)

    def highwater(self, partition: TopicPartition) -> int:
        return len(self.records[partition])

    async def commit(self, offsets: Mapping[TopicPartition, int] | None = None) -> None:
        if self.commit_failures:
            raise self.commit_failures.pop(0)
        self.committed.update(offsets or {})
