"""Booking: steps 3 to 5 of a flush, from its dead letters to memory at the committed offset.

Owns what follows each refusal of the ledger. It refuses to know when flushes begin and how they are folded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar

import structlog

from services.meter.book import Book
from services.meter.dead import DeadLetters
from services.meter.faults import FaultPoint
from services.meter.flush import Flush, commit_seen
from services.meter.folding import Folding
from services.meter.log import LogUnavailable
from services.meter.metrics import MeterMetrics
from services.meter.partition import AssignedPartition, Partitions
from services.meter.patience import Patience
from tollgate.ledger.errors import CommitUnknown, LedgerUnavailable, MetersChanged
from tollgate.metering.outcome import Fold, TimeRules
from tollgate.metering.seen import oldest_day
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults

T = TypeVar("T")

_log = structlog.stdlib.get_logger(__name__)


COMPACTION_FLUSHES = 256
"""Flushes of a partition after which rows of its seen ids become fewer: about once in one to four minutes. What a
worker reads at its start is then hundreds of rows, however many flushes there were."""

_STAGGER = 37
"""Prime to the number above: partitions assigned together come to it one after the other."""


class Fenced(Exception):
    """The ledger is repeatedly not where we left it: somebody else counts the same partition. Stop this process."""


class Booking:
    """Gets folded flushes into the ledger, one at a time and in order. Belongs to one event loop."""

    def __init__(
        self,
        *,
        partitions: Partitions,
        book: Book,
        dead: DeadLetters,
        folding: Folding,
        patience: Patience,
        clock: Clock,
        rules: TimeRules,
        misses_max: int,
        metrics: MeterMetrics,
        faults: Faults[FaultPoint],
        booking: Executor,
        on_missed: Callable[[AssignedPartition], None],
    ) -> None:
        """`booking` has one thread. `on_missed` is told of a partition whose memory proved wrong."""
        self._partitions = partitions
        self._book = book
        self._dead = dead
        self._folding = folding
        self._patience = patience
        self._clock = clock
        self._rules = rules
        self._misses_max = misses_max
        self._metrics = metrics
        self._faults = faults
        self._booking = booking
        self._on_missed = on_missed

    async def commit(self, flush: Flush) -> None:
        """Get `flush` into the ledger, or find that none of it is ours any more. Raises Fenced."""
        attempt = 0
        while live := self._folding.live(flush):
            try:
                if await self._try_commit(flush, live):
                    return
            except (LedgerUnavailable, LogUnavailable) as error:
                self._patience.block(error)
                # A revoked partition ends the wait early: the rest may be gone too.
                held = list(live.values())
                await self._patience.pause(attempt, lambda: all(map(self._partitions.holds, held)))  # noqa: B023
                attempt += 1
            else:
                attempt = 0

    async def _try_commit(self, flush: Flush, live: Mapping[int, AssignedPartition]) -> bool:
        """One attempt; True when the ledger has all of `live`, False when it is to be tried again."""
        if self._folding.is_stale(flush):
            await self._folding.fold(flush)
            return False  # a fold takes long: look again at what is still ours
        assert flush.fold is not None, "a flush with live partitions was folded"
        await self._bury(flush, flush.fold, live)
        fingerprints = {partition: flush.chunks[partition].fingerprint for partition in live}
        began = self._clock.monotonic_seconds()
        now_ms = self._clock.now_ms()
        the_fold, version, wanted = flush.fold, flush.meters.version, frozenset(live)
        try:
            missed = await self._on_thread(
                lambda: self._book.commit(the_fold, fingerprints, version, now_ms, wanted)
            )
        except MetersChanged as change:
            _log.info("meters.changed", folded_with=version, current=change.current)
            self._folding.forget_meters()
            return False
        except CommitUnknown as error:
            _log.warning("commit.outcome_unknown", detail=str(error))
            read_back = await self._read_back(flush, live)
            if read_back is None:
                return False
            missed = read_back
        self._patience.unblock()
        if missed:
            for partition in sorted(missed):
                self._miss(live[partition])
            return False
        self._faults.reach(FaultPoint.LEDGER_COMMITTED)
        self._metrics.booked(self._clock.monotonic_seconds() - began)
        await self._settle(flush, the_fold, live)
        return True

    async def _bury(self, flush: Flush, the_fold: Fold, live: Mapping[int, AssignedPartition]) -> None:
        unburied = live.keys() - flush.buried
        letters = [each for each in the_fold.dead if each.partition in unburied]
        if letters:
            await self._dead.bury(letters)
            self._faults.reach(FaultPoint.DEAD_PRODUCED)
        flush.buried |= unburied

    async def _read_back(self, flush: Flush, live: Mapping[int, AssignedPartition]) -> frozenset[int] | None:
        """After a commit of unknown outcome: None when nothing was written, else the partitions that stand neither
        where the flush began nor where it ends (empty: it was written)."""
        stands = await self._patience.until_available(
            lambda: self._on_thread(lambda: self._book.progress(tuple(live)))
        )
        offsets = {partition: stands[partition].next_offset for partition in live if partition in stands}
        if all(offsets.get(p) == flush.chunks[p].from_offset for p in live):
            return None
        return frozenset(p for p in live if offsets.get(p) != flush.chunks[p].next_offset)

    async def _settle(self, flush: Flush, the_fold: Fold, live: Mapping[int, AssignedPartition]) -> None:
        """The ledger has it: move memory, tell the metrics, let what is too old go."""
        expiries: dict[int, int] = {}
        for partition, assigned in live.items():
            folded = the_fold.partitions[partition]
            assigned.committed_offset = folded.next_offset
            assigned.misses = 0
            day = oldest_day(folded.ingest_ms_max, self._rules)
            if day > assigned.expired_before_day:
                expiries[partition] = assigned.expired_before_day = day
        sizes = await self._folding.on_thread(lambda: commit_seen(the_fold, live, expiries))
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
                await self._on_thread(partial(self._book.expire, partition, day))
            except (LedgerUnavailable, CommitUnknown) as error:
                # Only space is lost until the next day's turn; counting must not wait for it.
                _log.warning("expiry.postponed", partition=partition, detail=str(error))
        for partition, assigned in live.items():
            assigned.flushes += 1
            # Each partition at its own flush: one that folds many must not stand still for all at once.
            if (assigned.flushes + partition * _STAGGER) % COMPACTION_FLUSHES == 0:
                await self._compact(partition)

    async def _compact(self, partition: int) -> None:
        try:
            await self._on_thread(partial(self._book.compact, partition))
        except (LedgerUnavailable, CommitUnknown) as error:
            _log.warning("compaction.postponed", partition=partition, detail=str(error))

    def _miss(self, assigned: AssignedPartition) -> None:
        """The ledger is not at the offset we hold for this partition: what we hold is worth nothing."""
        self._metrics.missed()
        misses = assigned.misses + 1
        _log.warning(
            "commit.missed", partition=assigned.partition, held=assigned.committed_offset, misses=misses
        )
        if misses > self._misses_max:
            raise Fenced(
                f"partition {assigned.partition}: {misses} flushes in a row found the ledger elsewhere; "
                "another process counts it too"
            )
        assigned.misses = misses
        self._on_missed(assigned)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._booking, work)
