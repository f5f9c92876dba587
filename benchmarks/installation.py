"""An installation to measure: broker, database, topics, ledger and meters, and the services on a core of their own.

Owns making it, fresh for each benchmark, and reading back what came out. It refuses to know what is measured. Topics
and ledger are made through the same functions `tollgate init` uses; Stripe is not part of it.
"""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.metrics import Samples, read_samples
from benchmarks.parts import Parts
from benchmarks.processor import Cores, cpu_seconds, pinned_to
from sandbox.local_postgres import LocalPostgres
from sandbox.stack import Stack, StackSettings
from tollgate.contracts.events import derive_seed, seed_fingerprint
from tollgate.contracts.topics import GATEWAY_EVENTS, TOPICS
from tollgate.ledger.catalogue import apply_meters, create_source
from tollgate.ledger.engine import Engine, open_ledger
from tollgate.ledger.init import Pins, initialise
from tollgate.ledger.progress import load_progress
from tollgate.ledger.usage import usage_rows
from tollgate.metering.declaration import parse_meters
from tollgate.runtime.kafka import MAX_REQUEST_BYTES, TopicSpec, cluster_id, create_topics
from tollgate.runtime.settings import KafkaSettings

METERS_PATH = Path(__file__).with_name("meters.yaml")
SOURCE = "benchmark"
CAPTURE = ("response_header:x-tokens-in", "response_header:x-tokens-out", "response_header:x-model")
CAPTURED = ("tokens_in", "tokens_out", "model")
_CHECKOUT = Path(__file__).resolve().parents[1]
_NOBODY = "http://127.0.0.1:9"
"""In place of Stripe's address: no service measured here calls it."""


class NotCaughtUp(RuntimeError):
    """The meter did not count everything in time."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What every benchmark of a run stands on."""

    bootstrap_servers: str
    postgres: LocalPostgres
    directory: Path
    cores: Cores
    partitions: int
    profile_directory: Path | None
    """Where services leave their profiles; None: not profiled."""

    @classmethod
    def of(cls, parts: Parts, partitions: int, profile_directory: Path | None = None) -> Ground:
        """The same parts, with so many partitions."""
        return cls(
            parts.bootstrap, parts.postgres, parts.directory, parts.cores, partitions, profile_directory
        )

    @contextmanager
    def installation(self, name: str) -> Iterator[Installation]:
        """A fresh one: its own topics, database and meters. Its services are stopped at the end."""
        unique = f"{name}-{uuid.uuid4().hex[:8]}"
        database = "bench_" + unique.replace("-", "_")
        kafka = KafkaSettings(bootstrap_servers=self.bootstrap_servers, topic_prefix=unique + ".")
        url = self.postgres.create_database(database)
        try:
            settings = StackSettings(
                directory=self.directory / unique,
                bootstrap_servers=self.bootstrap_servers,
                ledger_url=url,
                stripe_url=_NOBODY,
                topic_prefix=kafka.topic_prefix,
                partitions=self.partitions,
                capture=CAPTURE,
                extra={"TOLLGATE_LOG__LEVEL": "warning", "TOLLGATE_LOG__FORMAT": "json"},
            )
            engine = open_ledger(url)
            try:
                token = _initialise(engine, kafka, settings)
                with Stack(settings) as stack:
                    yield Installation(self, stack, engine, kafka, token)
            finally:
                engine.dispose()
        finally:
            self.postgres.drop_database(database)


def _initialise(engine: Engine, kafka: KafkaSettings, settings: StackSettings) -> str:
    """Topics, schema, pins and meters; returns a token for `SOURCE`."""

    async def prepare() -> str:
        specs = [
            TopicSpec(
                topic.name,
                settings.partitions if topic is GATEWAY_EVENTS else 1,
                configs={"cleanup.policy": "delete", "max.message.bytes": str(MAX_REQUEST_BYTES)},
            )
            for topic in TOPICS
        ]
        await create_topics(kafka, specs)
        return await cluster_id(kafka)

    cluster = asyncio.run(prepare())
    pins = Pins(
        kafka_cluster_id=cluster,
        events_topic=kafka.topic_name(GATEWAY_EVENTS.name),
        partitions=settings.partitions,
        stripe_account="",
        stripe_mode="",
        id_seed_fingerprint=seed_fingerprint(derive_seed(settings.id_seed)),
        ledger_id="",
    )
    now_ms = time.time_ns() // 1_000_000
    initialise(engine, pins, settings.partitions, now_ms)
    text = METERS_PATH.read_text()
    apply_meters(engine, parse_meters(text, METERS_PATH.name, CAPTURED), text, now_ms)
    return create_source(engine, SOURCE, ["write"], now_ms)


@dataclass(frozen=True, slots=True)
class Installation:
    """One installation, its services not yet started."""

    ground: Ground
    stack: Stack
    engine: Engine
    kafka: KafkaSettings
    token: str

    @property
    def id_seed(self) -> int:
        return derive_seed(self.stack.settings.id_seed)

    @property
    def events_topic(self) -> str:
        return self.kafka.topic_name(GATEWAY_EVENTS.name)

    def start(
        self, name: str, cores: frozenset[int], *, wait: bool = True, service: str | None = None
    ) -> int:
        """Start a service (`name`, or an instance of `service`) on `cores`, profiled when the run is; its pid."""
        service = service or name
        module = [f"services.{service}"]
        profiles = self.ground.profile_directory
        if profiles is not None:
            module = [
                "benchmarks.profiled",
                f"services.{service}",
                str(profiles / f"{self._label}-{name}.txt"),
            ]
        with pinned_to(cores):
            self.stack.child(name).start(
                [sys.executable, "-m", *module], cwd=_CHECKOUT, env=self.stack.environment(name)
            )
        pid = self.stack.child(name).pid
        if wait:
            self.stack.wait_ready(name)
        return pid

    def stop(self, name: str) -> None:
        """SIGTERM a service and wait for its end."""
        self.stack.stop(name)

    def samples(self, name: str) -> Samples:
        """A service's metrics."""
        return read_samples(f"{self.stack.url(name)}/metrics")

    @property
    def _label(self) -> str:
        return self.stack.settings.directory.name.rpartition("-")[0]

    # ---------------------------------------------------------------- what came out

    def outcomes(self) -> dict[str, int]:
        """Events by outcome, over all partitions, and how many were received."""
        rows = load_progress(self.engine).values()
        names = ("received", "counted", "unmatched", "duplicate", "late", "dead")
        return {name: sum(getattr(row, name) for row in rows) for name in names}

    def usage(self, from_ms: int | None = None) -> dict[tuple[str, str, int], int]:
        """(meter, account, window start) -> quantity, rows of nothing left out; windows that start at `from_ms` or
        later."""
        found: dict[tuple[str, str, int], int] = {}
        for row in usage_rows(self.engine, from_ms=from_ms):
            if row.quantity:
                key = (row.meter, row.account, row.window_start_ms)
                found[key] = found.get(key, 0) + int(row.quantity)
        return found

    def watch(self, pid: int, events: int, *, timeout_seconds: float) -> list[Sight]:
        """Look at the ledger until it has `events`; one sight for each change seen. Raises NotCaughtUp."""
        deadline = time.monotonic() + timeout_seconds
        sights: list[Sight] = []
        while True:
            received = sum(row.received for row in load_progress(self.engine).values())
            if received and (not sights or received != sights[-1].received):
                sights.append(Sight(time.monotonic(), received, cpu_seconds(pid)))
            if received >= events:
                return sights
            if time.monotonic() > deadline:
                raise NotCaughtUp(f"{received} of {events} events counted after {timeout_seconds:g} s")
            time.sleep(0.05)


@dataclass(frozen=True, slots=True)
class Sight:
    """The ledger at one moment."""

    at_seconds: float
    received: int
    cpu_seconds: float
    """Of the meter."""


def rate_between_commits(sights: Sequence[Sight]) -> tuple[int, float]:
    """(events, seconds) from the first commit seen to the last: what start-up took is not in it."""
    first, last = sights[0], sights[-1]
    return last.received - first.received, last.at_seconds - first.at_seconds
