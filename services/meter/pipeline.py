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
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import structlog

from services.meter.book import Book
from services.meter.dead import DeadLetters
from services.meter.decode import decode_records
from services.meter.faults import FaultPoint
from services.meter.intake import Chunk, Intake
from services.meter.log import LogUnavailable
from services.meter.metrics import MeterMetrics
from services.meter.partition import AssignedPartition, Partitions
from tollgate.ledger.errors import CommitUnknown, LedgerUnavailable, MetersChanged
from tollgate.metering.fold import CompiledMeters, fold
from tollgate.metering.meter import MeterSet
from tollgate.metering.outcome import Fold, TimeRules
from tollgate.metering.records import EventsRecord
from tollgate.metering.seen import oldest_day
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults

T = TypeVar("T")

_log = structlog.stdlib.get_logger(__name__)


class Fenced(Exception):
    """The ledger is repeatedly not where we left it: somebody else counts the same partition. Stop this process."""


@dataclass(frozen=True, slots=True)
class FlushPolicy:
    """When a flush begins and how much it may hold."""

    interval_seconds: float
    """From the beginning of one flush to the beginning of the next, while there is something to flush."""
    eager_bytes: int
    """This much waiting begins a flush at once."""
    bytes_max: int
    """The most one flush takes."""
    misses_max: int
    """Compare-and-sets missed in a row on one partition after which this process gives up."""


class Bell:
    """Wakes everybody who waits at the moment it is rung. Unlike an Event it has no state to be cleared by one waiter
    under the feet of another: take the future first, look at the world, then wait."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def next_ring(self) -> asyncio.Future[None]:
        """Done at the next ring."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    def ring(self) -> None:
        for future in list(self._waiting):
            if not future.done():
                future.set_result(None)


@dataclass(slots=True, eq=False)
class _Flush:
    chunks: Mapping[int, Chunk]
    assigned: Mapping[int, AssignedPartition]
    meters: _Meters
    fold: Fold | None = None
    freshness: Mapping[int, Sequence[tuple[int, int]]] = field(default_factory=dict)
    """Per partition, (ingest time, rows) of each events record."""
    buried: set[int] = field(default_factory=set)
    """Partitions whose dead letters are acknowledged."""
    began: float = 0.0
    epoch: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class _Meters:
    version: int
    compiled: CompiledMeters


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
        self._book = book
        self._dead = dead
        self._clock = clock
        self._rules = rules
        self._policy = policy
        self._backoff = backoff
        self._metrics = metrics
        self._faults = faults
        self._folding = folding
        self._booking = booking
        self._on_missed = on_missed
        self._compile_meters = compile_meters
        self._meters: _Meters | None = None
        self._bell = Bell()
        self._ring_above_bytes: int | None = None
        self._quiet = asyncio.Event()
        self._quiet.set()
        self._room = asyncio.Event()
        self._room.set()
        self._epoch = 0
        self._flushes = 0
        self._drains = 0
        self._began = clock.monotonic_seconds() - policy.interval_seconds
        self.blocked: str | None = None
        """Why commits do not get through at the moment, in words; None while they do."""
        self.blocked_since: float | None = None
        """Monotonic seconds since when."""

    # ---------------------------------------------------------------- what others tell and ask

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
        return await asyncio.get_running_loop().run_in_executor(self._folding, work)

    # ---------------------------------------------------------------- the loop

    async def run(self) -> None:
        """Flush for ever. Raises Fenced, InvariantViolated, or what a bug raises: the process must end then."""
        committing: asyncio.Task[None] | None = None
        try:
            while True:
                await self._until_due(committing)
                if committing is not None and committing.done():
                    await committing
                    committing = None
                flush = await self._take()
                if flush is None:
                    continue
                await self._fold(flush)
                if committing is not None:
                    await committing
                # Before the next is taken: a fold behind a stale one would have to be thrown away as well.
                while self._is_stale(flush):
                    await self._fold(flush)
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
                due = self._began + self._policy.interval_seconds
                wait_seconds = due - self._clock.monotonic_seconds()
                if (
                    wait_seconds <= 0
                    or self._drains
                    or pending_bytes >= self._policy.eager_bytes
                    or not self._intake.has_room
                ):
                    return
                self._ring_above_bytes = self._policy.eager_bytes - 1
                await self._rung_within(rung, wait_seconds)
            self._ring_above_bytes = None

    async def _rung_within(self, rung: asyncio.Future[None], seconds: float) -> None:
        """Wait for the bell, for at most `seconds` of the injected clock."""
        sleeping = asyncio.ensure_future(self._clock.sleep_seconds(seconds))
        try:
            await asyncio.wait({rung, sleeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()

    # ---------------------------------------------------------------- steps 1 and 2

    async def _take(self) -> _Flush | None:
        meters = self._meters or await self._load_meters()
        chunks = self._intake.take(self._policy.bytes_max)
        assigned = {
            partition: each for partition in chunks if (each := self._partitions.get(partition)) is not None
        }
        if not chunks:
            return None
        self._began = self._clock.monotonic_seconds()
        self._flushes += 1
        self._faults.reach(FaultPoint.FLUSH_TAKEN)
        return _Flush(chunks=chunks, assigned=assigned, meters=meters, began=self._began)

    async def _fold(self, flush: _Flush) -> None:
        """Fold with the meters in force; again, when called again because the first fold is stale.

        Folding again throws away every staged id of the partitions, also those of a flush behind this one: the epoch
        tells that flush.
        """
        flush.meters = self._meters or await self._load_meters()
        live = self._live(flush)
        if not live:
            return
        if flush.fold is not None:
            self._epoch += 1
        flush.epoch = self._epoch
        flush.buried.clear()
        began = self._clock.monotonic_seconds()
        flush.fold, flush.freshness = await self.on_folding_thread(
            lambda: _fold_and_stage(flush, live, self._rules)
        )
        self._metrics.folded(self._clock.monotonic_seconds() - began)
        self._faults.reach(FaultPoint.FLUSH_FOLDED)

    def _is_stale(self, flush: _Flush) -> bool:
        """Whether a flush with live partitions was folded with other meters, or lost its staged ids."""
        return bool(self._live(flush)) and (flush.meters is not self._meters or flush.epoch != self._epoch)

    def _live(self, flush: _Flush) -> dict[int, AssignedPartition]:
        """The partitions of `flush` that are still in the hands they were taken by."""
        return {p: each for p, each in flush.assigned.items() if self._partitions.holds(each)}

    # ---------------------------------------------------------------- steps 3 to 5

    async def _commit(self, flush: _Flush) -> None:
        """Get `flush` into the ledger, or find that none of it is ours any more."""
        attempt = 0
        try:
            while live := self._live(flush):
                try:
                    if await self._try_commit(flush, live):
                        break
                except (LedgerUnavailable, LogUnavailable) as error:
                    self._block(error)
                    # A revoked partition ends the wait early: the rest may be gone too.
                    await self._pause(self._backoff.delay_seconds(min(attempt, 60)), live.values())
                    attempt += 1
                else:
                    attempt = 0
        finally:
            self._intake.release(list(flush.chunks.values()))
            self._flushes -= 1
            self._settle_events()

    async def _try_commit(self, flush: _Flush, live: Mapping[int, AssignedPartition]) -> bool:
        """One attempt; True when the ledger has all of `live`, False when it is to be tried again."""
        if self._is_stale(flush):
            await self._fold(flush)
            return False  # a fold takes long: look again at what is still ours
        assert flush.fold is not None, "a flush with live partitions was folded"
        await self._bury(flush, flush.fold, live)
        fingerprints = {partition: flush.chunks[partition].fingerprint for partition in live}
        began = self._clock.monotonic_seconds()
        now_ms = self._clock.now_ms()
        the_fold, version, wanted = flush.fold, flush.meters.version, frozenset(live)
        try:
            missed = await self._on_booking_thread(
                lambda: self._book.commit(the_fold, fingerprints, version, now_ms, wanted)
            )
        except MetersChanged as change:
            _log.info("meters.changed", folded_with=version, current=change.current)
            self._meters = None
            return False
        except CommitUnknown as error:
            _log.warning("commit.outcome_unknown", detail=str(error))
            read_back = await self._read_back(flush, live)
            if read_back is None:
                return False
            missed = read_back
        self._unblock()
        if missed:
            for partition in sorted(missed):
                self._miss(live[partition])
            return False
        self._faults.reach(FaultPoint.LEDGER_COMMITTED)
        self._metrics.booked(self._clock.monotonic_seconds() - began)
        await self._settle(flush, the_fold, live)
        return True

    async def _bury(self, flush: _Flush, the_fold: Fold, live: Mapping[int, AssignedPartition]) -> None:
        unburied = live.keys() - flush.buried
        letters = [each for each in the_fold.dead if each.partition in unburied]
        if letters:
            await self._dead.bury(letters)
            self._faults.reach(FaultPoint.DEAD_PRODUCED)
        flush.buried |= unburied

    async def _read_back(self, flush: _Flush, live: Mapping[int, AssignedPartition]) -> frozenset[int] | None:
        """After a commit of unknown outcome: None when nothing was written, else the partitions that stand neither
        where the flush began nor where it ends (empty: it was written)."""
        attempt = 0
        while True:
            try:
                stands = await self._on_booking_thread(lambda: self._book.progress(tuple(live)))
                break
            except LedgerUnavailable as error:
                self._block(error)
                await self._pause(self._backoff.delay_seconds(min(attempt, 60)), ())
                attempt += 1
        offsets = {partition: stands[partition].next_offset for partition in live if partition in stands}
        if all(offsets.get(p) == flush.chunks[p].from_offset for p in live):
            return None
        return frozenset(p for p in live if offsets.get(p) != flush.chunks[p].next_offset)

    async def _settle(self, flush: _Flush, the_fold: Fold, live: Mapping[int, AssignedPartition]) -> None:
        """The ledger has it: move memory, tell the metrics, let what is too old go."""
        expiries: dict[int, int] = {}
        for partition, assigned in live.items():
            folded = the_fold.partitions[partition]
            assigned.committed_offset = folded.next_offset
            assigned.misses = 0
            day = oldest_day(folded.ingest_ms_max, self._rules)
            if day > assigned.expired_before_day:
                expiries[partition] = assigned.expired_before_day = day
        sizes = await self.on_folding_thread(lambda: _commit_seen(the_fold, live, expiries))
        self._metrics.committed(
            {partition: the_fold.partitions[partition] for partition in live},
            the_fold,
            # Only of what was committed: a partition that left the flush is folded again in another.
            [seen for partition in live for seen in flush.freshness[partition]],
            self._clock.now_ms(),
            self._clock.monotonic_seconds() - flush.began,
        )
        for partition, (count, ram_bytes) in sizes.items():
            if self._partitions.holds(live[partition]):
                self._metrics.seen_ids(partition, count, ram_bytes)
        _log.debug(
            "flush.committed",
            offsets={p: the_fold.partitions[p].next_offset for p in live},
            events=sum(the_fold.partitions[p].outcomes.received for p in live),
            rows=the_fold.usage.height,
        )
        for partition, day in expiries.items():
            try:
                await self._on_booking_thread(partial(self._book.expire, partition, day))
            except LedgerUnavailable as error:
                # Only space is lost until the next day's turn; counting must not wait for it.
                _log.warning("expiry.postponed", partition=partition, detail=str(error))

    def _miss(self, assigned: AssignedPartition) -> None:
        """The ledger is not at the offset we hold for this partition: what we hold is worth nothing."""
        self._metrics.missed()
        misses = assigned.misses + 1
        _log.warning(
            "commit.missed", partition=assigned.partition, held=assigned.committed_offset, misses=misses
        )
        if misses > self._policy.misses_max:
            raise Fenced(
                f"partition {assigned.partition}: {misses} flushes in a row found the ledger elsewhere; "
                "another process counts it too"
            )
        assigned.misses = misses
        self.forget(assigned.partition)
        self._on_missed(assigned)

    # ---------------------------------------------------------------- plumbing

    async def _load_meters(self) -> _Meters:
        """Read and compile the meters in force; waits as long as the ledger is away."""
        attempt = 0
        while True:
            try:
                meter_set = await self._on_booking_thread(self._book.meter_set)
                break
            except LedgerUnavailable as error:
                self._block(error)
                await self._pause(self._backoff.delay_seconds(min(attempt, 60)), ())
                attempt += 1
        compiled = await self.on_folding_thread(lambda: self._compile_meters(meter_set))
        if self._meters is None or self._meters.version != meter_set.version:
            self._meters = _Meters(meter_set.version, compiled)
            _log.info("meters.loaded", version=meter_set.version, meters=len(meter_set.meters))
        return self._meters

    async def _on_booking_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._booking, work)

    async def _pause(self, seconds: float, assigned: Collection[AssignedPartition]) -> None:
        """Sleep on the injected clock; shorter when one of `assigned` is taken away meanwhile."""
        deadline = self._clock.monotonic_seconds() + seconds
        while True:
            rung = self._bell.next_ring()
            left = deadline - self._clock.monotonic_seconds()
            if left <= 0 or not all(self._partitions.holds(each) for each in assigned):
                rung.cancel()
                return
            await self._rung_within(rung, left)

    def _block(self, error: Exception) -> None:
        if self.blocked is None:
            self.blocked_since = self._clock.monotonic_seconds()
            _log.warning("flush.blocked", detail=str(error))
        self.blocked = str(error)

    def _unblock(self) -> None:
        if self.blocked is not None:
            _log.info("flush.unblocked")
        self.blocked = self.blocked_since = None

    def _settle_events(self) -> None:
        if self._intake.has_room:
            self._room.set()
        if not self._flushes and not self._intake.pending_bytes:
            self._quiet.set()


def _fold_and_stage(
    flush: _Flush, live: Mapping[int, AssignedPartition], rules: TimeRules
) -> tuple[Fold, dict[int, list[tuple[int, int]]]]:
    """On the folding thread: everything between bytes and a fold ready to be committed.

    A fold that is done again is the oldest flush: whatever is staged came from its own first fold and from the flush
    behind it, which will be folded again as well.
    """
    if flush.fold is not None:
        for assigned in live.values():
            assigned.seen.discard_tail()
    records = decode_records([record for partition in live for record in flush.chunks[partition].records])
    folded = fold(records, {p: each.seen for p, each in live.items()}, flush.meters.compiled, rules)
    for partition, assigned in live.items():
        of_partition = folded.partitions[partition]
        assigned.seen.stage(of_partition.next_offset, of_partition.seen_ids)
    freshness: dict[int, list[tuple[int, int]]] = {partition: [] for partition in live}
    for record in records:
        if isinstance(record, EventsRecord):
            freshness[record.partition].append((record.ingest_ms, record.rows))
    return folded, freshness


def _commit_seen(
    folded: Fold, live: Mapping[int, AssignedPartition], expiries: Mapping[int, int]
) -> dict[int, tuple[int, int]]:
    """On the folding thread: the staged ids of this flush are the ledger's now. Returns (ids, bytes) per partition."""
    for partition, assigned in live.items():
        assigned.seen.commit(folded.partitions[partition].next_offset)
        if partition in expiries:
            assigned.seen.expire(expiries[partition])
    return {partition: (each.seen.count, each.seen.ram_bytes) for partition, each in live.items()}
