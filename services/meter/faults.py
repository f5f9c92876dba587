"""Fault points: the named steps at which a test may let this process die.

Owns their names and the dying. It refuses to know what the steps do. In production nothing is armed and reaching a
point costs one comparison.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum

EXIT_CRASHED = 137
"""What a shell reports after SIGKILL: nothing is unwound, nothing is flushed."""


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


def _crash() -> None:
    os._exit(EXIT_CRASHED)


class Faults:
    """Dies at the `hits`-th time the armed point is reached. Unarmed (the default) it does nothing."""

    def __init__(
        self, armed: FaultPoint | None = None, hits: int = 1, crash: Callable[[], None] = _crash
    ) -> None:
        self._armed = armed
        self._left = hits
        self._crash = crash

    def reach(self, point: FaultPoint) -> None:
        """The process is at `point` now."""
        if point is self._armed:
            self._left -= 1
            if self._left == 0:
                self._crash()
