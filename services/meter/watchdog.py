"""The watchdog: this process never stays up counting nothing.

Owns the judgement of when to give up, and the thread that ends the process then. It refuses to know why nothing
moves. It runs on a thread of its own, because what it guards against includes an event loop that hangs.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from tollgate.runtime.clock import Clock

_log = structlog.stdlib.get_logger(__name__)

CHECK_SECONDS = 1.0
JOINING_FACTOR = 3
"""A slow peer may hold up the whole group for its rebalance timeout, so joining is given longer than a flush."""
STEP_SECONDS_MAX = 3.0
"""At most this much of the time between two checks counts: after a suspend or SIGSTOP nobody had a chance."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the event loop last said about itself."""

    beats: int
    """Raised at each pulse."""
    offsets: Mapping[int, int]
    """The ledger's next offset of each partition that has records waiting in the log."""
    excuse: str | None
    """Why nothing can move though this process is well (broker or ledger unreachable), in words."""
    joining: bool = False
    """Whether the group has yet to say what this process counts."""


IDLE = Pulse(beats=0, offsets={}, excuse=None)


class Judge:
    """Adds up for how long nothing has moved. Pure: told the time, tells the verdict."""

    def __init__(self, stuck_seconds: float, outage_seconds: float) -> None:
        self._stuck_seconds = stuck_seconds
        self._outage_seconds = outage_seconds
        self._last: Pulse | None = None
        self._hung = 0.0
        self._excused = 0.0
        self._joining = 0.0
        self._still: dict[int, float] = {}

    def verdict(self, elapsed_seconds: float, pulse: Pulse) -> str | None:
        """Why to give up, or None. `elapsed_seconds` since the last call."""
        step = min(elapsed_seconds, STEP_SECONDS_MAX)
        last, self._last = self._last, pulse
        if last is None:
            return None
        self._hung = self._hung + step if pulse.beats == last.beats else 0.0
        if self._hung > self._stuck_seconds:
            return f"the event loop has not turned for {self._hung:.0f} s"
        if pulse.excuse is not None:
            self._excused += step
            if self._excused > self._outage_seconds:
                return f"for {self._excused:.0f} s: {pulse.excuse}"
            return None
        self._excused = 0.0
        self._joining = self._joining + step if pulse.joining else 0.0
        if self._joining > JOINING_FACTOR * self._stuck_seconds:
            return f"the group has given no assignment for {self._joining:.0f} s"
        self._still = {
            partition: self._still.get(partition, 0.0) + step
            if last.offsets.get(partition) == offset
            else 0.0
            for partition, offset in pulse.offsets.items()
        }
        for partition, still in self._still.items():
            if still > self._stuck_seconds:
                return f"partition {partition} has records waiting and has not moved for {still:.0f} s"
        return None


class Watchdog:
    """Asks `pulse` every second, from its own thread, and calls `end` with the reason when the judge gives up."""

    def __init__(
        self, judge: Judge, pulse: Callable[[], Pulse], clock: Clock, end: Callable[[str], None]
    ) -> None:
        self._judge = judge
        self._pulse = pulse
        self._clock = clock
        self._end = end
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Return once it will not end the process any more."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        last = self._clock.monotonic_seconds()
        while not self._stopped.wait(CHECK_SECONDS):
            now = self._clock.monotonic_seconds()
            reason = self._judge.verdict(now - last, self._pulse())
            last = now
            if reason is not None:
                _log.critical("watchdog.gave_up", reason=reason)
                self._end(reason)
                return
