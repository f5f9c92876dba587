"""What an operator may choose about the webhooks service.

Owns the settings' names, units and reasons. It refuses to read the environment: `__main__` does.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr, model_validator

from services.webhooks.faults import FaultPoint
from services.webhooks.poll import SETTLING_SECONDS
from services.webhooks.signature import DEFAULT_TOLERANCE_SECONDS
from tollgate.ledger.directory import DEFAULT_RULES, MappingRule
from tollgate.runtime.settings import AlsoFrom, HttpSettings, ServiceSettings, SettingsGroup


def _split(value: object) -> object:
    """A JSON list, or texts separated by commas."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        decoded: Any = json.loads(value)
        return decoded
    return [part.strip() for part in value.split(",") if part.strip()]


class StripeSettings(SettingsGroup):
    """How Stripe is reached and how it signs."""

    api_key: Annotated[SecretStr | None, AlsoFrom("STRIPE_API_KEY")] = Field(
        default=None,
        description="Secret or restricted key (sk_…, rk_…); reading customers, subscriptions, invoices, prices, "
        "meters and events is all it needs.",
    )
    api_base: str | None = Field(
        default=None,
        description="Address of Stripe's API; the sandbox's stand-in when set, Stripe itself otherwise.",
    )
    allow_live: bool = Field(
        default=False,
        description="Accept a live key. Off, so that a test ledger never meets real customers by a slip.",
    )
    webhook_secrets: Annotated[
        list[SecretStr], AlsoFrom("STRIPE_WEBHOOK_SECRET"), BeforeValidator(_split)
    ] = Field(
        default=[],
        description="Signing secrets (whsec_…) of the webhook endpoint, separated by commas; two while one is "
        "being rotated. Without any secret the endpoint answers 503.",
    )
    thin_secrets: Annotated[list[SecretStr], BeforeValidator(_split)] = Field(
        default=[],
        description="Signing secrets of the event destination for thin events (meter error reports), separated "
        "by commas.",
    )
    timeout_seconds: float = Field(
        default=20.0, gt=0, le=80, description="Seconds until one call to Stripe has failed."
    )
    reads_per_second: float = Field(
        default=10.0,
        gt=0,
        le=100,
        description="Reads a second at most. The account's limit (25 a second with test keys) is shared with "
        "whatever posts usage.",
    )


class WebhooksSettings(SettingsGroup):
    """How events are taken in and projected."""

    tolerance_seconds: int = Field(
        default=DEFAULT_TOLERANCE_SECONDS,
        ge=1,
        le=3600,
        description="Seconds a signature may be away from our clock, in either direction.",
    )
    body_bytes_max: int = Field(
        default=1024 * 1024, ge=1024, le=4 * 1024 * 1024, description="Bytes of a request's body at most."
    )
    in_flight_max: int = Field(
        default=64,
        ge=1,
        description="Requests at once; more are answered 503, so that memory stays bounded by this times "
        "body_bytes_max.",
    )
    store_timeout_seconds: float = Field(
        default=10.0,
        gt=0,
        description="Seconds the broker has to acknowledge an event; then Stripe is told to come again.",
    )
    mapping_rules: Annotated[list[MappingRule], BeforeValidator(_split)] = Field(
        default=list(DEFAULT_RULES),
        min_length=1,
        description="How accounts are found among Stripe's names, separated by commas: user=customer.id, "
        "user=customer.email, company=customer.id, company=subscription.id. Changed rules are applied to the "
        "customers already known at the next start.",
    )
    permanent_tries_max: int = Field(
        default=5,
        ge=1,
        le=100,
        description="Tries before an event that Stripe or the ledger refuses is parked in the inbox.",
    )
    retry_seconds_max: float = Field(
        default=60.0, gt=0, description="Seconds between tries at most while Stripe or the ledger is down."
    )
    batch_records_max: int = Field(
        default=100, ge=1, le=1000, description="Events taken from the topic at once."
    )
    session_timeout_seconds: float = Field(
        default=10.0,
        ge=1,
        le=300,
        description="Seconds without a heartbeat after which the broker gives a dead process' partitions to another.",
    )
    poll_interval_seconds: float = Field(
        default=900.0,
        ge=0,
        description="Seconds between comparisons with Stripe's own list of events; 0 switches them off. Each is a "
        "read, and Stripe grants an account 10,000 reads a month at least.",
    )
    poll_settling_seconds: int = Field(
        default=SETTLING_SECONDS,
        ge=0,
        le=3600,
        description="Events younger than these seconds are left to their webhooks, which are on their way.",
    )
    fault_point: FaultPoint | None = Field(
        default=None, description="For crash tests: the named place at which the process ends itself."
    )
    fault_hit: int = Field(
        default=1, ge=1, description="For crash tests: at which visit to that place it does so."
    )


class WebhooksServiceSettings(ServiceSettings):
    """Settings of `python -m services.webhooks`."""

    http: HttpSettings = Field(default=HttpSettings(port=8610), description="Where this service listens.")
    stripe: StripeSettings = Field(default=StripeSettings(), description="Stripe.")
    webhooks: WebhooksSettings = Field(default=WebhooksSettings(), description="Taking events in.")

    @model_validator(mode="after")
    def _key_is_usable(self) -> WebhooksServiceSettings:
        key = self.stripe.api_key
        if key is None or not key.get_secret_value():
            raise ValueError("stripe.api_key is required: set TOLLGATE_STRIPE__API_KEY or STRIPE_API_KEY")
        if "_live_" in key.get_secret_value() and not self.stripe.allow_live:
            raise ValueError("a live key needs TOLLGATE_STRIPE__ALLOW_LIVE=true")
        return self
