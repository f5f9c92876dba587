"""What the command line can be told by the environment.

Owns the settings of the operators' commands. They are the services' own names, so one environment serves all.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, SecretStr

from services.cli.cutover_faults import CutoverStep
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
        description="Partitions of gateway.events: the most meter workers that can share the work. Only `tollgate cutover` "
        "changes it once used.",
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


class RetentionSettings(SettingsGroup):
    """How long `maintain` keeps what grows with time. 0 keeps for ever."""

    billed_days: int = Field(
        default=400,
        ge=0,
        description="Days after the end of a billing period that its usage and postings are kept, once it is billed, "
        "reconciled and settled; 125 at least. Thirteen months show the same month of the year before.",
    )
    unbilled_days: int = Field(
        default=800,
        ge=0,
        description="Days after its window that usage is kept which nobody was asked to pay: held, or of a meter that is "
        "not sent. At least billed_days.",
    )
    evidence_days: int = Field(
        default=2_557,
        ge=0,
        description="Days after the end of a billing period that the result of its reconciliation is kept. At least "
        "billed_days.",
    )
    inbox_days: int = Field(
        default=60,
        ge=0,
        description="Days that the ids of webhook events are kept against their being sent again; 36 at least.",
    )
    rejections_days: int = Field(
        default=120,
        ge=0,
        description="Days that refusals of postings are kept, once acted upon; 36 at least.",
    )
    instances_days: int = Field(
        default=35,
        ge=0,
        description="Days after the last sign of an ingest instance until its counts are added up with those of others "
        "that ended. Longer than the log of events is kept.",
    )
    audit_days: int = Field(
        default=0,
        ge=0,
        description="Days that the audit trail is kept; for ever by default. At least unbilled_days.",
    )


class ArchiveSettings(SettingsGroup):
    """Where the archive is."""

    directory: str | None = Field(
        default=None,
        description="Directory of the archive, or its URL, which `doctor` then looks at.",
    )


class CliSettings(ServiceSettings):
    """Settings of the operators' commands."""

    stripe: StripeSettings = Field(default=StripeSettings(), description="Stripe.")
    topics: TopicSettings = Field(default=TopicSettings(), description="Topics, as `init` creates them.")
    rules: RuleSettings = Field(
        default=RuleSettings(), description="Lateness: what `init` pins, and every meter counts by."
    )
    retention: RetentionSettings = Field(default=RetentionSettings(), description="How long what is kept.")
    archive: ArchiveSettings = Field(default=ArchiveSettings(), description="The archive.")
    cutover_fault: CutoverStep | None = Field(
        default=None, description="For crash tests alone: step of a cut-over at which to die."
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
