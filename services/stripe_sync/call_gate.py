"""The call gate: whether a call to Stripe may be made at all, and when.

Owns the rate limit's bucket and the stop after a refused key. It refuses to know what is called and for whom.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from services.stripe_sync.bucket import TokenBucket
from services.stripe_sync.gateway import CallFailed, Gateway
from services.stripe_sync.metrics import SyncMetrics
from services.stripe_sync.outcomes import Action
from tollgate.runtime.clock import Clock

_log = structlog.get_logger(__name__)


class CallGate:
    """One key's permission to call. `on_stopped` is told why nothing is sent, and None once it is again."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        bucket: TokenBucket,
        clock: Clock,
        metrics: SyncMetrics,
        probe_seconds: float,
        on_stopped: Callable[[str | None], None],
    ) -> None:
        self._gateway = gateway
        self._bucket = bucket
        self._clock = clock
        self._metrics = metrics
        self._probe_seconds = probe_seconds
        self._on_stopped = on_stopped
        self._stopped: str | None = None
        self._probe_at_seconds = 0.0

    @property
    def stopped(self) -> str | None:
        """Why nothing is sent at all, or None."""
        return self._stopped

    def show(self) -> None:
        """Export the tokens at hand."""
        self._metrics.show_bucket(self._bucket.available(self._clock.monotonic_seconds()))

    async def take_token(self) -> None:
        """Return when a call may be made. A bucket closed meanwhile is waited for anew."""
        while (wait_seconds := self._bucket.reserve(self._clock.monotonic_seconds())) > 0:
            await self._clock.sleep_seconds(wait_seconds)
            if not self._bucket.is_closed(self._clock.monotonic_seconds()):
                return

    def slow_down(self, seconds: float) -> None:
        """Stripe asked for less: no call for so long."""
        self._bucket.close(self._clock.monotonic_seconds(), seconds)

    def stop(self, reason: str) -> None:
        """The key was refused: no call at all until `is_open` finds it taken again."""
        if self._stopped is None:
            _log.error("sending.stopped", reason=reason)
        self._stopped = reason
        self._probe_at_seconds = self._clock.monotonic_seconds() + self._probe_seconds
        self._metrics.show_stopped(True)
        self._on_stopped(reason)

    async def is_open(self) -> bool:
        """Whether calls may be made; while stopped, Stripe is asked every `probe_seconds` whether it takes the key."""
        if self._stopped is None:
            return True
        if self._clock.monotonic_seconds() < self._probe_at_seconds:
            return False
        try:
            await self._gateway.meters()
        except CallFailed as error:
            if error.row.action is Action.STOP_ALL:
                self.stop(str(error))
            else:
                self._probe_at_seconds = self._clock.monotonic_seconds() + self._probe_seconds
            return False
        self._stopped = None
        self._metrics.show_stopped(False)
        self._on_stopped(None)
        _log.info("sending.resumed")
        return True
