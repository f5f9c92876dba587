"""The fold: records of the log in, usage and the outcome of every event out.

Owns the order in which an event is judged. It refuses to know the ledger, Kafka and the clock: the result depends on
the records, the ids seen before them, the meters and the rules, and on nothing else.

Each event ends exactly once, judged in this order:

1. `dead`: its record cannot be decoded or was written for another partition count, or it lies more than `future_ms` ahead of its record's ingest time;
2. `late`: it is older than `accept_age_ms` at its record's ingest time, and the record does not say `accept_late`;
3. `duplicate`: its id was seen before, or stands earlier in the flush, by (offset, row);
4. `dead` again, should a meter's expression raise on this event and on it alone;
5. `counted` or `unmatched`, by the meters.

Amendments are judged apart from events (`amending`).

Only ids of events that come to 5 are seen: a dead event can be mended and replayed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tollgate.metering.amending import Amended, fold_amendments, set_unfit_aside
from tollgate.metering.compiled import CompiledMeters
from tollgate.metering.decode import VALUES, Decoder
from tollgate.metering.errors import InvariantViolated
from tollgate.metering.judging import count_first_copies, judge_times
from tollgate.metering.layout import lay_out
from tollgate.metering.outcome import (
    DeadEvents,
    Fold,
    InstanceFold,
    Outcomes,
    PartitionFold,
    TickSeen,
    TimeRules,
)
from tollgate.metering.records import AmendmentRecord, EventsRecord, Record, TickRecord, UnknownRecord
from tollgate.metering.seen import SeenIds
from tollgate.metering.summary import dead_rows, misplaced, summarise, unreadable
from tollgate.metering.usage import merge_distinct, merge_usage

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

_NOT_AMENDED = Amended((), 0)

_ROW_COLUMNS = ("id_hash", "id_weak", "time_ms", "account")


def fold(
    records: Sequence[Record],
    seen: Mapping[int, SeenIds],
    meters: CompiledMeters,
    rules: TimeRules,
    decoder: Decoder = VALUES,
) -> Fold:
    """Fold a flush: per partition a contiguous, ascending range of the log; partitions may be mixed.

    `seen` has the set of each partition as it stands before the flush; it is only probed. `decoder` is for records whose
    events are not in their values.
    Raises InvariantViolated when offsets have a gap, or when counting fails for no single event's fault.
    """
    by_partition = _split(records)
    amended: dict[int, Amended] = {}
    if any(isinstance(record, AmendmentRecord) for record in records):
        by_partition = {p: set_unfit_aside(part, meters) for p, part in by_partition.items()}
        amended = {p: fold_amendments(part, seen[p]) for p, part in by_partition.items()}
    ordered = [
        record
        for part in by_partition.values()
        for record in part
        if isinstance(record, EventsRecord) and not record.misplaced
    ]
    decoded, broken = decoder.decode(ordered, meters.columns.union(_ROW_COLUMNS))
    events = lay_out(ordered, decoded, broken, meters)
    judge_times(events, rules)
    counted = count_first_copies(events, seen, meters)
    details = {id(ordered[item.index]): item.detail for item in broken}
    details |= misplaced(by_partition.values())
    return Fold(
        partitions={
            partition: amended.get(partition, _NOT_AMENDED).add_to(
                summarise(partition, part, events, details)
            )
            for partition, part in by_partition.items()
        },
        usage=merge_usage(
            [*(part.usage for part in counted), *(part.to_usage() for part in amended.values())]
        ),
        distinct=merge_distinct([part.distinct for part in counted]),
        dead=[
            letter
            for part in by_partition.values()
            for record in part
            for letter in unreadable(record, details)
        ]
        + dead_rows(events, decoder),
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
