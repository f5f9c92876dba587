"""The pipeline: from waiting records to one ledger transaction, again and again.

Owns the order of a flush, what overlaps what, and what follows each refusal of the ledger. It refuses to know Faust,
Kafka and SQL: records come from the intake, the rest goes through `Book` and `DeadLetters`.

A flush, step by step (README.md says what a death after each leaves behind):
 1. take the waiting records, bounded in bytes;
 2. decode and fold them, on the folding thread, and stage their ids behind the partition's seen ids;
 3. have its dead letters acknowledged;
 4. commit it to the ledger, on the booking thread; on a refusal go back to what the refusal asks for;
 5. move memory to the committed offset.
At most two flushes exist: one in 3 to 5, and the next in 1 to 2. They commit in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from services.meter.book import Book
from services.meter.booking import Booking
from services.meter.dead import DeadLetters
from services.meter.faults import FaultPoint
from services.meter.flush import Flush
from services.meter.folding import Folding
from services.meter.intake import Intake
from services.meter.metrics import MeterMetrics
from services.meter.partition import AssignedPartition, Partitions
from services.meter.patience import Bell, Patience
from tollgate.metering.fold import CompiledMeters
from tollgate.metering.meter import MeterSet
from tollgate.metering.outcome import TimeRules
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class FlushPolicy:
    """When a flush begins and how much it may hold."""

    interval_seconds: float
    """From the beginning of one flush to the beginning of the next, while there is something to flush."""
    interval_seconds_max: float
    """The same while flushes take long."""
    eager_bytes: int
    """This much waiting begins a flush at once."""
    bytes_max: int
    """The most one flush takes."""
    misses_max: int
    """Compare-and-sets missed in a row on one partition after which this process gives up."""

    def interval_after(self, flush_seconds: float) -> float:
        """Seconds to the next flush after one that took `flush_seconds`: it is to take a quarter of the time at most."""
        return min(max(self.interval_seconds, 4 * flush_seconds), self.interval_seconds_max)


class Pipeline:
    """Runs flushes over the partitions of `partitions` until cancelled. Belongs to one event loop."""

    def __init__(
        self,
        *,
        intake: Intake,
        partitions: Partitions,
        book: Book,
        dead: DeadLetters,
        clock: Clock,
        rules: TimeRules,
        policy: FlushPolicy,
        backoff: Backoff,
        metrics: MeterMetrics,
        faults: Faults[FaultPoint],
        folding: Executor,
        booking: Executor,
        on_missed: Callable[[AssignedPartition], None],
        compile_meters: Callable[[MeterSet], CompiledMeters] = CompiledMeters.compile,
    ) -> None:
        """`folding` and `booking` have one thread each. `on_missed` is told of a partition whose memory proved wrong
        and is no longer in `partitions`; it is to be loaded again and read again from the ledger's offset."""
        self._intake = intake
        self._partitions = partitions
        self._clock = clock
        self._policy = policy
        self._faults = faults
        self._on_missed = on_missed
        self._bell = Bell()
        self._patience = Patience(self._bell, clock, backoff)
        self._folding = Folding(
            partitions=partitions,
            book=book,
            patience=self._patience,
            clock=clock,
            rules=rules,
            metrics=metrics,
            faults=faults,
            folding=folding,
            booking=booking,
            compile_meters=compile_meters,
        )
        self._booking = Booking(
            partitions=partitions,
            book=book,
            dead=dead,
            folding=self._folding,
            patience=self._patience,
            clock=clock,
            rules=rules,
            misses_max=policy.misses_max,
            metrics=metrics,
            faults=faults,
            booking=booking,
            on_missed=self._missed,
        )
        self._ring_above_bytes: int | None = None
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._room = asyncio.Event()
        self._room.set()
        self._flushes = 0
        self._drains = 0
        self._began = clock.monotonic_seconds() - policy.interval_seconds_max
        self._lasted = 0.0

    # ---------------------------------------------------------------- what others tell and ask

    @property
    def blocked(self) -> str | None:
        """Why commits do not get through at the moment, in words; None while they do."""
        return self._patience.blocked

    def appended(self) -> None:
        """A record was taken into the intake."""
        self._quiet.clear()
        # Not for every record: waking the loop costs as much as Faust's handling of one.
        if self._ring_above_bytes is not None and self._intake.pending_bytes > self._ring_above_bytes:
            self._bell.ring()

    async def wait_for_room(self) -> None:
        """Return when the intake may take another record: this is the back-pressure on the log."""
        while not self._intake.has_room:
            self._bell.ring()
            self._room.clear()
            await self._room.wait()

    async def drain(self) -> None:
        """Flush what waits, without waiting for the interval, and return when all of it is settled."""
        self._drains += 1
        self._bell.ring()
        try:
            await self._quiet.wait()
        finally:
            self._drains -= 1

    def forget(self, partition: int) -> AssignedPartition | None:
        """Stop counting `partition` now: what waits of it is dropped, a flush in progress leaves it out."""
        self._intake.revoke(partition)
        assigned = self._partitions.remove(partition)
        self._settle_events()
        self._bell.ring()
        return assigned

    async def on_folding_thread(self, work: Callable[[], T]) -> T:
        """Run `work` where seen ids may be touched, after the fold in progress."""
        return await self._folding.on_thread(work)

    # ---------------------------------------------------------------- the loop

    async def run(self) -> None:
        """Flush for ever. Raises Fenced, InvariantViolated, or what a bug raises: the process must end then."""
        committing: asyncio.Task[None] | None = None
        try:
            while True:
                await self._until_due(committing)
                if committing is not None and committing.done():
                    # Whether it failed. What came meanwhile is not due for that.
                    await committing
                    committing = None
                    continue
                flush = await self._take()
                if flush is None:
                    continue
                await self._folding.fold(flush)
                if committing is not None:
                    await committing
                # Before the next is taken: a fold behind a stale one would have to be thrown away as well.
                while self._folding.is_stale(flush):
                    await self._folding.fold(flush)
                committing = asyncio.create_task(self._commit(flush), name="meter-commit")
                committing.add_done_callback(lambda _: self._bell.ring())
        finally:
            if committing is not None:
                committing.cancel()
                with suppress(asyncio.CancelledError):
                    await committing

    async def _until_due(self, committing: asyncio.Task[None] | None) -> None:
        """Return when a flush should begin, or when `committing` has ended and may have failed."""
        while True:
            rung = self._bell.next_ring()
            if committing is not None and committing.done():
                return
            pending_bytes = self._intake.pending_bytes
            if not pending_bytes:
                self._ring_above_bytes = 0
                await rung
            else:
                due = self._began + self._policy.interval_after(self._lasted)
                wait_seconds = due - self._clock.monotonic_seconds()
                if (
                    wait_seconds <= 0
                    or self._drains
                    or pending_bytes >= self._policy.eager_bytes
                    or not self._intake.has_room
                ):
                    return
                self._ring_above_bytes = self._policy.eager_bytes - 1
                await self._patience.rung_within(rung, wait_seconds)
            self._ring_above_bytes = None

    # ---------------------------------------------------------------- a flush

    async def _take(self) -> Flush | None:
        meters = await self._folding.meters()
        chunks = self._intake.take(self._policy.bytes_max)
        if not chunks:
            return None
        flush = self._folding.new_flush(chunks, meters)
        self._began = flush.began
        self._flushes += 1
        self._faults.reach(FaultPoint.FLUSH_TAKEN)
        return flush

    async def _commit(self, flush: Flush) -> None:
        try:
            await self._booking.commit(flush)
        finally:
            self._lasted = self._clock.monotonic_seconds() - flush.began
            self._intake.release(list(flush.chunks.values()))
            self._flushes -= 1
            self._settle_events()

    def _missed(self, assigned: AssignedPartition) -> None:
        self.forget(assigned.partition)
        self._on_missed(assigned)

    def _settle_events(self) -> None:
        if self._intake.has_room:
            self._room.set()
        if not self._flushes and not self._intake.pending_bytes:
            self._quiet.set()
