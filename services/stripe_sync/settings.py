"""What an operator may choose for stripe_sync.

Owns the settings and their reasons. It refuses to read the environment: `__main__` does.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr, model_validator

from services.stripe_sync.faults import FaultPoint
from tollgate.runtime.settings import AlsoFrom, HttpSettings, ServiceSettings, SettingsGroup

CALLS_PER_SECOND_LIVE = 80.0
"""Stripe's basic limit is 100 a second for an account in live mode; the rest is for the other services."""

CALLS_PER_SECOND_TEST = 20.0
"""25 a second in test mode."""


class StripeSettings(SettingsGroup):
    """How to reach Stripe."""

    api_key: Annotated[SecretStr, AlsoFrom("STRIPE_API_KEY")] = Field(
        description="Secret or restricted key (sk_…, rk_…): meter events write, meters and summaries read."
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


class StripeSyncSettings(ServiceSettings):
    """Settings of services/stripe_sync."""

    http: HttpSettings = Field(
        default=HttpSettings(port=8650), description="Where this service's health and metrics are."
    )
    stripe: StripeSettings = Field(description="Stripe.")
    sync: SyncSettings = Field(default=SyncSettings(), description="How usage goes to Stripe.")

    @property
    def calls_per_second(self) -> float:
        """The rate in force."""
        if self.sync.calls_per_second is not None:
            return self.sync.calls_per_second
        return CALLS_PER_SECOND_LIVE if self.stripe.mode == "live" else CALLS_PER_SECOND_TEST
