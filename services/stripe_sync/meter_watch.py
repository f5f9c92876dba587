"""The meter watch: which Billing Meters exist at Stripe, are active, and fit.

Owns halting a meter that cannot take postings, before the first one is lost to it (Stripe answers 2xx for a meter it
does not know), and letting it go on once it can. It refuses to know postings.
"""

from __future__ import annotations

from collections.abc import Collection

import structlog

from services.stripe_sync.book import SendingBook
from services.stripe_sync.gateway import BillingMeter, CallFailed, Gateway
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
        self._next_seconds = clock.monotonic_seconds()
        self.halted: dict[str, str] = {}

    def stripe_meter(self, event_name: str) -> BillingMeter | None:
        """The meter, if it was found fit at the last look and is not halted."""
        return None if event_name in self.halted else self._fit.get(event_name)

    async def halt(self, event_name: str, reason: str) -> None:
        """Send nothing to it until a look at Stripe finds it fit."""
        self._fit.pop(event_name, None)
        self.halted[event_name] = reason
        self._next_seconds = self._clock.monotonic_seconds() + self._check_seconds
        await self._book.halt(event_name, reason, self._clock.now_ms())
        _log.error("meter.halted", meter=event_name, reason=reason)

    async def check(self, event_names: Collection[str]) -> None:
        """Look at Stripe's meters if it is time, or if one of `event_names` has never been seen.

        Raises CallFailed when Stripe cannot be asked: then nothing is known to be fit that was not before.
        """
        now_seconds = self._clock.monotonic_seconds()
        unseen = [n for n in event_names if n not in self._fit and n not in self.halted]
        if not unseen and now_seconds < self._next_seconds:
            return
        try:
            found = await self._gateway.meters()
        except CallFailed:
            self._next_seconds = now_seconds + _AGAIN_SECONDS
            raise
        self.halted = await self._book.halted()
        for event_name in sorted({*event_names, *self.halted, *self._fit}):
            meter = found.get(event_name)
            reason = "there is no such meter at Stripe" if meter is None else meter.unfit()
            if reason is None and meter is not None:
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
