"""Lag: how much of the log is not in the ledger, asked of the broker beside the hot path.

Owns the asking, the gauge and the pulse the watchdog listens to. It refuses to know how records travel: that is the
point, a reader that hangs must not be the one to say that there is nothing to read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import structlog

from services.meter.intake import Intake
from services.meter.log import Log, LogBounds, LogUnavailable
from services.meter.metrics import MeterMetrics
from services.meter.partition import Partitions
from services.meter.watchdog import IDLE, Pulse
from tollgate.runtime.clock import Clock

_log = structlog.stdlib.get_logger(__name__)

PULSE_SECONDS = 1.0


class LagWatch:
    """Looks every `interval_seconds`; `pulse` is fresh every second. `excuse` says what else keeps work from moving,
    `joining` whether the group has yet to assign.

    `suspect(partition, why)` is called when the log no longer reaches what was read of it.
    """

    def __init__(
        self,
        *,
        partitions: Partitions,
        intake: Intake,
        log: Log,
        clock: Clock,
        interval_seconds: float,
        metrics: MeterMetrics,
        excuse: Callable[[], str | None],
        joining: Callable[[], bool],
        suspect: Callable[[int, str], None],
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        self._partitions = partitions
        self._intake = intake
        self._log = log
        self._clock = clock
        self._interval_seconds = interval_seconds
        self._metrics = metrics
        self._excuse = excuse
        self._joining = joining
        self._suspect = suspect
        self._beat = beat
        self._bounds: Mapping[int, LogBounds] = {}
        self._unreachable: str | None = None
        self.pulse: Pulse = IDLE

    @property
    def unreachable(self) -> str | None:
        """Why the broker did not answer when last asked; None when it did."""
        return self._unreachable

    async def run(self) -> None:
        """Ask every interval, for ever."""
        while True:
            await self.look()
            await self._clock.sleep_seconds(self._interval_seconds)

    async def run_pulse(self) -> None:
        """Pulse every second, for ever: stops when the event loop does, and not when the broker is slow."""
        while True:
            self.beat()
            await self._clock.sleep_seconds(PULSE_SECONDS)

    def beat(self) -> None:
        """One pulse: what waits in the log, and where the ledger stands."""
        waiting = {
            each.partition: each.committed_offset
            for each in self._partitions
            if (bounds := self._bounds.get(each.partition)) is not None and bounds.end > each.committed_offset
        }
        excuse = self._unreachable or self._excuse()
        self.pulse = Pulse(self.pulse.beats + 1, waiting, excuse, self._joining())
        self._metrics.held(self._intake.held_bytes)
        self._beat()

    async def look(self) -> None:
        """Ask the broker once."""
        asked = {each.partition: each for each in self._partitions}
        try:
            bounds = await self._log.bounds(tuple(asked))
        except LogUnavailable as error:
            if self._unreachable is None:
                _log.warning("log.unreachable", detail=str(error))
            self._unreachable = f"the broker does not answer: {error}"
            return
        if self._unreachable is not None:
            _log.info("log.reachable")
        self._unreachable = None
        self._bounds = bounds
        for partition, found in bounds.items():
            if not self._partitions.holds(asked[partition]):
                continue
            self._metrics.lag(partition, max(0, found.end - asked[partition].committed_offset))
            next_offset = self._intake.next_offset(partition)
            if next_offset is not None and not found.start <= next_offset <= found.end:
                self._suspect(
                    partition, f"the log holds [{found.start}, {found.end}), {next_offset} is due next"
                )
