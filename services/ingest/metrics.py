"""Metrics of this service, on an injected registry.

Owns their names, labels and buckets. Labels come from enumerations only: no source, path, customer or id.
"""

from __future__ import annotations

from enum import StrEnum

from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry, Counter, Gauge

from tollgate.metering.errors import DeadReason
from tollgate.runtime.metrics import (
    BUCKETS_BYTES,
    BUCKETS_FRESHNESS_SECONDS,
    BUCKETS_SECONDS,
    LoopHistogram,
)

BUCKETS_ROWS: tuple[float, ...] = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
"""Around 500, from where on a record's fixed costs at the meter no longer matter."""


class Route(StrEnum):
    """The routes that take events, as labels."""

    KONG = "kong"
    MOESIF = "moesif"
    CLOUDEVENTS = "cloudevents"
    REPLAY = "replay"


class IngestMetrics:
    """Everything this process counts. `count_*` and `observe_*` are called from the event loop only."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._events = Counter(
            "tollgate_ingest_events",
            "Events by what the answer said of them: acknowledged, or rejected to the dead letters.",
            ["route", "outcome"],
            registry=registry,
        )
        self._rejected = Counter(
            "tollgate_ingest_rejected_events",
            "Events rejected to the dead letters, by reason.",
            ["route", "reason"],
            registry=registry,
        )
        self._requests = Counter(
            "tollgate_ingest_requests", "Requests by status code.", ["route", "code"], registry=registry
        )
        request_seconds = LoopHistogram(
            "tollgate_ingest_request_duration_seconds",
            "From a request's first byte to its answer.",
            BUCKETS_SECONDS,
            registry,
            ["route"],
        )
        request_bytes = LoopHistogram(
            "tollgate_ingest_request_bytes", "Bodies, decompressed.", BUCKETS_BYTES, registry, ["route"]
        )
        self._event_age = LoopHistogram(
            "tollgate_ingest_event_age_seconds",
            "Age of the oldest event of a request when it arrives.",
            BUCKETS_FRESHNESS_SECONDS,
            registry,
        ).of()
        self._produce_seconds = LoopHistogram(
            "tollgate_ingest_produce_duration_seconds",
            "From a record's sending to the broker's acknowledgement.",
            BUCKETS_SECONDS,
            registry,
        ).of()
        self._record_rows = LoopHistogram(
            "tollgate_ingest_record_events", "Events in one acknowledged record.", BUCKETS_ROWS, registry
        ).of()
        self._produce_failures = Counter(
            "tollgate_ingest_produce_failures",
            "Records refused by the broker or given up, by kind of error.",
            ["error"],
            registry=registry,
        )
        self.producers_replaced = Counter(
            "tollgate_ingest_producers_replaced",
            "Producers replaced after a failure.",
            registry=registry,
        )
        self.unacknowledged_bytes = Gauge(
            "tollgate_ingest_unacknowledged_bytes",
            "Bytes held until the broker acknowledges: bodies and records.",
            registry=registry,
        )
        self.tokens_age_seconds = Gauge(
            "tollgate_ingest_tokens_age_seconds",
            "Seconds since the tokens were last read from the ledger.",
            registry=registry,
        )
        self._observers = {
            route: (
                request_seconds.of(route.value).observe,
                request_bytes.of(route.value).observe,
                self._events.labels(route.value, "acknowledged").inc,
            )
            for route in Route
        }
        self._codes: dict[tuple[Route, int], Counter] = {}

    def count_request(self, route: Route, code: int, seconds: float) -> None:
        """One request answered."""
        counter = self._codes.get((route, code))
        if counter is None:
            counter = self._codes[route, code] = self._requests.labels(route.value, str(code))
        counter.inc()
        self._observers[route][0](seconds)

    def count_events(self, route: Route, body_bytes: int, accepted: int, age_ms: int | None) -> None:
        """The events of one acknowledged request. `age_ms`: of the oldest, None without any."""
        _, observe_bytes, count = self._observers[route]
        observe_bytes(body_bytes)
        if accepted:
            count(accepted)
        if age_ms is not None:
            self._event_age.observe(max(0, age_ms) / 1000)

    def count_rejected(self, route: Route, reason: DeadReason) -> None:
        """One event that went to the dead letters."""
        self._events.labels(route.value, "rejected").inc()
        self._rejected.labels(route.value, reason.value).inc()

    def observe_record(self, rows: int, seconds: float) -> None:
        """One record acknowledged."""
        self._record_rows.observe(rows)
        self._produce_seconds.observe(seconds)

    def count_produce_failure(self, error: BaseException) -> None:
        """One record refused or given up. The label is the kind of Kafka error, of which there are finitely many."""
        self._produce_failures.labels(
            type(error).__name__ if isinstance(error, KafkaError) else "other"
        ).inc()
