"""What stripe_sync can be watched by.

Owns the names. No customer is ever a label: they are in the ledger, and the console shows them. Meters are one only
where drift is shown: there are few, and each is somebody's to look after.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.stripe_sync.outcomes import Situation
from tollgate.ledger.plan_rows import HoldReason
from tollgate.ledger.posting_rows import UNSETTLED
from tollgate.ledger.reconciliations import DriftSummary
from tollgate.metering.finalization import Incomplete, Step
from tollgate.metering.reconciliation import Verdict
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
        self._anomalies = Gauge(
            f"{_PREFIX}anomalous_postings",
            "Postings far above what their customer used before, which wait for `tollgate postings release`.",
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
        self._drift = Gauge(
            f"{_PREFIX}reconciliation_drift_units",
            "Units by which ledger, Stripe and invoices differ and nothing explains, by meter.",
            ["meter"],
            registry=registry,
        )
        self._drifting = Gauge(
            f"{_PREFIX}reconciliation_drifting_customers",
            "Customers with drift in any period.",
            registry=registry,
        )
        self._reconciled_at = Gauge(
            f"{_PREFIX}reconciliation_last_checked_timestamp_seconds",
            "When a period was last reconciled; 0 before the first.",
            registry=registry,
        )
        self._periods = Gauge(
            f"{_PREFIX}reconciliation_periods", "Periods by what was found at their last check.", ["verdict"],
            registry=registry,
        )  # fmt: skip
        self._checks = Counter(
            f"{_PREFIX}reconciliation_checks", "Periods reconciled, by what was found.", ["verdict"],
            registry=registry,
        )  # fmt: skip
        self._reads = Counter(
            f"{_PREFIX}reconciliation_reads",
            "Reads of Stripe that reconciliation has spent.",
            registry=registry,
        )
        self._incomplete = Gauge(
            f"{_PREFIX}period_incomplete",
            "Draft invoices about to become final, or put off, whose usage is not all at Stripe, by what is missing.",
            ["reason"],
            registry=registry,
        )
        self._counted_until = Gauge(
            f"{_PREFIX}counted_until_timestamp_seconds",
            "Everything ingested before this has been counted, by the ticks of all partitions; 0 before the first.",
            registry=registry,
        )
        self._finalizations = Counter(
            f"{_PREFIX}finalizations",
            "Draft invoices put off, released and given up for incomplete periods.",
            ["step"],
            registry=registry,
        )
        self._finalization_failures = Counter(
            f"{_PREFIX}finalization_failures",
            "Invoices whose finalization could not be set at Stripe.",
            registry=registry,
        )
        for step in (Step.DELAY, Step.RELEASE, Step.GIVE_UP):
            self._finalizations.labels(str(step))
        self.show_periods(0, {})
        for verdict in Verdict:
            self._checks.labels(str(verdict))
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

    def read_summary(self) -> None:
        self._reads.inc()

    def reconciled(self, verdict: Verdict) -> None:
        self._checks.labels(str(verdict)).inc()

    def finalization(self, step: Step) -> None:
        self._finalizations.labels(str(step)).inc()

    def finalization_failed(self) -> None:
        self._finalization_failures.inc()

    def show_periods(self, counted_until_ms: int, incomplete: Mapping[str, int]) -> None:
        self._counted_until.set(counted_until_ms / 1000)
        for reason in Incomplete:
            self._incomplete.labels(str(reason)).set(incomplete.get(reason, 0))

    def show_drift(self, summary: DriftSummary) -> None:
        for meter, drift in summary.drift_by_meter.items():
            self._drift.labels(meter).set(float(drift))
        for verdict in Verdict:
            self._periods.labels(str(verdict)).set(summary.by_verdict.get(verdict, 0))
        self._drifting.set(summary.customers_with_drift)
        self._reconciled_at.set((summary.last_checked_ms or 0) / 1000)

    def show_anomalies(self, postings: int) -> None:
        self._anomalies.set(postings)

    def show_ledger(
        self, states: Mapping[str, int], reasons: Mapping[str, int], oldest_planned_ms: int | None
    ) -> None:
        for state in UNSETTLED:
            self._postings.labels(str(state)).set(states.get(state, 0))
        for reason in HoldReason:
            self._held.labels(str(reason)).set(reasons.get(reason, 0))
        self._oldest.set(0 if oldest_planned_ms is None else oldest_planned_ms / 1000)
