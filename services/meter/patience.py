"""Patience: waiting that something else can end, and waiting for a ledger or a broker that is away.

Owns the bell everybody in the pipeline waits on, and what is said about why nothing moves. It refuses to know what is
being waited for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from tollgate.ledger.errors import LedgerUnavailable
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock

T = TypeVar("T")

_log = structlog.stdlib.get_logger(__name__)


class Bell:
    """Wakes everybody who waits at the moment it is rung. Unlike an Event it has no state to be cleared by one waiter
    under the feet of another: take the future first, look at the world, then wait."""

    def __init__(self) -> None:
        self._waiting: set[asyncio.Future[None]] = set()

    def next_ring(self) -> asyncio.Future[None]:
        """Done at the next ring."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    def ring(self) -> None:
        for future in list(self._waiting):
            if not future.done():
                future.set_result(None)


class Patience:
    """Waits on the injected clock, and remembers what for. Belongs to one event loop."""

    def __init__(self, bell: Bell, clock: Clock, backoff: Backoff) -> None:
        self._bell = bell
        self._clock = clock
        self._backoff = backoff
        self.blocked: str | None = None
        """Why commits do not get through at the moment, in words; None while they do."""

    def block(self, error: Exception) -> None:
        """`error` holds everything up."""
        if self.blocked is None:
            _log.warning("flush.blocked", detail=str(error))
        self.blocked = str(error)

    def unblock(self) -> None:
        """Something got through."""
        if self.blocked is not None:
            _log.info("flush.unblocked")
        self.blocked = None

    async def pause(self, attempt: int, worthwhile: Callable[[], bool] = lambda: True) -> None:
        """Wait before attempt number `attempt + 1`; shorter when a ring makes it no longer `worthwhile`."""
        deadline = self._clock.monotonic_seconds() + self._backoff.delay_seconds(min(attempt, 60))
        while True:
            rung = self._bell.next_ring()
            left = deadline - self._clock.monotonic_seconds()
            if left <= 0 or not worthwhile():
                rung.cancel()
                return
            await self.rung_within(rung, left)

    async def rung_within(self, rung: asyncio.Future[None], seconds: float) -> None:
        """Wait for the bell, for at most `seconds`."""
        sleeping = asyncio.ensure_future(self._clock.sleep_seconds(seconds))
        try:
            await asyncio.wait({rung, sleeping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()

    async def until_available(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What `ask` answers, as soon as the ledger does."""
        attempt = 0
        while True:
            try:
                return await ask()
            except LedgerUnavailable as error:
                self.block(error)
                await self.pause(attempt)
                attempt += 1
