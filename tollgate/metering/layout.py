"""The events of a flush as columns.

Owns their order, by (partition, offset, row), which record and partition a row belongs to, and the names of what may
become of an event. It refuses to know how that is decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from tollgate.metering.compiled import CompiledMeters
from tollgate.metering.counting import OFFSET, PARTITION
from tollgate.metering.decode import Broken, Decoded
from tollgate.metering.outcome import Ids
from tollgate.metering.records import EventsRecord
from tollgate.metering.window import epoch_day

NEVER = np.iinfo(np.int64).min
"""Before any time and any day."""

# What became of each event so far.
FRESH, FUTURE, LATE, DUPLICATE, FAILED = range(5)

Rows = npt.NDArray[np.int64]


@dataclass(slots=True)
class Events:
    """The decoded events of a flush as columns, ordered by (partition, offset, row)."""

    records: list[EventsRecord]
    starts: Rows
    """The first row of each record, and after the last one the number of rows."""
    record_of: Rows
    ids: Ids
    times_ms: Rows
    weak: npt.NDArray[np.bool_]
    state: npt.NDArray[np.uint8]
    matched: npt.NDArray[np.bool_]
    partition_rows: dict[int, tuple[int, int]]
    """The rows of each partition: they stand together. Found once: a flush may hold thousands of records."""
    accepted_late_day: Rows
    """Of each record: the day it came in when its events are accepted however late, else never."""
    classes: list[EventClass]
    fresh_ids: dict[int, Ids]
    """Per partition, the ids that are neither dead, late nor duplicate, sorted."""


@dataclass(slots=True)
class EventClass:
    """The events whose records carry the same columns: their rows in the flush, ascending, and the meters' columns."""

    absent: frozenset[str]
    rows: Rows
    frame: pl.DataFrame


def lay_out(
    records: list[EventsRecord], decoded: list[Decoded], broken: list[Broken], meters: CompiledMeters
) -> Events:
    """Place every decoded row by (partition, offset, row)."""
    unreadable = {item.index for item in broken}
    lengths = np.fromiter(
        (0 if index in unreadable else record.rows for index, record in enumerate(records)),
        np.int64,
        len(records),
    )
    starts = np.concatenate(([0], np.cumsum(lengths)))
    total = int(starts[-1])
    record_of = np.repeat(np.arange(len(records)), lengths)
    partitions = np.fromiter((record.partition for record in records), np.int32, len(records))
    offsets = np.fromiter((record.offset for record in records), np.int64, len(records))
    events = Events(
        records=records,
        starts=starts,
        record_of=record_of,
        ids=np.empty(total, np.uint64),
        times_ms=np.empty(total, np.int64),
        weak=np.empty(total, np.bool_),
        state=np.zeros(total, np.uint8),
        matched=np.zeros(total, np.bool_),
        partition_rows=_partition_rows(records, starts),
        accepted_late_day=np.fromiter(
            (epoch_day(record.ingest_ms) if record.accept_late else NEVER for record in records),
            np.int64,
            len(records),
        ),
        classes=[],
        fresh_ids={},
    )
    by_absent: dict[frozenset[str], list[Decoded]] = {}
    for part in decoded:
        by_absent.setdefault(part.absent, []).append(part)
    for absent, parts in by_absent.items():
        table = pa.concat_tables(_plain(part.table) for part in parts).combine_chunks()
        indexes = np.concatenate([np.asarray(part.indexes, np.int64) for part in parts])
        rows = _rows_of(indexes, starts)
        order = None
        if len(parts) > 1:
            order = np.argsort(rows, kind="stable")
            table, rows = table.take(pa.array(order)), rows[order]
        # Ascending and all of them: then they are the flush, and nothing has to be scattered or gathered.
        at: Rows | slice = slice(None) if rows.size == total else rows
        events.ids[at] = table.column("id_hash").to_numpy()
        events.times_ms[at] = table.column("time_ms").to_numpy()
        events.weak[at] = table.column("id_weak").to_numpy()
        frame = pl.from_arrow(table.select(sorted(meters.columns - absent)))
        assert isinstance(frame, pl.DataFrame)
        of = record_of[at]
        frame = frame.with_columns(pl.Series(PARTITION, partitions[of]), pl.Series(OFFSET, offsets[of]))
        events.classes.append(EventClass(absent, rows, frame))
    return events


def _plain(table: pa.Table) -> pa.Table:
    """Without what a record's schema says beside names and types (nullable, metadata): records may differ in it, and
    Arrow joins no tables that do.
    """
    return pa.Table.from_arrays(table.columns, names=table.column_names)


def _rows_of(indexes: Rows, starts: Rows) -> Rows:
    """The rows of the records at `indexes`, in that order."""
    lengths = starts[indexes + 1] - starts[indexes]
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows: Rows = np.repeat(starts[indexes], lengths) + within
    return rows


def _partition_rows(records: Sequence[EventsRecord], starts: Rows) -> dict[int, tuple[int, int]]:
    """The first row of each partition, and the one after its last."""
    found: dict[int, tuple[int, int]] = {}
    bounds = starts.tolist()
    for index, record in enumerate(records):
        start, _ = found.get(record.partition, (bounds[index], 0))
        found[record.partition] = (start, bounds[index + 1])
    return found
