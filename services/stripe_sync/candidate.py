"""A candidate: one process that would lead. It stands by until the lease is its own, then leads a term.

Owns what a leader is made of. It refuses to know where ledger, journal and Stripe are: whoever makes it says so, a
process (`__main__.py`) or a simulation of many.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import structlog

from services.stripe_sync.book import Book, ReconciliationLedger, Threads
from services.stripe_sync.bucket import TokenBucket
from services.stripe_sync.faults import FaultPoint
from services.stripe_sync.gateway import Gateway
from services.stripe_sync.journal import Journal
from services.stripe_sync.leader import Leadership
from services.stripe_sync.leading import Leader
from services.stripe_sync.meter_watch import MeterWatch
from services.stripe_sync.metrics import SyncMetrics
from services.stripe_sync.period_keeper import Finalizer, PeriodKeeper
from services.stripe_sync.plan import Rules
from services.stripe_sync.price_fetcher import PriceFetcher
from services.stripe_sync.reconciler import Reconciler, Summaries
from services.stripe_sync.recorder import Recorder
from services.stripe_sync.sender import Sender, SenderLimits
from services.stripe_sync.settings import StripeSyncSettings
from tollgate.ledger.engine import Engine
from tollgate.ledger.leases import Lease, LeaseLost
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults
from tollgate.runtime.health import Health

_log = structlog.get_logger(__name__)


class StripeApi(Gateway, Summaries, Finalizer, Protocol):
    """All that a leader asks of Stripe."""


class Candidate:
    """One process' candidacy. Belongs to one event loop."""

    def __init__(
        self,
        settings: StripeSyncSettings,
        *,
        engine: Engine,
        threads: Threads,
        gateway: StripeApi,
        journal: Journal,
        ledger_id: str,
        holder: str,
        clock: Clock,
        backoff: Backoff,
        health: Health,
        metrics: SyncMetrics,
        faults: Faults[FaultPoint],
    ) -> None:
        """`holder` names this process in the lease: no two have the same name."""
        self._settings = settings
        self._engine = engine
        self._threads = threads
        self._gateway = gateway
        self._journal = journal
        self._ledger_id = ledger_id
        self._holder = holder
        self._clock = clock
        self._backoff = backoff
        self._health = health
        self._metrics = metrics
        self._faults = faults

    async def lead_one_term(self, stop: asyncio.Event) -> None:
        """Stand by until the lease is ours, then lead until it is lost or we are told to stop."""
        sync = self._settings.sync
        self._health.set_ready("kafka", True)
        self._health.set_ready("stripe", True, "standing by")
        leadership = Leadership(self._engine, self._threads, self._clock, self._holder, sync.lease_seconds)
        lease = await self._stand_by(leadership, stop)
        if lease is None:
            return
        _log.info("lease.taken", version=lease.version)
        self._metrics.show_leader(True)
        try:
            await self._leader(lease, leadership).lead(stop)
            await leadership.release(lease)
        except* LeaseLost as lost:
            _log.error("lease.lost", error=str(lost.exceptions[0]))
        finally:
            self._metrics.show_leader(False)

    async def _stand_by(self, leadership: Leadership, stop: asyncio.Event) -> Lease | None:
        acquiring = asyncio.create_task(leadership.acquire())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({acquiring, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if acquiring.done():
                return acquiring.result()
            return None
        finally:
            acquiring.cancel()
            stopping.cancel()

    def _leader(self, lease: Lease, leadership: Leadership) -> Leader:
        settings, clock, gateway = self._settings, self._clock, self._gateway
        book = Book(self._engine, lease, self._threads)
        calls_per_second = settings.calls_per_second
        watch = MeterWatch(book, gateway, clock, settings.sync.meter_check_seconds)
        recorder = Recorder(book, clock, self._faults)
        # A second's worth at once: fewer would waste the rate on small pauses, more would be a storm.
        bucket = TokenBucket(calls_per_second, max(1, int(calls_per_second)), clock.monotonic_seconds())
        sender = Sender(
            book=book,
            gateway=gateway,
            watch=watch,
            recorder=recorder,
            bucket=bucket,
            clock=clock,
            backoff=self._backoff,
            limits=SenderLimits(
                concurrency=settings.sync.concurrency,
                summary_lag_seconds=settings.sync.summary_lag_seconds,
                probe_seconds=settings.sync.probe_seconds,
            ),
            metrics=self._metrics,
            may_send=leadership.is_valid,
            faults=self._faults,
            on_stopped=self._show_stripe,
        )
        reconciler = Reconciler(
            book=ReconciliationLedger(self._engine, self._threads),
            stripe=gateway,
            bucket=bucket,
            clock=clock,
            terms=settings.reconcile_terms,
            reads_per_day=settings.reconcile.reads_per_day,
            check_seconds=settings.reconcile.check_seconds,
            metrics=self._metrics,
        )
        return Leader(
            lease=lease,
            leadership=leadership,
            book=book,
            journal=self._journal,
            rules=Rules(self._ledger_id, settings.sync.closed, settings.anomaly.cap),
            sender=sender,
            recorder=recorder,
            watch=watch,
            clock=clock,
            backoff=self._backoff,
            health=self._health,
            metrics=self._metrics,
            faults=self._faults,
            cadence_seconds=settings.sync.cadence_seconds,
            calls_per_second=calls_per_second,
            plan_rows_max=settings.sync.plan_rows_max,
            reconciler=reconciler if settings.reconcile.enabled else None,
            periods=self._period_keeper(book, bucket) if settings.periods.enabled else None,
            prices=PriceFetcher(book, gateway, clock),
        )

    def _period_keeper(self, book: Book, bucket: TokenBucket) -> PeriodKeeper:
        periods = self._settings.periods
        return PeriodKeeper(
            book=book,
            stripe=self._gateway,
            bucket=bucket,
            clock=self._clock,
            metrics=self._metrics,
            terms=self._settings.finalization_terms,
            silence_ms=int(periods.instance_silence_seconds * 1000),
            check_seconds=periods.check_seconds,
        )

    def _show_stripe(self, stopped: str | None) -> None:
        self._health.set_ready("stripe", stopped is None, stopped or "sending")
