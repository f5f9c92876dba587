"""The book: the meter's view of the ledger.

Owns the seam, so that the pipeline is tested against a fake, and its one real form. It refuses to know when to call
and what to do about a refusal. Every method blocks: call it on a thread of its own, never on the event loop.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

from tollgate.ledger import catalogue, progress
from tollgate.ledger.engine import Engine
from tollgate.ledger.progress import PartitionProgress
from tollgate.ledger.seen_compaction import compact_partition
from tollgate.metering.meter import MeterSet
from tollgate.metering.outcome import Fold

SeenBlob = tuple[int, int, bytes]
"""Event day, the next offset of the flush that brought it, sorted little-endian uint64 ids."""


class Book(Protocol):
    """What the meter reads and writes. Each call may raise LedgerUnavailable: nothing happened, try again."""

    def progress(self, partitions: Collection[int]) -> Mapping[int, PartitionProgress]:
        """Where each partition stands; one the ledger does not know is absent."""
        ...

    def partition(self, partition: int, from_day: int) -> tuple[PartitionProgress, Sequence[SeenBlob]]:
        """Progress and the seen ids of event days from `from_day` on, of one moment."""
        ...

    def meter_set(self) -> MeterSet:
        """The meters in force."""
        ...

    def commit(
        self,
        fold: Fold,
        fingerprints: Mapping[int, str],
        meters_version: int,
        now_ms: int,
        partitions: Collection[int],
    ) -> frozenset[int]:
        """The one transaction, for `partitions` of the fold. Empty: done. Else nothing was written, and why: these
        partitions are no longer where the fold began.

        Raises MetersChanged (nothing written), CommitUnknown (it may be written: read progress).
        """
        ...

    def expire(self, partition: int, before_day: int) -> None:
        """Forget seen ids of event days before `before_day`."""
        ...

    def compact(self, partition: int) -> None:
        """Keep the same seen ids in fewer rows, a few at a time, so that they are loaded quickly. May raise
        CommitUnknown: then it may be done."""
        ...


class LedgerBook:
    """The book in the ledger's database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def progress(self, partitions: Collection[int]) -> Mapping[int, PartitionProgress]:
        # All of them: asking for one that has no row is an error there and an answer here.
        known = progress.load_progress(self._engine)
        return {partition: known[partition] for partition in partitions if partition in known}

    def partition(self, partition: int, from_day: int) -> tuple[PartitionProgress, Sequence[SeenBlob]]:
        return progress.load_partition(self._engine, partition, from_day)

    def meter_set(self) -> MeterSet:
        return catalogue.load_meter_set(self._engine)

    def commit(
        self,
        fold: Fold,
        fingerprints: Mapping[int, str],
        meters_version: int,
        now_ms: int,
        partitions: Collection[int],
    ) -> frozenset[int]:
        return progress.commit_fold(
            self._engine, fold, fingerprints, meters_version, now_ms, partitions=partitions
        )

    def expire(self, partition: int, before_day: int) -> None:
        progress.expire_seen(self._engine, partition, before_day)

    def compact(self, partition: int) -> None:
        compact_partition(self._engine, partition)
