"""How the services reach the Stripe of a run: their gateways' protocols over a wire that can fail.

Owns the wire: how long a request and its answer travel, what is lost on the way, and who waits for it. A request that
left arrives whatever becomes of the process that sent it. It refuses to know what Stripe does with one.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

from services.stripe_sync.gateway import (
    BillingMeter,
    CallFailed,
    Delivered,
    Permanent,
    RecordedUsage,
    SummaryPage,
    Transient,
    UnknownOutcome,
)
from services.stripe_sync.outcomes import Action, Failure, Situation, judge
from services.webhooks import errors
from tests.simulation.fake_stripe import NO_ANSWER, REVOKED, SERVER_ERROR, UNREACHABLE, FakeStripe
from tests.simulation.scheduler import Loop
from tests.simulation.trouble import Troubles
from tollgate.ledger.billing import Customer, Invoice, Subscription
from tollgate.ledger.prices import FetchedPrice

T = TypeVar("T")

READ_TIMEOUT_SECONDS = 0.4
"""After which a caller gives up waiting for an answer."""


@dataclass(slots=True)
class Wire:
    """The network between a service and Stripe."""

    loop: Loop
    stripe: FakeStripe
    troubles: Troubles
    rng: random.Random
    seen: Callable[[str], None]
    lease_version: Callable[[], int]
    cut: bool = False
    """Nothing gets through."""
    in_transit: dict[int, Callable[[], None]] = field(default_factory=dict)
    """Requests that have left and not arrived."""
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def send(self, seconds: float, arrive: Callable[[], None]) -> None:
        """A request leaves and arrives after a while."""
        number = next(self._numbers)

        def at_the_end() -> None:
            if self.in_transit.pop(number, None) is not None:
                arrive()

        self.in_transit[number] = arrive
        self.loop.outside(seconds, at_the_end)

    def hang_up(self) -> None:
        """Before hours pass: what has left arrives now, and no connection outlives them to bring an answer."""
        waiting, self.in_transit = self.in_transit, {}
        for arrive in waiting.values():
            arrive()


class SyncGateway:
    """stripe_sync's `StripeApi`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def send(self, body: str, idempotency_key: str) -> Delivered:
        return await self._post(body, idempotency_key)

    async def record_usage(self, body: str, idempotency_key: str) -> Delivered:
        return await self._post(body, idempotency_key)

    async def charge(self, body: str, idempotency_key: str) -> Delivered:
        raise AssertionError("no meter of a simulation is charged by items")

    async def find_charge(self, customer_id: str, identifier: str, since_s: int) -> str | None:
        raise AssertionError("no meter of a simulation is charged by items")

    async def price(self, price_id: str) -> FetchedPrice:
        raise AssertionError("no meter of a simulation is charged by items")

    async def meters(self) -> dict[str, BillingMeter]:
        def answer() -> dict[str, BillingMeter]:
            stripe = self._wire.stripe
            return {
                name: BillingMeter(
                    f"mtr_{name}",
                    name,
                    name not in stripe.inactive,
                    "sum",
                    "stripe_customer_id",
                    "value",
                    "hour" if name in stripe.hourly else None,
                )
                for name in ("calls", "weight", "users")
            }

        return await self._ask(answer)

    async def hour_sum(self, stripe_meter_id: str, customer_id: str, hour_s: int) -> Decimal:
        event_name = stripe_meter_id.removeprefix("mtr_")
        return await self._ask(lambda: self._wire.stripe.hour_sum(event_name, customer_id, hour_s))

    async def recorded_usage(self, item_id: str, at_s: int) -> RecordedUsage | None:
        def answer() -> RecordedUsage | None:
            for subscription in self._wire.stripe.subscriptions.values():
                for item in subscription.items:
                    start_s, end_s = item.period_start_ms // 1000, item.period_end_ms // 1000
                    if item.item_id == item_id and start_s <= at_s < end_s:
                        return RecordedUsage(start_s, end_s, self._wire.stripe.recorded(item_id))
            return None

        return await self._ask(answer)

    async def summary_page(
        self,
        stripe_meter_id: str,
        customer_id: str,
        start_s: int,
        end_s: int,
        *,
        hourly: bool,
        after: str | None = None,
    ) -> SummaryPage:
        raise AssertionError("reconciliation is not simulated")

    async def finalize_at(self, invoice_id: str, finalizes_s: int) -> None:
        raise AssertionError("finalization is not simulated")

    async def account(self) -> str:
        return "acct_simulated"

    # --------------------------------------------------------------------------------------------- the wire

    async def _post(self, body: str, key: str) -> Delivered:
        """1. The request travels. 2. Stripe executes it. 3. The answer travels. Each can fail or take too long."""
        wire = self._wire
        kind = wire.troubles.strikes("stripe.send")
        if kind == "unreachable" or wire.cut:
            await asyncio.sleep(0.002)
            raise _failed(UNREACHABLE)
        if kind == "revoked":
            raise _failed(REVOKED)
        led = wire.lease_version()
        answered: asyncio.Future[Failure | None] = wire.loop.create_future()
        there = wire.rng.choice((0.002, 0.005, 0.03))
        if kind == "late_arrival":
            there = READ_TIMEOUT_SECONDS + wire.rng.choice((0.2, 1.0, 3.0))
        back = wire.rng.choice((0.002, 0.005, 0.03))
        if kind == "slow":
            back = wire.rng.choice((0.2, 0.35, 1.0, 2.0))
        at_stripe = None if kind in ("lost_request", "lost_answer", "late_arrival", "slow") else kind

        def arrive() -> None:
            if kind == "lost_request":
                return
            failure = wire.stripe.arrive(body, key, at_stripe)
            if kind == "late_arrival":
                wire.seen("a request arrived after its caller had given up")
            if failure is None or failure.code != "idempotency_key_in_use":
                wire.stripe.open_call(key)
                wire.loop.outside(back, lambda: wire.stripe.close_call(key))
            if kind != "lost_answer":
                wire.loop.outside(back, lambda: _answer(answered, failure))

        wire.send(there, arrive)
        try:
            async with asyncio.timeout(READ_TIMEOUT_SECONDS):
                failure = await answered
        except TimeoutError:
            raise _failed(NO_ANSWER) from None
        finally:
            if wire.lease_version() != led:
                wire.seen("a lease lost while a call was in flight")
        if wire.troubles.strikes("stripe.answered") is not None:
            raise AssertionError("only a crash strikes there")
        if failure is None:
            return Delivered(duplicate=False)
        error = _failed(failure)
        if error.row.situation is Situation.DUPLICATE:
            return Delivered(duplicate=True)
        raise error

    async def _ask(self, answer: Callable[[], T]) -> T:
        """A read: the answer is of the moment it was asked, and arrives a little later."""
        wire = self._wire
        kind = wire.troubles.strikes("stripe.ask")
        await asyncio.sleep(wire.rng.choice((0.001, 0.01)))
        if wire.cut or kind == "unreachable":
            raise _failed(UNREACHABLE)
        if wire.stripe.key_revoked:
            raise _failed(REVOKED)
        if kind == "error":
            raise _failed(SERVER_ERROR)
        found = answer()
        await asyncio.sleep(wire.rng.choice((0.001, 0.01)))
        return found


def _answer(answered: asyncio.Future[Failure | None], failure: Failure | None) -> None:
    if not answered.done():
        answered.set_result(failure)


def _failed(failure: Failure) -> CallFailed:
    row = judge(failure)
    if not row.certain:
        return UnknownOutcome(row, failure)
    return (Permanent if row.action is Action.PARK else Transient)(row, failure)


class WebhookGateway:
    """The projector's `Gateway`. What it answers is of the moment Stripe was asked, however late it comes."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def customer(self, customer_id: str) -> Customer:
        return await self._fetch(self._wire.stripe.customers, customer_id)

    async def subscription(self, subscription_id: str) -> Subscription:
        return await self._fetch(self._wire.stripe.subscriptions, subscription_id)

    async def invoice(self, invoice_id: str) -> Invoice:
        return await self._fetch(self._wire.stripe.invoices, invoice_id)

    async def meter_error_data(self, event_id: str) -> Mapping[str, Any]:
        return await self._fetch(self._wire.stripe.reports, event_id)

    async def _fetch(self, objects: Mapping[str, T], key: str) -> T:
        wire = self._wire
        kind = wire.troubles.strikes("stripe.fetch")
        await asyncio.sleep(wire.rng.choice((0.002, 0.02)))
        if wire.cut or kind == "unreachable":
            raise errors.Transient(errors.TransientReason.STRIPE_UNREACHABLE, "cut")
        if kind == "missing" or key not in objects:
            raise errors.Permanent(errors.PermanentReason.NOT_FOUND, key)
        found = objects[key]
        # A slow answer is old when it comes.
        await asyncio.sleep(wire.rng.choice((0.1, 0.3, 0.6)) if kind == "slow" else 0.002)
        return found
