"""A ledger in memory, with the compare-and-set of the real one, and failures to order.

Implements `services.meter.book.Book`. Locked, since the real one is called from threads too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from services.meter.book import SeenBlob
from tollgate.ledger.errors import MetersChanged
from tollgate.ledger.progress import PartitionProgress
from tollgate.metering.meter import MeterSet
from tollgate.metering.outcome import Fold

UsageKey = tuple[int, str, int]
"""Meter, account, window start."""


class MemoryBook:
    """Progress, counted events and seen ids of a number of partitions.

    `before_commit` and `after_commit` are called, when set, outside and after the transaction: raise in them what the
    real ledger would raise.
    """

    def __init__(self, partitions: int, meters: MeterSet) -> None:
        self._lock = threading.Lock()
        self._meters = meters
        self._seen: dict[int, list[SeenBlob]] = {partition: [] for partition in range(partitions)}
        self._progress = {
            partition: PartitionProgress(partition, 0, "", 0, 0, 0, 0, 0, 0, 0, 0, 0)
            for partition in range(partitions)
        }
        self.events: dict[UsageKey, int] = {}
        self.commits: list[dict[int, tuple[int, int]]] = []
        self.before_commit: Callable[[], None] | None = None
        self.after_commit: Callable[[], None] | None = None
        self.unavailable: Exception | None = None
        self.compactions: list[int] = []
        """Partitions whose seen ids were to be kept in fewer rows, in order."""
        self.compaction_fails: Exception | None = None

    def progress(self, partitions: Collection[int]) -> Mapping[int, PartitionProgress]:
        with self._lock:
            self._reach()
            return {p: self._progress[p] for p in partitions if p in self._progress}

    def partition(self, partition: int, from_day: int) -> tuple[PartitionProgress, Sequence[SeenBlob]]:
        with self._lock:
            self._reach()
            return self._progress[partition], [blob for blob in self._seen[partition] if blob[0] >= from_day]

    def meter_set(self) -> MeterSet:
        with self._lock:
            self._reach()
            return self._meters

    def apply(self, meters: MeterSet) -> None:
        """What `tollgate meters apply` does."""
        with self._lock:
            self._meters = meters

    def commit(
        self,
        fold: Fold,
        fingerprints: Mapping[int, str],
        meters_version: int,
        now_ms: int,
        partitions: Collection[int],
    ) -> frozenset[int]:
        if self.before_commit is not None:
            self.before_commit()
        with self._lock:
            self._reach()
            if meters_version != self._meters.version:
                raise MetersChanged(self._meters.version)
            missed = frozenset(
                p for p in partitions if self._progress[p].next_offset != fold.partitions[p].from_offset
            )
            if missed:
                return missed
            self._write(fold, fingerprints, meters_version, frozenset(partitions))
        if self.after_commit is not None:
            self.after_commit()
        return frozenset()

    def expire(self, partition: int, before_day: int) -> None:
        with self._lock:
            self._reach()
            self._seen[partition] = [blob for blob in self._seen[partition] if blob[0] >= before_day]

    def compact(self, partition: int) -> None:
        with self._lock:
            self._reach()
            self.compactions.append(partition)
            if self.compaction_fails is not None:
                raise self.compaction_fails

    def steal(self, partition: int, records: int) -> None:
        """Another worker has folded `records` more records of `partition` (and found nothing to count in them)."""
        with self._lock:
            at = self._progress[partition]
            self._progress[partition] = replace(at, next_offset=at.next_offset + records, fingerprint="")

    def _reach(self) -> None:
        if self.unavailable is not None:
            raise self.unavailable

    def _write(
        self, fold: Fold, fingerprints: Mapping[int, str], meters_version: int, partitions: frozenset[int]
    ) -> None:
        for p in partitions:
            folded, at = fold.partitions[p], self._progress[p]
            outcomes = folded.outcomes
            self._progress[p] = PartitionProgress(
                partition=p,
                next_offset=folded.next_offset,
                fingerprint=fingerprints[p],
                meters_version=meters_version,
                received=at.received + outcomes.received,
                counted=at.counted + outcomes.counted,
                unmatched=at.unmatched + outcomes.unmatched,
                duplicate=at.duplicate + outcomes.duplicate,
                weak_duplicate=at.weak_duplicate + outcomes.weak_duplicate,
                late=at.late + outcomes.late,
                dead=at.dead + outcomes.dead,
                ingest_ms=max(at.ingest_ms, folded.ingest_ms_max),
            )
            self._seen[p] += [
                (day, folded.next_offset, ids.astype("<u8").tobytes()) for day, ids in folded.seen_ids.items()
            ]
        for row in fold.usage.iter_rows(named=True):
            if row["partition"] in partitions:
                key = (row["meter_id"], row["account"], row["window_start_ms"])
                self.events[key] = self.events.get(key, 0) + row["events"]
        self.commits.append(
            {p: (fold.partitions[p].from_offset, fold.partitions[p].next_offset) for p in partitions}
        )
