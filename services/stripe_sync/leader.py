"""Leadership: holding the lease, and knowing without asking when it may have gone.

Owns taking, renewing and giving back. It refuses to know what the leader does.

No two machines' clocks are compared. A standby takes over when the lease row has stood still for the lease's whole
duration on its own monotonic clock; the leader stops counting itself as one the same duration after it *began* its
last successful renewal, on its own. Even a leader that oversleeps changes nothing: every change carries the version.
"""

from __future__ import annotations

import asyncio

import structlog

from services.stripe_sync.book import Threads
from tollgate.ledger.engine import CommitUnknown, Engine, LedgerUnavailable
from tollgate.ledger.leases import (
    RELEASED,
    Lease,
    LeaseLost,
    Observation,
    read_lease,
    release_lease,
    renew_lease,
    take_lease,
)
from tollgate.runtime.clock import Clock

_log = structlog.get_logger(__name__)

LEASE_NAME = "stripe_sync"


class Leadership:
    """One process' claim to lead."""

    def __init__(
        self, engine: Engine, threads: Threads, clock: Clock, holder: str, lease_seconds: float
    ) -> None:
        self._engine = engine
        self._threads = threads
        self._clock = clock
        self._holder = holder
        self._lease_seconds = lease_seconds
        self._valid_until_seconds = 0.0

    def is_valid(self) -> bool:
        """Whether no other process can have taken over yet. Asked right before every call to Stripe."""
        return self._clock.monotonic_seconds() < self._valid_until_seconds

    async def acquire(self) -> Lease:
        """Wait until the lease is ours. Ledger outages are waited out."""
        watched: Observation | None = None
        since_seconds = self._clock.monotonic_seconds()
        while True:
            began = self._clock.monotonic_seconds()
            try:
                seen = await self._threads.call(read_lease, self._engine, LEASE_NAME)
                if seen != watched:
                    watched, since_seconds = seen, began
                still_seconds = began - since_seconds
                if seen is None or seen.holder == RELEASED or still_seconds >= self._lease_seconds:
                    lease = await self._threads.call(
                        take_lease, self._engine, LEASE_NAME, self._holder, seen, self._expires_ms()
                    )
                    if lease is not None:
                        self._valid_until_seconds = began + self._lease_seconds
                        return lease
            except (LedgerUnavailable, CommitUnknown) as error:
                _log.warning("lease.not_read", error=str(error))
            await self._clock.sleep_seconds(self._lease_seconds / 5)

    async def keep(self, lease: Lease) -> None:
        """Renew for as long as it goes well. Raises LeaseLost; never returns."""
        while True:
            await self._clock.sleep_seconds(self._lease_seconds / 5)
            began = self._clock.monotonic_seconds()
            try:
                await self._threads.call(renew_lease, self._engine, lease, self._expires_ms())
                self._valid_until_seconds = began + self._lease_seconds
            except (LedgerUnavailable, CommitUnknown) as error:
                _log.warning("lease.not_renewed", error=str(error))
                if not self.is_valid():
                    raise LeaseLost(
                        "the ledger could not be reached for as long as the lease lasts"
                    ) from error

    async def release(self, lease: Lease) -> None:
        """Give the lease back, if that can be done now."""
        self._valid_until_seconds = 0.0
        try:
            async with asyncio.timeout(self._lease_seconds):
                await self._threads.call(release_lease, self._engine, lease)
        except (LedgerUnavailable, CommitUnknown, LeaseLost, TimeoutError) as error:
            _log.warning("lease.not_released", error=str(error))

    def _expires_ms(self) -> int:
        """For people, and to make each renewal differ from the one before."""
        return self._clock.now_ms() + int(self._lease_seconds * 1000)
