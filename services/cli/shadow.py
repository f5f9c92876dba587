"""Shadow counting: the fold of the meter, over any stretch of the log, with any meters, into memory.

Owns the running sums and the ids seen. It refuses to know where records come from, and writes nothing.

The fold is the one that bills; so are its rules and its memory of ids, which begins empty where the stretch begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import polars as pl

from tollgate.contracts.amendments import decode_amendment
from tollgate.metering.compiled import CompiledMeters
from tollgate.metering.decode import VALUES, Decoder
from tollgate.metering.definition import MeterSet
from tollgate.metering.fold import fold
from tollgate.metering.metric import COMBINE_DISTINCT
from tollgate.metering.outcome import Outcomes, TimeRules
from tollgate.metering.records import AmendmentRecord, Record
from tollgate.metering.seen import SeenIds, oldest_day
from tollgate.metering.usage import DISTINCT_SCHEMA, USAGE_KEY, USAGE_SCHEMA, merge_distinct, merge_usage

MERGE_ROWS = 200_000
"""Rows of usage gathered before they are merged: merging costs by the rows there are, gathering by memory."""


class Shadow:
    """Counts records by `meters`. Usage of windows that `keep` does not hold true of is not kept."""

    def __init__(
        self, meters: MeterSet, rules: TimeRules, keep: Callable[[pl.DataFrame], pl.DataFrame]
    ) -> None:
        """Raises InvalidMeter for a meter that cannot be compiled."""
        self._meters = meters
        self._compiled = CompiledMeters.compile(meters)
        self._rules = rules
        self._keep = keep
        self._seen: dict[int, SeenIds] = {}
        self._ingest_ms: dict[int, int] = {}
        self._usage: list[pl.DataFrame] = []
        self._distinct: list[pl.DataFrame] = []
        self._gathered = 0
        self.outcomes: dict[int, Outcomes] = {}

    @property
    def columns(self) -> frozenset[str]:
        """The columns of events its meters look at."""
        return frozenset(self._compiled.columns)

    @property
    def events(self) -> int:
        """Events folded so far."""
        return sum(ended.received for ended in self.outcomes.values())

    def fold(self, records: Sequence[Record], decoder: Decoder = VALUES) -> None:
        """Count the next records: per partition without a gap after those before. Raises InvariantViolated."""
        named = [self._renamed(record) for record in records]
        for record in named:
            if record.partition not in self._seen:
                self._seen[record.partition] = SeenIds(committed_offset=record.offset)
        folded = fold(named, self._seen, self._compiled, self._rules, decoder)
        for partition, part in folded.partitions.items():
            seen = self._seen[partition]
            seen.stage(part.next_offset, part.seen_ids)
            seen.commit(part.next_offset)
            if part.ingest_ms_max > self._ingest_ms.get(partition, 0):
                self._ingest_ms[partition] = part.ingest_ms_max
                seen.expire(oldest_day(part.ingest_ms_max, self._rules))
            self.outcomes[partition] = self.outcomes.get(partition, Outcomes()) + part.outcomes
        self._usage.append(self._keep(folded.usage))
        self._distinct.append(self._keep(folded.distinct))
        self._gathered += len(self._usage[-1]) + len(self._distinct[-1])
        if self._gathered >= MERGE_ROWS:
            self._merge()

    def inherit(self, parents: Mapping[int, int]) -> None:
        """Partitions that begin now, each with the ids another one has seen so far."""
        for partition, parent in parents.items():
            if parent in self._seen:
                self._seen[partition] = self._seen[parent].copy()

    def usage(self) -> pl.DataFrame:
        """The usage so far: a row per (partition, meter_id, window_start_ms, account, dimensions), sorted by them."""
        self._merge()
        usage = self._usage[0] if self._usage else pl.DataFrame(schema=USAGE_SCHEMA)
        distinct = self._distinct[0] if self._distinct else pl.DataFrame(schema=DISTINCT_SCHEMA)
        counted = distinct.group_by(USAGE_KEY).agg(pl.len().cast(USAGE_SCHEMA["quantity"]).alias("different"))
        return (
            usage.join(counted, on=USAGE_KEY, how="left", maintain_order="left")
            .with_columns(
                pl.when(pl.col("combine") == COMBINE_DISTINCT)
                .then(pl.col("different").fill_null(pl.lit(0, USAGE_SCHEMA["quantity"])))
                .otherwise(pl.col("quantity"))
                .alias("quantity")
            )
            .drop("different")
        )

    def _merge(self) -> None:
        if len(self._usage) > 1:
            self._usage = [merge_usage(self._usage)]
            self._distinct = [merge_distinct(self._distinct)]
        # Measured anew: what does not shrink must not be merged again for every flush.
        self._gathered = 0

    def _renamed(self, record: Record) -> Record:
        """An amendment names the version it was written for; here it is for the version of that name and time."""
        if not isinstance(record, AmendmentRecord):
            return record
        name = decode_amendment(record.value).meter
        for version in self._meters.meters:
            holds = version.from_ms <= record.time_ms and (
                version.to_ms is None or record.time_ms < version.to_ms
            )
            if version.meter.name == name and holds:
                return replace(record, meter_id=version.meter_id)
        return replace(record, meter_id=0)


def names_of(meters: MeterSet) -> Mapping[int, str]:
    """The name of each meter version."""
    return {version.meter_id: version.meter.name for version in meters.meters}
