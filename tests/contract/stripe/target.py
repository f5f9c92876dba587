"""What contract tests hold in their hands: the server under contract, and a webhook receiver.

Owns: short ways to make things no other test shares. Refuses to know: how the server was started.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import uuid4

import stripe

from sandbox.stripe.process import StripeStandIn


def client_of(running: StripeStandIn, key: str = "sk_test_contract") -> stripe.StripeClient:
    """An SDK client of a stand-in, without retries of its own."""
    return stripe.StripeClient(key, base_addresses={"api": running.base_url}, max_network_retries=0)


@dataclass
class Target:
    """The server under contract: an SDK client, its clock, and makers of things no other test shares."""

    client: stripe.StripeClient
    now_seconds: Callable[[], int]
    patience_seconds: int

    def name(self, prefix: str) -> str:
        """A name no other test and no earlier run used."""
        return f"{prefix}_{uuid4().hex[:12]}"

    def customer(self) -> str:
        """A new customer's id."""
        return self.client.v1.customers.create({"name": self.name("contract")}).id

    def meter(self, formula: str = "sum", window: str | None = None) -> stripe.billing.Meter:
        """A new meter; its event name is its own."""
        params = {
            "display_name": "Contract",
            "event_name": self.name("contract"),
            "default_aggregation": {"formula": formula},
        }
        if window is not None:
            params["event_time_window"] = window
        return self.client.v1.billing.meters.create(params)  # type: ignore[arg-type]

    def price(self, meter: stripe.billing.Meter, **terms: object) -> str:
        """A new monthly metered price of two cents a unit, or as ``terms`` say."""
        params: dict[str, object] = {
            "currency": "usd",
            "product_data": {"name": "Contract"},
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter.id},
        }
        params |= terms or {"unit_amount": 2}
        return self.client.v1.prices.create(params).id  # type: ignore[arg-type]

    def send(
        self,
        meter: stripe.billing.Meter,
        customer: str,
        value: int | str,
        timestamp: int | None = None,
        identifier: str | None = None,
    ) -> stripe.billing.MeterEvent:
        """One meter event, stamped now unless said otherwise."""
        return self.client.v1.billing.meter_events.create(
            {
                "event_name": meter.event_name,
                "payload": {"stripe_customer_id": customer, "value": str(value)},
                "identifier": identifier or self.name("id"),
                "timestamp": self.now_seconds() if timestamp is None else timestamp,
            }
        )

    def summed(
        self,
        meter: stripe.billing.Meter,
        customer: str,
        start: int,
        end: int,
        grouping: str | None = None,
    ) -> list[tuple[int, float]]:
        """(window start, value) of the event summaries with usage, oldest first."""
        params = {"customer": customer, "start_time": start, "end_time": end, "limit": 100}
        if grouping is not None:
            params["value_grouping_window"] = grouping
        found = self.client.v1.billing.meters.event_summaries.list(meter.id, params)  # type: ignore[arg-type]
        return sorted(
            (summary.start_time, summary.aggregated_value)
            for summary in found.data
            if summary.aggregated_value
        )

    def eventually(self, check: Callable[[], bool]) -> bool:
        """Whether the check comes true within the target's patience: Stripe sums up asynchronously."""
        deadline = time.monotonic() + self.patience_seconds
        while not check():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05 if self.patience_seconds < 10 else 5)
        return True


@dataclass
class Receiver:
    """A webhook receiver: what it got (signature header, raw body), and what it answers next."""

    url: str
    got: list[tuple[str, bytes]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def wait(self, count: int, timeout_seconds: int = 5) -> list[tuple[str, bytes]]:
        """The first ``count`` deliveries; fails the test if they do not come."""
        deadline = time.monotonic() + timeout_seconds
        while len(self.got) < count:
            assert time.monotonic() < deadline, f"{len(self.got)} of {count} deliveries came"
            time.sleep(0.01)
        return self.got[:count]
