"""What this service measures, on an injected registry.

Owns names, labels and buckets. Labels come from enums alone: no customer, event or object id is ever one.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tollgate.runtime.metrics import BUCKETS_FRESHNESS_SECONDS, BUCKETS_SECONDS

METER_ERROR_CODES = frozenset(
    {
        "archived_meter",
        "meter_event_customer_not_found",
        "meter_event_no_customer_defined",
        "meter_event_invalid_value",
        "meter_event_value_not_found",
        "meter_event_value_too_many_digits",
        "meter_event_dimension_count_too_high",
        "missing_dimension_payload_keys",
        "no_meter",
        "timestamp_in_future",
        "timestamp_too_far_in_past",
    }
)
"""Codes that become a label; any other is counted as `other`."""


class Metrics:
    """The service's own metrics. Made once per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Counter(
            "tollgate_webhooks_requests_total",
            "Webhook requests by what became of them: stored, or the reason of refusal.",
            ["outcome"],
            registry=registry,
        )
        self.request_seconds = Histogram(
            "tollgate_webhooks_request_seconds",
            "Seconds from a request's arrival to its answer.",
            registry=registry,
            buckets=BUCKETS_SECONDS,
        )
        self.projected = Counter(
            "tollgate_webhooks_events_projected_total",
            "Events taken from the topic, by what they are about and how they ended.",
            ["subject", "outcome"],
            registry=registry,
        )
        self.retries = Counter(
            "tollgate_webhooks_retries_total",
            "Tries of a projection, poll or import that failed for now, by reason.",
            ["reason"],
            registry=registry,
        )
        self.freshness_seconds = Histogram(
            "tollgate_webhooks_freshness_seconds",
            "Seconds from an event's making at Stripe to the ledger.",
            registry=registry,
            buckets=BUCKETS_FRESHNESS_SECONDS,
        )
        self.lag = Gauge(
            "tollgate_webhooks_lag_records",
            "Records in the assigned partitions of the topic that are not projected yet.",
            registry=registry,
        )
        self.received_timestamp = Gauge(
            "tollgate_webhooks_last_received_timestamp_seconds",
            "When the last verified webhook came in, in epoch seconds; for noticing silence.",
            registry=registry,
        )
        self.polled = Counter(
            "tollgate_webhooks_polled_events_total",
            "Events the poll found that no webhook had brought.",
            registry=registry,
        )
        self.polled_timestamp = Gauge(
            "tollgate_webhooks_last_polled_timestamp_seconds",
            "Up to when Stripe's list of events has been compared with what came in, in epoch seconds.",
            registry=registry,
        )
        self.meter_errors = Counter(
            "tollgate_webhooks_meter_errors_total",
            "Meter events Stripe took and refused afterwards, as its reports count them, by code.",
            ["code"],
            registry=registry,
        )
        self.anonymous_errors = Counter(
            "tollgate_webhooks_meter_errors_anonymous_total",
            "Sample errors in those reports that name no identifier, so no posting can be reopened.",
            registry=registry,
        )

    def count_meter_errors(self, counts: dict[str, int], anonymous: int) -> None:
        """Add a report's numbers."""
        for code, number in counts.items():
            self.meter_errors.labels(code if code in METER_ERROR_CODES else "other").inc(number)
        self.anonymous_errors.inc(anonymous)
