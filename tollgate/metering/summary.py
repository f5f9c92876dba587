"""The summary of a flush: outcomes, ids and instances of each partition, and the letters of its dead.

Owns what is reported of judged events. It refuses to know how they were judged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tollgate.metering.decode import Decoder, encode_rows
from tollgate.metering.errors import DeadReason
from tollgate.metering.layout import DUPLICATE, FAILED, FRESH, FUTURE, LATE, Events
from tollgate.metering.outcome import (
    DeadEvents,
    Ids,
    InstanceFold,
    Outcomes,
    PartitionFold,
    TickSeen,
)
from tollgate.metering.records import EventsRecord, Record, TickRecord, UnknownRecord
from tollgate.metering.seen import day_of


def summarise(
    partition: int, part: Sequence[Record], events: Events, details: Mapping[int, str]
) -> PartitionFold:
    start, end = events.partition_rows.get(partition, (0, 0))
    state, matched = events.state[start:end], events.matched[start:end]
    ended = np.bincount(state, minlength=FAILED + 1)
    whole_dead = sum(
        max(record.rows, 0)
        for record in part
        if isinstance(record, UnknownRecord) or (isinstance(record, EventsRecord) and id(record) in details)
    )
    fresh = state == FRESH
    counted = int(np.count_nonzero(matched & fresh))
    outcomes = Outcomes(
        received=sum(
            max(record.rows, 0) for record in part if isinstance(record, EventsRecord | UnknownRecord)
        ),
        counted=counted,
        unmatched=int(ended[FRESH]) - counted,
        duplicate=int(ended[DUPLICATE]),
        weak_duplicate=int(np.count_nonzero(events.weak[start:end] & (state == DUPLICATE))),
        late=int(ended[LATE]),
        dead=int(ended[FUTURE] + ended[FAILED]) + whole_dead,
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
    events: Events, start: int, end: int, fresh: npt.NDArray[np.bool_], fresh_sorted: Ids | None
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


def misplaced(parts: Iterable[Sequence[Record]]) -> dict[int, str]:
    """The records, by identity, that were written for another partition count, and why that is known."""
    return {
        id(record): record.misplaced
        for part in parts
        for record in part
        if isinstance(record, EventsRecord) and record.misplaced
    }


def unreadable(record: Record, details: Mapping[int, str]) -> list[DeadEvents]:
    """The dead letter of a record that ends whole, undecodable or misplaced: its value as it is."""
    is_misplaced = isinstance(record, EventsRecord) and bool(record.misplaced)
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
            reason=DeadReason.MISPLACED if is_misplaced else DeadReason.UNDECODABLE_RECORD,
            detail=detail,
            rows=max(record.rows, 0),
            source=source,
            ingest_ms=ingest_ms,
            account="",
            time_ms=0,
            payload=record.value,
            # Its events can be read, and replayed into the partitions they belong to.
            format="events/1" if is_misplaced else "raw",
        )
    ]


_REASONS = {
    FUTURE: (DeadReason.FUTURE, "further ahead of its record's ingest time than is accepted"),
    LATE: (DeadReason.LATE, "older at its record's ingest time than is accepted"),
    FAILED: (DeadReason.EVALUATION_FAILED, "a meter's expression raises on it"),
}


def dead_rows(events: Events, decoder: Decoder) -> list[DeadEvents]:
    """The dead letters of single events: one per record and reason."""
    letters = []
    ended = np.flatnonzero((events.state != FRESH) & (events.state != DUPLICATE))
    for index in np.unique(events.record_of[ended]):
        record = events.records[int(index)]
        start, end = int(events.starts[index]), int(events.starts[index + 1])
        table = decoder.decode_whole(record)
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
