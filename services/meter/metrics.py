"""The meter's metrics.

Owns their names, labels and buckets, on the registry it is given. It refuses to know how the numbers come about.
Counters move only after the ledger's commit, so that what is exported never runs ahead of what is counted.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

import polars as pl
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector, CollectorRegistry

from services.meter.partition import StopReason
from tollgate.metering.outcome import Fold, PartitionFold
from tollgate.runtime.metrics import BUCKETS_FRESHNESS_SECONDS, BUCKETS_SECONDS


class WeightedHistogram(Collector):
    """A histogram whose observations stand for many: prometheus_client's own observes one at a time."""

    def __init__(
        self, name: str, documentation: str, buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = tuple(buckets)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float, weight: int) -> None:
        """`weight` observations of `value`."""
        self._counts[bisect_left(self._bounds, value)] += weight
        self._sum += value * weight

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._documentation)
        total = 0
        buckets: list[tuple[str, float]] = []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), float(total)))
        family.add_metric([], buckets, self._sum)
        yield family


class MeterMetrics:
    """Everything `services/meter` exports. One event loop, no locks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        prefix = "tollgate_meter"
        self._events = Counter(
            f"{prefix}_events_total", "Events by outcome, once committed.", ["outcome"], registry=registry
        )
        for outcome in ("counted", "unmatched", "duplicate", "late", "dead"):
            self._events.labels(outcome)
        self._weak_duplicates = Counter(
            f"{prefix}_weak_duplicates_total",
            "Duplicates recognised by a hash over fields, not by an id: some may be distinct calls.",
            registry=registry,
        )
        self._unvalued = Counter(
            f"{prefix}_unvalued_total",
            "Times an event matched a meter but had no valid value for it, over all meters.",
            registry=registry,
        )
        self._dead_letters = Counter(
            f"{prefix}_dead_events_total",
            "Events copied to gateway.dead, by reason.",
            ["reason"],
            registry=registry,
        )
        self._lag = Gauge(
            f"{prefix}_lag_records",
            "Records in the log that are not in the ledger.",
            ["partition"],
            registry=registry,
        )
        self._next_offset = Gauge(
            f"{prefix}_next_offset", "The ledger's next offset.", ["partition"], registry=registry
        )
        self._progress_at = Gauge(
            f"{prefix}_last_progress_timestamp_seconds", "When a flush was last committed.", registry=registry
        )
        self._freshness = WeightedHistogram(
            f"{prefix}_freshness_seconds",
            "From an event's ingest time to its ledger commit, one observation an event.",
            BUCKETS_FRESHNESS_SECONDS,
            registry,
        )
        self._flush_seconds = Histogram(
            f"{prefix}_flush_duration_seconds",
            "Time of one flush: fold (with decoding), commit (the ledger's transaction), total.",
            ["step"],
            buckets=BUCKETS_SECONDS,
            registry=registry,
        )
        self._rows = Counter(f"{prefix}_usage_rows_total", "Usage rows upserted.", registry=registry)
        self._pending = Gauge(
            f"{prefix}_held_bytes", "Bytes of records waiting or being flushed.", registry=registry
        )
        self._missed = Counter(
            f"{prefix}_missed_commits_total",
            "Compare-and-sets on progress that missed: another worker was first.",
            registry=registry,
        )
        self._seen_count = Gauge(
            f"{prefix}_seen_ids", "Event ids remembered for de-duplication.", ["partition"], registry=registry
        )
        self._seen_bytes = Gauge(
            f"{prefix}_seen_bytes", "Memory the remembered ids take.", ["partition"], registry=registry
        )
        self._arrivals = Counter(
            f"{prefix}_dropped_records_total",
            "Records read but not taken: replay, gap, rewritten, foreign.",
            ["arrival"],
            registry=registry,
        )
        self._rebalances = Counter(f"{prefix}_rebalances_total", "Assignments received.", registry=registry)
        self._assigned = Gauge(
            f"{prefix}_assigned_partitions", "Partitions being counted.", registry=registry
        )
        self._stopped = Gauge(
            f"{prefix}_stopped_partitions",
            "Partitions not counted until somebody looks.",
            ["reason"],
            registry=registry,
        )
        for reason in StopReason:
            self._stopped.labels(reason)

    # ---------------------------------------------------------------- flushes

    def folded(self, seconds: float) -> None:
        self._flush_seconds.labels("fold").observe(seconds)

    def booked(self, seconds: float) -> None:
        self._flush_seconds.labels("commit").observe(seconds)

    def committed(
        self,
        partitions: Mapping[int, PartitionFold],
        fold: Fold,
        freshness: Sequence[tuple[int, int]],
        now_ms: int,
        seconds: float,
    ) -> None:
        """A flush of `partitions` is in the ledger. `freshness` holds (ingest time, events) of its records."""
        self._flush_seconds.labels("total").observe(seconds)
        self._progress_at.set(now_ms / 1000)
        for partition, folded in partitions.items():
            outcomes = folded.outcomes
            for outcome in ("counted", "unmatched", "duplicate", "late", "dead"):
                self._events.labels(outcome).inc(getattr(outcomes, outcome))
            self._weak_duplicates.inc(outcomes.weak_duplicate)
            self._next_offset.labels(partition).set(folded.next_offset)
        for dead in fold.dead:
            if dead.partition in partitions:
                self._dead_letters.labels(dead.reason).inc(dead.rows)
        usage = fold.usage
        if len(partitions) < len(fold.partitions):
            usage = usage.filter(pl.col("partition").is_in(list(partitions)))
        self._rows.inc(usage.height)
        if usage.height:
            self._unvalued.inc(int(usage["unvalued"].sum()))
        for ingest_ms, events in freshness:
            self._freshness.observe(max(0, now_ms - ingest_ms) / 1000, events)

    def missed(self) -> None:
        self._missed.inc()

    def held(self, held_bytes: int) -> None:
        self._pending.set(held_bytes)

    # ---------------------------------------------------------------- partitions

    def seen_ids(self, partition: int, count: int, ram_bytes: int) -> None:
        self._seen_count.labels(partition).set(count)
        self._seen_bytes.labels(partition).set(ram_bytes)

    def lag(self, partition: int, records: int) -> None:
        self._lag.labels(partition).set(records)

    def dropped(self, arrival: str) -> None:
        self._arrivals.labels(arrival).inc()

    def rebalanced(self) -> None:
        self._rebalances.inc()

    def assigned(self, partitions: int) -> None:
        self._assigned.set(partitions)

    def stopped(self, reasons: Sequence[StopReason]) -> None:
        for reason in StopReason:
            self._stopped.labels(reason).set(reasons.count(reason))

    def revoked(self, partition: int) -> None:
        """Its series end here: a stale one would look like a partition that is stuck."""
        for gauge in (self._lag, self._next_offset, self._seen_count, self._seen_bytes):
            if (str(partition),) in gauge._metrics:
                gauge.remove(partition)
