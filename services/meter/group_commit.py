"""The group's offset: a hint for Kafka's tools, written every few seconds after the ledger's commits.

Owns when it is written and that there is never more than one attempt under way: with the broker down an attempt
blocks for over a minute and a second would fill the client's queue. It refuses to know how it is written. Nothing
depends on the hint: reading starts where the ledger says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog

from services.meter.faults import FaultPoint
from services.meter.partition import Partitions
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults

_log = structlog.stdlib.get_logger(__name__)


class GroupCommit:
    """Writes the committed offsets of `partitions`. `commit` returns whether the group took them."""

    def __init__(
        self,
        *,
        partitions: Partitions,
        commit: Callable[[Mapping[int, int]], Awaitable[bool]],
        clock: Clock,
        interval_seconds: float,
        faults: Faults[FaultPoint],
    ) -> None:
        self._partitions = partitions
        self._commit = commit
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._faults = faults
        self._written: dict[int, int] = {}
        self._attempt: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Write every interval, for ever."""
        while True:
            await self._clock.sleep_seconds(self._interval_seconds)
            self._begin()

    async def now(self, timeout_seconds: float) -> None:
        """Write what is not written, waiting at most `timeout_seconds`; gives up silently, it is a hint."""
        attempt = self._begin()
        if attempt is not None:
            await asyncio.wait({attempt}, timeout=timeout_seconds)

    def revoked(self) -> None:
        """The group forgets nothing, but others write from now on."""
        self._written.clear()

    def _begin(self) -> asyncio.Task[None] | None:
        """Start an attempt unless one is under way or there is nothing new."""
        if self._attempt is not None and not self._attempt.done():
            return None
        offsets = {
            partition: offset
            for partition, offset in self._partitions.committed_offsets().items()
            if self._written.get(partition) != offset
        }
        if not offsets:
            return None
        self._attempt = asyncio.create_task(self._write(offsets), name="meter-group-commit")
        return self._attempt

    async def _write(self, offsets: Mapping[int, int]) -> None:
        try:
            taken = await self._commit(offsets)
        except Exception as error:
            # Whatever the client library raises: the ledger has the truth, and the next interval tries again.
            _log.warning("group_offset.refused", detail=repr(error))
            return
        if taken:
            self._written.update(offsets)
            self._faults.reach(FaultPoint.GROUP_COMMITTED)
