"""The meter's settings.

Owns their names, defaults and reasons. It refuses to know the environment: only `__main__` reads it.
"""

from __future__ import annotations

from pydantic import Field, model_validator

from services.meter.faults import FaultPoint
from tollgate.runtime.settings import HttpSettings, ServiceSettings, SettingsGroup

_MIB = 1024 * 1024


class FlushSettings(SettingsGroup):
    """When a flush begins and how much it holds."""

    interval_ms: int = Field(
        default=250,
        ge=10,
        le=60_000,
        description="Milliseconds from one flush to the next while events arrive and flushes are quick: the least age of "
        "usage in the ledger.",
    )
    interval_max_ms: int = Field(
        default=1000,
        ge=10,
        le=60_000,
        description="Milliseconds from one flush to the next while flushes take long. A flush costs by the usage rows it "
        "touches, and those hardly grow with the events, so a busy meter counts cheaper when it waits. Not above interval_ms: "
        "flushes never wait longer than that.",
    )
    eager_bytes: int = Field(
        default=16 * _MIB,
        ge=1024,
        description="Bytes waiting that begin a flush at once. Larger flushes cost less per event while catching up.",
    )
    bytes_max: int = Field(
        default=32 * _MIB, ge=1024, description="Bytes one flush takes at most (and one record more)."
    )
    held_bytes_max: int = Field(
        default=96 * _MIB,
        ge=1024,
        description="Bytes of records this process holds at most, waiting or being flushed: past it the log is not read.",
    )
    misses_max: int = Field(
        default=5,
        ge=1,
        description="Flushes of one partition in a row that may find another worker was first, before this one exits.",
    )

    @model_validator(mode="after")
    def _bounds_fit(self) -> FlushSettings:
        if not self.eager_bytes <= self.bytes_max <= self.held_bytes_max:
            raise ValueError("eager_bytes <= bytes_max <= held_bytes_max must hold")
        return self


class GroupSettings(SettingsGroup):
    """Membership of the consumer group."""

    name: str = Field(
        default="tollgate-meter",
        min_length=1,
        description="Consumer group; all workers of one ledger share it.",
    )
    instance: str | None = Field(
        default=None,
        description="Name for static membership: a restart within the session keeps its partitions. Unique per worker.",
    )
    session_timeout_seconds: float = Field(
        default=30.0,
        gt=0,
        description="Seconds without heartbeat after which a worker's partitions go to others.",
    )
    heartbeat_seconds: float = Field(
        default=3.0, gt=0, description="Seconds between heartbeats; at most a third of the session timeout."
    )
    commit_interval_seconds: float = Field(
        default=5.0,
        gt=0,
        description="Seconds between writing the group's offset, a hint for Kafka's own tools.",
    )

    @model_validator(mode="after")
    def _heartbeats_fit(self) -> GroupSettings:
        if self.heartbeat_seconds * 3 > self.session_timeout_seconds:
            raise ValueError("heartbeat_seconds must be at most a third of session_timeout_seconds")
        return self


class FetchSettings(SettingsGroup):
    """How records are fetched."""

    partition_bytes_max: int = Field(
        default=8 * _MIB,
        ge=1024,
        description="Bytes fetched of one partition at a time; at least the largest record ingest writes.",
    )
    bytes_max: int = Field(
        default=8 * _MIB,
        ge=1024,
        description="Bytes one answer of a broker holds at most (or one record). Larger answers cost more a byte.",
    )
    records_max: int = Field(default=100, ge=1, description="Records handed on per poll.")


class WatchdogSettings(SettingsGroup):
    """When the process gives up."""

    stuck_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Seconds a partition may have records waiting and not move, or the event loop not turn.",
    )
    outage_seconds: float = Field(
        default=3600.0,
        gt=0,
        description="Seconds the broker or the ledger may be unreachable before a restart is tried.",
    )
    lag_interval_seconds: float = Field(
        default=5.0, gt=0, description="Seconds between asking the broker how far the log reaches."
    )


class FaultSettings(SettingsGroup):
    """For crash tests alone: dies at a named step, as by SIGKILL."""

    point: FaultPoint | None = Field(
        default=None, description="Step at which to die; never set outside tests."
    )
    hits: int = Field(default=1, ge=1, description="The how-manieth time the step is reached.")


class MeterSettings(ServiceSettings):
    """What `services/meter` can be told."""

    http: HttpSettings = Field(default=HttpSettings(port=8640), description="Health and metrics.")
    flush: FlushSettings = Field(default=FlushSettings(), description="Flushes.")
    group: GroupSettings = Field(default=GroupSettings(), description="The consumer group.")
    fetch: FetchSettings = Field(default=FetchSettings(), description="Fetching.")
    watchdog: WatchdogSettings = Field(default=WatchdogSettings(), description="Giving up.")
    fault: FaultSettings = Field(default=FaultSettings(), description="Crash tests.")
