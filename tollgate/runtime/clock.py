"""The clock: the only place where a process learns what time it is.

Owns reading the time and waiting for it, real and virtual. It refuses to know what the time is used for.
Rules never hold a clock; they are given times.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from typing import Protocol


class Clock(Protocol):
    """Wall time, elapsed time and waiting. Injected, so that a test can be the one who turns the hands."""

    def now_ms(self) -> int:
        """Wall time in milliseconds since the epoch, UTC. May step backwards; never measure a duration with it."""
        ...

    def monotonic_seconds(self) -> float:
        """Seconds since an arbitrary moment. Never goes backwards."""
        ...

    async def sleep_seconds(self, seconds: float) -> None:
        """Return once `seconds` have passed. Zero or less gives the event loop one turn."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_seconds(self) -> float:
        return time.monotonic()

    async def sleep_seconds(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class ManualClock:
    """Virtual time: it stands still until `advance_ms` is called, then wakes every sleeper that is due.

    Sleepers wake in the order they are due (ties: in the order they went to sleep). They run on the next turn
    of the event loop, not inside `advance_ms`: await something after advancing. A sleeper that goes back to
    sleep counts from the time already reached. Belongs to one event loop; not thread-safe.
    """

    def __init__(self, now_ms: int = 0) -> None:
        self._now_ms = now_ms
        self._elapsed_ms = 0
        self._sleepers: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    @property
    def sleepers(self) -> int:
        """How many are asleep: what a test waits for before it advances."""
        return sum(not future.done() for _, _, future in self._sleepers)

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic_seconds(self) -> float:
        return self._elapsed_ms / 1000

    def advance_ms(self, ms: int) -> None:
        """Move wall and elapsed time forward by `ms`. Raises ValueError for a negative amount."""
        if ms < 0:
            raise ValueError(f"time cannot be advanced by {ms} ms")
        self._now_ms += ms
        self._elapsed_ms += ms
        while self._sleepers and self._sleepers[0][0] <= self._elapsed_ms:
            _, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)

    def set_now_ms(self, now_ms: int) -> None:
        """Step wall time alone, backwards too, as an administrator or NTP would. Wakes nobody."""
        self._now_ms = now_ms

    async def sleep_seconds(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        # Rounded up: waking a millisecond late is allowed, early is not.
        due_ms = self._elapsed_ms + math.ceil(seconds * 1000)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (due_ms, next(self._order), future))
        await future
