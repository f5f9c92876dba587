"""The poll: what Stripe says happened, compared with what came in.

Owns the list of events since a moment and its comparison with the inbox; what is missing goes the way of every
webhook, into the topic. It refuses to know what the events lead to. A webhook endpoint that was unreachable for days
loses nothing that Stripe still lists (30 days).
"""

from __future__ import annotations

import asyncio
import json
from typing import Protocol

import structlog

from services.webhooks.errors import Permanent, Transient
from services.webhooks.event import event_from, is_wanted
from services.webhooks.gateway import Page
from services.webhooks.metrics import Metrics
from services.webhooks.projector import translate_ledger_error
from services.webhooks.store import EventStore, StoreUnavailable
from tollgate.ledger.errors import LedgerError
from tollgate.runtime.clock import Clock

REACH_SECONDS = 30 * 24 * 3600
"""How far back Stripe lists events."""

LOOKBACK_SECONDS = 3 * 24 * 3600
"""From the newest event in the inbox backwards: as long as Stripe itself retries a delivery that failed."""

OVERLAP_SECONDS = 600
"""From the last complete poll backwards: for an event that was listed late."""

SETTLING_SECONDS = 60
"""Younger events are left to their webhooks, which are on their way; the default of the setting."""

SLICE_SECONDS = 6 * 3600
"""One comparison covers at most this: memory stays flat over 30 days of events, and a restart repeats one slice."""

_log = structlog.get_logger(__name__)


class EventList(Protocol):
    """What the poll asks of Stripe."""

    async def event_page(self, created_from_s: int, created_before_s: int, after: str | None) -> Page: ...


class Inbox(Protocol):
    """What the poll asks of the ledger."""

    def newest_event_s(self) -> int | None: ...

    def done_events(self, event_ids: list[str], *, with_failed: bool = False) -> frozenset[str]: ...


class EventPoll:
    """Compares and fills, every `interval_seconds`."""

    def __init__(
        self,
        events: EventList,
        inbox: Inbox,
        store: EventStore,
        clock: Clock,
        metrics: Metrics,
        interval_seconds: float,
        settling_seconds: int = SETTLING_SECONDS,
    ) -> None:
        self._events = events
        self._inbox = inbox
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._interval_seconds = interval_seconds
        self._settling_seconds = settling_seconds
        self._complete_to_s: int | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Poll until `stop` is set. A poll that fails is repeated at the next interval, from where it got to."""
        while not stop.is_set():
            try:
                found = await self.poll_once()
                _log.info("events.polled", found=found, complete_to_s=self._complete_to_s)
            except Transient as error:
                self._metrics.retries.labels(error.reason).inc()
                _log.warning("poll.delayed", reason=error.reason, detail=error.detail)
            except (Permanent, StoreUnavailable) as error:
                _log.error("poll.failed", detail=str(error))
            sleeping = asyncio.ensure_future(self._clock.sleep_seconds(self._interval_seconds))
            stopping = asyncio.ensure_future(stop.wait())
            await asyncio.wait({sleeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
            sleeping.cancel()
            stopping.cancel()

    async def poll_once(self) -> int:
        """Compare everything since the last complete poll; how many events were missing and are in the log now.

        Oldest first, slice by slice. Raises Transient, Permanent or StoreUnavailable; what was done stays done.
        """
        now_s = self._clock.now_ms() // 1000
        try:
            begin_s = max(await self._begin_s(), now_s - REACH_SECONDS)
        except LedgerError as error:
            raise translate_ledger_error(error) from error
        end_s = now_s - self._settling_seconds
        found = 0
        while begin_s < end_s:
            before_s = min(begin_s + SLICE_SECONDS, end_s)
            try:
                found += await self._fill_slice(begin_s, before_s)
            except LedgerError as error:
                raise translate_ledger_error(error) from error
            begin_s = before_s
            self._complete_to_s = before_s
            self._metrics.polled_timestamp.set(before_s)
        return found

    async def _begin_s(self) -> int:
        if self._complete_to_s is not None:
            return self._complete_to_s - OVERLAP_SECONDS
        newest_s = await asyncio.to_thread(self._inbox.newest_event_s)
        return 0 if newest_s is None else newest_s - LOOKBACK_SECONDS

    async def _fill_slice(self, begin_s: int, before_s: int) -> int:
        missing: list[tuple[int, bytes]] = []
        after: str | None = None
        while True:
            page = await self._events.event_page(begin_s, before_s, after)
            wanted = [body for body in page.bodies if is_wanted(str(body.get("type", "")))]
            ids = [str(body["id"]) for body in wanted]
            # Parked ones too are known: they wait for an operator, not for us.
            known = await asyncio.to_thread(self._inbox.done_events, ids, with_failed=True)
            missing += [
                (body["created"], json.dumps(body, separators=(",", ":")).encode())
                for body in wanted
                if body["id"] not in known
            ]
            after = page.next_after
            if after is None:
                break
        # Stripe lists the newest first; the log gets them as they happened.
        missing.reverse()
        missing.sort(key=lambda entry: entry[0])
        for _, body in missing:
            event = event_from(json.loads(body))
            await self._store.put(event, body, self._clock.now_ms())
            self._metrics.polled.inc()
        return len(missing)
