"""Watching the meter's book: what each flush met at the ledger.

Owns noticing situations and counting flushes. It changes nothing: every call goes to the real book.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from services.meter.book import LedgerBook
from tests.simulation.scheduler import Life
from tollgate.ledger.engine import Engine
from tollgate.ledger.errors import CommitUnknown, LedgerUnavailable, MetersChanged
from tollgate.metering.outcome import Fold

METERS = 2
"""Meters in force at any one event time."""

Range = tuple[int, int]
"""Partition and first offset."""


class Watch:
    """What all meters of a run have tried. `seen` counts a situation."""

    def __init__(self, seen: Callable[[str], None]) -> None:
        self.seen = seen
        self.flushes = 0
        self.rolled_back: dict[Range, tuple[Life | None, int]] = {}
        """Ranges whose flush was rolled back: by whom, and how many events it had."""


class WatchedBook(LedgerBook):
    """One meter's book. `is_member` tells whether the group still counts it in."""

    def __init__(self, engine: Engine, watch: Watch, life: Life, is_member: Callable[[], bool]) -> None:
        super().__init__(engine)
        self._watch = watch
        self._life = life
        self._is_member = is_member

    def commit(
        self,
        fold: Fold,
        fingerprints: Mapping[int, str],
        meters_version: int,
        now_ms: int,
        partitions: Collection[int],
    ) -> frozenset[int]:
        watch, member = self._watch, self._is_member()
        ranges = [(p, fold.partitions[p].from_offset) for p in partitions]
        watch.flushes += 1
        if fold.usage["meter_id"].n_unique() > METERS:
            watch.seen("a backlog across a change of meters")
        try:
            missed = super().commit(fold, fingerprints, meters_version, now_ms, partitions)
        except MetersChanged:
            watch.seen("meters changed under a folded flush")
            raise
        except CommitUnknown:
            watch.seen("a flush whose commit's outcome is unknown")
            raise
        except LedgerUnavailable:
            for each in ranges:
                watch.rolled_back[each] = (
                    self._life,
                    sum(map(len, fold.partitions[each[0]].seen_ids.values())),
                )
            raise
        if missed:
            if member:
                watch.seen("an owner's flush missed: somebody else had counted")
            else:
                watch.seen("a zombie's flush after take-over, fenced")
            if len(missed) < len(ranges):
                watch.seen("a flush of several partitions of which some missed")
        else:
            if not member:
                watch.seen("a zombie's flush before take-over, counted")
            for each in ranges:
                before = watch.rolled_back.pop(each, None)
                if before is not None and before[1]:
                    watch.seen("rolled back, then the same ids counted")
                    if before[0] is not self._life:
                        watch.seen("rolled back, then the same ids counted by another")
        return missed

    def expire(self, partition: int, before_day: int) -> None:
        super().expire(partition, before_day)
        self._watch.seen("ids of a whole day forgotten")
