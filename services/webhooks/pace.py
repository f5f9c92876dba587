"""The pace of calls: no more than so many a second, evenly spread.

Owns the spacing. It refuses to know what is called. Stripe's limits are per account and shared with the service that
posts usage, whose calls are worth more: a backlog of webhooks must not use them up.
"""

from __future__ import annotations

from tollgate.runtime.clock import Clock


class Pace:
    """Lets callers through one at a time, at least `1 / calls_per_second` apart. One event loop."""

    def __init__(self, calls_per_second: float, clock: Clock) -> None:
        if calls_per_second <= 0:
            raise ValueError("a pace needs more than 0 calls a second")
        self._gap_seconds = 1 / calls_per_second
        self._clock = clock
        self._next_seconds = 0.0

    async def take_turn(self) -> None:
        """Return when the caller may make its call. Turns are given in the order they were asked for."""
        now = self._clock.monotonic_seconds()
        turn_seconds = max(now, self._next_seconds)
        self._next_seconds = turn_seconds + self._gap_seconds
        if turn_seconds > now:
            await self._clock.sleep_seconds(turn_seconds - now)
