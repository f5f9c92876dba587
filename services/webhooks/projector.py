"""The projector: one event to one change of the ledger.

Owns the order of the steps below. It refuses to know where events come from and when to try again: it says Transient
or Permanent, and whoever calls decides.

1. an event already in the inbox changes nothing;
2. a number is taken from the ledger, and only then
3. the object is fetched: what the event says of it may be old, and events come in any order;
4. object, consequences and inbox entry are written in one transaction, unless a higher number has been.

A process that dies between any two of these leaves at most an unused number: the event is projected again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, TypeVar

import structlog

from services.webhooks import objects
from services.webhooks.errors import Permanent, PermanentReason, Transient, TransientReason
from services.webhooks.event import StripeEvent, Subject
from services.webhooks.faults import FaultPoint
from services.webhooks.metrics import Metrics
from tollgate.ledger.billing import Customer, Invoice, Receipt, Rejection, Subscription
from tollgate.ledger.errors import LedgerError, LedgerRefused
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults

T = TypeVar("T")

DUPLICATE = "duplicate"
COVERED = "covered"
"""The object was fetched after this event was made, for another one read together with it."""

_log = structlog.get_logger(__name__)


class Gateway(Protocol):
    """What the projector asks of Stripe. Raises Transient or Permanent."""

    async def customer(self, customer_id: str) -> Customer: ...

    async def subscription(self, subscription_id: str) -> Subscription: ...

    async def invoice(self, invoice_id: str) -> Invoice: ...

    async def meter_error_data(self, event_id: str) -> Mapping[str, Any]: ...


class Book(Protocol):
    """What the projector asks of the ledger (`tollgate.ledger.customers.CustomerBook`). Raises LedgerError."""

    def done_events(self, event_ids: Collection[str], *, with_failed: bool = False) -> frozenset[str]: ...

    def knows_customer(self, customer_id: str) -> bool: ...

    def take_sequence(self) -> int: ...

    def apply_customer(
        self,
        customer: Customer,
        *,
        sequence: int,
        now_ms: int,
        deleted_ms: int | None = None,
        receipt: Receipt | None = None,
    ) -> str: ...

    def apply_subscription(
        self, subscription: Subscription, *, sequence: int, now_ms: int, receipt: Receipt | None = None
    ) -> str: ...

    def apply_invoice(
        self, invoice: Invoice, *, sequence: int, now_ms: int, receipt: Receipt | None = None
    ) -> str: ...

    def apply_rejections(self, found: Sequence[Rejection], *, now_ms: int, receipt: Receipt) -> int: ...

    def record(self, receipt: Receipt, outcome: str, now_ms: int) -> None: ...

    def park(self, receipt: Receipt, reason: str, now_ms: int) -> None: ...


class Batch:
    """Events that were all in the log before the first of them is projected.

    An object fetched for one of them is as new as any other of them can ask for. Stripe sends five events for one new
    invoice; they cost one read.
    """

    def __init__(self) -> None:
        self._fetched: set[tuple[Subject, str]] = set()

    def add(self, event: StripeEvent) -> None:
        """The object of `event` has been fetched and written."""
        self._fetched.add((event.subject, event.object_id))

    def covers(self, event: StripeEvent) -> bool:
        """Whether nothing is left to fetch for `event`. A deletion has a time of its own, which only it tells."""
        return event.kind != "customer.deleted" and (event.subject, event.object_id) in self._fetched


class Projector:
    """Projects events, several at once if the caller likes: the ledger's numbers keep them apart."""

    def __init__(
        self,
        gateway: Gateway,
        book: Book,
        clock: Clock,
        metrics: Metrics,
        faults: Faults[FaultPoint],
    ) -> None:
        self._gateway = gateway
        self._book = book
        self._clock = clock
        self._metrics = metrics
        self._faults = faults

    async def project(self, event: StripeEvent, batch: Batch) -> str:
        """Project one event and return its outcome. Raises Transient (nothing written) or Permanent."""
        try:
            outcome = await self._project(event, batch)
        except LedgerError as error:
            raise translate_ledger_error(error) from error
        self._faults.reach(FaultPoint.PROJECTED)
        self._metrics.projected.labels(event.subject, outcome).inc()
        age_seconds = self._clock.now_ms() / 1000 - event.created_s
        self._metrics.freshness_seconds.observe(max(0.0, age_seconds))
        _log.info(
            "event.projected",
            event_id=event.event_id,
            type=event.type,
            object_id=event.object_id,
            outcome=outcome,
        )
        return outcome

    async def park(self, receipt: Receipt, reason: PermanentReason) -> None:
        """Give an event up: into the inbox with the reason, for an operator. Raises Transient."""
        try:
            await _in_thread(lambda: self._book.park(receipt, reason, self._clock.now_ms()))
        except LedgerError as error:
            # Whatever the ledger's reason: an event that cannot even be parked must not be passed over.
            raise Transient(TransientReason.LEDGER_UNAVAILABLE, str(error)) from error

    async def _project(self, event: StripeEvent, batch: Batch) -> str:
        if await _in_thread(lambda: self._book.done_events([event.event_id])):
            return DUPLICATE
        receipt = event.to_receipt()
        if batch.covers(event):
            return await self._record(receipt, COVERED)
        if event.subject is Subject.CUSTOMER:
            outcome = await self._project_customer(event, receipt)
        elif event.subject is Subject.SUBSCRIPTION:
            outcome = await self._project_subscription(event, receipt)
        elif event.subject is Subject.INVOICE:
            outcome = await self._project_invoice(event, receipt)
        elif event.subject is Subject.METER_ERRORS:
            return await self._project_meter_errors(event, receipt)
        else:
            if event.subject is Subject.METER_DEACTIVATED:
                _log.warning("meter.deactivated", meter_id=event.object_id)
            ignored = event.subject is Subject.IGNORED
            return await self._record(receipt, Subject.IGNORED if ignored else Subject.SEEN)
        batch.add(event)
        return outcome

    async def _project_customer(self, event: StripeEvent, receipt: Receipt) -> str:
        sequence = await self._take_sequence()
        customer = await self._gateway.customer(event.object_id)
        self._faults.reach(FaultPoint.FETCHED)
        deleted_ms = event.created_s * 1000 if event.kind == "customer.deleted" else None
        return await _in_thread(
            lambda: self._book.apply_customer(
                customer,
                sequence=sequence,
                now_ms=self._clock.now_ms(),
                deleted_ms=deleted_ms,
                receipt=receipt,
            )
        )

    async def _project_subscription(self, event: StripeEvent, receipt: Receipt) -> str:
        sequence = await self._take_sequence()
        subscription = await self._gateway.subscription(event.object_id)
        self._faults.reach(FaultPoint.FETCHED)
        subscription = _with_price_changes(subscription, event)
        await self._learn_customer(subscription.customer_id)
        return await _in_thread(
            lambda: self._book.apply_subscription(
                subscription, sequence=sequence, now_ms=self._clock.now_ms(), receipt=receipt
            )
        )

    async def _project_invoice(self, event: StripeEvent, receipt: Receipt) -> str:
        sequence = await self._take_sequence()
        try:
            invoice = await self._gateway.invoice(event.object_id)
        except Permanent as error:
            if error.reason is not PermanentReason.NOT_FOUND:
                raise
            invoice = _deleted_draft(event, error)
        self._faults.reach(FaultPoint.FETCHED)
        await self._learn_customer(invoice.customer_id)
        return await _in_thread(
            lambda: self._book.apply_invoice(
                invoice, sequence=sequence, now_ms=self._clock.now_ms(), receipt=receipt
            )
        )

    async def _project_meter_errors(self, event: StripeEvent, receipt: Receipt) -> str:
        data = await self._gateway.meter_error_data(event.event_id)
        self._faults.reach(FaultPoint.FETCHED)
        found, counts, anonymous = objects.rejections_to_domain(data, event.created_s * 1000)
        await _in_thread(
            lambda: self._book.apply_rejections(found, now_ms=self._clock.now_ms(), receipt=receipt)
        )
        self._metrics.count_meter_errors(counts, anonymous)
        _log.warning("meter_events.rejected", counts=counts, identified=len(found), anonymous=anonymous)
        return "projected"

    async def _learn_customer(self, customer_id: str) -> None:
        """A customer from before our time is learnt with its first subscription or invoice event."""
        if await _in_thread(lambda: self._book.knows_customer(customer_id)):
            return
        sequence = await self._take_sequence()
        try:
            customer = await self._gateway.customer(customer_id)
        except Permanent as error:
            _log.warning("customer.not_learnt", customer_id=customer_id, reason=error.reason)
            return
        await _in_thread(
            lambda: self._book.apply_customer(customer, sequence=sequence, now_ms=self._clock.now_ms())
        )

    async def _take_sequence(self) -> int:
        return await _in_thread(self._book.take_sequence)

    async def _record(self, receipt: Receipt, outcome: str) -> str:
        await _in_thread(lambda: self._book.record(receipt, outcome, self._clock.now_ms()))
        return outcome


def _with_price_changes(subscription: Subscription, event: StripeEvent) -> Subscription:
    """The subscription with the moment of the event for those items whose price it says has changed.

    The object tells the price and not since when. A fetch for any other event that sees a new price does not know.
    """
    before = objects.previous_prices(event.previous)
    items = tuple(
        replace(item, price_since_ms=event.created_s * 1000)
        if before.get(item.item_id, item.price_id) != item.price_id
        else item
        for item in subscription.items
    )
    return replace(subscription, items=items)


def translate_ledger_error(error: LedgerError) -> Transient | Permanent:
    """What an error of the ledger means for the event. An unknown commit is asked again: the inbox knows."""
    if isinstance(error, LedgerRefused):
        return Permanent(PermanentReason.LEDGER_REFUSED, str(error))
    return Transient(TransientReason.LEDGER_UNAVAILABLE, str(error))


def _deleted_draft(event: StripeEvent, error: Permanent) -> Invoice:
    """An invoice Stripe does not know any more: only a draft can go, and the event has its last words."""
    if event.payload is None or event.payload.get("status") != "draft":
        raise error
    return objects.invoice_to_domain(event.payload, (), {}, status="deleted")


async def _in_thread(call: Callable[[], T]) -> T:
    """The ledger's driver waits; the event loop must not."""
    return await asyncio.to_thread(call)
