"""The pipeline on a ledger and a log in memory, in virtual time: what follows each refusal."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor, Future
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from services.meter.booking import COMPACTION_FLUSHES, Fenced
from services.meter.faults import FaultPoint
from services.meter.intake import Arrival, Intake
from services.meter.metrics import MeterMetrics
from services.meter.partition import AssignedPartition, Partitions, rebuild_seen
from services.meter.pipeline import FlushPolicy, Pipeline
from tests.fakes.book import MemoryBook
from tests.fakes.events import TIME_MS, Call, batch_of
from tests.fakes.log import MemoryDeadLetters, MemoryLog
from tollgate.ledger.errors import CommitUnknown, LedgerUnavailable, MetersChanged
from tollgate.metering.meter import Meter, MeterSet, MeterVersion, Metric, MetricKind, WindowSize
from tollgate.metering.outcome import TimeRules
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import ManualClock
from tollgate.runtime.faults import Faults

_HOUR = TIME_MS - TIME_MS % 3_600_000
POLICY = FlushPolicy(
    interval_seconds=1.0, interval_seconds_max=3.0, eager_bytes=50_000, bytes_max=100_000, misses_max=2
)


def meter_set(version: int = 1, where: str | None = None) -> MeterSet:
    meter = Meter("calls", where, Metric(MetricKind.COUNT, None), WindowSize.HOUR, (), None)
    return MeterSet(version, (MeterVersion(version, meter, 0, None),))


class HeldExecutor(Executor):
    """Runs work at once, or when told to: an overlap of flushes to order."""

    def __init__(self) -> None:
        self.held = False
        self._waiting: list[Callable[[], None]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(fn(*args, **kwargs))
            except Exception as error:
                future.set_exception(error)

        if self.held:
            self._waiting.append(run)
        else:
            run()
        return future

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def release(self) -> None:
        """Run what waits, in order, and hold nothing any more."""
        self.held = False
        waiting, self._waiting = self._waiting, []
        for run in waiting:
            run()


class Bench:
    """A pipeline with everything around it in memory."""

    def __init__(
        self,
        faults: Faults[FaultPoint] | None = None,
        log: MemoryLog | None = None,
        book: MemoryBook | None = None,
    ) -> None:
        self.log = log or MemoryLog(2)
        self.book = book or MemoryBook(2, meter_set())
        self.dead = MemoryDeadLetters()
        self.clock = ManualClock(TIME_MS)
        self.intake = Intake(200_000)
        self.partitions = Partitions()
        self.folding, self.booking = HeldExecutor(), HeldExecutor()
        self.registry = CollectorRegistry()
        self.missed: list[AssignedPartition] = []
        self.pipeline = Pipeline(
            intake=self.intake,
            partitions=self.partitions,
            book=self.book,
            dead=self.dead,
            clock=self.clock,
            rules=TimeRules(),
            policy=POLICY,
            backoff=Backoff(1.0, 8.0, jitter=0.0),
            metrics=MeterMetrics(self.registry),
            faults=faults or Faults(),
            folding=self.folding,
            booking=self.booking,
            on_missed=self.missed.append,
        )

    def load(self, partition: int, misses: int = 0) -> None:
        """What the assignment does, without its checks."""
        found, blobs = self.book.partition(partition, 0)
        seen = rebuild_seen(found.next_offset, blobs)
        self.partitions.put(AssignedPartition(partition, found.next_offset, seen, 0, misses))
        self.intake.assign(partition, found.next_offset, found.fingerprint)

    def send(self, partition: int, *calls: Call) -> None:
        """Write a record to the log and hand it to the pipeline."""
        self.give(self.log.append(partition, *batch_of(calls)).partition, -1)

    def give(self, partition: int, index: int) -> None:
        assert self.intake.append(self.log.records(partition)[index]) is Arrival.TAKEN
        self.pipeline.appended()

    async def turns(self, count: int = 50) -> None:
        """Let everything that can run, run."""
        for _ in range(count):
            await asyncio.sleep(0)

    async def advance(self, seconds: float) -> None:
        await self.turns()
        self.clock.advance_ms(int(seconds * 1000))
        await self.turns()

    @property
    def counted(self) -> int:
        return sum(self.book.events.values())

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"tollgate_meter_{name}", labels)


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Bench]:
    """`bench` with its loop running, and partitions 0 and 1 loaded."""
    for partition in (0, 1):
        bench.load(partition)
    task = asyncio.create_task(bench.pipeline.run())
    try:
        yield bench
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_flush_commits_what_waits_of_all_partitions() -> None:
    """Both partitions go into one transaction, each with its own range."""
    async with running(Bench()) as bench:
        bench.send(0, Call("a"), Call("b"))
        bench.send(1, Call("c", account="user:bob"))
        await bench.pipeline.drain()
        assert bench.book.commits == [{0: (0, 1), 1: (0, 1)}]
        assert bench.book.events == {(1, "user:ada", _HOUR): 2, (1, "user:bob", _HOUR): 1}
        assert bench.metric("events_total", outcome="counted") == 3
        assert bench.metric("freshness_seconds_count") == 3
        assert bench.metric("next_offset", partition="1") == 1


async def test_a_flush_waits_for_its_interval() -> None:
    """The first record is flushed at once, the next when the interval has passed, and not before."""
    async with running(Bench()) as bench:
        bench.send(0, Call("a"))
        await bench.turns()
        assert bench.counted == 1
        bench.send(0, Call("b"))
        await bench.advance(0.9)
        assert bench.counted == 1
        await bench.advance(0.2)
        assert bench.counted == 2


@pytest.mark.parametrize(("took", "waits"), [(0.1, 1.0), (0.5, 2.0), (5.0, 3.0)])
async def test_a_flush_that_took_long_is_followed_later(took: float, waits: float) -> None:
    """It takes a quarter of the time at most, within the two bounds."""
    async with running(Bench()) as bench:
        bench.send(0, Call("a"))
        await bench.turns()
        await bench.advance(1.0)
        bench.booking.held = True
        bench.send(0, Call("b"))
        await bench.advance(took)
        bench.booking.release()
        await bench.turns()
        assert bench.counted == 2
        bench.send(0, Call("c"))
        await bench.turns()
        if waits > took:
            await bench.advance(waits - took - 0.05)
            assert bench.counted == 2
            await bench.advance(0.1)
        assert bench.counted == 3


async def test_much_waiting_is_flushed_at_once() -> None:
    """Past the eager bound nobody waits for the interval."""
    async with running(Bench()) as bench:
        bench.send(0, Call("a"))
        await bench.turns()
        bench.send(0, *(Call(f"b{i}") for i in range(2)))
        await bench.turns()
        assert bench.counted == 1
        while bench.intake.pending_bytes < POLICY.eager_bytes and bench.counted == 1:
            bench.send(0, Call(f"c{len(bench.log.records(0))}"))
        await bench.turns()
        assert bench.counted == 1 + 2 + len(bench.log.records(0)) - 2


async def test_a_full_intake_holds_the_reader_and_is_flushed() -> None:
    """Back-pressure ends when the ledger has taken what was held."""
    async with running(Bench()) as bench:
        bench.booking.held = True
        bench.send(0, Call("a"))
        await bench.turns()
        while bench.intake.has_room:
            bench.send(0, Call(f"b{len(bench.log.records(0))}"))
        waiting = asyncio.create_task(bench.pipeline.wait_for_room())
        await bench.turns()
        assert not waiting.done()
        bench.booking.release()
        await bench.turns()
        assert waiting.done()
        await bench.pipeline.drain()
        assert bench.counted == len(bench.log.records(0))
        assert bench.intake.held_bytes == 0


async def test_duplicates_are_found_across_flushes() -> None:
    """An id of an earlier flush, committed or still on its way, is a duplicate."""
    async with running(Bench()) as bench:
        bench.send(0, Call("a"))
        await bench.pipeline.drain()
        bench.booking.held = True
        bench.send(0, Call("b"), Call("a"))
        await bench.advance(1.1)
        bench.send(0, Call("b"), Call("c"))
        await bench.advance(1.1)
        assert bench.booking.waiting == 1, "the second flush is at the ledger, the third is folded behind it"
        bench.booking.release()
        await bench.pipeline.drain()
        at = bench.book.progress([0])[0]
        assert (at.received, at.counted, at.duplicate) == (5, 3, 2)


async def test_an_unavailable_ledger_is_waited_for() -> None:
    """Nothing is lost or doubled while the ledger is away, and the wait says so."""
    async with running(Bench()) as bench:
        bench.send(0, Call("a"))
        await bench.pipeline.drain()
        bench.book.unavailable = LedgerUnavailable("connection refused")
        bench.send(0, Call("b"))
        await bench.advance(1.1)
        assert bench.pipeline.blocked == "connection refused"
        await bench.advance(1.1)
        await bench.advance(2.1)
        assert bench.counted == 1
        bench.book.unavailable = None
        await bench.advance(4.1)
        assert bench.counted == 2
        assert bench.pipeline.blocked is None


async def test_a_ledger_that_is_away_at_the_start_is_waited_for() -> None:
    """Even the meters cannot be read; then they can."""
    async with running(Bench()) as bench:
        bench.book.unavailable = LedgerUnavailable("starting up")
        bench.send(0, Call("a"))
        await bench.turns()
        assert bench.counted == 0
        bench.book.unavailable = None
        await bench.advance(1.1)
        assert bench.counted == 1


@pytest.mark.parametrize("written", [True, False])
async def test_an_unknown_commit_is_read_back(written: bool) -> None:
    """Whether the lost connection had committed or not: the events are counted once."""
    bench = Bench()
    lost = [CommitUnknown("connection lost during COMMIT")]

    def lose() -> None:
        if lost:
            raise lost.pop()

    async with running(bench):
        if written:
            bench.book.after_commit = lose
        else:
            bench.book.before_commit = lose
        bench.send(0, Call("a"), Call("b"))
        await bench.pipeline.drain()
        assert bench.counted == 2
        assert len(bench.book.commits) == 1
        bench.send(0, Call("b"), Call("c"))
        await bench.pipeline.drain()
        assert bench.counted == 3
        assert bench.missed == []


async def test_an_unknown_commit_another_worker_got_ahead_of_is_a_miss() -> None:
    """It was not ours that was written: the ledger stands past our flush, so what we hold is worth nothing."""
    bench = Bench()
    lost = [CommitUnknown("connection lost during COMMIT")]

    def lose() -> None:
        if lost:
            bench.book.steal(0, 2)
            raise lost.pop()

    async with running(bench):
        bench.book.before_commit = lose
        bench.send(0, Call("a"))
        await bench.pipeline.drain()
        assert bench.book.commits == []
        assert [each.partition for each in bench.missed] == [0]
        assert bench.intake.next_offset(0) is None
        bench.load(0, bench.missed[0].misses)
        assert bench.intake.next_offset(0) == 2


async def test_a_missed_partition_is_dropped_and_the_others_committed() -> None:
    """Somebody else was first on partition 0: what we hold of it goes, partition 1 is not held up."""
    async with running(Bench()) as bench:
        bench.send(0, Call("a"))
        bench.send(1, Call("b"))
        bench.book.steal(0, 1)
        await bench.pipeline.drain()
        assert bench.book.commits == [{1: (0, 1)}]
        assert [each.partition for each in bench.missed] == [0]
        assert bench.intake.next_offset(0) is None
        assert bench.metric("missed_commits_total") == 1
        # What left the flush is not told as committed: it is folded, and told, again.
        assert bench.metric("events_total", outcome="counted") == 1
        assert bench.metric("freshness_seconds_count") == 1
        bench.load(0, bench.missed[0].misses)
        bench.send(0, Call("c"))
        await bench.pipeline.drain()
        assert bench.book.commits[-1] == {0: (1, 2)}


async def test_a_flush_folded_behind_a_missed_one_leaves_the_partition_out() -> None:
    """The next flush was folded on memory that proved wrong: its part of that partition goes too."""
    async with running(Bench()) as bench:
        bench.send(1, Call("a"))
        await bench.pipeline.drain()
        bench.booking.held = True
        bench.send(0, Call("b"))
        await bench.advance(1.1)
        bench.send(0, Call("c"))
        bench.send(1, Call("d"))
        await bench.advance(1.1)
        bench.book.steal(0, 1)
        bench.booking.release()
        await bench.pipeline.drain()
        assert bench.book.commits == [{1: (0, 1)}, {1: (1, 2)}]
        assert bench.intake.held_bytes == 0


async def test_repeated_misses_end_the_process() -> None:
    """Two workers on one partition is a state to leave, not to live in."""
    bench = Bench()
    for partition in (0, 1):
        bench.load(partition)
    task = asyncio.create_task(bench.pipeline.run())
    for _ in range(POLICY.misses_max):
        bench.send(0, Call("a"))
        bench.book.steal(0, 1)
        await bench.advance(1.1)
        bench.load(0, bench.missed[-1].misses)
    bench.send(0, Call("a"))
    bench.book.steal(0, 1)
    await bench.advance(1.1)
    with pytest.raises(Fenced, match="partition 0"):
        await task


async def test_changed_meters_are_folded_with_from_then_on() -> None:
    """A flush that was folded with the old set is folded again, and so is the one behind it; ids count once."""
    async with running(Bench()) as bench:
        bench.send(0, Call("a"))
        await bench.pipeline.drain()
        bench.booking.held = True
        bench.send(0, Call("b"), Call("c", status=500))
        await bench.advance(1.1)
        bench.send(0, Call("c"), Call("d"), Call("b"))
        bench.send(1, Call("e"))
        await bench.advance(1.1)
        bench.book.apply(meter_set(2, "status < 500"))
        bench.booking.release()
        await bench.pipeline.drain()
        assert bench.book.events == {(1, "user:ada", _HOUR): 1, (2, "user:ada", _HOUR): 3}
        at = bench.book.progress([0])[0]
        assert (at.received, at.counted, at.unmatched, at.duplicate) == (6, 3, 1, 2)
        bench.send(0, Call("d"), Call("f"))
        await bench.pipeline.drain()
        assert bench.book.progress([0])[0].duplicate == 3, "memory after refolding holds every id once more"


async def test_dead_events_are_buried_before_the_ledger_knows() -> None:
    """While dead letters cannot be written nothing is committed; then each is written once."""
    async with running(Bench()) as bench:
        bench.dead.unreachable = True
        bench.send(0, Call("a"), Call("b", time_ms=TIME_MS + 3_600_000))
        await bench.turns()
        assert bench.book.commits == []
        bench.dead.unreachable = False
        await bench.advance(1.1)
        assert [(letter.partition, letter.offset, letter.rows) for letter in bench.dead.letters] == [
            (0, 0, 1)
        ]
        at = bench.book.progress([0])[0]
        assert (at.counted, at.dead) == (1, 1)
        assert bench.metric("dead_events_total", reason="future") == 1


async def test_dead_letters_are_not_repeated_for_each_attempt() -> None:
    """A ledger that is away does not fill gateway.dead."""
    async with running(Bench()) as bench:
        bench.send(1, Call("a"))
        await bench.pipeline.drain()
        bench.book.unavailable = LedgerUnavailable("away")
        bench.send(0, Call("b", time_ms=TIME_MS + 3_600_000))
        for _ in range(5):
            await bench.advance(8.1)
        bench.book.unavailable = None
        await bench.advance(8.1)
        assert len(bench.dead.letters) == 1


async def test_a_revoked_partition_ends_the_wait_for_the_ledger() -> None:
    """A handover during an outage does not leave a flush behind that waits for ever."""
    async with running(Bench()) as bench:
        bench.send(1, Call("a"))
        await bench.pipeline.drain()
        bench.book.unavailable = LedgerUnavailable("away")
        bench.send(0, Call("b"))
        await bench.advance(1.1)
        bench.pipeline.forget(0)
        bench.pipeline.forget(1)
        await asyncio.wait_for(bench.pipeline.drain(), 5)
        assert bench.intake.held_bytes == 0
        bench.book.unavailable = None
        bench.load(0)
        bench.give(0, 0)
        await bench.pipeline.drain()
        assert bench.counted == 2


async def test_old_ids_expire_in_memory_and_ledger() -> None:
    """Days that no event can be accepted from any more go, and only they."""
    async with running(Bench()) as bench:
        bench.send(0, Call("a"))
        await bench.pipeline.drain()
        assigned = bench.partitions.get(0)
        assert assigned is not None
        assert assigned.expired_before_day == TIME_MS // 86_400_000 - 4
        _, blobs = bench.book.partition(0, 0)
        assert [day for day, _, _ in blobs] == [TIME_MS // 86_400_000]


@pytest.mark.parametrize("failure", [LedgerUnavailable("busy"), CommitUnknown("gone")], ids=repr)
async def test_an_expiry_that_fails_holds_up_nothing(failure: Exception) -> None:
    """Only space is lost until the next day's turn, also when nobody knows whether the old ids are gone."""

    def fail(partition: int, before_day: int) -> None:
        raise failure

    async with running(Bench()) as bench:
        bench.book.expire = fail  # type: ignore[method-assign]
        bench.send(0, Call("a"))
        await bench.pipeline.drain()
        bench.send(0, Call("b"))
        await bench.pipeline.drain()
        assert bench.counted == 2


@pytest.mark.parametrize("failure", [None, LedgerUnavailable("busy"), CommitUnknown("gone")], ids=repr)
async def test_seen_ids_are_compacted_now_and_then(failure: Exception | None) -> None:
    """Once in so many flushes of a partition, two that are flushed together at different ones; that it cannot be done
    holds up nothing."""
    async with running(Bench()) as bench:
        bench.book.compaction_fails = failure
        for number in range(COMPACTION_FLUSHES):
            for partition in (0, 1):
                bench.send(partition, Call(f"{number}-{partition}"))
            await bench.pipeline.drain()
            if number == COMPACTION_FLUSHES // 2 - 1:
                assert bench.book.compactions == []
        assert bench.book.compactions == [1, 0]
        assert bench.counted == 2 * COMPACTION_FLUSHES


@pytest.mark.parametrize(
    "point", [FaultPoint.FLUSH_TAKEN, FaultPoint.FLUSH_FOLDED, FaultPoint.LEDGER_COMMITTED]
)
async def test_a_death_at_any_step_counts_once(point: FaultPoint) -> None:
    """What the process did before it died is in the ledger once, after the next one has read on from there."""

    class Died(Exception):
        pass

    def die() -> None:
        raise Died

    bench = Bench(faults=Faults(point, 2, die))
    for partition in (0, 1):
        bench.load(partition)
    task = asyncio.create_task(bench.pipeline.run())
    bench.send(0, Call("a"), Call("b"))
    await bench.turns()
    bench.send(0, Call("b"), Call("c"))
    await bench.advance(1.1)
    with pytest.raises(Died):
        await task

    heir = Bench(log=bench.log, book=bench.book)
    async with running(heir):
        at = heir.intake.next_offset(0)
        assert at is not None
        for index in range(at, 2):
            heir.give(0, index)
        await heir.pipeline.drain()
    progress = bench.book.progress([0])[0]
    assert (progress.received, progress.counted, progress.duplicate) == (4, 3, 1)


async def test_a_flush_folded_in_time_behind_a_stale_one_is_folded_again() -> None:
    """The second flush learns of the new meters first; folding the first again takes its staged ids away with it."""
    async with running(Bench()) as bench:

        def change() -> None:
            bench.book.before_commit = None
            bench.book.apply(meter_set(2))
            bench.book.unavailable = LedgerUnavailable("away just after")
            raise MetersChanged(2)

        bench.book.before_commit = change
        bench.send(0, Call("a"))
        await bench.turns()
        bench.send(0, Call("a"), Call("b"))
        await bench.advance(1.1)
        bench.book.unavailable = None
        await bench.advance(1.05)
        await bench.advance(2.0)
        await bench.pipeline.drain()
        bench.send(0, Call("b"))
        await bench.pipeline.drain()
        at = bench.book.progress([0])[0]
        assert (at.received, at.counted, at.duplicate) == (4, 2, 2)
