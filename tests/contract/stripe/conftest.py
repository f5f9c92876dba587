"""What the contract suite runs against: the stand-in, or Stripe's own test mode.

With ``STRIPE_API_KEY=sk_test_…`` every test that needs no control over time or faults runs against Stripe; the others
(those that use the ``control``, ``stand_in`` or ``receiver`` fixture) are deselected, and the report says why.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import uuid4

import pytest
import stripe

from sandbox.stripe.process import StandInControl, StripeStandIn

_STAND_IN_ONLY = {
    "control": "needs control over time, faults or knobs (/_clock, /_faults, /_config)",
    "stand_in": "kills and restarts the server",
    "receiver": "receives webhooks on this machine, where Stripe cannot reach it",
}


def _real_key() -> str | None:
    key = os.environ.get("STRIPE_API_KEY")
    return key if key is not None and key.startswith("sk_test_") else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Against Stripe itself, leave out what only the stand-in can do, and list it."""
    if _real_key() is None:
        return
    left_out: list[pytest.Item] = []
    reasons: dict[str, int] = {}
    for item in list(items):
        names = getattr(item, "fixturenames", ())
        reason = next((text for name, text in _STAND_IN_ONLY.items() if name in names), None)
        if reason is not None:
            items.remove(item)
            left_out.append(item)
            reasons[reason] = reasons.get(reason, 0) + 1
    config.hook.pytest_deselected(items=left_out)
    config.stash[_REASONS] = reasons


_REASONS = pytest.StashKey[dict[str, int]]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was not run against Stripe."""
    for reason, count in config.stash.get(_REASONS, {}).items():
        terminalreporter.write_line(f"not run against Stripe: {count} tests, which {reason}")


@dataclass
class Target:
    """The server under contract: an SDK client, its clock, and makers of things no other test shares."""

    client: stripe.StripeClient
    now_seconds: Callable[[], int]
    patience_seconds: int
    made_prices: dict[str, str] = field(default_factory=dict)

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


@pytest.fixture(scope="session")
def shared_stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeStandIn | None]:
    """One stand-in process for the whole run; None when the suite runs against Stripe."""
    if _real_key() is not None:
        yield None
        return
    with StripeStandIn.start(tmp_path_factory.mktemp("stripe") / "state.sqlite3") as running:
        yield running


@pytest.fixture
def target(shared_stand_in: StripeStandIn | None) -> Iterator[Target]:
    """The server under contract."""
    if shared_stand_in is None:
        yield Target(stripe.StripeClient(str(_real_key())), lambda: int(time.time()), 120)
        return
    with shared_stand_in.control as control:
        yield Target(client_of(shared_stand_in), control.now_seconds, 5)


@pytest.fixture
def control(shared_stand_in: StripeStandIn | None) -> Iterator[StandInControl]:
    """The stand-in's control endpoints; faults, knobs and frozen time end with the test."""
    assert shared_stand_in is not None
    with shared_stand_in.control as client:
        yield client
        client.clear_faults()
        client.freeze(frozen=False)
        client.config(
            meters={
                "summary_lag_seconds": 0,
                "validation": "sync",
                "error_report_samples": 5,
                "latency_ms": 1,
            },
            webhooks={
                "duplicate_per_10_000": 0,
                "reorder_window_ms": 0,
                "delay_ms": 0,
                "retry_delays_seconds": [1, 5, 30],
            },
        )


@pytest.fixture
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StripeStandIn]:
    """A stand-in of the test's own, to kill and restart."""
    with StripeStandIn.start(tmp_path_factory.mktemp("own") / "state.sqlite3") as running:
        yield running


def client_of(running: StripeStandIn, key: str = "sk_test_contract") -> stripe.StripeClient:
    """An SDK client of a stand-in, without retries of its own."""
    return stripe.StripeClient(key, base_addresses={"api": running.base_url}, max_network_retries=0)


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


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook receiver on a free port, answering 200 unless ``answers`` says otherwise."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            state.got.append((self.headers["Stripe-Signature"], body))
            self.send_response(state.answers.pop(0) if state.answers else 200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = Receiver(f"http://127.0.0.1:{server.server_address[1]}/hook")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()
