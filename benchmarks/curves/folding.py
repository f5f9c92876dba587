"""One backlog through the fold, in this process, without broker and ledger.

Owns the cutting into flushes, the clock around them, and the comparison with the backlog's own count. It refuses to
know what is varied.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import polars as pl

from benchmarks.backlog import Backlog, Truth
from benchmarks.row import assert_counts
from tollgate.metering.definition import MeterSet
from tollgate.metering.fold import CompiledMeters, fold
from tollgate.metering.outcome import TimeRules
from tollgate.metering.records import EventsRecord
from tollgate.metering.seen import SeenIds
from tollgate.metering.usage import merge_distinct, merge_usage

DAY_MS = 86_400_000
RULES = TimeRules(accept_age_ms=7 * DAY_MS, future_ms=DAY_MS)
FLUSH_EVENTS = 120_000
"""As many as the meter takes at once when it is behind."""


@dataclass(frozen=True, slots=True)
class Folded:
    """What folding one backlog took."""

    events: int
    flushes: int
    cpu_seconds: float
    """Decoding, judging, counting and keeping the ids; without the reading of Kafka and the ledger's transaction."""

    @property
    def cpu_us(self) -> float:
        """CPU microseconds an event."""
        return self.cpu_seconds / self.events * 1e6


def fold_backlog(
    backlog: Backlog, meters: MeterSet, seen: Mapping[int, SeenIds], truth_of: Mapping[str, str]
) -> Folded:
    """Fold all of it, and compare. `truth_of`: meter name -> the meter of the backlog's truth it must equal.

    Raises CountsDiffer.
    """
    flushes = [*_cut(backlog, dict.fromkeys(seen, 0))]
    truth = backlog.truth()
    compiled = CompiledMeters.compile(meters)
    # Expressions are planned once a process.
    fold([], seen, compiled, RULES)
    usage: list[pl.DataFrame] = []
    distinct: list[pl.DataFrame] = []
    counted = duplicates = 0
    spent = 0.0
    for flush in flushes:
        before = time.process_time()
        done = fold(flush, seen, compiled, RULES)
        for partition, part in done.partitions.items():
            seen[partition].stage(part.next_offset, part.seen_ids)
            seen[partition].commit(part.next_offset)
        spent += time.process_time() - before
        usage.append(done.usage)
        distinct.append(done.distinct)
        counted += sum(part.outcomes.counted + part.outcomes.unmatched for part in done.partitions.values())
        duplicates += sum(part.outcomes.duplicate for part in done.partitions.values())
    assert_counts("duplicates", duplicates, truth.duplicates)
    assert_counts("counted or unmatched", counted, truth.events - truth.duplicates)
    _compare(meters, merge_usage(usage), merge_distinct(distinct), truth, truth_of)
    return Folded(truth.events, len(flushes), spent)


def _cut(backlog: Backlog, next_offset: dict[int, int]) -> Iterator[list[EventsRecord]]:
    flush: list[EventsRecord] = []
    held = 0
    for record in backlog.records():
        headers = record.headers
        flush.append(
            EventsRecord(
                partition=record.partition,
                offset=next_offset[record.partition],
                rows=headers.rows,
                instance=headers.instance,
                source=headers.source,
                ingest_ms=headers.ingest_ms,
                accept_late=headers.accept_late,
                value=record.value,
            )
        )
        next_offset[record.partition] += 1
        held += headers.rows
        if held >= FLUSH_EVENTS:
            yield flush
            flush, held = [], 0
    if flush:
        yield flush


def _compare(
    meters: MeterSet,
    usage: pl.DataFrame,
    distinct: pl.DataFrame,
    truth: Truth,
    truth_of: Mapping[str, str],
) -> None:
    """Every total of every meter with the truth's, rows of nothing left out on both sides."""
    names = {version.meter_id: version.meter.name for version in meters.meters}
    found: dict[tuple[str, str, int], int] = {}
    for meter_id, account, window_ms, quantity in usage.select(
        "meter_id", "account", "window_start_ms", "quantity"
    ).iter_rows():
        if quantity:
            found[names[meter_id], account, window_ms] = int(quantity)
    # What a unique meter has seen becomes its quantity in the ledger.
    for meter_id, account, window_ms in distinct.select("meter_id", "account", "window_start_ms").iter_rows():
        key = (names[meter_id], account, window_ms)
        found[key] = found.get(key, 0) + 1
    by_meter: dict[str, dict[tuple[str, int], int]] = {}
    for (meter, account, window_ms), quantity in truth.usage.items():
        if quantity:
            by_meter.setdefault(meter, {})[account, window_ms] = quantity
    expected = {
        (name, account, window_ms): quantity
        for name, meter in truth_of.items()
        for (account, window_ms), quantity in by_meter.get(meter, {}).items()
    }
    differing = [key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)]
    assert_counts(
        "totals that differ (found, expected)",
        {key: (found.get(key), expected.get(key)) for key in differing[:5]},
        {},
    )
