"""One ingest process on a real broker, spoken to through HTTP and judged by what is in the log."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import Any

import httpx
from aiokafka import TopicPartition

from sandbox.child import Child
from sandbox.ports import free_port
from tests.parts.kafka import BrokerSettings
from tollgate.contracts.dead import DeadLetter, decode_dead_letter
from tollgate.contracts.events import (
    contract_of,
    decode_batch,
    derive_seed,
    headers_from_kafka,
    seed_fingerprint,
)
from tollgate.contracts.ticks import Tick, decode_tick
from tollgate.contracts.topics import GATEWAY_DEAD, GATEWAY_EVENTS
from tollgate.ledger.engine import open_ledger
from tollgate.ledger.init import Pins, initialise
from tollgate.ledger.sources import create_source
from tollgate.runtime.kafka import ClusterUnidentified, TopicSpec, cluster_id, create_topics, new_consumer

ID_SEED = "a seed for tests, nothing secret"
PARTITIONS = 3


@dataclass
class LogContents:
    """Everything in `gateway.events` and `gateway.dead`, in order of offset."""

    events: list[dict[str, Any]] = field(default_factory=list)
    rows: Counter[tuple[int, str]] = field(default_factory=Counter)
    """Rows by (partition, instance), as the records' headers say."""
    ticks: dict[tuple[int, str], tuple[Tick, int]] = field(default_factory=dict)
    """The last tick by (partition, instance), and the rows that stand before it."""
    letters: list[DeadLetter] = field(default_factory=list)
    accept_late: int = 0

    @property
    def ids(self) -> set[str]:
        return {event["id"] for event in self.events}


class IngestRig:
    """Topics, a ledger, a token, and the process."""

    def __init__(self, kafka: BrokerSettings, directory: Path, **environment: str) -> None:
        self.kafka = kafka
        self.ledger_url = f"sqlite:///{directory / 'ledger.sqlite3'}"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.child = Child("ingest", directory / "ingest.log")
        self.token = ""
        self._environment: Mapping[str, str] = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TOLLGATE_")},
            "TOLLGATE_KAFKA__BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
            "TOLLGATE_KAFKA__TOPIC_PREFIX": kafka.topic_prefix,
            "TOLLGATE_EPHEMERAL": "true" if kafka.ephemeral else "false",
            "TOLLGATE_LEDGER__URL": self.ledger_url,
            "TOLLGATE_HTTP__PORT": str(self.port),
            "TOLLGATE_ID_SEED": ID_SEED,
            "TOLLGATE_KEY_SEED": "another seed for tests",
            "TOLLGATE_SNAPSHOT_PATH": str(directory / "sources.json"),
            "TOLLGATE_TOKENS_REFRESH_SECONDS": "0.2",
            **environment,
        }

    async def prepare(self) -> None:
        """Topics, ledger, token."""
        await create_topics(
            self.kafka,
            [TopicSpec(GATEWAY_EVENTS.name, PARTITIONS), TopicSpec(GATEWAY_DEAD.name, 1)],
        )
        engine = open_ledger(self.ledger_url)
        pins = Pins(
            kafka_cluster_id=await _cluster_id(self.kafka),
            events_topic=self.kafka.topic_name(GATEWAY_EVENTS.name),
            partitions=PARTITIONS,
            stripe_account="",
            stripe_mode="",
            id_seed_fingerprint=seed_fingerprint(derive_seed(ID_SEED)),
            ledger_id="",
        )
        initialise(engine, pins, PARTITIONS, 0)
        self.token = create_source(engine, "gateway", ["write", "replay"], 0)
        engine.dispose()

    def start(self) -> None:
        """Start the process and wait until it is ready."""
        self.child.start([sys.executable, "-m", "services.ingest"], cwd=Path.cwd(), env=self._environment)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self.child.running, self.child.tail()
            try:
                if httpx.get(self.url + "/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"ingest is not ready\n{self.child.tail()}")

    def stop(self) -> int | None:
        """SIGTERM; the exit code."""
        return self.child.stop(SIGTERM, 30)

    def client(self, token: str | None = None) -> httpx.Client:
        """A client with the rig's token."""
        return httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {token or self.token}"}, timeout=20
        )

    async def read_log(self) -> LogContents:
        """What is in both topics now."""
        contents = LogContents()
        topics = {GATEWAY_EVENTS.name: PARTITIONS, GATEWAY_DEAD.name: 1}
        consumer = new_consumer(self.kafka, client_id="rig", auto_offset_reset="earliest")
        await consumer.start()
        try:
            places = [
                TopicPartition(self.kafka.topic_name(name), partition)
                for name, count in topics.items()
                for partition in range(count)
            ]
            consumer.assign(places)
            ends = await consumer.end_offsets(places)
            for place in places:
                await consumer.seek_to_beginning(place)
                while await consumer.position(place) < ends[place]:
                    batch = await asyncio.wait_for(consumer.getmany(place, timeout_ms=1000), 20)
                    for record in batch.get(place, []):
                        _take(contents, record, dead=place.topic.endswith(GATEWAY_DEAD.name))
        finally:
            await consumer.stop()
        return contents


async def _cluster_id(kafka: BrokerSettings) -> str:
    try:
        return await cluster_id(kafka)
    except ClusterUnidentified:
        return ""


def _take(contents: LogContents, record: Any, dead: bool) -> None:
    if dead:
        contents.letters.append(decode_dead_letter(record.value))
        return
    contract = contract_of(record.headers)
    if contract == "tick/1":
        tick = decode_tick(record.value)
        place = (record.partition, tick.instance)
        contents.ticks[place] = (tick, contents.rows[place])
        return
    assert contract == "events/1"
    headers = headers_from_kafka(record.headers)
    batch = decode_batch(record.value)
    assert batch.num_rows == headers.rows
    contents.rows[record.partition, headers.instance] += headers.rows
    contents.accept_late += headers.rows if headers.accept_late else 0
    contents.events += batch.to_pylist()
