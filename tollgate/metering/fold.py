"""The fold: records of the log in, usage and the outcome of every event out.

Owns the order in which an event is judged. It refuses to know the ledger, Kafka and the clock: the result depends on
the records, the ids seen before them, the meters and the rules, and on nothing else.

Each event ends exactly once, judged in this order:

1. `dead`: its record cannot be decoded, or it lies more than `future_ms` ahead of its record's ingest time;
2. `late`: it is older than `accept_age_ms` at its record's ingest time, and the record does not say `accept_late`;
3. `duplicate`: its id was seen before, or stands earlier in the flush, by (offset, row);
4. `dead` again, should a meter's expression raise on this event and on it alone;
5. `counted` or `unmatched`, by the meters.

Only ids of events that come to 5 are seen: a dead event can be mended and replayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from tollgate.metering.compiled import CompiledMeters
from tollgate.metering.counting import OFFSET, PARTITION, Counted
from tollgate.metering.decode import Broken, Decoded, decode_records, decode_whole, encode_rows
from tollgate.metering.errors import DeadReason, InvariantViolated
from tollgate.metering.outcome import (
    DeadEvents,
    Fold,
    Ids,
    InstanceFold,
    Outcomes,
    PartitionFold,
    TickSeen,
    TimeRules,
)
from tollgate.metering.records import EventsRecord, Record, TickRecord, UnknownRecord
from tollgate.metering.seen import SeenIds, day_of
from tollgate.metering.usage import merge_distinct, merge_usage
from tollgate.metering.window import epoch_day

__all__ = [
    "CompiledMeters",
    "DeadEvents",
    "EventsRecord",
    "Fold",
    "InstanceFold",
    "Outcomes",
    "PartitionFold",
    "Record",
    "TickRecord",
    "TickSeen",
    "TimeRules",
    "UnknownRecord",
    "fold",
]

_ROW_COLUMNS = ("id_hash", "id_weak", "time_ms", "account")

# What became of each event so far.
_FRESH, _FUTURE, _LATE, _DUPLICATE, _FAILED = range(5)

_Rows = npt.NDArray[np.int64]


@dataclass(slots=True)
class _Events:
    """The decoded events of a flush as columns, ordered by (partition, offset, row)."""

    records: list[EventsRecord]
    starts: _Rows
    """The first row of each record, and after the last one the number of rows."""
    record_of: _Rows
    ids: Ids
    times_ms: _Rows
    weak: npt.NDArray[np.bool_]
    state: npt.NDArray[np.uint8]
    matched: npt.NDArray[np.bool_]
    partition_rows: dict[int, tuple[int, int]]
    """The rows of each partition: they stand together. Found once: a flush may hold thousands of records."""
    accepted_late_day: _Rows
    """Of each record: the day it came in when its events are accepted however late, else never."""
    classes: list[_Class]
    fresh_ids: dict[int, Ids]
    """Per partition, the ids that are neither dead, late nor duplicate, sorted."""


@dataclass(slots=True)
class _Class:
    """The events whose records carry the same columns: their rows in the flush, ascending, and the meters' columns."""

    absent: frozenset[str]
    rows: _Rows
    frame: pl.DataFrame


def fold(
    records: Sequence[Record], seen: Mapping[int, SeenIds], meters: CompiledMeters, rules: TimeRules
) -> Fold:
    """Fold a flush: per partition a contiguous, ascending range of the log; partitions may be mixed.

    `seen` has the set of each partition as it stands before the flush; it is only probed.
    Raises InvariantViolated when offsets have a gap, or when counting fails for no single event's fault.
    """
    by_partition = _split(records)
    ordered = [
        record for part in by_partition.values() for record in part if isinstance(record, EventsRecord)
    ]
    decoded, broken = decode_records(ordered, meters.columns.union(_ROW_COLUMNS))
    events = _lay_out(ordered, decoded, broken, meters)
    _judge_times(events, rules)
    counted = _count_first_copies(events, seen, meters)
    details = {id(ordered[item.index]): item.detail for item in broken}
    return Fold(
        partitions={
            partition: _summarise(partition, part, events, details)
            for partition, part in by_partition.items()
        },
        usage=merge_usage([part.usage for part in counted]),
        distinct=merge_distinct([part.distinct for part in counted]),
        dead=[
            letter
            for part in by_partition.values()
            for record in part
            for letter in _unreadable(record, details)
        ]
        + _dead_rows(events),
    )


def _split(records: Sequence[Record]) -> dict[int, list[Record]]:
    """The records of each partition, partitions ascending. Raises InvariantViolated for a gap or a step back."""
    found: dict[int, list[Record]] = {}
    for record in records:
        part = found.setdefault(record.partition, [])
        if part and record.offset != part[-1].offset + 1:
            raise InvariantViolated(
                f"partition {record.partition}: offset {record.offset} after {part[-1].offset}"
            )
        part.append(record)
    return dict(sorted(found.items()))


# ------------------------------------------------------------------------------------------ events as columns


def _lay_out(
    records: list[EventsRecord], decoded: list[Decoded], broken: list[Broken], meters: CompiledMeters
) -> _Events:
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
    events = _Events(
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
            (epoch_day(record.ingest_ms) if record.accept_late else _NEVER for record in records),
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
        table = pa.concat_tables(part.table for part in parts).combine_chunks()
        indexes = np.concatenate([np.asarray(part.indexes, np.int64) for part in parts])
        rows = _rows_of(indexes, starts)
        order = None
        if len(parts) > 1:
            order = np.argsort(rows, kind="stable")
            table, rows = table.take(pa.array(order)), rows[order]
        events.ids[rows] = table.column("id_hash").to_numpy()
        events.times_ms[rows] = table.column("time_ms").to_numpy()
        events.weak[rows] = table.column("id_weak").to_numpy()
        frame = pl.from_arrow(table.select(sorted(meters.columns - absent)))
        assert isinstance(frame, pl.DataFrame)
        of = record_of[rows]
        frame = frame.with_columns(pl.Series(PARTITION, partitions[of]), pl.Series(OFFSET, offsets[of]))
        events.classes.append(_Class(absent, rows, frame))
    return events


def _rows_of(indexes: _Rows, starts: _Rows) -> _Rows:
    """The rows of the records at `indexes`, in that order."""
    lengths = starts[indexes + 1] - starts[indexes]
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows: _Rows = np.repeat(starts[indexes], lengths) + within
    return rows


# ------------------------------------------------------------------------------------------------ judgements


def _judge_times(events: _Events, rules: TimeRules) -> None:
    """Mark what lies in the future, then what is late, by each record's ingest time."""
    count = len(events.records)
    ingest_ms = np.fromiter((record.ingest_ms for record in events.records), np.int64, count)
    oldest_ms = ingest_ms - rules.accept_age_ms
    oldest_ms[np.fromiter((record.accept_late for record in events.records), np.bool_, count)] = _NEVER
    lengths = np.diff(events.starts)
    events.state[events.times_ms < np.repeat(oldest_ms, lengths)] = _LATE
    events.state[events.times_ms > np.repeat(ingest_ms + rules.future_ms, lengths)] = _FUTURE


_NEVER = np.iinfo(np.int64).min


def _count_first_copies(
    events: _Events, seen: Mapping[int, SeenIds], meters: CompiledMeters
) -> list[Counted]:
    """Mark duplicates and count the rest. An event that fails makes room for its next copy, so then both start over."""
    while True:
        _judge_duplicates(events, seen)
        counted, failed = [], False
        for part in events.classes:
            fresh = events.state[part.rows] == _FRESH
            rows = part.rows[fresh]
            frame = part.frame if rows.size == part.rows.size else part.frame.filter(pl.Series(fresh))
            try:
                result = meters.count(frame, part.absent)
            except pl.exceptions.PolarsError as error:
                guilty = _find_guilty(frame, part.absent, meters, error)
                events.state[rows[guilty]] = _FAILED
                failed = True
            else:
                events.matched[rows] = result.matched
                counted.append(result)
        if not failed:
            return counted


def _judge_duplicates(events: _Events, seen: Mapping[int, SeenIds]) -> None:
    """Per partition, mark every copy but the first of each id, and all copies of ids seen before."""
    events.state[events.state == _DUPLICATE] = _FRESH
    for partition, (start, end) in events.partition_rows.items():
        state = events.state[start:end]
        eligible = np.flatnonzero(state == _FRESH)
        ids = events.ids[start:end][eligible]
        different = np.sort(ids)
        again = different[1:] == different[:-1]
        repeated = different[1:][again]
        if repeated.size:
            repeated = repeated[np.concatenate(([True], repeated[1:] != repeated[:-1]))]
            different = different[np.concatenate(([True], ~again))]
        is_known = seen[partition].probe(different)
        known = different[is_known]
        events.fresh_ids[partition] = different[~is_known] if known.size else different
        if not known.size and not repeated.size:
            continue
        # Few ids are suspect, so only their rows are looked at one by one.
        suspects = np.union1d(known, repeated)
        at = np.searchsorted(suspects, ids)
        at[at == suspects.size] = 0
        suspect = np.flatnonzero(suspects[at] == ids)
        _, first = np.unique(ids[suspect], return_index=True)
        innocent = suspect[first]
        innocent = innocent[~np.isin(ids[innocent], known)]
        state[eligible[suspect]] = _DUPLICATE
        state[eligible[innocent]] = _FRESH


def _partition_rows(records: Sequence[EventsRecord], starts: _Rows) -> dict[int, tuple[int, int]]:
    """The first row of each partition, and the one after its last."""
    found: dict[int, tuple[int, int]] = {}
    bounds = starts.tolist()
    for index, record in enumerate(records):
        start, _ = found.get(record.partition, (bounds[index], 0))
        found[record.partition] = (start, bounds[index + 1])
    return found


def _find_guilty(
    frame: pl.DataFrame, absent: frozenset[str], meters: CompiledMeters, error: Exception
) -> list[int]:
    """The rows on which counting raises, by bisection. Raises InvariantViolated when no single event is to blame."""
    try:
        meters.count(frame.clear(), absent)
    except pl.exceptions.PolarsError as without_events:
        raise InvariantViolated(f"counting fails without any event: {without_events}") from without_events
    guilty: list[int] = []
    todo = [(0, frame.height)]
    while todo:
        start, end = todo.pop()
        try:
            meters.count(frame[start:end], absent)
        except pl.exceptions.PolarsError:
            if end - start == 1:
                guilty.append(start)
            else:
                middle = (start + end) // 2
                todo += [(start, middle), (middle, end)]
    if not guilty:
        raise InvariantViolated(f"counting fails, though not on any event alone: {error}") from error
    return guilty


# --------------------------------------------------------------------------------------------------- results


def _summarise(
    partition: int, part: Sequence[Record], events: _Events, details: Mapping[int, str]
) -> PartitionFold:
    start, end = events.partition_rows.get(partition, (0, 0))
    state, matched = events.state[start:end], events.matched[start:end]
    ended = np.bincount(state, minlength=_FAILED + 1)
    whole_dead = sum(
        max(record.rows, 0)
        for record in part
        if isinstance(record, UnknownRecord) or (isinstance(record, EventsRecord) and id(record) in details)
    )
    fresh = state == _FRESH
    counted = int(np.count_nonzero(matched & fresh))
    outcomes = Outcomes(
        received=sum(max(record.rows, 0) for record in part if not isinstance(record, TickRecord)),
        counted=counted,
        unmatched=int(ended[_FRESH]) - counted,
        duplicate=int(ended[_DUPLICATE]),
        weak_duplicate=int(np.count_nonzero(events.weak[start:end] & (state == _DUPLICATE))),
        late=int(ended[_LATE]),
        dead=int(ended[_FUTURE] + ended[_FAILED]) + whole_dead,
    )
    ingest_ms = [
        record.ingest_ms for record in part if isinstance(record, EventsRecord) and id(record) not in details
    ]
    return PartitionFold(
        partition=partition,
        from_offset=part[0].offset,
        next_offset=part[-1].offset + 1,
        outcomes=outcomes,
        instances=_instances(part),
        seen_ids=_seen_ids(events, start, end, fresh, events.fresh_ids.get(partition)),
        ingest_ms_max=max(ingest_ms, default=0),
        ingest_ms_min=min(ingest_ms, default=None),
        last_offset=part[-1].offset,
    )


def _instances(part: Sequence[Record]) -> dict[str, InstanceFold]:
    """Rows and the last tick of each ingest instance, by the headers: also of records nobody can decode."""
    received: dict[str, int] = {}
    ticks: dict[str, TickSeen] = {}
    for record in part:
        if isinstance(record, EventsRecord):
            received[record.instance] = received.get(record.instance, 0) + max(record.rows, 0)
        elif isinstance(record, TickRecord):
            before = received.setdefault(record.instance, 0)
            ticks[record.instance] = TickSeen(record.wall_ms, record.rows_acknowledged, before)
    return {name: InstanceFold(rows, ticks.get(name)) for name, rows in sorted(received.items())}


def _seen_ids(
    events: _Events, start: int, end: int, fresh: npt.NDArray[np.bool_], fresh_sorted: Ids | None
) -> dict[int, Ids]:
    """The ids that were counted or unmatched, by day, sorted.

    Events accepted late are kept by the day they came in: the day they happened on is about to expire.
    """
    if fresh_sorted is None or not fresh_sorted.size:
        return {}
    ids, of = events.ids[start:end][fresh], events.record_of[start:end][fresh]
    days = day_of(events.times_ms[start:end][fresh])
    days = np.maximum(days, events.accepted_late_day[of])
    first, last = int(days.min()), int(days.max())
    if first == last:
        return {first: fresh_sorted}
    return {int(day): np.sort(ids[days == day]) for day in np.unique(days)}


def _unreadable(record: Record, details: Mapping[int, str]) -> list[DeadEvents]:
    """The dead letter of a record nobody can decode: its value as it is."""
    if isinstance(record, UnknownRecord):
        source, ingest_ms, detail = "", 0, record.detail
    elif isinstance(record, EventsRecord) and id(record) in details:
        source, ingest_ms, detail = record.source, record.ingest_ms, details[id(record)]
    else:
        return []
    return [
        DeadEvents(
            partition=record.partition,
            offset=record.offset,
            reason=DeadReason.UNDECODABLE_RECORD,
            detail=detail,
            rows=max(record.rows, 0),
            source=source,
            ingest_ms=ingest_ms,
            account="",
            time_ms=0,
            payload=record.value,
            format="raw",
        )
    ]


_REASONS = {
    _FUTURE: (DeadReason.FUTURE, "further ahead of its record's ingest time than is accepted"),
    _LATE: (DeadReason.LATE, "older at its record's ingest time than is accepted"),
    _FAILED: (DeadReason.EVALUATION_FAILED, "a meter's expression raises on it"),
}


def _dead_rows(events: _Events) -> list[DeadEvents]:
    """The dead letters of single events: one per record and reason."""
    letters = []
    ended = np.flatnonzero((events.state != _FRESH) & (events.state != _DUPLICATE))
    for index in np.unique(events.record_of[ended]):
        record = events.records[int(index)]
        start, end = int(events.starts[index]), int(events.starts[index + 1])
        table = decode_whole(record)
        for state, (reason, detail) in _REASONS.items():
            rows = np.flatnonzero(events.state[start:end] == state)
            if not rows.size:
                continue
            taken = table.take(pa.array(rows))
            letters.append(
                DeadEvents(
                    partition=record.partition,
                    offset=record.offset,
                    reason=reason,
                    detail=detail,
                    rows=int(rows.size),
                    source=record.source,
                    ingest_ms=record.ingest_ms,
                    account=taken.column("account")[0].as_py(),
                    time_ms=taken.column("time_ms")[0].as_py(),
                    payload=encode_rows(taken),
                    format="events/1",
                )
            )
    return letters
