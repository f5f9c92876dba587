"""One small run of every service, whose ledger and log tests of the command line look at and tamper with copies of.

Owns the run, the commands of the real command line as processes, and copies of ledger and log.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from signal import SIGTERM
from typing import Any

from click.testing import CliRunner
from sqlalchemy import insert, select

from sandbox.demo.cast import LOOKUP_KEYS, yesterday_s
from sandbox.demo.story import CAPTURE
from sandbox.shop import Shop, Shopper
from sandbox.stack import BRISK, SERVICES, Stack, StackSettings
from sandbox.stripe.process import StandInControl, StripeStandIn
from sandbox.traffic.calls import HOUR_MS, Call, Identity, Kind, Mix, generate_calls
from sandbox.traffic.formats import Format
from sandbox.traffic.history import HistoryWriter, read_history
from sandbox.traffic.sender import Target, send_calls
from sandbox.traffic.truth import Truth, tell_truth
from services.cli.__main__ import cli
from tests.parts.kafka import BrokerSettings, delete_topics
from tests.parts.postgres import PostgresPart
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.ledger.engine import ledger_transaction, open_ledger, read_snapshot
from tollgate.ledger.migrations import migrate
from tollgate.ledger.progress import load_progress
from tollgate.ledger.tables import metadata
from tollgate.runtime.kafka import TopicSpec, create_topics, new_consumer, new_producer, topic_bounds

ROOT = Path(__file__).resolve().parents[2]
PARTITIONS = 3
EVENTS = 2_000
SEED = 7
WAIT_SECONDS = 60.0

MORE_METERS = """
  - name: fastest_call
    where: status < 500
    metric: { min: latency_ms }
    window: day
  - name: last_status
    metric: { latest: status }
    window: hour
"""
"""Applied half way, so that the log has been counted by two sets of meters."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the log, to be written elsewhere."""

    value: bytes
    headers: list[tuple[str, bytes]]
    timestamp_ms: int


class CountedRun:
    """What is left of the run once every service has stopped, and the commands to look at it."""

    def __init__(self, broker: BrokerSettings, postgres: PostgresPart, directory: Path) -> None:
        self.broker = broker
        self.directory = directory
        self._postgres = postgres
        self._exit = ExitStack()
        self.ledger_url = postgres.fresh()
        self.counted_url = ""
        """A copy of the ledger as it was when the run had ended, which nothing changes."""
        self.stand_in = self._exit.enter_context(StripeStandIn.start(directory / "stripe.sqlite3"))
        self.settings = StackSettings(
            directory=directory / "stack",
            bootstrap_servers=broker.bootstrap_servers,
            topic_prefix=broker.topic_prefix,
            ephemeral=broker.ephemeral,
            ledger_url=self.ledger_url,
            stripe_url=self.stand_in.base_url,
            partitions=PARTITIONS,
            capture=CAPTURE,
            extra={**BRISK, "TOLLGATE_SYNC__CADENCE_SECONDS": "0.5", "TOLLGATE_FLUSH__INTERVAL_MS": "100"},
        )
        self.stack = self._exit.enter_context(Stack(self.settings))
        self.shoppers: tuple[Shopper, ...] = ()
        self.token = ""
        self.truth = Truth()

    def play(self) -> None:
        """Sell, send, count, post; then stop everything and keep the ledger as it is."""
        stack = self.stack
        with (
            Shop(self.stand_in.base_url, self.settings.stripe_key) as shop,
            StandInControl(self.stand_in.base_url) as control,
        ):
            control.set_clock(yesterday_s(int(time.time())))
            secret = shop.register_webhooks(f"{stack.url('webhooks')}/stripe/webhooks")
            stack.configure("webhooks", TOLLGATE_STRIPE__WEBHOOK_SECRETS=secret)
            stack.tollgate("init")
            stack.tollgate("meters", "apply", str(ROOT / "meters.yaml"), "--yes")
            self.token = stack.tollgate("tokens", "create", "gateway").strip()
            stack.start(*SERVICES)
            prices = shop.find_prices(LOOKUP_KEYS)
            self.shoppers = tuple(
                shop.sign_up(name, f"{name}@example.com", prices) for name in ("acme", "globex")
            )
            control.real_time()
            self._send()
            self.truth = tell_truth(read_history(self.directory / "history.jsonl"))
            self._wait_settled(control)
        self.end_services()
        self.counted_url = self._postgres.fresh(template=_name(self.ledger_url))

    def end_services(self) -> None:
        """One SIGTERM to each that runs; fails unless all end with 0."""
        running = [name for name in SERVICES if self.stack.child(name).running]
        for name in running:
            self.stack.child(name).send(SIGTERM)
        self.wait(lambda: not any(self.stack.child(name).running for name in running), "the services to end")
        codes = {name: self.stack.child(name).stop(SIGTERM, 0) for name in running}
        last_words = "".join(self.stack.child(name).tail() for name, code in codes.items() if code)
        assert not last_words, f"{codes}\n{last_words}"

    @property
    def identities(self) -> tuple[Identity, ...]:
        """Acme calls under two names, Globex under one, and somebody nobody knows."""
        acme, globex = self.shoppers
        return (
            Identity(customer=acme.customer, user=acme.customer),
            Identity(customer=acme.customer, user=acme.email),
            Identity(customer=globex.customer, user=globex.customer),
            Identity(customer="", user="stranger"),
        )

    def _send(self) -> None:
        calls = list(
            generate_calls(
                EVENTS,
                seed=SEED,
                identities=self.identities,
                now_ms=int(time.time() * 1000),
                spread_ms=2 * HOUR_MS,
                mix=Mix(duplicate=0.02, late=0.005, future=0.003, malformed=0.005),
            )
        )
        with HistoryWriter(self.directory / "history.jsonl") as history:
            for half in (calls[: EVENTS // 2], calls[EVENTS // 2 :]):
                asyncio.run(
                    send_calls(
                        half,
                        Target((self.stack.url("ingest"),), self.token),
                        history,
                        formats=(Format.KONG, Format.MOESIF, Format.CLOUDEVENTS),
                        batch_size=50,
                    )
                )
                if half[0] is calls[0]:
                    self._apply_more_meters()

    def _apply_more_meters(self) -> None:
        sent = tell_truth(read_history(self.directory / "history.jsonl")).outcomes["received"]
        self.wait(lambda: self.received() >= sent, "the first half to be counted")
        path = self.directory / "meters.yaml"
        path.write_text((ROOT / "meters.yaml").read_text() + MORE_METERS)
        self.stack.tollgate("meters", "apply", str(path))

    def received(self) -> int:
        """Events in the ledger."""
        engine = open_ledger(self.ledger_url)
        try:
            return sum(row.received for row in load_progress(engine).values())
        finally:
            engine.dispose()

    def counted_calls(self) -> Iterator[Call]:
        """The calls of the history that ought to be counted, each once."""
        seen: set[str] = set()
        for sent in read_history(self.directory / "history.jsonl"):
            if sent.call.kind in (Kind.NORMAL, Kind.DUPLICATE) and sent.call.id not in seen:
                seen.add(sent.call.id)
                yield sent.call

    def stand_in_totals(self) -> dict[tuple[str, str], Decimal]:
        """What Stripe holds, by customer and meter."""
        with StandInControl(self.stand_in.base_url) as control:
            return _totals(control)

    def _wait_settled(self, control: StandInControl) -> None:
        expected: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
        for (meter, customer, _), quantity in self.truth.by_customer.items():
            if customer and quantity:
                expected[customer, meter] += quantity

        def settled() -> bool:
            return self.received() >= self.truth.outcomes["received"] and _totals(control) == expected

        self.wait(settled, "Stripe to hold what was sent")

    def wait(self, holds: Callable[[], bool], what: str) -> None:
        """Return once `holds()`; fails with every service's last words."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not holds():
            if time.monotonic() > deadline:
                words = "\n".join(self.stack.child(name).tail() for name in SERVICES)
                raise AssertionError(f"waited {WAIT_SECONDS:g} s for {what}\n{words}")
            time.sleep(0.1)

    # ------------------------------------------------------------------------------------- commands and copies

    def environment(self, **changed: str) -> dict[str, str]:
        """The command line's environment, with variables changed (bare names below TOLLGATE_)."""
        return self.stack.environment() | {f"TOLLGATE_{name}": value for name, value in changed.items()}

    def tollgate(self, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        """Run the real command line as a process, whatever it ends with."""
        return subprocess.run(
            [sys.executable, "-m", "services.cli", *arguments],
            env=self.environment(**changed),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def invoke(self, *arguments: str, **changed: str) -> subprocess.CompletedProcess[str]:
        """The same in this process: a second cheaper, all of it imports."""
        done = CliRunner().invoke(cli, arguments, env=self.environment(**changed))
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    def copy_ledger(self) -> str:
        """The URL of a copy of the ledger as the run left it. Drop it with `drop_ledger`."""
        return self._postgres.fresh(template=_name(self.counted_url))

    def drop_ledger(self, url: str) -> None:
        self._postgres.drop(url)

    def copy_ledger_to_sqlite(self, path: Path) -> str:
        """The URL of a SQLite file with the same rows."""
        url = f"sqlite:///{path}"
        copy_ledger(self.counted_url, url)
        return url

    def close(self) -> None:
        self._exit.close()


def _totals(control: StandInControl) -> dict[tuple[str, str], Decimal]:
    found: dict[tuple[str, str], Decimal] = defaultdict(Decimal)
    for row in control.totals():
        found[row["customer"], row["event_name"]] += Decimal(row["quantity"])
    return dict(found)


def _name(url: str) -> str:
    return url.rsplit("/", 1)[1].split("?", 1)[0]


def copy_ledger(source_url: str, target_url: str) -> None:
    """Every row of one ledger in another, which is empty and may be of the other kind."""
    source, target = open_ledger(source_url), open_ledger(target_url)
    try:
        migrate(target)
        with read_snapshot(source) as reading, ledger_transaction(target) as writing:
            for table in metadata.sorted_tables:
                rows: list[Mapping[str, Any]] = [
                    dict(row) for row in reading.execute(select(table)).mappings()
                ]
                if rows:
                    writing.execute(insert(table), rows)
    finally:
        source.dispose()
        target.dispose()


async def read_log(broker: BrokerSettings) -> dict[int, list[Record]]:
    """Every record of gateway.events, by partition."""
    found: dict[int, list[Record]] = {partition: [] for partition in range(PARTITIONS)}
    bounds = await topic_bounds(broker, GATEWAY_EVENTS.name)
    consumer = new_consumer(
        broker, client_id="test", auto_offset_reset="earliest", topics=[GATEWAY_EVENTS.name]
    )
    await consumer.start()
    try:
        while any(len(found[partition]) < end for partition, (_, end) in bounds.items()):
            for partition, records in (await consumer.getmany(timeout_ms=200)).items():
                found[partition.partition] += [
                    Record(record.value, list(record.headers), record.timestamp) for record in records
                ]
    finally:
        await consumer.stop()
    return found


async def write_log(broker: BrokerSettings, records: Mapping[int, list[Record]]) -> None:
    """Create gateway.events under the broker's prefix, anew if it is there, and write the records."""
    if await topic_bounds(broker, GATEWAY_EVENTS.name):
        await delete_topics(broker, [GATEWAY_EVENTS.name])
    await create_topics(broker, [TopicSpec(GATEWAY_EVENTS.name, PARTITIONS)])
    producer = new_producer(
        broker, idempotent=not broker.ephemeral, ephemeral=broker.ephemeral, client_id="test"
    )
    await producer.start()
    try:
        topic = broker.topic_name(GATEWAY_EVENTS.name)
        sent = [
            await producer.send(
                topic, each.value, partition=partition, headers=each.headers, timestamp_ms=each.timestamp_ms
            )
            for partition, found in records.items()
            for each in found
        ]
        await asyncio.gather(*sent)
    finally:
        await producer.stop()
