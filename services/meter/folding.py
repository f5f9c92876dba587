"""Folding: step 2 of a flush, and the judgement whether a fold still holds.

Owns the meters in force, the folding thread and the epoch of the staged ids. It refuses to know what happens to a fold
afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import TypeVar

import structlog

from services.meter.book import Book
from services.meter.faults import FaultPoint
from services.meter.flush import Flush, MetersInForce, fold_and_stage
from services.meter.intake import Chunk
from services.meter.metrics import MeterMetrics
from services.meter.partition import AssignedPartition, Partitions
from services.meter.patience import Patience
from tollgate.metering.fold import CompiledMeters
from tollgate.metering.meter import MeterSet
from tollgate.metering.outcome import TimeRules
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults

T = TypeVar("T")

_log = structlog.stdlib.get_logger(__name__)


class Folding:
    """Folds flushes of `partitions`, one at a time. Belongs to one event loop."""

    def __init__(
        self,
        *,
        partitions: Partitions,
        book: Book,
        patience: Patience,
        clock: Clock,
        rules: TimeRules,
        metrics: MeterMetrics,
        faults: Faults[FaultPoint],
        folding: Executor,
        booking: Executor,
        compile_meters: Callable[[MeterSet], CompiledMeters],
    ) -> None:
        """`folding` and `booking` have one thread each; the meters are read on the second."""
        self._partitions = partitions
        self._book = book
        self._patience = patience
        self._clock = clock
        self._rules = rules
        self._metrics = metrics
        self._faults = faults
        self._folding = folding
        self._booking = booking
        self._compile_meters = compile_meters
        self._meters: MetersInForce | None = None
        self._epoch = 0

    async def on_thread(self, work: Callable[[], T]) -> T:
        """Run `work` where seen ids may be touched, after the fold in progress."""
        return await asyncio.get_running_loop().run_in_executor(self._folding, work)

    async def meters(self) -> MetersInForce:
        """The meters in force; waits as long as the ledger is away and they are not known."""
        return self._meters or await self._load_meters()

    def forget_meters(self) -> None:
        """The ledger has others now."""
        self._meters = None

    def new_flush(self, chunks: Mapping[int, Chunk], meters: MetersInForce) -> Flush:
        """A flush of `chunks` by whoever holds their partitions now."""
        assigned = {p: each for p in chunks if (each := self._partitions.get(p)) is not None}
        return Flush(chunks=chunks, assigned=assigned, meters=meters, began=self._clock.monotonic_seconds())

    def live(self, flush: Flush) -> dict[int, AssignedPartition]:
        """The partitions of `flush` that are still in the hands they were taken by."""
        return {p: each for p, each in flush.assigned.items() if self._partitions.holds(each)}

    def is_stale(self, flush: Flush) -> bool:
        """Whether a flush with live partitions was folded with other meters, or lost its staged ids."""
        return bool(self.live(flush)) and (flush.meters is not self._meters or flush.epoch != self._epoch)

    async def fold(self, flush: Flush) -> None:
        """Fold with the meters in force; again, when called again because the first fold is stale.

        Folding again throws away every staged id of the partitions, also those of a flush behind this one: the epoch
        tells that flush.
        """
        flush.meters = await self.meters()
        live = self.live(flush)
        if not live:
            return
        if flush.fold is not None:
            self._epoch += 1
        flush.epoch = self._epoch
        flush.buried.clear()
        began = self._clock.monotonic_seconds()
        flush.fold, flush.freshness = await self.on_thread(lambda: fold_and_stage(flush, live, self._rules))
        self._metrics.folded(self._clock.monotonic_seconds() - began)
        self._faults.reach(FaultPoint.FLUSH_FOLDED)

    async def _load_meters(self) -> MetersInForce:
        """Read and compile the meters in force."""
        loop = asyncio.get_running_loop()
        meter_set = await self._patience.until_available(
            lambda: loop.run_in_executor(self._booking, self._book.meter_set)
        )
        compiled = await self.on_thread(lambda: self._compile_meters(meter_set))
        if self._meters is None or self._meters.version != meter_set.version:
            self._meters = MetersInForce(meter_set.version, compiled, meter_set.partitions)
            _log.info("meters.loaded", version=meter_set.version, meters=len(meter_set.meters))
        return self._meters
