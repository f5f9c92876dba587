"""The meter's fault points, in order. What reaching one does is `tollgate.runtime.faults`."""

from __future__ import annotations

from enum import StrEnum


class FaultPoint(StrEnum):
    """The steps between a record's arrival and its last trace, in order."""

    PARTITION_LOADED = "partition_loaded"
    """A partition's progress and seen ids are in memory, nothing of it was fetched."""
    RECORD_APPENDED = "record_appended"
    """A record is in the intake."""
    FLUSH_TAKEN = "flush_taken"
    """A flush has its records, nothing is folded."""
    FLUSH_FOLDED = "flush_folded"
    """The fold is done and its ids are staged; nothing left the process."""
    DEAD_PRODUCED = "dead_produced"
    """The flush's dead letters are acknowledged; the ledger knows nothing of the flush."""
    LEDGER_COMMITTED = "ledger_committed"
    """The ledger's transaction is durable; memory and the group offset do not know it."""
    GROUP_COMMITTED = "group_committed"
    """The consumer group's offset is committed."""
    REVOKED = "revoked"
    """The group takes partitions away; what is pending has not been flushed."""
