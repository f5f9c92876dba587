"""What stripe_sync can be watched by.

Owns the names. No customer and no meter is a label: they are in the ledger, and the console shows them.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.stripe_sync.outcomes import Situation
from tollgate.ledger.posting_rows import UNSETTLED, HoldReason
from tollgate.runtime.metrics import BUCKETS_FRESHNESS_SECONDS, BUCKETS_SECONDS

_PREFIX = "tollgate_stripe_sync_"


class SyncMetrics:
    """The metrics of one process, on an injected registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            f"{_PREFIX}requests", "Meter event calls to Stripe, by what became of them.", ["outcome"],
            registry=registry,
        )  # fmt: skip
        self._duration = Histogram(
            f"{_PREFIX}request_duration_seconds", "How long a meter event call took.",
            buckets=BUCKETS_SECONDS, registry=registry,
        )  # fmt: skip
        self._freshness = Histogram(
            f"{_PREFIX}event_to_stripe_seconds",
            "From a posting's latest event to Stripe's answer.",
            buckets=BUCKETS_FRESHNESS_SECONDS, registry=registry,
        )  # fmt: skip
        self._planned = Counter(
            f"{_PREFIX}postings_planned", "Postings written down, reversals included.", registry=registry
        )
        self._postings = Gauge(
            f"{_PREFIX}postings", "Unsettled postings in the ledger.", ["state"], registry=registry
        )
        self._held = Gauge(
            f"{_PREFIX}held_slots",
            "Held (account, meter, window)s in the ledger.",
            ["reason"],
            registry=registry,
        )
        self._oldest = Gauge(
            f"{_PREFIX}oldest_unsettled_timestamp_seconds",
            "When the oldest unsettled posting was planned; 0 when none is.",
            registry=registry,
        )
        self._leader = Gauge(f"{_PREFIX}leader", "1 while this process leads.", registry=registry)
        self._tokens = Gauge(
            f"{_PREFIX}bucket_tokens", "Calls that may be made at once; below 0, calls that wait.",
            registry=registry,
        )  # fmt: skip
        self._halted = Gauge(f"{_PREFIX}halted_meters", "Meters nothing is sent to.", registry=registry)
        self._stopped = Gauge(
            f"{_PREFIX}key_refused",
            "1 while Stripe refuses the API key and nothing is sent.",
            registry=registry,
        )
        self._plan = Histogram(
            f"{_PREFIX}plan_duration_seconds", "How long one planning transaction took.",
            buckets=BUCKETS_SECONDS, registry=registry,
        )  # fmt: skip
        self._plan_failures = Counter(
            f"{_PREFIX}plan_failures", "Plannings or journallings that failed and were tried again.",
            registry=registry,
        )  # fmt: skip
        self._rejected = Counter(
            f"{_PREFIX}postings_rejected", "Postings Stripe refused after its 2xx.", registry=registry
        )
        self._imported = Counter(
            f"{_PREFIX}postings_imported",
            "Postings the journal had and the ledger lacked.",
            registry=registry,
        )
        self._waiting = Gauge(
            f"{_PREFIX}planning_waiting",
            "1 while planning waits for counts to reach what the journal was planned from.",
            registry=registry,
        )
        for situation in Situation:
            self._requests.labels(str(situation))
        self.show_ledger({}, {}, None)

    def called(self, situation: Situation, duration_seconds: float) -> None:
        self._requests.labels(str(situation)).inc()
        self._duration.observe(duration_seconds)

    def delivered(self, age_seconds: float) -> None:
        self._freshness.observe(max(0.0, age_seconds))

    def planned(self, postings: int, duration_seconds: float) -> None:
        self._planned.inc(postings)
        self._plan.observe(duration_seconds)

    def plan_failed(self) -> None:
        self._plan_failures.inc()

    def rejected(self, postings: int) -> None:
        self._rejected.inc(postings)

    def imported(self, postings: int) -> None:
        self._imported.inc(postings)

    def show_waiting(self, waiting: bool) -> None:
        self._waiting.set(int(waiting))

    def show_leader(self, leader: bool) -> None:
        self._leader.set(int(leader))

    def show_stopped(self, stopped: bool) -> None:
        self._stopped.set(int(stopped))

    def show_bucket(self, tokens: float) -> None:
        self._tokens.set(tokens)

    def show_halted(self, meters: int) -> None:
        self._halted.set(meters)

    def show_ledger(
        self, states: Mapping[str, int], reasons: Mapping[str, int], oldest_planned_ms: int | None
    ) -> None:
        for state in UNSETTLED:
            self._postings.labels(str(state)).set(states.get(state, 0))
        for reason in HoldReason:
            self._held.labels(str(reason)).set(reasons.get(reason, 0))
        self._oldest.set(0 if oldest_planned_ms is None else oldest_planned_ms / 1000)
