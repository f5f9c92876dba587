"""The sender and planner in this process, on virtual time, against the stand-in for Stripe: one rig for every mode."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from uuid import uuid4

import stripe
from prometheus_client import CollectorRegistry

from sandbox.stripe.process import StandInControl, StripeStandIn
from services.stripe_sync.book import Book, Threads
from services.stripe_sync.bucket import TokenBucket
from services.stripe_sync.gateway import USAGE_RECORD_VERSION, StripeGateway
from services.stripe_sync.meter_watch import MeterWatch
from services.stripe_sync.metrics import SyncMetrics
from services.stripe_sync.plan import Rules
from services.stripe_sync.recorder import Recorder
from services.stripe_sync.sender import Sender, SenderLimits
from tests.contract.ledger.postings_world import HOUR_MS, T0, World
from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.posting_rows import UNSETTLED, PostingState
from tollgate.ledger.sending import apply_rejections
from tollgate.ledger.verify_postings import PostedMeter, verify_postings
from tollgate.metering.closed import ClosedPolicy
from tollgate.metering.metric import MetricKind
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import ManualClock
from tollgate.runtime.faults import Faults

KEY = "sk_test_modes"
MODES = ("delta", "window_total", "usage_record")
STEP_MS = 1000
"""Of virtual time, each time every call has been answered."""


@dataclass
class Calls:
    """The gateway, counting the calls under way: time stands still while there are any."""

    gateway: StripeGateway
    under_way: int = 0

    def __getattr__(self, name: str) -> Callable[..., Awaitable[object]]:
        call = getattr(self.gateway, name)

        async def counted(*arguments: object) -> object:
            self.under_way += 1
            try:
                return await call(*arguments)
            finally:
                self.under_way -= 1

        return counted


@dataclass
class ModesRig:
    """One meter in one mode, a few customers, and the truth to compare Stripe with."""

    world: World
    control: StandInControl
    base_url: str
    mode: str
    clock: ManualClock
    client: stripe.StripeClient
    name: str = ""
    meter: int = 0
    base_ms: int = 0
    items: dict[str, str] = field(default_factory=dict)
    """The subscription item of each customer, in mode usage_record."""
    period_end_s: int | None = None
    """When the items' first period ends, in mode usage_record."""
    truth: dict[tuple[str, int], int] = field(default_factory=dict)
    """What each customer used, by window."""

    @classmethod
    def make(cls, ledger_url: str, stand_in: StripeStandIn, mode: str) -> ModesRig:
        control = stand_in.control
        control.freeze()
        client = stripe.StripeClient(KEY, base_addresses={"api": stand_in.base_url}, max_network_retries=0)
        world = World.make(ledger_url, ledger_id=f"ledger_{uuid4().hex[:8]}")
        rig = cls(world, control, stand_in.base_url, mode, ManualClock(control.now_seconds() * 1000), client)
        # What else can become of usage for a closed period is tested with the policies.
        world.rules = Rules(world.rules.ledger_id, closed=ClosedPolicy.HOLD)
        rig.name = f"m_{uuid4().hex[:10]}"
        rig.meter = world.meter(rig.name, mode=mode)
        if mode != "usage_record":
            params = {
                "display_name": "m",
                "event_name": rig.name,
                "default_aggregation": {"formula": "sum"},
            }
            if mode == "window_total":
                params["event_time_window"] = "hour"
            client.v1.billing.meters.create(params)  # type: ignore[arg-type]
        return rig

    def close(self) -> None:
        self.control.clear_faults()
        self.control.config(meters={"validation": "sync"})
        self.control.freeze(frozen=False)
        self.control.close()
        self.world.engine.dispose()

    # ------------------------------------------------------------------------------ what exists

    def customers(self, count: int) -> list[str]:
        """Customers with an account and an open period that began an hour's edge ago; time is six hours later."""
        start_s = self.control.now_seconds()
        made = [self.client.v1.customers.create({"name": "c"}).id for _ in range(count)]
        if self.mode == "usage_record":
            price = self._old("post", "/v1/prices", currency="usd", unit_amount=3, product_data={"name": "p"},
                              recurring={"interval": "month", "usage_type": "metered"})["id"]  # fmt: skip
            for customer in made:
                found = self._old("post", "/v1/subscriptions", customer=customer, items=[{"price": price}])
                self.items[customer] = found["items"]["data"][0]["id"]
                self.period_end_s = found["current_period_end"]
        for customer in made:
            self.world.customer(customer, f"user:{customer}")
            self.world.period(
                customer,
                self.name,
                start_s * 1000,
                (self.period_end_s or start_s + 20 * 86_400) * 1000,
                item_id=self.items.get(customer),
            )
        self.base_ms = start_s * 1000 - start_s * 1000 % HOUR_MS + HOUR_MS
        self.pass_time(6 * 3600)
        return made

    def _old(self, method: str, path: str, **params: object) -> dict[str, Any]:
        answer = self.client.raw_request(method, path, stripe_version=USAGE_RECORD_VERSION, **params)
        return dict(answer.data)

    def use(self, customer: str, quantity: int, window: int = 0) -> None:
        """The customer's count in a recent hour now stands at `quantity`."""
        number = (self.base_ms - T0) // HOUR_MS + window
        self.world.use(self.meter, f"user:{customer}", quantity, window=number)
        self.truth[customer, window] = quantity

    def pass_time(self, seconds: int) -> None:
        """Both clocks."""
        self.control.advance(seconds)
        self.clock.advance_ms(seconds * 1000)
        self.world.now_ms = self.clock.now_ms()

    # ------------------------------------------------------------------------------ what happens

    def plan(self) -> None:
        """Take refusals back, plan and journal until nothing more comes."""
        apply_rejections(self.world.engine, self.world.lease, self.clock.now_ms())
        for _ in range(5):
            report = self.world.plan()
            self.world.journal()
            if not report.reversals and not report.more:
                return

    def run(self, done: Callable[[], bool], minutes: int = 90) -> None:
        """Plan every minute and send, until `done`."""
        asyncio.run(self._run(done, minutes))

    async def _run(self, done: Callable[[], bool], minutes: int) -> None:
        threads = Threads(2)
        book = Book(self.world.engine, self.world.lease, threads)
        gateway = StripeGateway(
            KEY, api_base=self.base_url, connect_timeout_seconds=5, read_timeout_seconds=10
        )
        calls = Calls(gateway)
        recorder = Recorder(book, self.clock, Faults())
        backoff = Backoff(2.0, 60.0, jitter=0.0)
        sender = Sender(
            book=book,
            gateway=calls,  # type: ignore[arg-type]
            watch=MeterWatch(book, calls, self.clock, 60.0),  # type: ignore[arg-type]
            recorder=recorder,
            bucket=TokenBucket(100, 100, self.clock.monotonic_seconds()),
            clock=self.clock,
            backoff=backoff,
            limits=SenderLimits(8, summary_lag_seconds=600.0, probe_seconds=30.0),
            metrics=SyncMetrics(CollectorRegistry()),
            may_send=lambda: True,
            faults=Faults(),
            on_stopped=lambda _: None,
        )
        tasks = [asyncio.create_task(recorder.run())]
        try:
            for minute in range(minutes):
                self.plan()
                for _ in range(3):
                    started = await sender.dispatch()
                    while sender.in_flight or calls.under_way:
                        # Whoever waits for the clock waits for backoff or tokens, never for Stripe.
                        await asyncio.sleep(0.001)
                        if not calls.under_way and self.clock.sleepers:
                            self.clock.advance_ms(STEP_MS)
                    if not started:
                        break
                if done():
                    return
                self.pass_time(20 if minute < 5 else 60)
            raise AssertionError(self.describe())
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await gateway.close()
            threads.close()

    # ------------------------------------------------------------------------------ what is seen

    def describe(self) -> str:
        """Every posting, for a failed test."""
        return (
            "\n".join(
                f"{p.ref} {p.quantity_from}->{p.quantity_to} {p.state} {p.error}"
                for p in self.world.postings()
            )
            + f"\nheld {self.world.held()}\nat Stripe {self.at_stripe()}, wanted {self.expected()}"
        )

    def at_stripe(self) -> dict[str, Decimal]:
        """The stand-in's exact totals by customer."""
        found: dict[str, Decimal] = {}
        if self.mode == "usage_record":
            for customer, item in self.items.items():
                records = self.control.usage_records(item)
                if records:
                    found[customer] = sum((Decimal(r["quantity"]) for r in records), Decimal(0))
            return found
        for row in self.control.totals(event_name=self.name):
            found[row["customer"]] = found.get(row["customer"], Decimal(0)) + Decimal(row["quantity"])
        return found

    def expected(self) -> dict[str, Decimal]:
        """The truth by customer."""
        found: dict[str, Decimal] = {}
        for (customer, _), quantity in self.truth.items():
            found[customer] = found.get(customer, Decimal(0)) + quantity
        return found

    def is_settled(self) -> bool:
        """Nothing is open."""
        return not any(p.state in UNSETTLED for p in self.world.postings())

    def agrees(self) -> bool:
        """Stripe, the ledger's deliveries and the truth are the same, and nothing is open or held."""
        recorded: dict[str, Decimal] = {}
        for (customer, _), quantity in self.world.delivered().items():
            recorded[customer] = recorded.get(customer, Decimal(0)) + quantity
        return (
            self.is_settled() and self.world.held() == {} and self.at_stripe() == self.expected() == recorded
        )

    def check_law(self) -> None:
        """The ledger's own check of every chain."""
        with read_snapshot(self.world.engine) as connection:
            found = verify_postings(connection, {self.meter: PostedMeter(self.name, MetricKind.COUNT)})
        assert found == []
        self.world.check_chains()

    def invoiced(self) -> dict[str, int]:
        """Cents on each customer's invoice of the ended period."""
        found = {}
        for customer in self.items:
            invoices = self.client.v1.invoices.list({"customer": customer}).data
            (cycle,) = [i for i in invoices if i.billing_reason == "subscription_cycle"]
            found[customer] = cycle.total
        return found

    def send_behind_its_back(self) -> None:
        """The planned postings reach Stripe as if an attempt had that nobody knows of."""
        for posting in self.world.postings():
            if posting.state is not PostingState.JOURNALLED:
                continue
            body = json.loads(posting.body)
            if self.mode == "usage_record":
                item = body.pop("subscription_item")
                self._old("post", f"/v1/subscription_items/{item}/usage_records", **body)
            else:
                self.client.v1.billing.meter_events.create(body)
