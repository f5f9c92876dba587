"""A flush: one range of the log of some partitions, on its way into the ledger.

Owns its fields and what is done to memory on the folding thread. It refuses to know when any of it happens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from services.meter.decode import decode_records
from services.meter.intake import Chunk
from services.meter.partition import AssignedPartition
from tollgate.metering.fold import CompiledMeters, fold
from tollgate.metering.outcome import Fold, TimeRules
from tollgate.metering.records import EventsRecord


@dataclass(frozen=True, slots=True, eq=False)
class MetersInForce:
    """A meter set of the ledger, ready to count. Another object for each time it is loaded anew."""

    version: int
    compiled: CompiledMeters
    partitions: int = 0
    """Of the log while they are in force: a change of it is a new version too, so no flush is folded by an old one."""


@dataclass(slots=True, eq=False)
class Flush:
    """What one flush has taken, and what became of it so far."""

    chunks: Mapping[int, Chunk]
    assigned: Mapping[int, AssignedPartition]
    """The hands the chunks were taken by."""
    meters: MetersInForce
    began: float
    """Monotonic seconds."""
    fold: Fold | None = None
    freshness: Mapping[int, Sequence[tuple[int, int]]] = field(default_factory=dict)
    """Per partition, (ingest time, rows) of each events record."""
    buried: set[int] = field(default_factory=set)
    """Partitions whose dead letters are acknowledged."""
    epoch: int = 0
    """How often staged ids had been thrown away when it was folded."""


def fold_and_stage(
    flush: Flush, live: Mapping[int, AssignedPartition], rules: TimeRules
) -> tuple[Fold, dict[int, list[tuple[int, int]]]]:
    """On the folding thread: everything between bytes and a fold ready to be committed; the fold and `freshness`.

    A fold that is done again is the oldest flush: whatever is staged came from its own first fold and from the flush
    behind it, which will be folded again as well.
    """
    if flush.fold is not None:
        for assigned in live.values():
            assigned.seen.discard_tail()
    records = decode_records(
        [record for partition in live for record in flush.chunks[partition].records],
        flush.meters.partitions,
    )
    folded = fold(records, {p: each.seen for p, each in live.items()}, flush.meters.compiled, rules)
    for partition, assigned in live.items():
        of_partition = folded.partitions[partition]
        assigned.seen.stage(of_partition.next_offset, of_partition.seen_ids)
    freshness: dict[int, list[tuple[int, int]]] = {partition: [] for partition in live}
    for record in records:
        if isinstance(record, EventsRecord):
            freshness[record.partition].append((record.ingest_ms, record.rows))
    return folded, freshness


def commit_seen(
    folded: Fold, live: Mapping[int, AssignedPartition], expiries: Mapping[int, int]
) -> dict[int, tuple[int, int]]:
    """On the folding thread: the staged ids of this flush are the ledger's now. Returns (ids, bytes) per partition."""
    for partition, assigned in live.items():
        assigned.seen.commit(folded.partitions[partition].next_offset)
        if partition in expiries:
            assigned.seen.expire(expiries[partition])
    return {partition: (each.seen.count, each.seen.ram_bytes) for partition, each in live.items()}
