"""The recorder: outcomes on their way into the ledger, many in one transaction.

Owns that an outcome is kept until it is written. It refuses to know what outcomes mean.
"""

from __future__ import annotations

import asyncio

import structlog

from services.stripe_sync.book import SendingBook
from services.stripe_sync.faults import FaultPoint
from tollgate.ledger.engine import CommitUnknown, LedgerUnavailable
from tollgate.ledger.posting_rows import Outcome
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults

_log = structlog.get_logger(__name__)

_RETRY_SECONDS = 0.5


class Recorder:
    """Writes outcomes as they come: those that arrive during one transaction go together in the next."""

    def __init__(self, book: SendingBook, clock: Clock, faults: Faults[FaultPoint]) -> None:
        self._book = book
        self._clock = clock
        self._faults = faults
        self._pending: list[tuple[Outcome, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()

    async def record(self, outcome: Outcome) -> None:
        """Return once the outcome is in the ledger. An outage of the ledger is waited out."""
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((outcome, written))
        self._arrived.set()
        await written

    async def run(self) -> None:
        """Write for ever. Raises LeaseLost: then what is pending belongs to the next leader."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            batch, self._pending = self._pending, []
            while True:
                try:
                    # Written twice when a commit's outcome is unknown: the second time changes what is still open.
                    await self._book.record([outcome for outcome, _ in batch], self._clock.now_ms())
                    break
                except (LedgerUnavailable, CommitUnknown) as error:
                    _log.warning("outcomes.not_recorded", outcomes=len(batch), error=str(error))
                    await self._clock.sleep_seconds(_RETRY_SECONDS)
            for _, written in batch:
                if not written.done():
                    written.set_result(None)
            self._faults.reach(FaultPoint.AFTER_RECORD)
