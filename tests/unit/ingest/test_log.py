"""The producer's side, with a producer in memory and virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from aiokafka.errors import KafkaError

from services.ingest.admission import Admission
from services.ingest.ingest_time import IngestTime
from services.ingest.log import EventLog
from services.ingest.metrics import IngestMetrics
from services.ingest.packer import SealedRecord
from services.ingest.submission import Submission
from tollgate.contracts.events import EventHeaders, contract_of
from tollgate.contracts.ticks import Tick, decode_tick
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import ManualClock
from tollgate.runtime.health import Health
from tollgate.runtime.metrics import new_registry


class FakeBatch:
    """One record, as aiokafka's builder takes it."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.record: dict[str, Any] = {}

    def append(self, **record: Any) -> object | None:
        if len(record["value"]) > self.bytes_max:
            return None
        self.record = record
        return object()


class FakeProducer:
    """Keeps what is sent; ticks are acknowledged at once, records when `answers` are set."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.answers: list[asyncio.Future[object]] = []
        self.stopped = False

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopped = True

    async def send(self, topic: str, value: bytes, **more: Any) -> Awaitable[object]:
        self.sent.append({"topic": topic, "value": value, **more})
        answer: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        if contract_of(more["headers"]) == "tick/1":
            answer.set_result(None)
        else:
            self.answers.append(answer)
        return answer

    def create_batch(self) -> FakeBatch:
        return FakeBatch(1000)

    async def send_batch(self, batch: FakeBatch, topic: str, *, partition: int) -> Awaitable[object]:
        return await self.send(topic, partition=partition, **batch.record)

    @property
    def ticks(self) -> list[Tick]:
        return [decode_tick(sent["value"]) for sent in self.sent if contract_of(sent["headers"]) == "tick/1"]


class Rig:
    def __init__(self) -> None:
        self.clock = ManualClock(10_000)
        self.producers: list[FakeProducer] = []
        self.admission = Admission(1000)
        self.health = Health(self.clock)
        self.health.mark_started()
        self.log = EventLog(
            self._new,
            events_topic="e",
            dead_topic="d",
            partitions=2,
            instance="i-1",
            admission=self.admission,
            clock=self.clock,
            ingest_time=IngestTime(self.clock),
            health=self.health,
            metrics=IngestMetrics(new_registry("ingest", "t")),
            backoff=Backoff(1, 1, jitter=0),
        )

    def _new(self) -> FakeProducer:
        self.producers.append(FakeProducer())
        return self.producers[-1]

    async def turn(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)


def record(partition: int, rows: int, outcome: list[bool], ingest_ms: int = 10_000) -> SealedRecord:
    return SealedRecord(
        partition,
        b"v" * 10,
        EventHeaders("s", "i-1", rows, ingest_ms, ""),
        [Submission(lambda end: outcome.append(end.acknowledged), 1)],
    )


async def test_ticks_count_what_was_acknowledged_and_nothing_else() -> None:
    """Rows sent and not acknowledged are in no tick, and hold its wall time back."""
    rig = Rig()
    await rig.log.start()
    outcome: list[bool] = []
    rig.log.produce([record(0, 5, outcome), record(0, 7, outcome), record(1, 3, outcome, ingest_ms=9_000)])
    await rig.turn()
    producer = rig.producers[0]
    assert rig.admission.bytes_held == 30
    producer.answers[0].set_result(None)
    await rig.turn()
    assert outcome == [True]
    assert await rig.log.tick(1) is True
    assert [(tick.rows_acknowledged, tick.wall_ms) for tick in producer.ticks] == [(5, 10_000), (0, 9_000)]
    assert rig.log.rows_acknowledged == (5, 0)
    assert rig.health.readyz()[0] == 200
    await rig.log.stop(1)


async def test_a_refused_record_fails_its_requests_and_replaces_the_producer() -> None:
    """Nothing is counted; the next record goes through the new producer; no byte stays held."""
    rig = Rig()
    await rig.log.start()
    replacing = asyncio.create_task(rig.log.replace_broken_producers())
    outcome: list[bool] = []
    rig.log.produce([record(0, 5, outcome)])
    await rig.turn()
    rig.producers[0].answers[0].set_exception(KafkaError("no"))
    await rig.turn()
    assert outcome == [False]
    assert rig.log.rows_acknowledged == (0, 0)
    assert rig.admission.bytes_held == 0
    assert len(rig.producers) == 2
    assert rig.producers[0].stopped
    rig.log.produce([record(0, 5, outcome)])
    await rig.turn()
    rig.producers[1].answers[0].set_result(None)
    await rig.turn()
    assert outcome == [False, True]
    replacing.cancel()
    await rig.log.stop(1)


async def test_the_last_tick_is_final() -> None:
    """On the way out the count includes everything acknowledged before."""
    rig = Rig()
    await rig.log.start()
    rig.log.produce([record(1, 4, [])])
    await rig.turn()
    rig.producers[0].answers[0].set_result(None)
    await rig.turn()
    await rig.log.finish(1)
    assert [tick.rows_acknowledged for tick in rig.producers[0].ticks] == [0, 4]
    assert rig.producers[0].stopped
