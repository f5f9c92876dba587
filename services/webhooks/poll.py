"""The poll: what Stripe says happened, compared with what came in.

Owns the two lists of events since a moment (classic ones, and the thin ones that have no classic twin: meter error
reports) and their comparison with the inbox; what is missing goes the way of every webhook, into the topic. It refuses
to know what the events lead to. A webhook endpoint that was unreachable for days loses nothing that Stripe still lists
(30 days, in both).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Protocol

import structlog

from services.webhooks.errors import Permanent, Transient
from services.webhooks.event import StripeEvent, event_from, is_wanted
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


THIN_EVERY = 4
"""Thin events are listed at every fourth poll: they are rare, each poll is a read, and their list is short."""


class EventList(Protocol):
    """What the poll asks of Stripe."""

    async def event_page(self, created_from_s: int, created_before_s: int, after: str | None) -> Page: ...

    async def thin_event_page(
        self, created_from_s: int, created_before_s: int, after: str | None
    ) -> Page: ...


class Inbox(Protocol):
    """What the poll asks of the ledger."""

    def newest_event_s(self) -> int | None: ...

    def done_events(self, event_ids: list[str], *, with_failed: bool = False) -> frozenset[str]: ...


class PageOf(Protocol):
    """One of Stripe's two lists."""

    async def __call__(self, created_from_s: int, created_before_s: int, after: str | None) -> Page: ...


@dataclass(slots=True)
class _List:
    """One list and how far it has been compared (epoch seconds; None before the first complete poll)."""

    name: str
    page: PageOf
    slice_seconds: int
    complete_to_s: int | None = None


class EventPoll:
    """Compares and fills, every `interval_seconds`: the classic events each time, the thin ones now and then."""

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
        self._classic = _List("classic", events.event_page, SLICE_SECONDS)
        # A whole month of meter error reports is one page.
        self._thin = _List("thin", events.thin_event_page, REACH_SECONDS)
        self._inbox = inbox
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._interval_seconds = interval_seconds
        self._settling_seconds = settling_seconds
        self._polls = 0
        self._begin_at_s: int | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """Poll until `stop` is set. A poll that fails is repeated at the next interval, from where it got to.

        One list's failure (a key that may not read it) never keeps the other from being read.
        """
        while not stop.is_set():
            lists = [self._classic]
            if self._polls % THIN_EVERY == 0 or self._thin.complete_to_s is None:
                lists.append(self._thin)
            self._polls += 1
            for each in lists:
                await self._poll_safely(each)
            sleeping = asyncio.ensure_future(self._clock.sleep_seconds(self._interval_seconds))
            stopping = asyncio.ensure_future(stop.wait())
            await asyncio.wait({sleeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
            sleeping.cancel()
            stopping.cancel()

    async def _poll_safely(self, listed: _List) -> None:
        try:
            found = await self._poll(listed)
            _log.info("events.polled", list=listed.name, found=found, complete_to_s=listed.complete_to_s)
        except Transient as error:
            self._metrics.retries.labels(error.reason).inc()
            _log.warning("poll.delayed", list=listed.name, reason=error.reason, detail=error.detail)
        except (Permanent, StoreUnavailable) as error:
            _log.error("poll.failed", list=listed.name, detail=str(error))

    async def poll_once(self) -> int:
        """Compare the classic events since the last complete poll; how many were missing and are in the log now.

        Oldest first, slice by slice. Raises Transient, Permanent or StoreUnavailable; what was done stays done.
        """
        return await self._poll(self._classic)

    async def poll_thin_once(self) -> int:
        """The same for the thin events."""
        return await self._poll(self._thin)

    async def _poll(self, listed: _List) -> int:
        now_s = self._clock.now_ms() // 1000
        try:
            begin_s = max(await self._begin_s(listed), now_s - REACH_SECONDS)
        except LedgerError as error:
            raise translate_ledger_error(error) from error
        end_s = now_s - self._settling_seconds
        found = 0
        while begin_s < end_s:
            before_s = min(begin_s + listed.slice_seconds, end_s)
            try:
                found += await self._fill_slice(listed, begin_s, before_s)
            except LedgerError as error:
                raise translate_ledger_error(error) from error
            begin_s = before_s
            listed.complete_to_s = before_s
            if listed is self._classic:
                self._metrics.polled_timestamp.set(before_s)
        return found

    async def _begin_s(self, listed: _List) -> int:
        if listed.complete_to_s is not None:
            return listed.complete_to_s - OVERLAP_SECONDS
        # Asked once: what the classic poll brings in first must not narrow the look at the thin ones.
        if self._begin_at_s is None:
            newest_s = await asyncio.to_thread(self._inbox.newest_event_s)
            self._begin_at_s = 0 if newest_s is None else newest_s - LOOKBACK_SECONDS
        return self._begin_at_s

    async def _fill_slice(self, listed: _List, begin_s: int, before_s: int) -> int:
        missing: list[tuple[StripeEvent, bytes]] = []
        after: str | None = None
        while True:
            page = await listed.page(begin_s, before_s, after)
            wanted = [body for body in page.bodies if is_wanted(str(body.get("type", "")))]
            ids = [str(body["id"]) for body in wanted]
            # Parked ones too are known: they wait for an operator, not for us.
            known = await asyncio.to_thread(self._inbox.done_events, ids, with_failed=True)
            missing += [
                (event_from(body), json.dumps(body, separators=(",", ":")).encode())
                for body in wanted
                if body["id"] not in known
            ]
            after = page.next_after
            if after is None:
                break
        # Stripe lists the newest first; the log gets them as they happened.
        missing.reverse()
        missing.sort(key=lambda entry: entry[0].created_s)
        for event, body in missing:
            await self._store.put(event, body, self._clock.now_ms())
            self._metrics.polled.inc()
        return len(missing)
