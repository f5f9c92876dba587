"""The worker: a group's share of the partitions, read in order and given to their archives.

Owns Kafka's client, assignment, and what follows when a partition cannot go on. It refuses to know files.

The group only shares out the work. Where reading begins is what the directory says, never the group's offset, which is
written afterwards for Kafka's own tools. A record that is not the next one is never archived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import IllegalStateError, KafkaError, OffsetOutOfRangeError

from services.archive.directory import Overtaken
from services.archive.faults import FaultPoint
from services.archive.metrics import Closing, Metrics
from services.archive.partition import Gap, PartitionArchive, Stopped, StopReason
from tollgate.contracts.archive import NotAnArchive
from tollgate.contracts.archive_rows import RestoredRecord
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults
from tollgate.runtime.health import Health

T = TypeVar("T")

HEARTBEAT = "archiving"
POLL_TIMEOUT_MS = 500
GAPS_MAX = 3
"""A gap is read again from the last offset: a client may have lost a fetch. This many in a row are the log's own."""

_log = structlog.get_logger(__name__)


class Worker(ConsumerRebalanceListener):  # type: ignore[misc]
    """Archives the partitions the group gives it. Belongs to one event loop; files are touched on `executor` alone."""

    def __init__(
        self,
        consumer: AIOKafkaConsumer,
        topic: str,
        new_archive: Callable[[int], PartitionArchive],
        *,
        executor: Executor,
        held_bytes_max: int,
        records_max: int,
        handover_seconds: float,
        backoff: Backoff,
        clock: Clock,
        health: Health,
        metrics: Metrics,
        faults: Faults[FaultPoint],
    ) -> None:
        """`topic` is the full name. `executor` has one thread."""
        self._consumer = consumer
        self._topic = topic
        self._new_archive = new_archive
        self._executor = executor
        self._held_bytes_max = held_bytes_max
        self._records_max = records_max
        self._handover_seconds = handover_seconds
        self._backoff = backoff
        self._clock = clock
        self._health = health
        self._metrics = metrics
        self._faults = faults
        self._archives: dict[int, PartitionArchive] = {}
        self._stopped: dict[int, Stopped] = {}
        self._unready: dict[int, float] = {}
        """Partitions to be begun (again), and when."""
        self._failures: dict[int, int] = {}
        """Failures in a row."""
        self._committed: dict[int, int] = {}
        # A rebalance runs beside the work: neither may touch a partition under the other's hands.
        self._lock = asyncio.Lock()

    @property
    def stopped(self) -> Mapping[int, Stopped]:
        """Partitions that are not archived until an operator has looked."""
        return dict(self._stopped)

    async def run(self, stop: asyncio.Event) -> None:
        """Archive until `stop`, then close what is open. Raises what makes going on wrong."""
        self._consumer.subscribe([self._topic], listener=self)
        self._health.mark_started()
        try:
            while not stop.is_set():
                await self.step()
        finally:
            async with self._lock:
                await self._hand_over(list(self._archives))

    async def step(self) -> None:
        """Take what the log has and archive it."""
        self._health.heartbeat(HEARTBEAT)
        async with self._lock:
            await self._begin_due()
        try:
            taken = await self._consumer.getmany(timeout_ms=POLL_TIMEOUT_MS, max_records=self._records_max)
        except OffsetOutOfRangeError as error:
            # Retention was quicker, or the topic is another one: beginning anew tells which.
            _log.warning("offset.out_of_range", detail=str(error))
            async with self._lock:
                self._begin_soon([p for p in self._archives if p not in self._stopped])
            return
        except KafkaError as error:
            _log.warning("log.unavailable", reason=type(error).__name__)
            self._health.set_ready("broker", False, repr(error))
            await self._clock.sleep_seconds(self._backoff.delay_seconds(0))
            return
        self._health.set_ready("broker", True)
        async with self._lock:
            for place, records in taken.items():
                await self._archive(place.partition, records)
            for partition in list(self._archives):
                await self._tend(partition)
            await self._bound_memory()
            await self._commit()
            self._report()

    # ------------------------------------------------------------------------------------- assignment

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """Close what is open of them, so that the next owner goes on from there."""
        if revoked:
            self._faults.reach(FaultPoint.REVOKED)
        async with self._lock:
            await self._hand_over([place.partition for place in revoked])

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """Find out where each goes on before anything of it is fetched."""
        for place in assigned:
            # Before anything is awaited: the client looks for a position beside us, and the group's is not one.
            self._halt(place)
        async with self._lock:
            for place in assigned:
                self._archives[place.partition] = self._new_archive(place.partition)
            self._begin_soon([place.partition for place in assigned])
            await self._begin_due()
        _log.info("partitions.assigned", partitions=sorted(self._archives))

    async def _hand_over(self, partitions: Sequence[int]) -> None:
        try:
            async with asyncio.timeout(self._handover_seconds):
                for partition in partitions:
                    await self._guarded(partition, lambda archive: archive.close(Closing.HANDED_OVER))
                await self._commit()
        except TimeoutError:
            _log.warning("handover.cut_short", detail="what was not closed is read again by the next owner")
        for partition in partitions:
            archive = self._archives.pop(partition, None)
            if archive is not None:
                await self._on_thread(archive.discard)
            for each in (self._stopped, self._unready, self._failures, self._committed):
                each.pop(partition, None)

    def _begin_soon(self, partitions: Collection[int], delay_seconds: float = 0.0) -> None:
        at = self._clock.monotonic_seconds() + delay_seconds
        for partition in partitions:
            self._unready[partition] = at

    async def _begin_due(self) -> None:
        """Begin the partitions whose time has come: load, judge the log, seek."""
        now = self._clock.monotonic_seconds()
        for partition, at in list(self._unready.items()):
            place = TopicPartition(self._topic, partition)
            if at <= now:
                del self._unready[partition]
                await self._begin(place)
            if partition in self._unready or partition in self._stopped:
                self._halt(place)

    async def _begin(self, place: TopicPartition) -> None:
        archive = self._archives[place.partition]
        self._stopped.pop(place.partition, None)
        try:
            await self._on_thread(archive.load)
            starts = await self._consumer.beginning_offsets([place])
            ends = await self._consumer.end_offsets([place])
            self._consumer.seek(place, archive.begin_at(starts[place], ends[place]))
            self._consumer.resume(place)
            _log.info("partition.begun", partition=place.partition, next_offset=archive.next_offset)
        except Stopped as stopped:
            self._stop(place.partition, stopped)
        except NotAnArchive as error:
            self._stop(place.partition, Stopped(StopReason.DAMAGED, str(error)))
        except IllegalStateError:
            # Taken away meanwhile: the group says so next.
            return
        except (KafkaError, OSError, TimeoutError) as error:
            self._try_again(place.partition, error)

    def _halt(self, place: TopicPartition) -> None:
        """Fetch nothing of it. A position it must have all the same, or the client asks the group for one."""
        try:
            self._consumer.pause(place)
            self._consumer.seek(place, 0)
        except IllegalStateError:
            return

    def _stop(self, partition: int, stopped: Stopped) -> None:
        self._stopped[partition] = stopped
        self._halt(TopicPartition(self._topic, partition))
        _log.error("partition.stopped", partition=partition, reason=stopped.reason.value, detail=str(stopped))

    def _try_again(self, partition: int, error: Exception) -> None:
        failures = self._failures.get(partition, 0)
        self._failures[partition] = failures + 1
        _log.warning("partition.delayed", partition=partition, error=repr(error))
        self._begin_soon([partition], self._backoff.delay_seconds(min(failures, 60)))
        self._halt(TopicPartition(self._topic, partition))

    # ------------------------------------------------------------------------------------------- work

    async def _archive(self, partition: int, records: Sequence[Any]) -> None:
        if partition in self._unready or partition in self._stopped or partition not in self._archives:
            return
        logged = [
            RestoredRecord(
                partition=record.partition,
                offset=record.offset,
                timestamp_ms=record.timestamp,
                key=record.key,
                value=record.value or b"",
                headers=tuple(record.headers),
            )
            for record in records
        ]
        if await self._guarded(partition, lambda archive: archive.append(logged)):
            self._failures.pop(partition, None)
        self._health.heartbeat(HEARTBEAT)

    async def _tend(self, partition: int) -> None:
        await self._guarded(partition, lambda archive: archive.close_if_old())

    async def _bound_memory(self) -> None:
        """Write the largest early until everything held is within the bound."""
        while sum(archive.held_bytes for archive in self._archives.values()) > self._held_bytes_max:
            largest = max(self._archives, key=lambda partition: self._archives[partition].held_bytes)
            if not await self._guarded(largest, lambda archive: archive.write_rows()):
                await self._on_thread(self._archives[largest].discard)

    async def _guarded(self, partition: int, work: Callable[[PartitionArchive], None]) -> bool:
        """Do `work` on the partition's archive; whether it was done. What keeps it from going on is seen to."""
        archive = self._archives.get(partition)
        if archive is None or partition in self._unready or partition in self._stopped:
            return False
        try:
            await self._on_thread(lambda: work(archive))
        except Overtaken as error:
            self._metrics.overtaken.inc()
            _log.warning("partition.overtaken", partition=partition, detail=str(error))
            self._begin_soon([partition])
        except Gap as error:
            failures = self._failures.get(partition, 0)
            if failures + 1 >= GAPS_MAX:
                self._stop(partition, Stopped(StopReason.GAP, str(error)))
            else:
                self._try_again(partition, error)
        except Stopped as stopped:
            self._stop(partition, stopped)
        except OSError as error:
            self._metrics.write_failures.inc()
            await self._on_thread(archive.discard)
            self._try_again(partition, error)
        else:
            return True
        return False

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    # -------------------------------------------------------------------------------------- reporting

    async def _commit(self) -> None:
        """Tell the group what is in files: a hint for Kafka's tools, and nothing here reads it."""
        moved = {
            partition: archive.archived_offset
            for partition, archive in self._archives.items()
            if archive.archived_offset is not None
            and archive.archived_offset != self._committed.get(partition)
        }
        if not moved:
            return
        try:
            async with asyncio.timeout(5):
                await self._consumer.commit(
                    {TopicPartition(self._topic, partition): offset for partition, offset in moved.items()}
                )
        except (KafkaError, IllegalStateError, TimeoutError) as error:
            _log.warning("offset.not_committed", reason=type(error).__name__)
            return
        self._committed.update(moved)
        self._faults.reach(FaultPoint.GROUP_COMMITTED)

    def _report(self) -> None:
        lag: dict[int, int] = {}
        for partition, archive in self._archives.items():
            try:
                end = self._consumer.highwater(TopicPartition(self._topic, partition))
            except IllegalStateError:
                continue
            if end is not None and archive.archived_offset is not None:
                lag[partition] = max(0, end - archive.archived_offset)
        self._metrics.show(
            assigned=len(self._archives),
            stopped=len(self._stopped),
            lag=lag,
            held_bytes=sum(archive.held_bytes for archive in self._archives.values()),
        )
        stopped = "; ".join(f"{p}: {each.reason}: {each}" for p, each in sorted(self._stopped.items()))
        self._health.set_ready("partitions", not stopped, stopped)
        waiting = ", ".join(map(str, sorted(self._unready)))
        self._health.set_ready("writing", not waiting, waiting and f"to be begun again: {waiting}")
