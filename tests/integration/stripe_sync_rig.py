"""stripe_sync as real processes against the stand-in for Stripe, a broker and a ledger file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from uuid import uuid4

import stripe

from sandbox.stripe.process import StandInControl, StripeStandIn
from tests.contract.ledger.postings_world import HOUR_MS, T0, World
from tests.parts.kafka import BrokerSettings
from tollgate.contracts.topics import STRIPE_POSTINGS
from tollgate.ledger.leases import release_lease
from tollgate.runtime.kafka import ClusterUnidentified, TopicSpec, cluster_id, create_topics

ROOT = Path(__file__).resolve().parents[2]
KEY = "sk_test_stripesync"
WAIT_SECONDS = 45


@dataclass
class Process:
    """One stripe_sync process and its health address."""

    child: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        return self.child.pid

    def port(self) -> int:
        """Where it serves health and metrics, by its own log; waits for it to start."""
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline and self.child.poll() is None:
            for line in self.log.read_text(errors="replace").splitlines(keepends=True):
                if '"service.started"' in line and line.endswith("\n"):
                    return int(json.loads(line)["port"])
            time.sleep(0.05)
        raise AssertionError(f"not started:\n{self.tail()}")

    def get(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port()}{path}", timeout=5) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def metric(self, sample: str) -> float:
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"{sample} "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no sample {sample}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def send(self, number: signal.Signals) -> None:
        self.child.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.child.poll() is None:
            self.child.send_signal(signal.SIGCONT)
            self.child.send_signal(number)
        try:
            return self.child.wait(30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()
            raise


@dataclass
class Rig:
    """Everything around the processes under test."""

    world: World
    broker: BrokerSettings
    stand_in: StripeStandIn
    control: StandInControl
    url: str
    directory: Path
    client: stripe.StripeClient
    processes: list[Process] = field(default_factory=list)
    base_ms: int = 0

    @classmethod
    def make(cls, url: str, broker: BrokerSettings, stand_in: StripeStandIn, directory: Path) -> Rig:
        asyncio.run(create_topics(broker, [TopicSpec(STRIPE_POSTINGS.name, 2)]))
        client = stripe.StripeClient(KEY, base_addresses={"api": stand_in.base_url}, max_network_retries=0)
        account = client.v1.accounts.retrieve_current().id
        world = World.make(
            url,
            stripe_account=account,
            kafka_cluster_id=asyncio.run(_cluster(broker)),
            ledger_id=f"ledger_{uuid4().hex[:8]}",
        )
        rig = cls(world, broker, stand_in, stand_in.control, url, directory, client)
        # The rig's own lease is given back: the processes take theirs.
        release_lease(world.engine, world.lease)
        now_ms = rig.control.now_seconds() * 1000
        rig.base_ms = now_ms - now_ms % HOUR_MS - 6 * HOUR_MS
        return rig

    def close(self) -> None:
        for process in self.processes:
            if process.child.poll() is None:
                process.child.send_signal(signal.SIGCONT)
                process.child.kill()
            process.child.wait()
        self.control.clear_faults()
        self.control.close()
        self.world.engine.dispose()

    # -------------------------------------------------------------------------------- what exists

    def meter(self) -> tuple[int, str]:
        """A live meter here and at Stripe; its id and event name."""
        name = f"m_{uuid4().hex[:10]}"
        self.client.v1.billing.meters.create(
            {"display_name": "m", "event_name": name, "default_aggregation": {"formula": "sum"}}
        )
        return self.world.meter(name), name

    def customer(self, event_name: str) -> str:
        """A customer with one account of the same name, and an open period."""
        customer = self.client.v1.customers.create({"name": "c"}).id
        self.world.customer(customer, f"user:{customer}")
        self.world.period(
            customer, event_name, self.base_ms - 500 * HOUR_MS, self.base_ms + 500 * HOUR_MS, item=customer
        )
        return customer

    def use(self, meter: int, customer: str, quantity: int, window: int = 0) -> None:
        """The customer's count in a recent hour now stands at `quantity`."""
        number = (self.base_ms - T0) // HOUR_MS + window
        self.world.use(meter, f"user:{customer}", quantity, window=number)

    # ---------------------------------------------------------------------------------- processes

    def start(self, **settings: object) -> Process:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "TOLLGATE_KAFKA__BOOTSTRAP_SERVERS": self.broker.bootstrap_servers,
            "TOLLGATE_KAFKA__TOPIC_PREFIX": self.broker.topic_prefix,
            "TOLLGATE_EPHEMERAL": str(self.broker.ephemeral).lower(),
            "TOLLGATE_LEDGER__URL": self.url,
            "TOLLGATE_STRIPE__API_KEY": KEY,
            "TOLLGATE_STRIPE__API_BASE": self.stand_in.base_url,
            "TOLLGATE_STRIPE__READ_TIMEOUT_SECONDS": "3",
            "TOLLGATE_HTTP__PORT": "0",
            "TOLLGATE_LOG__FORMAT": "json",
            "TOLLGATE_SYNC__CADENCE_SECONDS": "0.2",
            "TOLLGATE_SYNC__CALLS_PER_SECOND": "200",
            "TOLLGATE_SYNC__RETRY_INITIAL_SECONDS": "0.05",
            "TOLLGATE_SYNC__RETRY_MAX_SECONDS": "0.5",
            "TOLLGATE_SYNC__METER_CHECK_SECONDS": "0.5",
            "TOLLGATE_SYNC__PROBE_SECONDS": "0.3",
            "TOLLGATE_SYNC__LEASE_SECONDS": "1.5",
        }
        environment |= {name: str(value) for name, value in settings.items()}
        log = self.directory / f"stripe_sync.{len(self.processes)}.log"
        with log.open("wb") as output:
            child = subprocess.Popen(
                [sys.executable, "-m", "services.stripe_sync"],
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        process = Process(child, log)
        self.processes.append(process)
        return process

    def wait(self, done: Callable[[], bool], what: str, seconds: float = WAIT_SECONDS) -> None:
        """Poll until `done`. Fails with the newest process' log."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if done():
                return
            time.sleep(0.05)
        tails = "\n\n".join(process.tail() for process in self.processes)
        postings = "\n".join(f"{p.ref} {p.state} {p.quantity} {p.error}" for p in self.world.postings())
        raise AssertionError(f"not in time: {what}\n{postings}\n{tails}")

    def at_stripe(self, event_name: str) -> dict[str, Decimal]:
        """The stand-in's exact totals by customer."""
        found: dict[str, Decimal] = {}
        for row in self.control.totals(event_name=event_name):
            found[row["customer"]] = found.get(row["customer"], Decimal(0)) + Decimal(row["quantity"])
        return found

    def wait_for_totals(self, event_name: str, expected: dict[str, int]) -> None:
        """Until Stripe holds exactly this and the ledger says that it does."""
        wanted = {customer: Decimal(quantity) for customer, quantity in expected.items()}

        def done() -> bool:
            recorded = {customer: Decimal(0) for customer in wanted}
            for (customer, _), quantity in self.world.delivered().items():
                if customer in recorded:
                    recorded[customer] += quantity
            return self.at_stripe(event_name) == wanted == recorded

        self.wait(done, f"Stripe to hold {wanted}")
        self.world.check_chains()


async def _cluster(broker: BrokerSettings) -> str:
    try:
        return await cluster_id(broker)
    except ClusterUnidentified:
        return ""
