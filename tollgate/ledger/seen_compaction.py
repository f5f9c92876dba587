"""Compaction of seen ids: rows of many small flushes become few rows of many ids, with the same ids.

Owns the merging of rows. It refuses to know which rows are worth it (`retention.find_stretches`) and what ids are for.

A flush leaves one row a partition and event day: at several flushes a second, days of them are what a worker reads
before it may count. Consecutive rows of a day become one row, which holds exactly their ids, sorted, and ends where the
last of them ended. Whoever loads a partition therefore finds the same ids, none from above `next_offset`, in the order
of their offsets; only which of the merged flushes brought an id is no longer told.

Beside a live meter: its flush only ever adds a row above all others, which no merge that was read before touches. Two
merges at once: the rows are locked first, and a merge that finds others than it meant to does nothing. A zombie's
merge is as good as anybody's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, Engine, and_, delete, func, select, update

from tollgate.ledger.engine import ledger_transaction
from tollgate.ledger.maintenance_work import After, Batch, Work
from tollgate.ledger.retention import IDS_A_ROW, ROWS_A_MERGE, SeenRow, Stretch, find_stretches
from tollgate.ledger.tables import seen_ids
from tollgate.metering.errors import InvariantViolated

_DAYS_OPEN = 1
"""Events of a day before the newest still come in numbers; of earlier ones hardly any, so that rows there are merged
without waiting for more."""

_ROWS_A_LOOK = 3 * ROWS_A_MERGE
"""Rows of one day looked at in one go: a backlog of millions is worked off piece by piece, not read at every look."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the step of maintenance stands: a partition's event day, and the stretches of it found and not merged."""

    partition: int
    day: int
    stretches: tuple[Stretch, ...] = ()


def compact_partition(engine: Engine, partition: int, *, ids_max: int = IDS_A_ROW) -> int:
    """Merge one stretch of each event day of `partition` that is worth it; how many rows went.

    One short transaction a day: what the meter does beside its counting. Raises LedgerUnavailable, CommitUnknown (then
    it may be done, and doing it again does the rest).
    """
    removed = 0
    day: int | None = -(2**31)
    while day is not None:
        with ledger_transaction(engine) as connection:
            stretches = _stretches(connection, partition, day, ids_max)
            if stretches:
                removed += merge_stretch(connection, partition, day, stretches[0])
            day = connection.execute(
                select(func.min(seen_ids.c.day)).where(
                    seen_ids.c.partition == partition, seen_ids.c.day > day
                )
            ).scalar()
    return removed


def compact_batch(connection: Connection, work: Work, after: After) -> Batch:
    """Merge one stretch in this transaction, and say where there may be another: a step of maintenance."""
    place: _Place | None = after
    while True:
        if place is not None and place.stretches:
            first, *rest = place.stretches
            # Merged or found changed: either way the others are looked at, and the day again after the last.
            removed = merge_stretch(connection, place.partition, place.day, first)
            return Batch({"seen_ids": removed}, _Place(place.partition, place.day, tuple(rest)))
        again = None
        if place is not None and after is place and not work.dry_run:
            again = _stretches(connection, place.partition, place.day, IDS_A_ROW)
        if place is None or not again:
            place = _next_day(connection, place)
            if place is None:
                return Batch()
            again = _stretches(connection, place.partition, place.day, IDS_A_ROW)
        if again and work.dry_run:
            return Batch({"seen_ids": sum(stretch.rows - 1 for stretch in again)}, place)
        place = _Place(place.partition, place.day, tuple(again))


def _next_day(connection: Connection, after: _Place | None) -> _Place | None:
    """The first (partition, event day) beyond `after`: two look-ups in the key, however many rows a day has."""
    ids = seen_ids.c
    following = select(func.min(ids.partition))
    if after is not None:
        later = select(func.min(ids.day)).where(ids.partition == after.partition, ids.day > after.day)
        day = connection.execute(later).scalar()
        if day is not None:
            return _Place(after.partition, day)
        following = following.where(ids.partition > after.partition)
    partition = connection.execute(following).scalar()
    if partition is None:
        return None
    first = select(func.min(ids.day)).where(ids.partition == partition)
    return _Place(partition, connection.execute(first).scalar_one())


def _stretches(connection: Connection, partition: int, day: int, ids_max: int) -> list[Stretch]:
    """What of the first rows of a day is worth merging."""
    ids = seen_ids.c
    newest = connection.execute(select(func.max(ids.day)).where(ids.partition == partition)).scalar()
    if newest is None:
        return []
    # The blob's length and not `count`: neither database reads a large blob to tell how long it is.
    rows = [
        SeenRow(row.to_offset, row.bytes // 8)
        for row in connection.execute(
            select(ids.to_offset, func.length(ids.ids).label("bytes"))
            .where(ids.partition == partition, ids.day == day)
            .order_by(ids.to_offset)
            .limit(_ROWS_A_LOOK)
        )
    ]
    # Behind a full look there are more rows: the last stretch of it is not where the day grows.
    closed = day < newest - _DAYS_OPEN or len(rows) == _ROWS_A_LOOK
    return find_stretches(rows, ids_max=ids_max, closed=closed)


def merge_stretch(connection: Connection, partition: int, day: int, stretch: Stretch) -> int:
    """Make the rows of `stretch` one; how many went: 0 when they are not the rows that were meant.

    Raises InvariantViolated, before anything is written, when a row does not hold as many ids as it says.
    """
    ids = seen_ids.c
    of_day = and_(ids.partition == partition, ids.day == day)
    rows = connection.execute(
        select(ids.to_offset, ids.ids, ids.count.label("held"))
        .where(of_day, ids.to_offset.between(stretch.first_offset, stretch.last_offset))
        .order_by(ids.to_offset)
        .with_for_update()
    ).all()
    if (
        len(rows) != stretch.rows
        or rows[0].to_offset != stretch.first_offset
        or rows[-1].to_offset != stretch.last_offset
    ):
        return 0
    merged = np.concatenate([np.frombuffer(row.ids, dtype="<u8") for row in rows])
    count = sum(row.held for row in rows)
    if merged.size != count:
        raise InvariantViolated(
            f"seen ids of partition {partition}, day {day}, up to offset {stretch.last_offset}: "
            f"{merged.size} ids in rows that say they hold {count}"
        )
    merged.sort()
    last = and_(of_day, ids.to_offset == stretch.last_offset)
    connection.execute(update(seen_ids).where(last).values(ids=merged.tobytes(), count=int(merged.size)))
    before = and_(of_day, ids.to_offset >= stretch.first_offset, ids.to_offset < stretch.last_offset)
    gone = connection.execute(delete(seen_ids).where(before)).rowcount
    if gone != stretch.rows - 1:
        raise InvariantViolated(f"{stretch.rows - 1} rows of seen ids were to be merged away, {gone} were")
    return gone
