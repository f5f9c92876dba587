"""Fault points: named steps at which a test may let a process die as if by SIGKILL.

Owns the counting and the dying. It refuses to know the names: each service lists its own steps. In production nothing
is armed and reaching a point costs one comparison.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum
from typing import Generic, TypeVar

EXIT_CRASHED = 137
"""What a shell reports after SIGKILL: nothing is unwound, nothing is flushed."""

P = TypeVar("P", bound=StrEnum)


def _crash() -> None:
    os._exit(EXIT_CRASHED)


class Faults(Generic[P]):
    """Dies when the armed point is reached for the `hits`-th time. Unarmed (the default) it does nothing."""

    def __init__(self, armed: P | None = None, hits: int = 1, crash: Callable[[], None] = _crash) -> None:
        self._armed = armed
        self._left = hits
        self._crash = crash

    def reach(self, point: P) -> None:
        """The process is at `point` now."""
        if point is self._armed:
            self._left -= 1
            if self._left == 0:
                self._crash()
