"""Amendments in the fold: corrections by operators, counted beside the events they correct.

Owns what makes one fit the meters, that each counts once, and its usage delta. It refuses to know who wrote it and why.

An amendment is one more event of its window, whose value may be negative and whose window may lie as far back as it
likes. It ends as `counted`; as `duplicate` when its id was seen; as `dead` when no meter in force can take it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal

import numpy as np
import polars as pl

from tollgate.metering.compiled import CompiledMeters
from tollgate.metering.definition import MeterVersion
from tollgate.metering.metric import COMBINE_ADD, MetricKind
from tollgate.metering.outcome import Ids, Outcomes, PartitionFold
from tollgate.metering.records import AmendmentRecord, Record, UnknownRecord
from tollgate.metering.seen import SeenIds
from tollgate.metering.usage import NEVER, USAGE_SCHEMA, merge_usage
from tollgate.metering.window import epoch_day

AMENDABLE = frozenset({MetricKind.COUNT, MetricKind.SUM})
"""Metrics whose events add up, so that a part can be added or taken away."""

QUANTITY_MAX = Decimal(10) ** 24
"""Far beyond any correction, and a thousand of them stay within what a usage row holds."""


@dataclass(frozen=True, slots=True)
class Amended:
    """What the amendments of one partition came to in a flush."""

    counted: tuple[AmendmentRecord, ...]
    duplicate: int

    def add_to(self, part: PartitionFold) -> PartitionFold:
        """The partition's fold with them."""
        counted = len(self.counted)
        seen = dict(part.seen_ids)
        # By the day they were written: the day they are for may have expired long ago.
        for record in self.counted:
            day = epoch_day(record.written_ms)
            fresh = np.array([record.id_hash], np.uint64)
            seen[day] = np.union1d(seen[day], fresh) if day in seen else fresh
        added = Outcomes(received=counted + self.duplicate, counted=counted, duplicate=self.duplicate)
        return replace(part, outcomes=part.outcomes + added, seen_ids=seen)

    def to_usage(self) -> pl.DataFrame:
        """Their usage deltas, one row per key."""
        each = pl.DataFrame(
            {
                "partition": [record.partition for record in self.counted],
                "meter_id": [record.meter_id for record in self.counted],
                "window_start_ms": [record.window_start_ms for record in self.counted],
                "account": [record.account for record in self.counted],
                "dimensions": [record.dimensions for record in self.counted],
                "combine": [COMBINE_ADD] * len(self.counted),
                "quantity": [record.quantity for record in self.counted],
                "events": [1] * len(self.counted),
                "unvalued": [0] * len(self.counted),
                "latest_event_ms": [record.time_ms for record in self.counted],
                "order_ms": [NEVER] * len(self.counted),
                "order_offset": [NEVER] * len(self.counted),
            },
            schema=USAGE_SCHEMA,
        )
        # Merging takes a single frame as merged already.
        return merge_usage([each, each.clear()])


def set_unfit_aside(part: Sequence[Record], meters: CompiledMeters) -> list[Record]:
    """The records of a partition; an amendment that no meter in force can take is one nobody can name."""
    versions = {meter.version.meter_id: meter.version for meter in meters.meters}
    fit: list[Record] = []
    for record in part:
        if isinstance(record, AmendmentRecord):
            problem = find_misfit(record, versions.get(record.meter_id))
            if problem is not None:
                record = UnknownRecord(record.partition, record.offset, 1, record.value, problem)
        fit.append(record)
    return fit


def find_misfit(record: AmendmentRecord, version: MeterVersion | None) -> str | None:
    """Why a meter version cannot take an amendment; None when it can."""
    if version is None:
        return f"an amendment of meter {record.meter_id}, which is not in force"
    kind, size_ms = version.meter.metric.kind, version.meter.window.size_ms
    if kind not in AMENDABLE:
        return f"an amendment of {version.meter.name}, whose {kind} is no sum"
    if record.window_start_ms % size_ms or not 0 <= record.time_ms - record.window_start_ms < size_ms:
        return f"an amendment of {version.meter.name} for {record.time_ms} in {record.window_start_ms}, no window of it"
    if record.time_ms < version.from_ms or (version.to_ms is not None and record.time_ms >= version.to_ms):
        return f"an amendment of {version.meter.name} for a time this version of it does not count"
    return None


def fold_amendments(part: Sequence[Record], seen: SeenIds) -> Amended:
    """Count each amendment of a partition once; `seen` is only probed."""
    counted: dict[int, AmendmentRecord] = {}
    duplicate = 0
    for record in part:
        if not isinstance(record, AmendmentRecord):
            continue
        one: Ids = np.array([record.id_hash], np.uint64)
        if record.id_hash in counted or bool(seen.probe(one)[0]):
            duplicate += 1
        else:
            counted[record.id_hash] = record
    return Amended(tuple(counted.values()), duplicate)
