"""Progress: how far each partition of the log is in the ledger, what became of it, and the ids it remembers.

Owns reading progress and seen ids, and letting old ids go; the transaction that moves progress is `commit.py`. It
refuses to know Kafka and how events are counted.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, select

from tollgate.ledger.commit import commit_fold
from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.errors import LedgerNotReady, MetersChanged
from tollgate.ledger.tables import progress, progress_epochs, seen_ids

__all__ = [
    "MetersChanged",
    "PartitionProgress",
    "SeenBlob",
    "commit_fold",
    "expire_seen",
    "load_epochs",
    "load_partition",
    "load_progress",
    "load_seen",
]

SeenBlob = tuple[int, int, bytes]
"""(event day, next_offset of the flush, its ids of that day as sorted little-endian uint64)."""

_ROWS_A_FETCH = 500


@dataclass(frozen=True, slots=True)
class PartitionProgress:
    """Everything below `next_offset` is in the ledger; the counters say what became of it."""

    partition: int
    next_offset: int
    fingerprint: str
    """Of record `next_offset - 1`; '' before the first."""
    meters_version: int
    """The meter set of the last flush."""
    received: int
    counted: int
    unmatched: int
    duplicate: int
    weak_duplicate: int
    """Those of `duplicate` whose id was weak."""
    late: int
    dead: int
    ingest_ms: int
    """Highest ingest time folded."""


def load_progress(engine: Engine, partitions: Collection[int] | None = None) -> dict[int, PartitionProgress]:
    """Progress of `partitions` (default: all), of one moment. Raises LedgerNotReady when one has no row."""
    with read_snapshot(engine) as connection:
        return _progress(connection, partitions)


def load_partition(engine: Engine, partition: int, from_day: int) -> tuple[PartitionProgress, list[SeenBlob]]:
    """A partition's progress and the ids it remembers of event days from `from_day` on, in ONE snapshot.

    The ids are exactly those below `next_offset`. Raises LedgerNotReady, LedgerUnavailable.
    """
    with read_snapshot(engine) as connection:
        return _progress(connection, [partition])[partition], list(_seen(connection, partition, from_day))


def load_seen(engine: Engine, partition: int, from_day: int) -> Iterator[SeenBlob]:
    """The ids a partition remembers, a few blobs in memory at a time, by day and offset, of one snapshot."""
    with read_snapshot(engine) as connection:
        yield from _seen(connection, partition, from_day)


def load_epochs(engine: Engine, partition: int) -> list[tuple[int, int]]:
    """(first offset, meter set it was folded with), ascending: each holds until the next one's first offset."""
    with read_snapshot(engine) as connection:
        rows = connection.execute(
            select(progress_epochs.c.from_offset, progress_epochs.c.meters_version)
            .where(progress_epochs.c.partition == partition)
            .order_by(progress_epochs.c.from_offset)
        )
        return [(row.from_offset, row.meters_version) for row in rows]


def expire_seen(engine: Engine, partition: int, before_day: int) -> int:
    """Forget the ids of event days before `before_day`; how many blobs went. Whole days only, so it is cheap."""
    with ledger_transaction(engine) as connection:
        statement = delete(seen_ids).where(seen_ids.c.partition == partition, seen_ids.c.day < before_day)
        return connection.execute(statement).rowcount


def _progress(connection: Connection, partitions: Collection[int] | None) -> dict[int, PartitionProgress]:
    statement = select(progress).order_by(progress.c.partition)
    if partitions is not None:
        statement = statement.where(progress.c.partition.in_(list(partitions)))
    found = {row.partition: _to_domain(row) for row in connection.execute(statement)}
    absent = sorted(set(partitions or ()) - found.keys())
    if absent:
        raise LedgerNotReady(f"partitions {absent} have no progress row: run `tollgate init`")
    return found


def _seen(connection: Connection, partition: int, from_day: int) -> Iterator[SeenBlob]:
    rows = connection.execute(
        select(seen_ids.c.day, seen_ids.c.to_offset, seen_ids.c.ids)
        .where(seen_ids.c.partition == partition, seen_ids.c.day >= from_day)
        .order_by(seen_ids.c.day, seen_ids.c.to_offset)
        .execution_options(yield_per=_ROWS_A_FETCH)
    )
    for row in rows:
        yield row.day, row.to_offset, row.ids


def _to_domain(row: Row[Any]) -> PartitionProgress:
    return PartitionProgress(
        partition=row.partition,
        next_offset=row.next_offset,
        fingerprint=row.fingerprint,
        meters_version=row.meters_version,
        received=row.received,
        counted=row.counted,
        unmatched=row.unmatched,
        duplicate=row.duplicate,
        weak_duplicate=row.weak_duplicate,
        late=row.late,
        dead=row.dead,
        ingest_ms=row.ingest_ms,
    )
