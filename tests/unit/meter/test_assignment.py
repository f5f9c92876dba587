"""The assignment on a ledger and a log in memory, in virtual time: loading, stopping, reading again."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from services.meter.assignment import GAPS_MAX, SETTLING_SECONDS, Assignment, NothingLeft
from services.meter.intake import Intake, LogRecord
from services.meter.metrics import MeterMetrics
from services.meter.partition import Partitions, StopReason
from services.meter.pipeline import FlushPolicy, Pipeline
from tests.fakes.book import MemoryBook
from tests.fakes.events import TIME_MS, Call, batch_of
from tests.fakes.log import MemoryDeadLetters, MemoryLog
from tests.unit.meter.test_pipeline import HeldExecutor, meter_set
from tollgate.ledger.errors import LedgerUnavailable
from tollgate.metering.outcome import TimeRules
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import ManualClock
from tollgate.runtime.faults import Faults


class _Reader:
    """Remembers what it was asked."""

    def __init__(self) -> None:
        self.seeks: list[tuple[int, int]] = []
        self.paused: list[int] = []

    async def seek(self, partition: int, offset: int) -> None:
        self.seeks.append((partition, offset))

    def pause(self, partition: int) -> None:
        self.paused.append(partition)


class _Bench:
    def __init__(self, partitions: int = 2) -> None:
        self.log = MemoryLog(partitions)
        self.book = MemoryBook(partitions, meter_set())
        self.clock = ManualClock(TIME_MS)
        self.registry = CollectorRegistry()
        self.partitions = Partitions()
        self.reader = _Reader()
        intake = Intake(1_000_000)
        metrics = MeterMetrics(self.registry)
        booking, folding = HeldExecutor(), HeldExecutor()
        backoff = Backoff(1.0, 8.0, jitter=0.0)
        self.assignment = Assignment(
            intake=intake,
            partitions=self.partitions,
            book=self.book,
            log=self.log,
            clock=self.clock,
            rules=TimeRules(),
            backoff=backoff,
            metrics=metrics,
            faults=Faults(),
            booking=booking,
        )
        self.pipeline = Pipeline(
            intake=intake,
            partitions=self.partitions,
            book=self.book,
            dead=MemoryDeadLetters(),
            clock=self.clock,
            rules=TimeRules(),
            policy=FlushPolicy(1.0, 1.0, 10**9, 10**9, 5),
            backoff=backoff,
            metrics=metrics,
            faults=Faults(),
            folding=folding,
            booking=booking,
            on_missed=self.assignment.missed,
        )
        self.assignment.connect(self.pipeline, self.reader)
        self.running = asyncio.create_task(self.pipeline.run())

    async def count(self, partition: int, *ids: str) -> LogRecord:
        """Write one record, hand it over, and have it flushed."""
        record = self.log.append(partition, *batch_of([Call(each) for each in ids]))
        self.assignment.arrived(record)
        await self.pipeline.drain()
        return record

    async def turns(self) -> None:
        for _ in range(80):
            await asyncio.sleep(0)

    async def end(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)


async def test_a_new_partition_is_read_from_the_ledgers_offset() -> None:
    """Positions are the ledger's, not the group's and not the log's end."""
    bench = _Bench()
    await bench.assignment.assign([0, 1])
    await bench.count(0, "a")
    await bench.count(0, "b")
    bench.assignment.revoke()
    assert dict(bench.assignment.positions()) == {}
    await bench.assignment.assign([0])
    assert dict(bench.assignment.positions()) == {0: 2}
    await bench.end()


async def test_seen_ids_are_kept_only_while_they_are_the_ledgers() -> None:
    """The same partition back, untouched: memory is used again. Moved on meanwhile: it is read from the ledger."""
    bench = _Bench()
    await bench.assignment.assign([0])
    await bench.count(0, "a")
    first = bench.partitions.get(0)
    bench.assignment.revoke()
    await bench.assignment.assign([0])
    second = bench.partitions.get(0)
    assert first is not None
    assert second is not None
    assert second is not first
    assert second.seen is first.seen
    bench.assignment.revoke()
    bench.log.append(0, *batch_of([Call("b")]))
    bench.book.steal(0, 1)
    await bench.assignment.assign([0])
    third = bench.partitions.get(0)
    assert third is not None
    assert third.seen is not first.seen
    assert third.seen.committed_offset == 2
    await bench.count(0, "a", "c")
    assert bench.book.progress([0])[0].duplicate == 1
    await bench.end()


async def test_what_was_staged_and_never_committed_is_not_remembered() -> None:
    """A revocation in the middle of an outage: the ids of the lost flush are no duplicates when they come again."""
    bench = _Bench()
    await bench.assignment.assign([0])
    await bench.count(0, "a")
    bench.book.unavailable = LedgerUnavailable("away")
    lost = bench.log.append(0, *batch_of([Call("b")]))
    bench.assignment.arrived(lost)
    bench.clock.advance_ms(1001)
    await bench.turns()
    bench.assignment.revoke()
    await bench.turns()
    bench.book.unavailable = None
    await bench.assignment.assign([0])
    bench.assignment.arrived(lost)
    await bench.pipeline.drain()
    at = bench.book.progress([0])[0]
    assert (at.counted, at.duplicate) == (2, 0)
    await bench.end()


async def test_loading_waits_for_ledger_and_log() -> None:
    """Neither being away is a reason to stop a partition or the process."""
    bench = _Bench()
    bench.book.unavailable = LedgerUnavailable("starting")
    loading = asyncio.create_task(bench.assignment.assign([0, 1]))
    await bench.turns()
    assert "starting" in str(bench.assignment.loading)
    bench.book.unavailable = None
    bench.log.unreachable = True
    bench.clock.advance_ms(1000)
    await bench.turns()
    assert not loading.done()
    bench.log.unreachable = False
    bench.clock.advance_ms(2000)
    await bench.turns()
    assert loading.done()
    assert bench.assignment.loading is None
    assert len(bench.partitions) == 2
    await bench.end()


async def test_a_revocation_ends_loading() -> None:
    """A hand-over does not wait for a ledger that is away, and nothing is loaded for an assignment that is over."""
    bench = _Bench()
    bench.book.unavailable = LedgerUnavailable("away")
    loading = asyncio.create_task(bench.assignment.assign([0]))
    await bench.turns()
    bench.assignment.revoke()
    bench.book.unavailable = None
    bench.clock.advance_ms(1000)
    await bench.turns()
    assert loading.done()
    assert len(bench.partitions) == 0
    await bench.end()


async def test_one_stopped_partition_does_not_stop_the_others() -> None:
    """It is paused, named with its reason, and its metrics say so; the process does not end."""
    bench = _Bench()
    await bench.assignment.assign([0, 1])
    await bench.count(0, "a")
    await bench.count(1, "b")
    bench.assignment.revoke()
    bench.log.recreate(0)
    await bench.assignment.assign([0, 1])
    assert bench.assignment.stopped[0].reason is StopReason.TOO_SHORT
    assert bench.assignment.stopped_partitions() == (0,)
    assert bench.reader.paused == [0]
    assert dict(bench.assignment.positions()) == {1: 1}
    assert bench.registry.get_sample_value("tollgate_meter_stopped_partitions", {"reason": "too_short"}) == 1
    assert not bench.assignment.failed.done()
    await bench.end()


async def test_nothing_left_ends_the_process() -> None:
    """A process that counts nothing and cannot mend it says so and goes."""
    bench = _Bench()
    await bench.assignment.assign([0])
    await bench.count(0, "a")
    bench.assignment.revoke()
    bench.log.recreate(0)
    await bench.assignment.assign([0])
    with pytest.raises(NothingLeft, match="too_short"):
        await bench.assignment.failed
    await bench.end()


async def test_a_partition_the_ledger_does_not_know_is_stopped() -> None:
    """The topic has grown: its new partitions are not silently counted from the beginning."""
    bench = _Bench()
    await bench.assignment.assign([0, 7])
    assert bench.assignment.stopped[7].reason is StopReason.UNKNOWN
    await bench.end()


async def test_a_gap_is_read_again_from_the_ledger() -> None:
    """What waits is dropped, the log is checked, and the reader goes back."""
    bench = _Bench()
    await bench.assignment.assign([0])
    await bench.count(0, "a")
    bench.log.append(0, *batch_of([Call("b")]))
    beyond = bench.log.append(0, *batch_of([Call("c")]))
    bench.assignment.arrived(beyond)
    await bench.turns()
    assert bench.reader.seeks == [(0, 1)]
    for record in bench.log.records(0, 1):
        bench.assignment.arrived(record)
    await bench.pipeline.drain()
    assert bench.book.progress([0])[0].counted == 3
    await bench.end()


async def test_records_fetched_before_a_seek_are_no_gap() -> None:
    """They arrive right behind it; only later ones are looked into."""
    bench = _Bench()
    await bench.assignment.assign([0])
    for each in "abc":
        bench.log.append(0, *batch_of([Call(each)]))
    bench.assignment.arrived(bench.log.records(0)[2])
    await bench.turns()
    assert bench.reader.seeks == []
    bench.clock.advance_ms(int(SETTLING_SECONDS * 1000) + 1)
    bench.assignment.arrived(bench.log.records(0)[2])
    await bench.turns()
    assert bench.reader.seeks == [(0, 0)]
    await bench.end()


async def test_a_log_that_keeps_skipping_is_stopped() -> None:
    """Going back for ever would look like work."""
    bench = _Bench()
    await bench.assignment.assign([0, 1])
    for each in "abc":
        bench.log.append(0, *batch_of([Call(each)]))
    for _ in range(GAPS_MAX + 1):
        bench.clock.advance_ms(int(SETTLING_SECONDS * 1000) + 1)
        bench.assignment.arrived(bench.log.records(0)[2])
        await bench.turns()
    assert bench.assignment.stopped[0].reason is StopReason.GAP
    assert bench.partitions.get(0) is None
    assert bench.reader.paused == [0]
    await bench.end()


async def test_series_of_a_revoked_partition_end() -> None:
    """A stale lag would look like a partition that is stuck."""
    bench = _Bench()
    await bench.assignment.assign([0])
    await bench.count(0, "a")
    labels = {"partition": "0"}
    assert bench.registry.get_sample_value("tollgate_meter_next_offset", labels) == 1
    bench.assignment.revoke()
    assert bench.registry.get_sample_value("tollgate_meter_next_offset", labels) is None
    assert bench.registry.get_sample_value("tollgate_meter_seen_ids", labels) is None
    await bench.end()


async def test_after_closing_nothing_is_taken() -> None:
    """A process that is told to end flushes what it has, and can come to an end doing so."""
    bench = _Bench()
    await bench.assignment.assign([0])
    bench.assignment.close()
    await bench.count(0, "a")
    assert bench.book.commits == []
    await bench.end()
