"""A process' clock in virtual time: wall time may be stepped, elapsed time never.

Owns both readings. It refuses to know who steps it and why.
"""

from __future__ import annotations

import asyncio

from tests.simulation.scheduler import Loop


class VirtualClock:
    """Implements `tollgate.runtime.clock.Clock`. `epoch_ms`: wall time when the loop's time is zero."""

    def __init__(self, loop: Loop, epoch_ms: int) -> None:
        self._loop = loop
        self._epoch_ms = epoch_ms
        self.skew_ms = 0
        """How far this machine's wall clock is ahead of the true time."""

    def now_ms(self) -> int:
        return self._epoch_ms + int(self._loop.time() * 1000) + self.skew_ms

    def monotonic_seconds(self) -> float:
        return self._loop.time()

    async def sleep_seconds(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))
