"""The meter watch: which Billing Meters exist at Stripe, are active, and fit.

Owns halting a meter that cannot take postings, before the first one is lost to it (Stripe answers 2xx for a meter it
does not know), and letting it go on once it can. It refuses to know postings.
"""

from __future__ import annotations

from collections.abc import Collection

import structlog

from services.stripe_sync.book import SendingBook
from services.stripe_sync.gateway import BillingMeter, CallFailed, Gateway
from tollgate.ledger.posting_rows import METERLESS_MODES, PostingMode
from tollgate.runtime.clock import Clock

_log = structlog.get_logger(__name__)

_CALM_FACTOR = 10.0
"""With nothing halted, meters are looked at this much more rarely: a sudden deactivation shows in answers anyway."""

_AGAIN_SECONDS = 5.0
"""After a look that failed."""


class MeterWatch:
    """Meters as last seen at Stripe."""

    def __init__(self, book: SendingBook, gateway: Gateway, clock: Clock, check_seconds: float) -> None:
        self._book = book
        self._gateway = gateway
        self._clock = clock
        self._check_seconds = check_seconds
        self._fit: dict[str, BillingMeter] = {}
        self._modes: dict[str, set[PostingMode]] = {}
        self._next_seconds = clock.monotonic_seconds()
        self.halted: dict[str, str] = {}

    def stripe_meter(self, event_name: str) -> BillingMeter | None:
        """The meter, if it was found fit at the last look and is not halted."""
        return None if event_name in self.halted else self._fit.get(event_name)

    def is_fit(self, event_name: str, mode: PostingMode) -> bool:
        """Whether postings of `mode` may be sent. Some modes need no meter."""
        if mode in METERLESS_MODES:
            return event_name not in self.halted
        meter = self.stripe_meter(event_name)
        return meter is not None and meter.unfit(mode) is None

    async def halt(self, event_name: str, reason: str) -> None:
        """Send nothing to it until a look at Stripe finds it fit."""
        self._fit.pop(event_name, None)
        self.halted[event_name] = reason
        self._next_seconds = self._clock.monotonic_seconds() + self._check_seconds
        await self._book.halt(event_name, reason, self._clock.now_ms())
        _log.error("meter.halted", meter=event_name, reason=reason)

    async def check(self, wanted: Collection[tuple[str, PostingMode]]) -> None:
        """Look at Stripe's meters if it is time, or if one `wanted` (event name, mode of postings) was never seen fit.

        Raises CallFailed when Stripe cannot be asked: then nothing is known to be fit that was not before.
        """
        now_seconds = self._clock.monotonic_seconds()
        for event_name, mode in wanted:
            self._modes.setdefault(event_name, set()).add(mode)
        unseen = [n for n, mode in wanted if n not in self.halted and not self.is_fit(n, mode)]
        if not unseen and now_seconds < self._next_seconds:
            return
        try:
            found = await self._gateway.meters()
        except CallFailed:
            self._next_seconds = now_seconds + _AGAIN_SECONDS
            raise
        self.halted = await self._book.halted()
        # A meter halted before this process began is not due, so no posting says what it is sent.
        declared = {} if self.halted.keys() <= self._modes.keys() else await self._book.modes()
        for event_name in sorted({*self._modes, *self.halted}):
            meter = found.get(event_name)
            reason = _unfit(meter, self._modes.get(event_name) or declared.get(event_name, set()))
            if reason is None:
                if meter is not None:
                    self._fit[event_name] = meter
                if self.halted.pop(event_name, None) is not None:
                    await self._book.halt(event_name, None, self._clock.now_ms())
                    _log.info("meter.resumed", meter=event_name)
            else:
                self._fit.pop(event_name, None)
                if self.halted.get(event_name) != reason:
                    self.halted[event_name] = str(reason)
                    await self._book.halt(event_name, reason, self._clock.now_ms())
                    _log.error("meter.halted", meter=event_name, reason=reason)
        calm = 1.0 if self.halted else _CALM_FACTOR
        self._next_seconds = now_seconds + self._check_seconds * calm


def _unfit(meter: BillingMeter | None, modes: Collection[PostingMode]) -> str | None:
    """Why postings of one of `modes` cannot be sent, or None."""
    needing = [mode for mode in modes if mode not in METERLESS_MODES]
    if needing and meter is None:
        return "there is no such meter at Stripe"
    reasons = [] if meter is None else [meter.unfit(mode) for mode in sorted(needing)]
    return next((reason for reason in reasons if reason is not None), None)
