"""The real Faust app on a transport without a broker: rebalances, replays and gaps to order, exact totals."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.meter.assignment import GAPS_MAX, Assignment, NothingLeft
from services.meter.faults import FaultPoint
from services.meter.group_commit import GroupCommit
from services.meter.intake import Intake
from services.meter.metrics import MeterMetrics
from services.meter.partition import Partitions, StopReason
from services.meter.pipeline import FlushPolicy, Pipeline
from services.meter.settings import MeterSettings
from services.meter.worker import Worker
from tests.fakes.book import MemoryBook
from tests.fakes.events import TIME_MS, Call, batch_of
from tests.fakes.faust_transport import MemoryConsumer, MemoryTransport
from tests.fakes.log import MemoryDeadLetters, MemoryLog
from tollgate.metering.meter import Meter, MeterSet, MeterVersion, Metric, MetricKind, WindowSize
from tollgate.metering.outcome import TimeRules
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import SystemClock
from tollgate.runtime.faults import Faults

TOPIC = "events"
PARTITIONS = 4
_HOUR = TIME_MS - TIME_MS % 3_600_000
_METERS = MeterSet(
    1,
    (
        MeterVersion(
            1, Meter("calls", None, Metric(MetricKind.COUNT, None), WindowSize.HOUR, (), None), 0, None
        ),
    ),
)


class FaustRig:
    """A worker on memory: log, ledger, transport."""

    def __init__(self) -> None:
        self.log = MemoryLog(PARTITIONS)
        self.book = MemoryBook(PARTITIONS, _METERS)
        clock = SystemClock()
        backoff = Backoff(0.01, 0.05, jitter=0.0)
        self.registry = CollectorRegistry()
        metrics = MeterMetrics(self.registry)
        self.intake = Intake(200_000)
        self.partitions = Partitions()
        self._threads = [ThreadPoolExecutor(1), ThreadPoolExecutor(1)]
        faults: Faults[FaultPoint] = Faults()
        self.assignment = Assignment(
            intake=self.intake,
            partitions=self.partitions,
            book=self.book,
            log=self.log,
            clock=clock,
            rules=TimeRules(),
            backoff=backoff,
            metrics=metrics,
            faults=faults,
            booking=self._threads[0],
        )
        self.pipeline = Pipeline(
            intake=self.intake,
            partitions=self.partitions,
            book=self.book,
            dead=MemoryDeadLetters(),
            clock=clock,
            rules=TimeRules(),
            policy=FlushPolicy(
                interval_seconds=0.005,
                interval_seconds_max=0.005,
                eager_bytes=50_000,
                bytes_max=100_000,
                misses_max=5,
            ),
            backoff=backoff,
            metrics=metrics,
            faults=faults,
            folding=self._threads[1],
            booking=self._threads[0],
            on_missed=self.assignment.missed,
        )
        self.worker = Worker(
            MeterSettings(),
            TOPIC,
            intake=self.intake,
            pipeline=self.pipeline,
            assignment=self.assignment,
            on_revoked=self._hand_over,
            on_assigned=self.assignment.assign,
            transport=self._make_transport,
        )
        self.assignment.connect(self.pipeline, self.worker)
        self.group_commit = GroupCommit(
            partitions=self.partitions,
            commit=self.worker.commit,
            clock=clock,
            interval_seconds=0.02,
            faults=faults,
        )
        self._tasks: list[asyncio.Future[None]] = []
        self._sent = 0
        self.expected = 0

    def _make_transport(self, url: list[Any], app: Any, loop: asyncio.AbstractEventLoop) -> MemoryTransport:
        self.transport = MemoryTransport(url, app, loop, self.log, TOPIC)
        return self.transport

    async def _hand_over(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self.pipeline.drain()
        self.assignment.revoke()
        self.group_commit.revoked()

    @property
    def consumer(self) -> MemoryConsumer:
        return self.transport.made

    async def start(self) -> None:
        self._tasks = [
            asyncio.ensure_future(each)
            for each in (self.pipeline.run(), self.group_commit.run(), self.worker.run())
        ]
        await self.until(lambda: hasattr(self.transport, "made"))
        await self.consumer.subscribed.wait()

    async def stop(self) -> None:
        await self.worker.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.assignment.failed.done():
            self.assignment.failed.exception()
        for threads in self._threads:
            threads.shutdown()

    def produce(self, records: int) -> None:
        """Write `records` records of two events each, one of them seen before now and then."""
        for _ in range(records):
            partition = self._sent % PARTITIONS
            new = Call(f"call-{self._sent}", f"user:{partition}")
            old = Call(f"call-{max(partition, self._sent - 4 * PARTITIONS)}", f"user:{partition}")
            self.log.append(partition, *batch_of([new, old]))
            self._sent += 1
            self.expected += 1

    @property
    def all_folded(self) -> bool:
        progress = self.book.progress(range(PARTITIONS))
        return all(each.next_offset == self.log.bounds_of(p).end for p, each in progress.items())

    async def until(self, holds: object, seconds: float = 20.0) -> None:
        assert callable(holds)
        async with asyncio.timeout(seconds):
            while not holds():
                if self.assignment.failed.done():
                    self.assignment.failed.result()
                for task in self._tasks:
                    if task.done():
                        task.result()
                await asyncio.sleep(0.002)

    def dropped(self, arrival: str) -> float:
        found = self.registry.get_sample_value("tollgate_meter_dropped_records_total", {"arrival": arrival})
        return found or 0.0

    def assert_exact(self) -> None:
        assert sum(self.book.events.values()) == self.expected
        ranges: dict[int, int] = dict.fromkeys(range(PARTITIONS), 0)
        for commit in self.book.commits:
            for partition, (from_offset, next_offset) in commit.items():
                assert ranges[partition] == from_offset
                ranges[partition] = next_offset


@pytest.fixture
async def rig() -> AsyncIterator[FaustRig]:
    made = FaustRig()
    await made.start()
    yield made
    await made.stop()


async def test_random_rebalances_count_each_event_once(rig: FaustRig) -> None:
    """Partitions come and go in mid-stream; every record is folded once, in order."""
    script = random.Random(11)
    await rig.consumer.rebalance(range(PARTITIONS))
    for _ in range(12):
        rig.produce(script.randrange(40))
        await asyncio.sleep(script.random() * 0.02)
        await rig.consumer.rebalance(script.sample(range(PARTITIONS), script.randrange(PARTITIONS + 1)))
    await rig.consumer.rebalance(range(PARTITIONS))
    await rig.until(lambda: rig.all_folded)
    rig.assert_exact()


async def test_replays_are_dropped(rig: FaustRig) -> None:
    """The reader is thrown back to the beginning, again and again: what was counted is not counted again."""
    await rig.consumer.rebalance(range(PARTITIONS))
    for _ in range(5):
        rig.produce(60)
        await rig.until(lambda: rig.all_folded)
        for partition in range(PARTITIONS):
            rig.consumer.displace(partition, 0)
    rig.produce(10)
    await rig.until(lambda: rig.all_folded)
    assert rig.dropped("replay") > 0
    rig.assert_exact()


async def test_gaps_are_read_again(rig: FaustRig) -> None:
    """The reader skips records that are there: the partition goes back and misses nothing."""
    await rig.consumer.rebalance(range(PARTITIONS))
    rig.produce(20)
    await rig.until(lambda: rig.all_folded)
    for _ in range(GAPS_MAX - 1):
        for partition in range(PARTITIONS):
            rig.consumer.displace(partition, rig.log.bounds_of(partition).end + 3)
        rig.produce(40)
        await rig.until(lambda: rig.all_folded)
    assert rig.dropped("gap") > 0
    rig.assert_exact()


async def test_records_deleted_under_the_reader_stop_the_partition(rig: FaustRig) -> None:
    """Retention takes what was not counted: that partition stops, the others go on."""
    await rig.consumer.rebalance(range(PARTITIONS))
    rig.produce(20)
    await rig.until(lambda: rig.all_folded)
    rig.consumer.pause_partitions(rig.consumer.assignment())
    rig.produce(40)
    rig.log.delete_before(2, rig.log.bounds_of(2).start + 8)
    rig.consumer.resume_partitions(rig.consumer.assignment())
    await rig.until(lambda: 2 in rig.assignment.stopped)
    assert rig.assignment.stopped[2].reason is StopReason.TRUNCATED
    await rig.until(
        lambda: all(rig.book.progress([p])[p].next_offset == rig.log.bounds_of(p).end for p in (0, 1, 3))
    )
    assert rig.book.progress([2])[2].next_offset == 5


async def test_a_recreated_log_stops_everything(rig: FaustRig) -> None:
    """Other records under the same offsets: nothing of them is counted, and the process has to end."""
    await rig.consumer.rebalance(range(PARTITIONS))
    rig.produce(20)
    await rig.until(lambda: rig.all_folded)
    counted = dict(rig.book.events)
    for partition in range(PARTITIONS):
        rig.log.recreate(partition)
        rig.consumer.displace(partition, 0)
    rig.produce(200)
    with pytest.raises(NothingLeft, match="rewritten"):
        await rig.until(lambda: False)
    assert rig.book.events == counted


async def test_the_groups_offset_follows_the_ledger(rig: FaustRig) -> None:
    """It is written after the ledger's commit, for assigned partitions only, and never empty."""
    await rig.consumer.rebalance([0, 1])
    rig.produce(20)
    await rig.until(lambda: all(rig.book.progress([p])[p].next_offset == 5 for p in (0, 1)))
    await rig.until(lambda: bool(rig.consumer.committed) and rig.consumer.committed[-1].get(1) == 5)
    await rig.consumer.rebalance([])
    written = len(rig.consumer.committed)
    await asyncio.sleep(0.1)
    assert len(rig.consumer.committed) == written
    assert all(partition in (0, 1) for offsets in rig.consumer.committed for partition in offsets)


async def test_another_worker_was_first(rig: FaustRig) -> None:
    """The ledger has moved under us: memory is dropped, and reading goes on where the ledger is."""
    await rig.consumer.rebalance(range(PARTITIONS))
    rig.produce(20)
    await rig.until(lambda: rig.all_folded)
    rig.produce(4 * 6)
    rig.book.steal(3, 2)
    await rig.until(lambda: rig.all_folded)
    assert sum(rig.book.events.values()) in (rig.expected, rig.expected - 2)
    assert rig.book.events[(1, "user:0", _HOUR)] == 11
