"""A rig for tests that run the meter as a process, on a real broker and a real ledger, and know the truth.

Owns topics, ledger, producing and worker processes. What was produced is remembered, so that a test compares the
ledger with a count made here, by plain Python, and never with the code under test.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from sandbox.child import Child
from tests.fakes.events import Call, batch_of
from tests.parts.kafka import BrokerSettings
from tollgate.contracts.topics import GATEWAY_DEAD, GATEWAY_EVENTS
from tollgate.ledger.catalogue import apply_meters
from tollgate.ledger.engine import open_ledger
from tollgate.ledger.init import Pins, initialise
from tollgate.ledger.progress import PartitionProgress, load_progress
from tollgate.ledger.usage import usage_rows
from tollgate.metering.meter import Meter, Metric, MetricKind, WindowSize
from tollgate.runtime.kafka import TopicSpec, cluster_id, create_topics, new_producer

ROOT = Path(__file__).resolve().parents[2]
SESSION_SECONDS = 3.0
CALLS = Meter("calls", "status < 500", Metric(MetricKind.COUNT, None), WindowSize.HOUR, (), None)


@asynccontextmanager
async def ingest_producer(settings: BrokerSettings) -> AsyncIterator[Any]:
    """A producer as ingest has it."""
    producer = new_producer(
        settings, idempotent=not settings.ephemeral, ephemeral=settings.ephemeral, client_id="test-ingest"
    )
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


class Worker:
    """One meter process."""

    def __init__(self, name: str, directory: Path, environment: Mapping[str, str]) -> None:
        self._environment = dict(environment)
        self.child = Child(name, directory / f"{name}.log")
        self.started_at = 0

    def start(self, **changed: str) -> Worker:
        """Start it with `changed` variables (bare names below TOLLGATE_). Returns itself."""
        self.started_at = self.child.log_path.stat().st_size if self.child.log_path.exists() else 0
        environment = {**self._environment, **{f"TOLLGATE_{name}": value for name, value in changed.items()}}
        self.child.start([sys.executable, "-m", "services.meter"], cwd=ROOT, env=environment)
        return self

    @property
    def pid(self) -> int:
        return self.child.pid

    def log(self) -> list[dict[str, Any]]:
        """The structured lines of the present run."""
        text = self.child.log_path.read_bytes()[self.started_at :].decode()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]

    def logged(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.log() if line.get("event") == event]

    def url(self, path: str) -> str:
        line = self.logged("operations.listening")[0]
        return f"http://{line['host']}:{line['port']}{path}"

    def ask(self, path: str) -> tuple[int, str]:
        """Status and body of an operations route; status 0 when it does not listen."""
        try:
            with urllib.request.urlopen(self.url(path), timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (OSError, IndexError):
            return 0, ""

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def wait(self, timeout_seconds: float) -> int:
        """Its exit code, once it ends by itself; killed (and -9) when it does not."""
        deadline = time.monotonic() + timeout_seconds
        while self.child.running and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.child.kill()

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        return self.child.stop(signal.SIGTERM, 25)


class MeterRig:
    """Topics, a ledger, and meter processes on them."""

    def __init__(
        self, settings: BrokerSettings, ledger_url: str, directory: Path, partitions: int = 3
    ) -> None:
        self.settings = settings
        self.partitions = partitions
        self.directory = directory
        self.engine = open_ledger(ledger_url)
        self._ledger_url = ledger_url
        self._workers: list[Worker] = []
        self._accepted: dict[str, str] = {}
        """Account by event id, of what the meter is to count."""
        self.received = 0

    async def prepare(self, *, accept_age_hours: int = 72, future_seconds: int = 300) -> MeterRig:
        """Topics, schema, pins, meters."""
        await create_topics(
            self.settings,
            [TopicSpec(GATEWAY_EVENTS.name, self.partitions), TopicSpec(GATEWAY_DEAD.name, 1)],
        )
        pins = Pins(
            kafka_cluster_id=await cluster_id(self.settings),
            events_topic=self.settings.topic_name(GATEWAY_EVENTS.name),
            partitions=self.partitions,
            stripe_account="",
            stripe_mode="test",
            id_seed_fingerprint="",
            ledger_id="",
            accept_age_hours=accept_age_hours,
            future_seconds=future_seconds,
        )
        initialise(self.engine, pins, self.partitions, 0)
        apply_meters(self.engine, [CALLS], "", 0)
        return self

    def worker(self, name: str = "meter") -> Worker:
        """A worker, not started."""
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.directory),
            "PYTHONDONTWRITEBYTECODE": "1",
            "TOLLGATE_KAFKA__BOOTSTRAP_SERVERS": self.settings.bootstrap_servers,
            "TOLLGATE_KAFKA__TOPIC_PREFIX": self.settings.topic_prefix,
            "TOLLGATE_LEDGER__URL": self._ledger_url,
            "TOLLGATE_HTTP__PORT": "0",
            "TOLLGATE_EPHEMERAL": str(self.settings.ephemeral).lower(),
            "TOLLGATE_GROUP__SESSION_TIMEOUT_SECONDS": str(SESSION_SECONDS),
            "TOLLGATE_GROUP__HEARTBEAT_SECONDS": "0.5",
            "TOLLGATE_GROUP__COMMIT_INTERVAL_SECONDS": "0.5",
            "TOLLGATE_FLUSH__INTERVAL_MS": "100",
            "TOLLGATE_WATCHDOG__LAG_INTERVAL_SECONDS": "0.5",
            "TOLLGATE_SHUTDOWN_SECONDS": "10",
        }
        made = Worker(name, self.directory, environment)
        self._workers.append(made)
        return made

    async def produce(self, calls: Sequence[Call], *, rows: int = 20) -> None:
        """Write `calls`, `rows` a record, each to its account's partition; all acknowledged on return."""
        await self.write(calls, lambda account: sum(account.encode()) % self.partitions, rows=rows)

    async def write(
        self,
        calls: Sequence[Call],
        place: Callable[[str], int],
        *,
        rows: int,
        instance: str = "ingest-1",
        counts: bool = True,
    ) -> None:
        """Write `calls` as `instance` does, each to the partition `place` gives its account. `counts`: whether the truth
        has them."""
        by_partition: dict[int, list[Call]] = {}
        for call in calls:
            by_partition.setdefault(place(call.account), []).append(call)
            self.received += 1
            if counts and call.status < 500:
                self._accepted.setdefault(call.id, call.account)
        async with ingest_producer(self.settings) as producer:
            topic = self.settings.topic_name(GATEWAY_EVENTS.name)
            sent = []
            for partition, wanted in by_partition.items():
                for at in range(0, len(wanted), rows):
                    value, headers = batch_of(wanted[at : at + rows], instance)
                    sent.append(await producer.send(topic, value, partition=partition, headers=headers))
            await asyncio.gather(*sent)

    def progress(self) -> dict[int, PartitionProgress]:
        return load_progress(self.engine)

    @property
    def folded(self) -> int:
        """Events in the ledger, whatever became of them."""
        return sum(each.received for each in self.progress().values())

    @property
    def expected(self) -> dict[str, Decimal]:
        """Usage per account, counted here."""
        return {account: Decimal(n) for account, n in sorted(Counter(self._accepted.values()).items())}

    @property
    def usage(self) -> dict[str, Decimal]:
        """Usage per account, according to the ledger."""
        found: Counter[str] = Counter()
        totals: dict[str, Decimal] = {}
        for row in usage_rows(self.engine):
            found[row.account] += 1
            totals[row.account] = totals.get(row.account, Decimal(0)) + row.quantity
        return dict(sorted(totals.items()))

    async def until(self, holds: Callable[[], bool], timeout_seconds: float = 20.0, what: str = "") -> None:
        """Return once `holds()`; AssertionError with every worker's last words when it does not in time."""
        deadline = time.monotonic() + timeout_seconds
        while not holds():
            if time.monotonic() > deadline:
                words = "\n".join(worker.child.tail() for worker in self._workers)
                raise AssertionError(f"not in {timeout_seconds} s: {what or 'the condition'}\n{words}")
            await asyncio.sleep(0.05)

    async def until_all_folded(self, timeout_seconds: float = 20.0) -> None:
        await self.until(
            lambda: self.folded >= self.received,
            timeout_seconds,
            f"{self.received} events folded, {self.folded} are",
        )

    def assert_exact(self) -> None:
        """Each accepted event is counted once, for its account, and the law holds in every partition."""
        assert self.folded == self.received
        assert self.usage == self.expected
        for each in self.progress().values():
            assert each.received == each.counted + each.unmatched + each.duplicate + each.late + each.dead

    def close(self) -> None:
        """Kill what runs."""
        for worker in self._workers:
            worker.child.kill()
        self.engine.dispose()


def calls(count: int, *, first: int = 0, accounts: int = 7) -> list[Call]:
    """`count` different events of a few accounts."""
    return [Call(f"call-{number}", f"user:{number % accounts}") for number in range(first, first + count)]


__all__ = ["CALLS", "SESSION_SECONDS", "MeterRig", "Worker", "calls"]
