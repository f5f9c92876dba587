"""What this service measures, on an injected registry.

Owns names, labels and buckets. Labels come from enums alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tollgate.runtime.metrics import BUCKETS_SECONDS


class Closing(StrEnum):
    """Why a file was closed."""

    HOUR = "hour"
    SIZE = "size"
    AGE = "age"
    COLUMNS = "columns"
    """A record carries properties the file has no columns for."""
    HANDED_OVER = "handed_over"
    """The partition goes to another worker, or this one ends."""


class Metrics:
    """The service's own metrics. Made once per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._records = Counter(
            "tollgate_archive_records_total", "Records in files that are there for good.", registry=registry
        )
        self._events = Counter(
            "tollgate_archive_events_total",
            "Events among them, as rows; those of records kept as bytes are not counted.",
            registry=registry,
        )
        self._kept = Counter(
            "tollgate_archive_records_kept_total",
            "Records among them kept as bytes: ticks, amendments, and what cannot be decoded.",
            registry=registry,
        )
        self._files = Counter(
            "tollgate_archive_files_total", "Files, by why they were closed.", ["closing"], registry=registry
        )
        self._bytes = Counter("tollgate_archive_bytes_total", "Bytes of these files.", registry=registry)
        self._close_seconds = Histogram(
            "tollgate_archive_close_seconds",
            "Seconds from closing a file to its being there for good.",
            registry=registry,
            buckets=BUCKETS_SECONDS,
        )
        self.overtaken = Counter(
            "tollgate_archive_overtaken_total",
            "Files thrown away since another worker had archived their first offset already.",
            registry=registry,
        )
        self.write_failures = Counter(
            "tollgate_archive_write_failures_total",
            "Writes that failed (a full disk, say); each is tried again from the last file that is there.",
            registry=registry,
        )
        self._assigned = Gauge(
            "tollgate_archive_assigned_partitions", "Partitions this worker archives.", registry=registry
        )
        self._stopped = Gauge(
            "tollgate_archive_stopped_partitions",
            "Partitions that are not archived until an operator has looked.",
            registry=registry,
        )
        self._lag = Gauge(
            "tollgate_archive_lag_records",
            "Records of the assigned partitions that are in no file yet, the open ones included.",
            registry=registry,
        )
        self._held_bytes = Gauge("tollgate_archive_held_bytes", "Bytes of rows in memory.", registry=registry)

    def archived(
        self, closing: Closing, *, records: int, events: int, kept: int, size_bytes: int, seconds: float
    ) -> None:
        """A file is there for good."""
        self._files.labels(closing.value).inc()
        self._records.inc(records)
        self._events.inc(events)
        self._kept.inc(kept)
        self._bytes.inc(size_bytes)
        self._close_seconds.observe(seconds)

    def show(self, *, assigned: int, stopped: int, lag: Mapping[int, int], held_bytes: int) -> None:
        """How it stands now."""
        self._assigned.set(assigned)
        self._stopped.set(stopped)
        self._lag.set(sum(lag.values()))
        self._held_bytes.set(held_bytes)
