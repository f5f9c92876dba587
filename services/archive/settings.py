"""The archive's settings.

Owns their names, defaults and reasons. It refuses to know the environment: only `__main__` reads it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from services.archive.faults import FaultPoint
from tollgate.runtime.settings import HttpSettings, ServiceSettings, SettingsGroup

_MIB = 1024 * 1024


class FileSettings(SettingsGroup):
    """Where files are written, and when one is closed."""

    directory: Path = Field(
        default=Path("archive"),
        description="Directory of the archive, on a local file system or one whose locks work on every host that mounts "
        "it. Workers that share a directory share the partitions; another directory is another archive.",
    )
    file_bytes_max: int = Field(
        default=256 * _MIB,
        ge=1024,
        description="Bytes written to a file after which it is closed; a new hour closes it anyway.",
    )
    file_seconds_max: float = Field(
        default=3900.0,
        gt=0,
        description="Seconds after which a file is closed even if nothing of a later hour arrives. Above an hour, so that "
        "a partition with traffic, or with ticks alone, has a file an hour.",
    )
    row_group_bytes: int = Field(
        default=16 * _MIB,
        ge=1024,
        description="Bytes of a partition's rows held in memory before they are written as one row group. Larger ones "
        "compress and read better.",
    )
    held_bytes_max: int = Field(
        default=128 * _MIB,
        ge=1024,
        description="Bytes of rows held in memory by all partitions together; past it the largest is written early.",
    )
    zstd_level: int = Field(default=3, ge=1, le=22, description="How hard rows are compressed.")

    @model_validator(mode="after")
    def _bounds_fit(self) -> FileSettings:
        if self.row_group_bytes > self.held_bytes_max:
            raise ValueError("row_group_bytes <= held_bytes_max must hold")
        return self


class GroupSettings(SettingsGroup):
    """Membership of the consumer group, which only shares out the work."""

    name: str = Field(
        default="tollgate-archive",
        min_length=1,
        description="Consumer group; the archive's own id is put behind it, so that two directories never share one.",
    )
    session_timeout_seconds: float = Field(
        default=30.0,
        gt=0,
        description="Seconds without heartbeat after which a worker's partitions go to others.",
    )


class FetchSettings(SettingsGroup):
    """How records are fetched."""

    bytes_max: int = Field(
        default=8 * _MIB,
        ge=1024,
        description="Bytes one answer of a broker holds at most (or one record).",
    )
    records_max: int = Field(default=2000, ge=1, description="Records taken from the client at a time.")


class FaultSettings(SettingsGroup):
    """For crash tests alone: dies at a named step, as by SIGKILL."""

    point: FaultPoint | None = Field(
        default=None, description="Step at which to die; never set outside tests."
    )
    hits: int = Field(default=1, ge=1, description="The how-manieth time the step is reached.")


class ArchiveSettings(ServiceSettings):
    """What `services/archive` can be told."""

    http: HttpSettings = Field(default=HttpSettings(port=8660), description="Health and metrics.")
    archive: FileSettings = Field(default=FileSettings(), description="Files.")
    archive_group: GroupSettings = Field(default=GroupSettings(), description="The consumer group.")
    archive_fetch: FetchSettings = Field(default=FetchSettings(), description="Fetching.")
    archive_fault: FaultSettings = Field(default=FaultSettings(), description="Crash tests.")
    stuck_seconds: float = Field(
        default=120.0,
        gt=0,
        description="Seconds without a turn of the work after which /livez asks for a restart.",
    )
