"""A window: the half-open UTC interval `[start, start + size)` an event's time falls in.

Owns the sizes a meter may have and the arithmetic of starts. It refuses to know what is counted in a window.
"""

from __future__ import annotations

from enum import StrEnum

_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS

DAY_MS = 24 * _HOUR_MS
"""A UTC day. Epoch time has no leap seconds, so every day has the same length."""


class WindowSize(StrEnum):
    """How long a meter's windows are. Each divides a day, so windows never straddle a UTC midnight."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"

    @property
    def size_ms(self) -> int:
        """Length in milliseconds."""
        return _SIZES_MS[self]


_SIZES_MS = {WindowSize.MINUTE: _MINUTE_MS, WindowSize.HOUR: _HOUR_MS, WindowSize.DAY: DAY_MS}


def assign_window(time_ms: int, size_ms: int) -> int:
    """The start of the window that holds `time_ms` (epoch milliseconds); also right before 1970."""
    return time_ms - time_ms % size_ms


def epoch_day(time_ms: int) -> int:
    """Days since 1970-01-01 UTC of an instant, rounded down."""
    return time_ms // DAY_MS
