"""Stripe of a run: meter events, usage records, customers, and every promise it makes only for a day.

Owns what Stripe holds, what it remembers for 24 hours (identifiers, results by idempotency key), how far its summaries
lag, what it refuses after a 2xx, and the webhooks it sends. It refuses to know the product: an answer is a `Failure`
or none, and `gateways.py` says it in each service's words.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from services.stripe_sync.outcomes import Failure
from tests.simulation.metered import DAY_MS, HOUR_MS
from tollgate.ledger.billing import Customer, Invoice, InvoiceLine, Item, Subscription

REMEMBERED_MS = DAY_MS
"""How long identifiers and idempotency keys are remembered, and not a millisecond longer."""

AHEAD_MS_MAX = 300_000
AGE_MS_MAX = 35 * DAY_MS

DUPLICATE = Failure(
    status=400, error_type="invalid_request_error", message="An event already exists with identifier"
)
KEY_REUSED = Failure(
    status=400, error_type="idempotency_error", message="Keys for idempotent requests can only be used once"
)
KEY_IN_USE = Failure(status=409, code="idempotency_key_in_use", message="in use")
SERVER_ERROR = Failure(status=500, error_type="api_error", message="An unknown error occurred")
RATE_LIMIT = Failure(status=429, code="rate_limit", message="Too many requests")
LOCK_TIMEOUT = Failure(status=429, code="lock_timeout", message="This object cannot be accessed right now")
REVOKED = Failure(status=401, code="api_key_expired", message="Expired API Key provided")
NO_ANSWER = Failure(connection="no_answer", message="read timed out")
UNREACHABLE = Failure(connection="unreachable", message="connection refused")
IN_FUTURE = Failure(status=400, code="timestamp_in_future", message="timestamp in the future")
TOO_OLD = Failure(status=400, code="timestamp_too_far_in_past", message="timestamp in the past")
INACTIVE = Failure(status=400, code="archived_meter", message="inactive meter")


@dataclass(slots=True)
class MeterEvent:
    """One that was taken with a 2xx."""

    identifier: str
    event_name: str
    customer: str
    value: Decimal
    timestamp_s: int
    received_ms: int
    rejected: str | None = None
    """Why it was refused after all."""


@dataclass(frozen=True, slots=True)
class _Saved:
    """A result kept by its idempotency key."""

    body: str
    failure: Failure | None
    at_ms: int


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A webhook, as its endpoint would receive it."""

    event_id: str
    key: str
    body: bytes
    made_ms: int


@dataclass(slots=True)
class FakeStripe:
    """One account. `now_ms` is Stripe's own clock. Whatever must never be is written into `violations`."""

    now_ms: Callable[[], int]
    lag_ms: int
    hourly: frozenset[str]
    """Meters made with `event_time_window=hour`: the event received last in each hour replaces those before."""
    seen: Callable[[str], None]
    """Told of situations worth counting."""
    emit: Callable[[WebhookEvent], None]
    events: list[MeterEvent] = field(default_factory=list)
    records: dict[str, dict[int, int]] = field(default_factory=dict)
    """Usage records by item and second."""
    customers: dict[str, Customer] = field(default_factory=dict)
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    invoices: dict[str, Invoice] = field(default_factory=dict)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Data of meter error reports by event id."""
    webhooks: list[WebhookEvent] = field(default_factory=list)
    inactive: set[str] = field(default_factory=set)
    key_revoked: bool = False
    violations: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    _bodies: dict[str, str] = field(default_factory=dict)
    _by_identifier: dict[str, MeterEvent] = field(default_factory=dict)
    _saved: dict[str, _Saved] = field(default_factory=dict)
    _in_flight: set[str] = field(default_factory=set)

    # --------------------------------------------------------------------------------------- meter events

    def arrive(self, body: str, key: str, kind: str | None) -> Failure | None:
        """A request to post a meter event or a usage record. `kind`: the trouble it meets at Stripe."""
        self.calls["post"] += 1
        now_ms = self.now_ms()
        if self.key_revoked:
            return REVOKED
        if kind == "rate_limit":
            return RATE_LIMIT
        if kind == "lock_timeout":
            return LOCK_TIMEOUT
        if key in self._in_flight:
            self.seen("a second call while the first is in flight at Stripe")
            return KEY_IN_USE
        saved = self._saved.get(key)
        if saved is not None and now_ms - saved.at_ms < REMEMBERED_MS:
            if saved.body != body:
                self.violations.append(f"idempotency key {key} came with another body")
                return KEY_REUSED
            if saved.failure is not None:
                self.seen("a stored 500 replayed")
                return replace(saved.failure, replayed=True)
            self.seen("a stored success replayed")
            return None
        failure = (
            SERVER_ERROR if kind == "error_before" else self._execute(json.loads(body), body, now_ms, kind)
        )
        if kind == "error_after" and failure is None:
            failure = SERVER_ERROR
        if failure is None or failure.status == 500:
            self._saved[key] = _Saved(body, failure, now_ms)
        return failure

    def open_call(self, key: str) -> None:
        """A call under `key` is being worked on and not yet answered."""
        self._in_flight.add(key)

    def close_call(self, key: str) -> None:
        self._in_flight.discard(key)

    @property
    def busy(self) -> bool:
        """Whether a call is being worked on."""
        return bool(self._in_flight)

    def _execute(self, params: dict[str, Any], body: str, now_ms: int, kind: str | None) -> Failure | None:
        if "subscription_item" in params:
            held = self.records.setdefault(params["subscription_item"], {})
            held[params["timestamp"]] = params["quantity"]
            return None
        stamp_ms = params["timestamp"] * 1000
        if stamp_ms > now_ms + AHEAD_MS_MAX:
            return IN_FUTURE
        if now_ms - stamp_ms > AGE_MS_MAX:
            return TOO_OLD
        if params["event_name"] in self.inactive:
            return INACTIVE
        identifier = params["identifier"]
        if self._bodies.setdefault(identifier, body) != body:
            self.violations.append(f"identifier {identifier} carries two bodies")
        earlier = self._by_identifier.get(identifier)
        if earlier is not None:
            if now_ms - earlier.received_ms < REMEMBERED_MS:
                self.seen("a duplicate identifier")
                return DUPLICATE
            self.seen("an identifier older than 24 hours came again")
        event = MeterEvent(
            identifier,
            params["event_name"],
            params["payload"]["stripe_customer_id"],
            Decimal(params["payload"]["value"]),
            params["timestamp"],
            now_ms,
        )
        self.events.append(event)
        self._by_identifier[identifier] = event
        if kind is not None and kind.startswith("reject:"):
            self._reject(event, kind.removeprefix("reject:"))
        return None

    def _reject(self, event: MeterEvent, code: str) -> None:
        """Refused in the background, after its 2xx."""
        event.rejected = code
        self.seen("refused after a 2xx")
        sample = {"error_message": "refused", "request": {"identifier": event.identifier}}
        data = {"reason": {"error_types": [{"code": code, "error_count": 1, "sample_errors": [sample]}]}}
        event_id = f"evt_report_{len(self.reports)}"
        self.reports[event_id] = data
        body = {
            "object": "v2.core.event",
            "id": event_id,
            "type": "v1.billing.meter.error_report_triggered",
            "created": _rfc3339(self.now_ms()),
            "related_object": {"id": f"mtr_{event.event_name}", "type": "billing.meter"},
        }
        self._send(event_id, event_id, body)

    # ------------------------------------------------------------------------------------------- what it says

    def hour_sum(self, event_name: str, customer: str, hour_s: int, *, settled: bool = False) -> Decimal:
        """What the summary of a UTC hour says now; `settled`: what it will say in the end."""
        horizon_ms = 2**62 if settled else self.now_ms() - self.lag_ms
        counted = [
            each
            for each in self.events
            if each.event_name == event_name
            and each.customer == customer
            and hour_s <= each.timestamp_s < hour_s + 3600
            and each.rejected is None
            and each.received_ms <= horizon_ms
        ]
        if event_name in self.hourly:
            counted = counted[-1:]
        return sum((each.value for each in counted), Decimal(0))

    def holds(self, identifier: str) -> bool:
        """Whether a posting's effect is in the counts."""
        event = self._by_identifier.get(identifier)
        return event is not None and event.rejected is None

    def totals(self) -> dict[tuple[str, str, int], Decimal]:
        """Everything it holds, by (event name, customer, hour in epoch seconds)."""
        found: dict[tuple[str, str, int], Decimal] = {}
        for event in self.events:
            if event.rejected is None:
                key = event.event_name, event.customer, event.timestamp_s - event.timestamp_s % 3600
                held = Decimal(0) if event.event_name in self.hourly else found.get(key, Decimal(0))
                found[key] = held + event.value
        return found

    def recorded(self, item_id: str) -> Decimal:
        return Decimal(sum(self.records.get(item_id, {}).values()))

    # --------------------------------------------------------------------------------------------- customers

    def put_customer(self, customer: Customer) -> None:
        """Make or change a customer."""
        kind = "updated" if customer.customer_id in self.customers else "created"
        self.customers[customer.customer_id] = customer
        body = {"id": customer.customer_id, "object": "customer"}
        self._notify(f"customer.{kind}", customer.customer_id, body)

    def put_subscription(self, subscription: Subscription) -> None:
        """Make or change a subscription."""
        kind = "updated" if subscription.subscription_id in self.subscriptions else "created"
        self.subscriptions[subscription.subscription_id] = subscription
        body = {
            "id": subscription.subscription_id,
            "object": "subscription",
            "customer": subscription.customer_id,
        }
        self._notify(f"customer.subscription.{kind}", subscription.customer_id, body)

    def put_invoice(self, invoice: Invoice, kind: str) -> None:
        """Make, change or finalize an invoice."""
        self.invoices[invoice.invoice_id] = invoice
        body = {"id": invoice.invoice_id, "object": "invoice", "customer": invoice.customer_id}
        self._notify(f"invoice.{kind}", invoice.customer_id, body)

    def subscribe(self, customer_id: str, event_names: tuple[str, ...], start_ms: int, end_ms: int) -> None:
        """Give a customer a subscription with an item for each meter."""
        items = tuple(
            Item(f"si_{customer_id}_{name}", f"price_{name}", name, start_ms, end_ms) for name in event_names
        )
        self.put_subscription(
            Subscription(f"sub_{customer_id}", customer_id, "active", start_ms, None, {}, items)
        )

    def end_period(self, customer_id: str, at_ms: int, next_end_ms: int) -> str:
        """The period ends, another begins, and a draft bills the first. The draft's id."""
        subscription = self.subscriptions[f"sub_{customer_id}"]
        ended = subscription.items
        self.put_subscription(
            replace(
                subscription,
                items=tuple(
                    replace(item, period_start_ms=at_ms, period_end_ms=next_end_ms) for item in ended
                ),
            )
        )
        invoice_id = f"in_{customer_id}_{at_ms}"
        self.put_invoice(
            Invoice(
                invoice_id,
                customer_id,
                subscription.subscription_id,
                "draft",
                "subscription_cycle",
                ended[0].period_start_ms,
                at_ms,
                at_ms,
                at_ms + HOUR_MS,
                None,
                tuple(
                    InvoiceLine(i.item_id, i.price_id, str(i.event_name), i.period_start_ms, at_ms)
                    for i in ended
                ),
            ),
            "created",
        )
        return invoice_id

    def finalize(self, invoice_id: str) -> None:
        """The draft becomes final."""
        invoice = replace(self.invoices[invoice_id], status="open", finalized_ms=self.now_ms())
        self.put_invoice(invoice, "finalized")

    def _notify(self, kind: str, key: str, obj: dict[str, Any]) -> None:
        event_id = f"evt_{len(self.webhooks)}"
        body = {
            "object": "event",
            "id": event_id,
            "type": kind,
            "created": self.now_ms() // 1000,
            "data": {"object": obj},
        }
        self._send(event_id, key, body)

    def _send(self, event_id: str, key: str, body: dict[str, Any]) -> None:
        event = WebhookEvent(event_id, key, json.dumps(body).encode(), self.now_ms())
        self.webhooks.append(event)
        self.emit(event)


def _rfc3339(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat()
