"""Waiting until nothing is written and everything is counted.

Owns that judgement: two looks at the log's ends, far enough apart, and the ledger's offsets between them. It refuses to
know where either is read.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from tollgate.ledger.cutover import NotDrained, find_behind
from tollgate.runtime.clock import Clock, SystemClock

_LOOK_SECONDS = 0.5


class StillWriting(Exception):
    """The log grows: an ingest runs, or something else writes to it."""


class Patience:
    """How long the log must stand still, and how long meters may take."""

    def __init__(self, quiet_seconds: float, wait_seconds: float, clock: Clock | None = None) -> None:
        self._quiet_seconds = quiet_seconds
        self._wait_seconds = wait_seconds
        self._clock = clock or SystemClock()

    async def until_drained(
        self,
        read_ends: Callable[[], Awaitable[Mapping[int, int]]],
        read_counted: Callable[[], Mapping[int, int]],
    ) -> Mapping[int, int]:
        """The log's ends, by partition, once the ledger has counted up to them and they have not moved for as long as
        asked.

        Raises StillWriting when they move, NotDrained when the ledger is not there in time.
        """
        ends = await read_ends()
        began = self._clock.monotonic_seconds()
        await self._clock.sleep_seconds(self._quiet_seconds)
        behind = find_behind(read_counted(), ends)
        while behind and self._clock.monotonic_seconds() - began < self._quiet_seconds + self._wait_seconds:
            await self._clock.sleep_seconds(_LOOK_SECONDS)
            behind = find_behind(read_counted(), ends)
        later = await read_ends()
        moved = sorted(partition for partition, end in later.items() if ends.get(partition) != end)
        if moved:
            raise StillWriting(
                f"partitions {', '.join(map(str, moved))} grew while they were watched: stop every ingest first "
                "(and let nobody amend)"
            )
        if behind:
            raise NotDrained(behind)
        return ends
