"""The fault points of a cut-over, in order. What reaching one does is `tollgate.runtime.faults`."""

from __future__ import annotations

from enum import StrEnum


class CutoverStep(StrEnum):
    """Where a test may let the command die, in order."""

    DRAINED = "drained"
    """Everything is counted; nothing has been changed."""
    IDS_BEGUN = "ids_begun"
    """A day of ids of one new partition is there."""
    IDS_COPIED = "ids_copied"
    """All are."""
    TOPIC_GROWN = "topic_grown"
    """The topic has its partitions, the ledger does not know of them."""
    SWITCHED = "switched"
    """The ledger is at the new count, and nobody has been told."""
