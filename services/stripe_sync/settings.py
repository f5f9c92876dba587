"""What an operator may choose for stripe_sync.

Owns the settings and their reasons. It refuses to read the environment: `__main__` does.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

from pydantic import Field, SecretStr, model_validator

from services.stripe_sync.faults import FaultPoint
from services.stripe_sync.reconcile import Terms
from tollgate.metering.anomaly import AnomalyCap
from tollgate.metering.closed import ClosedPolicy
from tollgate.metering.finalization import FinalizationTerms
from tollgate.runtime.settings import AlsoFrom, HttpSettings, ServiceSettings, SettingsGroup

CALLS_PER_SECOND_LIVE = 80.0
"""Stripe's basic limit is 100 a second for an account in live mode; the rest is for the other services."""

CALLS_PER_SECOND_TEST = 20.0
"""25 a second in test mode."""


class StripeSettings(SettingsGroup):
    """How to reach Stripe."""

    api_key: Annotated[SecretStr, AlsoFrom("STRIPE_API_KEY")] = Field(
        description="Secret or restricted key (sk_…, rk_…): meter events write, meters and summaries read; for "
        "`closed: invoice_item` invoice items write and prices read as well."
    )
    api_base: str | None = Field(
        default=None,
        description="Address of Stripe's API; the sandbox's stand-in when set, Stripe itself otherwise.",
    )
    allow_live: bool = Field(
        default=False, description="Accept a live key. Without it a live key is refused: it moves real money."
    )
    connect_timeout_seconds: float = Field(
        default=5.0, gt=0, description="Seconds until a connection attempt to Stripe has failed."
    )
    read_timeout_seconds: float = Field(
        default=20.0, gt=0, description="Seconds without an answer until a call's outcome counts as unknown."
    )

    @property
    def mode(self) -> str:
        """test or live, by the key's own words."""
        return "live" if "_live_" in self.api_key.get_secret_value() else "test"

    @model_validator(mode="after")
    def _known_key(self) -> StripeSettings:
        key = self.api_key.get_secret_value()
        if not key.startswith(("sk_test_", "rk_test_", "sk_live_", "rk_live_")):
            raise ValueError("the API key must begin with sk_test_, rk_test_, sk_live_ or rk_live_")
        if self.mode == "live" and not self.allow_live:
            raise ValueError("a live key is refused unless allow_live is true")
        return self


class SyncSettings(SettingsGroup):
    """How usage goes to Stripe."""

    cadence_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Seconds between plannings: how old usage at Stripe may be. Stretched by itself when sending "
        "what was planned takes longer.",
    )
    calls_per_second: float | None = Field(
        default=None,
        gt=0,
        description="Calls to Stripe a second. Unset: 80 with a live key (Stripe allows 100), 20 with a test key "
        "(25).",
    )
    concurrency: int = Field(
        default=32,
        ge=1,
        le=512,
        description="Calls under way at once. One customer and meter never has two.",
    )
    closed: ClosedPolicy = Field(
        default=ClosedPolicy.RESTAMP,
        description="What becomes of usage counted after its period's invoice was final, for meters that do not say "
        "(`stripe: {closed: …}`). restamp: billed with the customer's current period. invoice_item: an item on the "
        "customer's next invoice, of what it would have added to the final one (the key then needs prices read and "
        "invoice items write). hold: nothing, until an operator decides.",
    )
    plan_rows_max: int = Field(
        default=5000,
        ge=1,
        description="Changed usage rows one planning transaction takes: bounds its memory and its length.",
    )
    retry_initial_seconds: float = Field(
        default=1.0, gt=0, description="Seconds until a failed posting is tried again the first time."
    )
    retry_max_seconds: float = Field(
        default=300.0, gt=0, description="The longest wait, in seconds, between two tries of a posting."
    )
    summary_lag_seconds: float = Field(
        default=3600.0,
        ge=0,
        description="Seconds Stripe's summaries may lag behind. A posting whose fate they must tell is left alone "
        "for that long after its last try.",
    )
    meter_check_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Seconds between looks at Stripe's meters while one is halted; ten times as many otherwise.",
    )
    probe_seconds: float = Field(
        default=30.0,
        gt=0,
        description="Seconds between questions to Stripe whether it takes the key again, after it was refused.",
    )
    lease_seconds: float = Field(
        default=15.0,
        gt=0.5,
        description="Seconds without a sign of life after which a standby takes over.",
    )
    fault_point: FaultPoint | None = Field(
        default=None, description="For tests: the step at which the process ends as if killed."
    )
    fault_passes: int = Field(
        default=1, ge=1, description="For tests: at which passing of the fault point the process ends."
    )


class ReconcileSettings(SettingsGroup):
    """How ledger, Stripe and invoices are compared."""

    enabled: bool = Field(
        default=True, description="Reconcile while leading, daily and before invoices are final."
    )
    reads_per_day: int = Field(
        default=200,
        ge=0,
        description="Reads of Stripe's summaries a day (UTC), shared by all processes of this ledger. Stripe grants "
        "an account 500 reads for each transaction of a month and 10,000 at least; the webhooks' polls take 3,600 of "
        "them. A period costs one read while it agrees. Raise it with your customers' number.",
    )
    interval_hours: float = Field(
        default=24.0, gt=0, description="Hours until a period that was compared is compared again."
    )
    check_seconds: float = Field(
        default=120.0,
        gt=0,
        description="Seconds between looks for periods that are due to be compared. A look reads all periods: "
        "about half a second for 150,000.",
    )


class AnomalySettings(SettingsGroup):
    """Which postings are far above what their customer used before, and wait for an operator."""

    enabled: bool = Field(default=True, description="Park such postings.")
    factor: Decimal = Field(
        default=Decimal(20),
        gt=1,
        description="A window of a count or a sum is parked when it is more than so many times the customer's highest "
        "window of the weeks before. A customer with less than a week of usage is never judged.",
    )
    quantity_min: Decimal = Field(
        default=Decimal(100_000), ge=0, description="Windows below so many units are never parked."
    )
    weeks: int = Field(default=4, ge=1, le=52, description="Weeks of usage that a window is compared with.")

    @property
    def cap(self) -> AnomalyCap | None:
        """The rule in force."""
        return AnomalyCap(self.factor, self.quantity_min, self.weeks) if self.enabled else None


class PeriodSettings(SettingsGroup):
    """How a period's end is kept: its usage first, and no final invoice without it."""

    enabled: bool = Field(
        default=True,
        description="Put off the finalization of draft invoices whose usage is not all at Stripe. Needs a key that "
        "may write invoices.",
    )
    check_seconds: float = Field(
        default=10.0, gt=0, description="Seconds between looks at drafts and at periods about to end."
    )
    lead_minutes: float = Field(
        default=15.0,
        gt=0,
        description="Minutes before a period's end from which its customer goes first, and before an invoice becomes "
        "final at which it is put off when its period is incomplete.",
    )
    events_delay_seconds: float = Field(
        default=300.0,
        ge=0,
        description="Seconds after its time that gateways may still send an event: so long after its end a period "
        "counts as open.",
    )
    instance_silence_seconds: float = Field(
        default=600.0,
        ge=60,
        description="Seconds of the log without a tick after which an ingest instance is taken to be gone and holds "
        "no period back. Longer than a write to Kafka may be under way, and than clocks may differ.",
    )
    delay_step_minutes: float = Field(
        default=60.0,
        gt=0,
        description="Minutes by which finalization is put off at a time. Should Tollgate be down, an invoice becomes "
        "final after at most so long.",
    )
    delay_max_hours: float = Field(
        default=72.0,
        gt=0,
        le=34 * 24,
        description="Hours a draft may be kept waiting, from its creation. Then it becomes final without what is "
        "missing, and that is charged as late usage.",
    )


class StripeSyncSettings(ServiceSettings):
    """Settings of services/stripe_sync."""

    http: HttpSettings = Field(
        default=HttpSettings(port=8650), description="Where this service's health and metrics are."
    )
    stripe: StripeSettings = Field(description="Stripe.")
    sync: SyncSettings = Field(default=SyncSettings(), description="How usage goes to Stripe.")
    anomaly: AnomalySettings = Field(
        default=AnomalySettings(), description="Postings that wait for an operator."
    )
    reconcile: ReconcileSettings = Field(
        default=ReconcileSettings(), description="How ledger, Stripe and invoices are compared."
    )

    periods: PeriodSettings = Field(default=PeriodSettings(), description="How a period's end is kept.")

    @property
    def finalization_terms(self) -> FinalizationTerms:
        """The terms in force."""
        return FinalizationTerms(
            events_delay_ms=int(self.periods.events_delay_seconds * 1000),
            lead_ms=int(self.periods.lead_minutes * 60_000),
            step_ms=int(self.periods.delay_step_minutes * 60_000),
            delay_max_ms=int(self.periods.delay_max_hours * 3_600_000),
        )

    @property
    def calls_per_second(self) -> float:
        """The rate in force."""
        if self.sync.calls_per_second is not None:
            return self.sync.calls_per_second
        return CALLS_PER_SECOND_LIVE if self.stripe.mode == "live" else CALLS_PER_SECOND_TEST

    @property
    def reconcile_terms(self) -> Terms:
        """The terms in force."""
        return Terms(
            lag_ms=int(self.sync.summary_lag_seconds * 1000),
            interval_ms=int(self.reconcile.interval_hours * 3_600_000),
        )
