"""The webhooks service as a process, between the stand-in for Stripe, a broker and a ledger."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from sandbox.stack import Stack, StackSettings
from sandbox.stripe.process import StandInControl, StripeStandIn
from tests.parts.kafka import BrokerSettings
from tollgate.contracts.topics import STRIPE_EVENTS
from tollgate.ledger.engine import Engine, open_ledger
from tollgate.ledger.init import Pins, initialise
from tollgate.runtime.kafka import TopicSpec, create_topics

KEY = "sk_test_webhooks"
RULES = "user=customer.id,user=customer.email,company=customer.id,company=subscription.id"


class WebhooksRig:
    """Everything around the service; `start`, `kill` and `wait_exit` are for the test."""

    def __init__(
        self, directory: Path, broker: BrokerSettings, ledger_url: str, stand_in: StripeStandIn
    ) -> None:
        self.stand_in = stand_in
        self.control: StandInControl = stand_in.control
        self.api = httpx.Client(
            base_url=stand_in.base_url,
            headers={"Authorization": f"Bearer {KEY}", "Stripe-Version": "2026-10-28.endive"},
            trust_env=False,
            timeout=30,
        )
        self.engine: Engine = open_ledger(ledger_url)
        self.stack = Stack(
            StackSettings(
                directory / "stack",
                broker.bootstrap_servers,
                ledger_url,
                stand_in.base_url,
                stripe_key=KEY,
                topic_prefix=broker.topic_prefix,
                ephemeral=broker.ephemeral,
                extra={
                    "TOLLGATE_STRIPE__READS_PER_SECOND": "100",
                    "TOLLGATE_WEBHOOKS__MAPPING_RULES": RULES,
                    "TOLLGATE_WEBHOOKS__POLL_INTERVAL_SECONDS": "0",
                    "TOLLGATE_WEBHOOKS__RETRY_SECONDS_MAX": "1",
                    "TOLLGATE_WEBHOOKS__SESSION_TIMEOUT_SECONDS": "2",
                    "TOLLGATE_LOG__FORMAT": "json",
                },
            )
        )
        asyncio.run(create_topics(broker, [TopicSpec(STRIPE_EVENTS.name, 3)]))
        account = self.get("/v1/account")["id"]
        initialise(self.engine, Pins("cluster", "gateway.events", 1, account, "test", "seed", "l_1"), 1, 0)
        # Retried at once, so that a killed service costs the test no minutes.
        self.control.config(webhooks={"retry_delays_seconds": [1] * 60, "timeout_seconds": 5})
        url = f"{self.stack.url('webhooks')}/stripe/webhooks"
        secret = self.post("/v1/webhook_endpoints", {"url": url, "enabled_events[0]": "*"})["secret"]
        self.stack.configure("webhooks", TOLLGATE_STRIPE__WEBHOOK_SECRETS=secret)

    def post(self, path: str, form: dict[str, Any]) -> dict[str, Any]:
        answer = self.api.post(path, data=form)
        answer.raise_for_status()
        body: dict[str, Any] = answer.json()
        return body

    def get(self, path: str) -> dict[str, Any]:
        answer = self.api.get(path)
        answer.raise_for_status()
        body: dict[str, Any] = answer.json()
        return body

    def price(self, event_name: str = "calls") -> str:
        """A daily metered price on a meter of its own."""
        meter = self.post(
            "/v1/billing/meters",
            {"display_name": event_name, "event_name": event_name, "default_aggregation[formula]": "sum"},
        )
        product = self.post("/v1/products", {"name": event_name})
        price = self.post(
            "/v1/prices",
            {
                "currency": "usd",
                "product": product["id"],
                "unit_amount": 1,
                "recurring[interval]": "day",
                "recurring[usage_type]": "metered",
                "recurring[meter]": meter["id"],
            },
        )
        return str(price["id"])

    def sign_up(self, price: str, email: str) -> tuple[str, str]:
        """A customer with a subscription."""
        customer = self.post("/v1/customers", {"email": email})["id"]
        subscription = self.post("/v1/subscriptions", {"customer": customer, "items[0][price]": price})["id"]
        return str(customer), str(subscription)

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with self.engine.connect() as connection:
            found = [tuple(row) for row in connection.exec_driver_sql(sql)]
            connection.rollback()
        return found

    def events_at_stripe(self) -> dict[str, str]:
        """Ids and types of every event the stand-in made."""
        found: dict[str, str] = {}
        after = ""
        while True:
            page = self.get(f"/v1/events?limit=100{after}")
            found |= {event["id"]: event["type"] for event in page["data"]}
            if not page["has_more"]:
                return found
            after = f"&starting_after={page['data'][-1]['id']}"

    def wait(self, done: Callable[[], bool], timeout_seconds: float = 40) -> None:
        """Return once `done()`; fails with the service's log."""
        deadline = time.monotonic() + timeout_seconds
        while not done():
            if time.monotonic() > deadline:
                raise AssertionError(self.stack.child("webhooks").tail())
            time.sleep(0.05)

    def wait_projected(self) -> None:
        """Return once the inbox holds every event the stand-in has made."""

        def done() -> bool:
            inbox = {row[0] for row in self.rows("SELECT event_id FROM stripe_inbox")}
            return self.events_at_stripe().keys() <= inbox

        self.wait(done)

    def close(self) -> None:
        self.stack.stop()
        self.api.close()
        self.control.close()
        self.engine.dispose()


@contextlib.contextmanager
def webhooks_rig(
    directory: Path, broker: BrokerSettings, ledger_url: str, began_s: int | None = None
) -> Iterator[WebhooksRig]:
    """A rig, at Stripe's moment `began_s`, where time stands still (now and flowing without); none of it is left running."""
    with StripeStandIn.start(directory / "stripe.sqlite3") as stand_in:
        if began_s is not None:
            with stand_in.control as control:
                control.set_clock(began_s, frozen=True)
        rig = WebhooksRig(directory, broker, ledger_url, stand_in)
        try:
            yield rig
        finally:
            rig.close()
