"""Fault points: named places where a test may kill this process.

Owns the names and the kill. Nothing happens at any of them unless a setting names it.
"""

from __future__ import annotations

import os
from enum import StrEnum

EXIT_CODE = 137
"""What a shell reports of a process ended by SIGKILL."""


class FaultPoint(StrEnum):
    """Where a crash is worth trying."""

    STORED = "stored"
    """The broker has acknowledged the event, Stripe has not been answered."""
    FETCHED = "fetched"
    """The object is fetched, the ledger not written."""
    PROJECTED = "projected"
    """The ledger is written, the offset not committed."""
    COMMITTED = "committed"


class FaultPoints:
    """Ends the process at once when it reaches the point named, at its `hit`-th time there (1 is the first)."""

    def __init__(self, point: FaultPoint | None = None, hit: int = 1) -> None:
        self._point = point
        self._left = hit

    def reach(self, point: FaultPoint) -> None:
        """Say that the process is here now."""
        if point is not self._point:
            return
        self._left -= 1
        if self._left == 0:
            os._exit(EXIT_CODE)
