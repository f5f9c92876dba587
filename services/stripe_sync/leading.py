"""What the leader does, from taking the lease to giving it back: import, then plan, journal, send and reconcile, side
by side.

Owns the order of the steps the README numbers, and the waits between them. It refuses to know how any step is done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from services.stripe_sync.book import Book
from services.stripe_sync.faults import FaultPoint
from services.stripe_sync.journal import Journal, JournalUnavailable
from services.stripe_sync.leader import Leadership
from services.stripe_sync.meter_watch import MeterWatch
from services.stripe_sync.metrics import SyncMetrics
from services.stripe_sync.outcomes import AfterRefusal, after_refusal
from services.stripe_sync.period_keeper import PeriodKeeper
from services.stripe_sync.plan import Rules, stretch_cadence
from services.stripe_sync.price_fetcher import PriceFetcher
from services.stripe_sync.reconciler import Reconciler
from services.stripe_sync.recorder import Recorder
from services.stripe_sync.sender import Sender
from tollgate.ledger.engine import CommitUnknown, LedgerUnavailable
from tollgate.ledger.leases import Lease
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults
from tollgate.runtime.health import Health

_log = structlog.get_logger(__name__)

_UNAVAILABLE = (LedgerUnavailable, CommitUnknown, JournalUnavailable)
"""Worth another try, and safe to: every step reads the ledger before it writes."""

JOURNAL_BATCH = 500
"""Postings journalled together: one round trip to the broker and one transaction."""

TICK_SECONDS = 1.0
"""How soon `sync now` and a change of the leader's duties are noticed."""

PLAN_BEAT = "planning"


class Leader:
    """One term of leadership."""

    def __init__(
        self,
        *,
        lease: Lease,
        leadership: Leadership,
        book: Book,
        journal: Journal,
        rules: Rules,
        sender: Sender,
        recorder: Recorder,
        watch: MeterWatch,
        clock: Clock,
        backoff: Backoff,
        health: Health,
        metrics: SyncMetrics,
        faults: Faults[FaultPoint],
        cadence_seconds: float,
        calls_per_second: float,
        plan_rows_max: int,
        reconciler: Reconciler | None = None,
        periods: PeriodKeeper | None = None,
        prices: PriceFetcher | None = None,
    ) -> None:
        self._lease = lease
        self._leadership = leadership
        self._book = book
        self._journal = journal
        self._rules = rules
        self._sender = sender
        self._recorder = recorder
        self._watch = watch
        self._clock = clock
        self._backoff = backoff
        self._health = health
        self._metrics = metrics
        self._faults = faults
        self._cadence_seconds = cadence_seconds
        self._calls_per_second = calls_per_second
        self._plan_rows_max = plan_rows_max
        self._reconciler = reconciler
        self._periods = periods
        self._prices = prices

    async def lead(self, stop: asyncio.Event) -> None:
        """Lead until `stop`. Raises LeaseLost when another process leads, and whatever is a bug."""
        keeping = asyncio.create_task(self._leadership.keep(self._lease), name="lease")
        writing = asyncio.create_task(self._recorder.run(), name="recorder")
        working = asyncio.create_task(self._work(stop), name="leader")
        tasks = {keeping, writing, working}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in (working, keeping, writing):
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self, stop: asyncio.Event) -> None:
        """1. Import what the journal knows and the ledger does not. 2. Plan and send until told to stop."""
        await self._until_done(self._import_journal, stop)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._plan_on_cadence(stop))
            group.create_task(self._sender.run(stop))
            group.create_task(self._watch_ledger(stop))
            if self._reconciler is not None:
                group.create_task(self._reconciler.run(stop))
            if self._periods is not None:
                group.create_task(self._periods.run(stop))

    async def _import_journal(self) -> None:
        positions = await self._book.journal_positions()
        entries, reached = await self._journal.read_from(positions)
        report = await self._book.import_journal(entries, reached, self._clock.now_ms())
        self._metrics.imported(report.imported)
        if report.imported:
            _log.error("journal.imported", read=report.read, imported=report.imported)

    async def _until_done(self, step: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
        attempt = 0
        while not stop.is_set():
            try:
                await step()
                return
            except _UNAVAILABLE as error:
                _log.warning("step.failed", step=getattr(step, "__name__", "?"), error=str(error))
                self._metrics.plan_failed()
                await self._pause(self._backoff.delay_seconds(min(attempt, 5)), stop)
                attempt += 1

    async def _plan_on_cadence(self, stop: asyncio.Event) -> None:
        self._health.watch(PLAN_BEAT, max(120.0, 10 * TICK_SECONDS))
        try:
            due_seconds = self._clock.monotonic_seconds()
            while not stop.is_set():
                self._health.heartbeat(PLAN_BEAT)
                if self._clock.monotonic_seconds() >= due_seconds or await self._is_hurried():
                    began_seconds = self._clock.monotonic_seconds()
                    planned = await self._plan_safely(stop)
                    pause = stretch_cadence(self._cadence_seconds, planned, self._calls_per_second)
                    due_seconds = began_seconds + pause
                elif self._periods is not None and self._periods.take_hurry():
                    await self._plan_urgent_safely()
                await self._pause(min(TICK_SECONDS, self._cadence_seconds), stop)
        finally:
            self._health.unwatch(PLAN_BEAT)

    async def _is_hurried(self) -> bool:
        try:
            return await self._book.sync_requested()
        except _UNAVAILABLE:
            return False

    async def _plan_safely(self, stop: asyncio.Event) -> int:
        """Plan; on an outage say so and let the next cadence try again."""
        try:
            return await self.plan_once(stop)
        except _UNAVAILABLE as error:
            _log.warning("postings.not_planned", error=str(error))
            self._metrics.plan_failed()
            return 0

    async def plan_once(self, stop: asyncio.Event) -> int:
        """Journal what a death left behind, take refusals back, plan until nothing is left. Returns what was planned."""
        await self._journal_planned()
        await self._take_refusals_back()
        planned = 0
        while not stop.is_set():
            began_seconds = self._clock.monotonic_seconds()
            report = await self._book.plan(self._rules, self._clock.now_ms(), self._plan_rows_max)
            written = report.planned + report.reversals
            self._metrics.planned(written, self._clock.monotonic_seconds() - began_seconds)
            self._metrics.show_waiting(bool(report.waiting_for))
            planned += report.planned
            if written:
                self._faults.reach(FaultPoint.AFTER_PLAN)
                _log.info(
                    "postings.planned", postings=report.planned, reversals=report.reversals, held=report.held
                )
                await self._journal_planned()
            if report.waiting_for:
                _log.warning("planning.waiting", partitions=report.waiting_for)
            for ref in report.anomalies:
                _log.error("posting.parked", posting=ref, reason="anomaly")
            fetched = 0 if self._prices is None else await self._prices.fetch()
            # A reversal is settled by its journalling: what it made room for can be planned at once.
            if not report.more and not report.reversals and not fetched:
                return planned
            self._health.heartbeat(PLAN_BEAT)
        return planned

    async def _plan_urgent_safely(self) -> None:
        """Plan what cannot wait; on an outage say so and let the next look try again."""
        try:
            await self.plan_urgent()
        except _UNAVAILABLE as error:
            _log.warning("postings.not_planned", error=str(error))
            self._metrics.plan_failed()

    async def plan_urgent(self) -> int:
        """Plan and journal for those alone whose invoice or period's end is near; returns what was planned."""
        began_seconds = self._clock.monotonic_seconds()
        report = await self._book.plan_urgent(self._rules, self._clock.now_ms(), self._plan_rows_max)
        written = report.planned + report.reversals
        self._metrics.planned(written, self._clock.monotonic_seconds() - began_seconds)
        for ref in report.anomalies:
            _log.error("posting.parked", posting=ref, reason="anomaly")
        if written:
            _log.info("postings.planned", postings=report.planned, urgent=True, held=report.held)
            await self._journal_planned()
        return report.planned

    async def _take_refusals_back(self) -> None:
        refusals = await self._book.apply_rejections(self._clock.now_ms())
        self._metrics.rejected(len(refusals))
        for refusal in refusals:
            _log.error(
                "posting.rejected", posting_key=refusal.posting_key, seq=refusal.seq, code=refusal.code
            )
        for event_name in sorted({r.event_name for r in refusals if r.event_name}):
            codes = {r.code for r in refusals if r.event_name == event_name}
            halting = sorted(code for code in codes if after_refusal(code) is AfterRefusal.HALT_METER)
            if halting:
                await self._watch.halt(event_name, f"Stripe refused its events: {', '.join(halting)}")

    async def _journal_planned(self) -> None:
        while postings := await self._book.planned(JOURNAL_BATCH):
            positions = await self._journal.append(postings)
            self._faults.reach(FaultPoint.AFTER_JOURNAL)
            await self._book.mark_journalled(
                [posting.ref for posting in postings], positions, self._clock.now_ms()
            )
            self._faults.reach(FaultPoint.AFTER_MARK_JOURNALLED)
            self._sender.wake()
            if len(postings) < JOURNAL_BATCH:
                return

    async def _watch_ledger(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            try:
                self._metrics.show_ledger(*await self._book.counts())
                self._metrics.show_anomalies(await self._book.anomalies())
            except _UNAVAILABLE as error:
                _log.warning("ledger.not_counted", error=str(error))
            await self._pause(5.0, stop)

    async def _pause(self, seconds: float, stop: asyncio.Event) -> None:
        """Sleep, but not past the wish to stop."""
        sleeping = asyncio.ensure_future(self._clock.sleep_seconds(seconds))
        stopping = asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({sleeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            stopping.cancel()
