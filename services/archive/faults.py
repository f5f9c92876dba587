"""The archive's fault points, in order. What reaching one does is `tollgate.runtime.faults`."""

from __future__ import annotations

from enum import StrEnum


class FaultPoint(StrEnum):
    """The steps between a record's arrival and the last trace of it, in order."""

    PARTITION_LOADED = "partition_loaded"
    """It is known what of a partition is archived; nothing of it was fetched."""
    RECORDS_HELD = "records_held"
    """Records are in memory."""
    FILE_OPENED = "file_opened"
    """A file in the making is there, and empty."""
    ROWS_WRITTEN = "rows_written"
    """A row group is in it."""
    FILE_CLOSED = "file_closed"
    """It is complete, perhaps not on the disk."""
    FILE_SYNCED = "file_synced"
    """It is on the disk, under the name of a file in the making."""
    LOCKED = "locked"
    """The partition's lock is held, and nobody was quicker."""
    HOUR_MADE = "hour_made"
    """Its hour's directory is there."""
    FILE_RENAMED = "file_renamed"
    """It has its name, perhaps not on the disk."""
    FILE_ARCHIVED = "file_archived"
    """It is there for good; memory and the group's offset do not know it."""
    GROUP_COMMITTED = "group_committed"
    """The consumer group's offset is committed."""
    REVOKED = "revoked"
    """The group takes partitions away; what is open has not been closed."""
