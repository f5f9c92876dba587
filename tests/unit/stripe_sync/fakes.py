"""A ledger and a Stripe in memory for the sender, on virtual time."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

from services.stripe_sync.book import Lane, Ref
from services.stripe_sync.gateway import (
    BillingMeter,
    CallFailed,
    Delivered,
    Permanent,
    RecordedUsage,
    Transient,
    UnknownOutcome,
)
from services.stripe_sync.outcomes import Action, Failure, Situation, judge
from tollgate.ledger.posting_rows import (
    AT_STRIPE,
    UNSETTLED,
    DuePosting,
    Outcome,
    Posting,
    PostingMode,
    PostingState,
    SettlementView,
)
from tollgate.ledger.prices import FetchedPrice
from tollgate.runtime.clock import ManualClock

T0_MS = 1_800_000_000_000
DAY_MS = 24 * 3_600_000


def posting(
    key: str = "k",
    seq: int = 1,
    *,
    customer: str = "cus_1",
    quantity: int = 5,
    state: PostingState = PostingState.JOURNALLED,
    attempts: int = 0,
    first_sent_ms: int | None = None,
    timestamp_s: int = T0_MS // 1000,
    event_name: str = "calls",
    mode: PostingMode = PostingMode.DELTA,
) -> Posting:
    """A posting as the planner writes it, from nothing to `quantity`."""
    identifier = f"tg_{key}_{seq}"
    body: dict[str, object] = {
        "event_name": event_name,
        "identifier": identifier,
        "payload": {"stripe_customer_id": customer, "value": str(quantity)},
        "timestamp": timestamp_s,
    }
    if mode is PostingMode.USAGE_RECORD:
        body = {
            "action": "set",
            "quantity": quantity,
            "subscription_item": f"si_{customer}",
            "timestamp": timestamp_s,
        }
    return Posting(
        posting_key=key,
        seq=seq,
        customer_id=customer,
        meter_id=1,
        window_start_ms=T0_MS,
        quantity_from=Decimal(0),
        quantity_to=Decimal(quantity),
        mode=mode,
        identifier=identifier,
        idempotency_key=f"{identifier}:0",
        timestamp_s=timestamp_s,
        body=json.dumps(body),
        state=state,
        attempts=attempts,
        first_sent_ms=first_sent_ms,
        last_sent_ms=first_sent_ms,
        retry_ms=None,
        settled_ms=None,
        request_id=None,
        error=None,
        planned_ms=T0_MS,
        planned_from={0: 1},
        lease_version=1,
    )


@dataclass
class FakeBook:
    """Postings in a dictionary. `gone` customers are deleted."""

    postings: dict[Ref, Posting] = field(default_factory=dict)
    halts: dict[str, str] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)
    period_ends_ms: dict[Ref, int] = field(default_factory=dict)
    declared: dict[str, set[PostingMode]] = field(default_factory=dict)

    def add(self, *postings: Posting) -> None:
        self.postings.update({p.ref: p for p in postings})

    def states(self) -> dict[Ref, PostingState]:
        return {ref: p.state for ref, p in self.postings.items()}

    async def due(self, now_ms: int, limit: int, busy: Collection[Lane]) -> list[DuePosting]:
        open_states = (PostingState.JOURNALLED, PostingState.SENDING, PostingState.UNKNOWN)
        found: dict[Lane, DuePosting] = {}
        for ref, p in self.postings.items():
            name = json.loads(p.body).get("event_name", "calls")
            lane = (p.customer_id, name)
            if lane in busy or lane in found or name in self.halts or p.state not in open_states:
                continue
            if (p.retry_ms or 0) <= now_ms:
                found[lane] = DuePosting(p, name, p.customer_id in self.gone, self.period_ends_ms.get(ref))
        return list(found.values())[:limit]

    async def mark_sending(self, refs: Sequence[Ref], now_ms: int) -> frozenset[Ref]:
        for ref in refs:
            p = self.postings[ref]
            first_ms = now_ms if p.first_sent_ms is None else p.first_sent_ms
            self.postings[ref] = replace(
                p, state=PostingState.SENDING, first_sent_ms=first_ms, last_sent_ms=now_ms
            )
        return frozenset(refs)

    async def record(self, outcomes: Sequence[Outcome], now_ms: int) -> None:
        for o in outcomes:
            ref = (o.posting_key, o.seq)
            p = self.postings[ref]
            self.postings[ref] = replace(
                p,
                state=o.state,
                attempts=p.attempts + int(o.attempted),
                first_sent_ms=None if o.certain else p.first_sent_ms,
                retry_ms=o.retry_ms,
                idempotency_key=o.idempotency_key or p.idempotency_key,
                error=o.error,
            )

    async def settlement(self, posting: Posting, event_name: str) -> SettlementView:
        hour = posting.timestamp_s // 3600
        same = [
            p
            for p in self.postings.values()
            if p.customer_id == posting.customer_id and p.timestamp_s // 3600 == hour
        ]
        return SettlementView(
            delivered=sum((p.quantity for p in same if p.state in AT_STRIPE), Decimal(0)),
            unsure=tuple(p for p in same if p.state in UNSETTLED and p.first_sent_ms is not None),
            newest_ms=max((p.last_sent_ms or 0 for p in same), default=0),
        )

    async def period_settlement(
        self, posting: Posting, event_name: str, start_s: int, end_s: int
    ) -> SettlementView:
        same = [p for p in self.postings.values() if start_s <= p.timestamp_s < end_s]
        held = {p.posting_key: p.quantity_to for p in same if p.state in AT_STRIPE}
        return SettlementView(
            delivered=sum(held.values(), Decimal(0)),
            unsure=tuple(p for p in same if p.state in UNSETTLED and p.first_sent_ms is not None),
            newest_ms=max((p.last_sent_ms or 0 for p in same), default=0),
            delivered_by_chain=held,
        )

    async def halted(self) -> dict[str, str]:
        return dict(self.halts)

    async def modes(self) -> dict[str, set[PostingMode]]:
        return self.declared

    async def halt(self, event_name: str, reason: str | None, now_ms: int) -> None:
        if reason is None:
            self.halts.pop(event_name, None)
        else:
            self.halts[event_name] = reason


def failed(failure: Failure) -> CallFailed:
    """What the gateway raises for a failure."""
    row = judge(failure)
    if not row.certain:
        return UnknownOutcome(row, failure)
    return (Permanent if row.action is Action.PARK else Transient)(row, failure)


NO_ANSWER = Failure(connection="no_answer")
SERVER_ERROR = Failure(status=500, error_type="api_error", message="sorry")
REVOKED = Failure(status=401, message="Expired API Key provided", code="api_key_expired")
DUPLICATE = Failure(status=400, message="An event already exists with identifier x")
PERIOD_OVER = Failure(
    status=400,
    message="Cannot create the usage record with this timestamp because timestamps must be after the subscription's "
    "last invoice period (or current period start time): 1.",
)

Script = Callable[[dict[str, object], str, int], Failure | None]
"""(body, idempotency key, call number) -> the failure, or None for success."""


@dataclass
class FakeStripe:
    """Identifiers unique for 24 hours, results kept by idempotency key, failures before or after the effect."""

    clock: ManualClock
    latency_seconds: float = 0.01
    before: Script | None = None
    """Fails instead of the effect."""
    after: Script | None = None
    """Fails after the effect."""
    active: set[str] = field(default_factory=lambda: {"calls"})
    key_refused: bool = False
    events: list[tuple[int, str, str, Decimal, int]] = field(default_factory=list)
    calls: list[tuple[int, str, str]] = field(default_factory=list)
    saved: dict[str, Failure | None] = field(default_factory=dict)
    in_flight: set[str] = field(default_factory=set)
    overlaps: int = 0
    items: list[tuple[int, str]] = field(default_factory=list)
    """Invoice items: when made, and the identifier in their metadata."""
    looked_for: list[str] = field(default_factory=list)
    time_window: str | None = None
    """`hour`: the event received last in each hour replaces those before."""
    records: dict[tuple[str, int], int] = field(default_factory=dict)
    """Usage records by item and second."""
    period_end_s: int = 2**40
    """Usage records are refused from here on."""

    async def record_usage(self, body: str, idempotency_key: str) -> Delivered:
        params = json.loads(body)
        number = len(self.calls)
        self.calls.append((self.clock.now_ms(), params["subscription_item"], idempotency_key))
        if self.clock.now_ms() // 1000 >= self.period_end_s:
            raise failed(PERIOD_OVER)
        if self.before and (failure := self.before(params, idempotency_key, number)):
            raise failed(failure)
        self.records[params["subscription_item"], params["timestamp"]] = params["quantity"]
        if self.after and (failure := self.after(params, idempotency_key, number)):
            raise failed(failure)
        return Delivered(duplicate=False)

    async def recorded_usage(self, item_id: str, at_s: int) -> RecordedUsage | None:
        found = sum(quantity for (item, _), quantity in self.records.items() if item == item_id)
        return RecordedUsage(at_s - 1000, self.period_end_s, Decimal(found))

    async def send(self, body: str, idempotency_key: str) -> Delivered:
        params = json.loads(body)
        customer = params["payload"]["stripe_customer_id"]
        number = len(self.calls)
        self.calls.append((self.clock.now_ms(), customer, idempotency_key))
        self.overlaps += customer in self.in_flight
        self.in_flight.add(customer)
        try:
            await self.clock.sleep_seconds(self.latency_seconds)
            if self.key_refused:
                raise failed(REVOKED)
            failure = self.before(params, idempotency_key, number) if self.before else None
            if failure is None:
                failure = self._execute(params, idempotency_key)
                if self.after is not None and failure is None:
                    failure = self.after(params, idempotency_key, number)
                    if failure is not None and failure.status is not None:
                        self.saved[idempotency_key] = replace(failure, replayed=True)
        finally:
            self.in_flight.discard(customer)
        if failure is None:
            return Delivered(duplicate=False)
        error = failed(failure)
        if error.row.situation is Situation.DUPLICATE:
            return Delivered(duplicate=True)
        raise error

    def _execute(self, params: dict[str, object], key: str) -> Failure | None:
        if key in self.saved:
            return self.saved[key]
        now_ms = self.clock.now_ms()
        identifier = str(params["identifier"])
        if any(e[1] == identifier and now_ms - e[0] < DAY_MS for e in self.events):
            return DUPLICATE
        payload = params["payload"]
        assert isinstance(payload, dict)
        timestamp = params["timestamp"]
        assert isinstance(timestamp, int)
        self.events.append(
            (now_ms, identifier, payload["stripe_customer_id"], Decimal(payload["value"]), timestamp)
        )
        self.saved[key] = None
        return None

    async def meters(self) -> dict[str, BillingMeter]:
        if self.key_refused:
            raise failed(REVOKED)
        return {
            name: BillingMeter(
                f"mtr_{name}", name, True, "sum", "stripe_customer_id", "value", self.time_window
            )
            for name in self.active
        }

    async def hour_sum(self, stripe_meter_id: str, customer_id: str, hour_s: int) -> Decimal:
        found = [e[3] for e in self.events if e[2] == customer_id and hour_s <= e[4] < hour_s + 3600]
        return sum(found if self.time_window is None else found[-1:], Decimal(0))

    async def charge(self, body: str, idempotency_key: str) -> Delivered:
        params = json.loads(body)
        number = len(self.calls)
        self.calls.append((self.clock.now_ms(), params["customer"], idempotency_key))
        failure = self.before(params, idempotency_key, number) if self.before else None
        if failure is None:
            failure = self.saved.get(idempotency_key)
            if idempotency_key not in self.saved:
                self.items.append((self.clock.now_ms(), params["metadata"]["tollgate_identifier"]))
                self.saved[idempotency_key] = None
            if self.after is not None and failure is None:
                failure = self.after(params, idempotency_key, number)
        if failure is not None:
            if failure.status is not None and failure.status >= 500:
                self.saved[idempotency_key] = replace(failure, replayed=True)
            raise failed(failure)
        return Delivered(duplicate=False)

    async def find_charge(self, customer_id: str, identifier: str, since_s: int) -> str | None:
        self.looked_for.append(identifier)
        found = [at_ms for at_ms, made in self.items if made == identifier and at_ms >= since_s * 1000]
        return "ii_1" if found else None

    async def price(self, price_id: str) -> FetchedPrice:
        return FetchedPrice(price_id, None, "not in this fake")

    async def account(self) -> str:
        return "acct_1"

    def totals(self) -> dict[str, Decimal]:
        found: dict[str, Decimal] = {}
        for _, _, customer, value, _ in self.events:
            found[customer] = found.get(customer, Decimal(0)) + value
        return found
