"""Ingest time: the wall time records and ticks are stamped with.

Owns one promise a tick makes: what is written after it is stamped no earlier. A wall clock set back by a little, as
time synchronisation does, is waited out; one set back by more is followed, since it must have been badly wrong.
"""

from __future__ import annotations

from tollgate.runtime.clock import Clock

_STEP_BACK_MS_MAX = 60_000


class IngestTime:
    """A wall clock that does not go back by less than a minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last_ms = 0

    def now_ms(self) -> int:
        """Epoch milliseconds, not below an earlier answer unless the clock was set back by a minute or more."""
        now_ms = self._clock.now_ms()
        if now_ms < self._last_ms and self._last_ms - now_ms < _STEP_BACK_MS_MAX:
            return self._last_ms
        self._last_ms = now_ms
        return now_ms
