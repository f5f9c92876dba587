"""The assignment: which partitions this process counts, from the group's word to the first record and back.

Owns loading a partition, checking that its log is the one that was counted, stopping it when it is not, and reading
it again after anything that does not add up. It refuses to know Faust (a `Reader` does what must be done there) and
what a flush is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Mapping
from concurrent.futures import Executor
from typing import Any, Protocol, TypeVar

import structlog

from services.meter.book import Book
from services.meter.faults import FaultPoint
from services.meter.intake import Arrival, Intake, LogRecord
from services.meter.log import Log, LogBounds, LogUnavailable
from services.meter.metrics import MeterMetrics
from services.meter.partition import (
    AssignedPartition,
    Partitions,
    Stopped,
    StopReason,
    judge_log,
    needs_predecessor,
    rebuild_seen,
)
from services.meter.pipeline import Pipeline
from tollgate.ledger.errors import LedgerUnavailable
from tollgate.ledger.progress import PartitionProgress
from tollgate.metering.outcome import TimeRules
from tollgate.metering.seen import oldest_day
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults

T = TypeVar("T")

_log = structlog.stdlib.get_logger(__name__)

SETTLING_SECONDS = 5.0
"""After a seek, records fetched before it still arrive and look like gaps; later than this they are gaps."""
GAPS_MAX = 5
"""Times the log may skip the same offset though it says it holds it, before the partition is stopped."""


class Reader(Protocol):
    """What reads the log for this process."""

    async def seek(self, partition: int, offset: int) -> None:
        """Continue `partition` at `offset`. Has no effect on one that is no longer assigned."""
        ...

    def pause(self, partition: int) -> None:
        """Fetch nothing more of `partition` during this assignment."""
        ...


class NothingLeft(Exception):
    """Every partition assigned to this process is stopped. The message says why."""


class Assignment:
    """The partitions the group has given this process. Belongs to one event loop.

    `failed` becomes done with an exception when the process must end.
    """

    def __init__(
        self,
        *,
        intake: Intake,
        partitions: Partitions,
        book: Book,
        log: Log,
        clock: Clock,
        rules: TimeRules,
        backoff: Backoff,
        metrics: MeterMetrics,
        faults: Faults[FaultPoint],
        booking: Executor,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._intake = intake
        self._partitions = partitions
        self._book = book
        self._log = log
        self._clock = clock
        self._rules = rules
        self._backoff = backoff
        self._metrics = metrics
        self._faults = faults
        self._booking = booking
        self._on_change = on_change
        self._pipeline: Pipeline | None = None
        self._reader: Reader | None = None
        self._closed = False
        self._generation = 0
        self._kept: dict[int, AssignedPartition] = {}
        self._settling: dict[int, float] = {}
        self._gaps: dict[int, tuple[int, int]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloading: set[int] = set()
        self.stopped: dict[int, Stopped] = {}
        self.loading: str | None = None
        """Why loading does not get through at the moment, in words; None otherwise."""
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connect(self, pipeline: Pipeline, reader: Reader) -> None:
        """Give it the two it works with; they need it as well, so it is made first."""
        self._pipeline = pipeline
        self._reader = reader

    # ---------------------------------------------------------------- the group's word

    async def assign(self, partitions: Collection[int]) -> None:
        """Load `partitions`, all that are assigned now. Returns early when another assignment begins meanwhile."""
        self._generation += 1
        generation = self._generation
        self._metrics.rebalanced()
        for partition in [each.partition for each in self._partitions]:
            self._give_up(partition)
        self.stopped.clear()
        await self._load(sorted(partitions), generation, {})
        self._tell()
        if generation == self._generation:
            # Memory for partitions that went elsewhere.
            self._kept.clear()
            _log.info("partitions.assigned", counted=len(self._partitions), stopped=sorted(self.stopped))
            self._fail_if_nothing_left()

    def revoke(self) -> None:
        """Nothing is assigned any more. Seen ids are kept, in case the same partitions come back."""
        self._generation += 1
        for partition in [each.partition for each in self._partitions]:
            self._give_up(partition)
        for partition in self.stopped:
            self._metrics.revoked(partition)
        self.stopped.clear()
        self._settling.clear()
        self._tell()

    def stopped_partitions(self) -> Collection[int]:
        """Assigned, and not counted until somebody has looked."""
        return tuple(self.stopped)

    def close(self) -> None:
        """From now on every record is left to the next start: what waits can be flushed to its end."""
        self._closed = True

    def positions(self) -> Mapping[int, int]:
        """Where reading goes on, for each partition that is counted."""
        return {
            each.partition: offset
            for each in self._partitions
            if (offset := self._intake.next_offset(each.partition)) is not None
        }

    # ---------------------------------------------------------------- a record, and what does not add up

    def arrived(self, record: LogRecord) -> None:
        """Hand a record to the intake, and look into it when it does not follow on the last."""
        if self._closed:
            return
        arrival = self._intake.append(record)
        partition = record.partition
        if arrival is Arrival.TAKEN:
            if partition in self._settling:
                del self._settling[partition]
            self._faults.reach(FaultPoint.RECORD_APPENDED)
            self._of_pipeline.appended()
            return
        self._metrics.dropped(arrival.name.lower())
        if arrival is Arrival.REWRITTEN:
            self.suspect(partition, f"record {record.offset} came again with other bytes")
        elif arrival is Arrival.GAP:
            settling_since = self._settling.get(partition)
            now = self._clock.monotonic_seconds()
            if settling_since is None or now - settling_since > SETTLING_SECONDS:
                self._gap(partition, record.offset)

    def suspect(self, partition: int, why: str) -> None:
        """Something about `partition` does not add up: drop what is in memory, check its log, read it again."""
        assigned = self._of_pipeline.forget(partition)
        if assigned is None:
            return
        _log.warning("partition.suspected", partition=partition, why=why)
        self._reload(assigned)

    def missed(self, assigned: AssignedPartition) -> None:
        """The ledger was not where `assigned` had it; the pipeline has forgotten it already."""
        self._reload(assigned)

    def _gap(self, partition: int, offset: int) -> None:
        next_offset = self._intake.next_offset(partition)
        assert next_offset is not None, "a gap is of an assigned partition"
        at, times = self._gaps.get(partition, (next_offset, 0))
        times = times + 1 if at == next_offset else 1
        self._gaps[partition] = (next_offset, times)
        if times > GAPS_MAX:
            self._of_pipeline.forget(partition)
            self._stop(
                partition,
                Stopped(StopReason.GAP, f"the log skipped from {next_offset} to {offset}, {times} times"),
            )
            self._tell()
            self._fail_if_nothing_left()
        else:
            self.suspect(partition, f"record {offset} came where {next_offset} was due")

    # ---------------------------------------------------------------- loading

    def _reload(self, assigned: AssignedPartition) -> None:
        self._spawn(self._load_again(assigned.partition, assigned.misses, self._generation))

    async def _load_again(self, partition: int, misses: int, generation: int) -> None:
        self._reloading.add(partition)
        try:
            await self._load([partition], generation, {partition: misses})
        finally:
            self._reloading.discard(partition)
        self._tell()
        if generation != self._generation:
            return
        offset = self._intake.next_offset(partition)
        if offset is not None and self._reader is not None:
            await self._reader.seek(partition, offset)
        self._fail_if_nothing_left()

    async def _load(self, partitions: Collection[int], generation: int, misses: Mapping[int, int]) -> None:
        """Load or stop each of `partitions`, for as long as `generation` is the present one."""
        waiting = list(partitions)
        attempt = 0
        while waiting and generation == self._generation:
            try:
                while waiting and generation == self._generation:
                    await self._load_one(waiting[0], generation, misses.get(waiting[0], 0))
                    del waiting[0]
                    attempt = 0
            except (LedgerUnavailable, LogUnavailable) as error:
                if self.loading is None:
                    _log.warning("partitions.waiting", left=len(waiting), detail=str(error))
                self.loading = str(error)
                self._tell()
                await self._clock.sleep_seconds(self._backoff.delay_seconds(min(attempt, 60)))
                attempt += 1
        self.loading = None

    async def _load_one(self, partition: int, generation: int, misses: int) -> None:
        found = (await self._booked(lambda: self._book.progress((partition,)))).get(partition)
        if found is None:
            stopped: Stopped | None = Stopped(
                StopReason.UNKNOWN,
                "the ledger has no progress for it: the topic has more partitions than the ledger was initialised for",
            )
        else:
            assigned, found = await self._recall(found)
            assigned.misses = misses
            stopped = await self._judge(found)
        if generation != self._generation:
            return
        if stopped is not None or found is None:
            assert stopped is not None
            self._stop(partition, stopped)
            return
        self._partitions.put(assigned)
        self._intake.assign(partition, found.next_offset, found.fingerprint)
        self._settling[partition] = self._clock.monotonic_seconds()
        self._metrics.seen_ids(partition, assigned.seen.count, assigned.seen.ram_bytes)
        self._faults.reach(FaultPoint.PARTITION_LOADED)

    async def _recall(self, found: PartitionProgress) -> tuple[AssignedPartition, PartitionProgress]:
        """The partition's seen ids at its progress: kept from before if still exact, else from the ledger."""
        kept = self._kept.pop(found.partition, None)
        day = oldest_day(found.ingest_ms, self._rules)
        if kept is not None:
            # Behind the fold that may still run: afterwards nothing stages into these any more.
            await self._of_pipeline.on_folding_thread(kept.seen.discard_tail)
            if kept.seen.committed_offset == found.next_offset:
                return AssignedPartition(found.partition, found.next_offset, kept.seen, day), found
        found, blobs = await self._booked(lambda: self._book.partition(found.partition, day))
        seen = await self._of_pipeline.on_folding_thread(lambda: rebuild_seen(found.next_offset, blobs))
        return AssignedPartition(found.partition, found.next_offset, seen, day), found

    async def _judge(self, found: PartitionProgress) -> Stopped | None:
        bounds: LogBounds | None = (await self._log.bounds((found.partition,))).get(found.partition)
        if bounds is None:
            raise LogUnavailable(f"partition {found.partition} is not in the topic's metadata")
        predecessor = None
        if needs_predecessor(found.next_offset, found.fingerprint, bounds):
            predecessor = await self._log.read(found.partition, found.next_offset - 1)
        return judge_log(found.next_offset, found.fingerprint, bounds, predecessor)

    # ---------------------------------------------------------------- plumbing

    @property
    def _of_pipeline(self) -> Pipeline:
        assert self._pipeline is not None, "connect() comes before any assignment"
        return self._pipeline

    def _give_up(self, partition: int) -> None:
        assigned = self._of_pipeline.forget(partition)
        if assigned is not None:
            self._kept[partition] = assigned
        self._metrics.revoked(partition)

    def _stop(self, partition: int, stopped: Stopped) -> None:
        self.stopped[partition] = stopped
        _log.error("partition.stopped", partition=partition, reason=stopped.reason, detail=stopped.detail)
        if self._reader is not None:
            self._reader.pause(partition)

    def _fail_if_nothing_left(self) -> None:
        if self.stopped and not len(self._partitions) and not self._reloading:
            partition, stopped = next(iter(sorted(self.stopped.items())))
            self._fail(
                NothingLeft(
                    f"every assigned partition is stopped ({len(self.stopped)}); "
                    f"partition {partition}: {stopped.reason}: {stopped.detail}"
                )
            )

    def _fail(self, error: BaseException) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    def _tell(self) -> None:
        self._metrics.assigned(len(self._partitions))
        self._metrics.stopped([each.reason for each in self.stopped.values()])
        self._on_change()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="meter-reload")
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    async def _booked(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._booking, work)
