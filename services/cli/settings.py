"""What the command line can be told by the environment.

Owns the settings of the operators' commands. They are the services' own names, so one environment serves all.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr

from tollgate.contracts.topics import DEFAULT_PARTITIONS
from tollgate.runtime.settings import AlsoFrom, ServiceSettings, SettingsGroup


class StripeSettings(SettingsGroup):
    """How to reach Stripe."""

    api_key: Annotated[SecretStr | None, AlsoFrom("STRIPE_API_KEY")] = Field(
        default=None, description="Secret or restricted key (sk_…, rk_…)."
    )
    api_base: str | None = Field(
        default=None,
        description="Address of Stripe's API; the sandbox's stand-in when set, Stripe itself otherwise.",
    )


class TopicSettings(SettingsGroup):
    """How `init` creates topics."""

    partitions: int = Field(
        default=DEFAULT_PARTITIONS,
        ge=1,
        le=10_000,
        description="Partitions of gateway.events: the most meter workers that can share the work. Fixed once used.",
    )
    replication_factor: int = Field(
        default=1,
        ge=1,
        le=10,
        description="Copies of each topic. Three in production, with min_insync_replicas 2.",
    )
    min_insync_replicas: int = Field(
        default=1, ge=1, le=10, description="Copies that must have a record before it counts as acknowledged."
    )


class RuleSettings(SettingsGroup):
    """How old or how early an event may be, as `init` writes it into the ledger, where meter and recount read it."""

    accept_age_hours: int = Field(
        default=72,
        ge=1,
        description="Hours an event may be old when it is ingested; older ones are late. "
        "Pinned in the ledger by the first `init` and fixed from then on.",
    )
    future_seconds: int = Field(
        default=300,
        ge=0,
        description="Seconds an event may be ahead of its ingest time; beyond, it is dead. "
        "Pinned in the ledger by the first `init` and fixed from then on.",
    )


class CliSettings(ServiceSettings):
    """Settings of the operators' commands."""

    stripe: StripeSettings = Field(default=StripeSettings(), description="Stripe.")
    topics: TopicSettings = Field(default=TopicSettings(), description="Topics, as `init` creates them.")
    rules: RuleSettings = Field(
        default=RuleSettings(), description="Lateness: what `init` pins, and every meter counts by."
    )
    id_seed: SecretStr | None = Field(
        default=None,
        description="The installation's secret seed of event-id hashes: the same text for ingest and init.",
    )
    ingest_url: str = Field(
        default="http://127.0.0.1:8600", description="Where ingest listens, for `dead replay`."
    )
    replay_token: SecretStr | None = Field(
        default=None, description="Token with the scope `replay`, for `dead replay`."
    )
