"""`python -m services.stripe_sync`: wires everything together and runs it.

Owns reading the environment and the order of start and stop. It refuses to contain a rule.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import socket
import sys
import uuid

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry

from services.stripe_sync.book import Book, ReconciliationLedger, Threads
from services.stripe_sync.bucket import TokenBucket
from services.stripe_sync.faults import FaultPoint
from services.stripe_sync.gateway import CallFailed, StripeGateway
from services.stripe_sync.journal import KafkaJournal
from services.stripe_sync.leader import Leadership
from services.stripe_sync.leading import Leader
from services.stripe_sync.meter_watch import MeterWatch
from services.stripe_sync.metrics import SyncMetrics
from services.stripe_sync.outcomes import Action
from services.stripe_sync.period_keeper import PeriodKeeper
from services.stripe_sync.plan import Rules
from services.stripe_sync.price_fetcher import PriceFetcher
from services.stripe_sync.reconciler import Reconciler
from services.stripe_sync.recorder import Recorder
from services.stripe_sync.sender import Sender, SenderLimits
from services.stripe_sync.settings import StripeSyncSettings
from tollgate import __version__
from tollgate.ledger.engine import Engine, LedgerNotReady, LedgerUnavailable, PinMismatch, open_ledger
from tollgate.ledger.init import check_pins, read_pins
from tollgate.ledger.leases import Lease, LeaseLost
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock, SystemClock
from tollgate.runtime.faults import Faults
from tollgate.runtime.health import Health
from tollgate.runtime.http import operations_app, serve_app
from tollgate.runtime.kafka import ClusterUnidentified, cluster_id, new_producer
from tollgate.runtime.logging import configure_logging
from tollgate.runtime.metrics import new_registry
from tollgate.runtime.settings import load_settings
from tollgate.runtime.shutdown import Shutdown, run_service

_log = structlog.get_logger(__name__)

SERVICE = "stripe_sync"


class Service:
    """One process of stripe_sync: a standby until it leads."""

    def __init__(self, settings: StripeSyncSettings, clock: Clock, registry: CollectorRegistry) -> None:
        self._settings = settings
        self._clock = clock
        self._registry = registry
        self._health = Health(clock)
        self._metrics = SyncMetrics(registry)
        sync = settings.sync
        self._backoff = Backoff(
            sync.retry_initial_seconds,
            max(sync.retry_max_seconds, sync.retry_initial_seconds),
            rng=random.Random(),  # noqa: S311 - jitter, no secret
        )
        self._faults: Faults[FaultPoint] = Faults(sync.fault_point, sync.fault_passes)
        self._holder = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"

    async def run(self, shutdown: Shutdown) -> None:
        """1. Serve health. 2. Check the pins. 3. Lead whenever the lease is ours, until told to stop."""
        settings = self._settings
        engine = open_ledger(
            settings.ledger.url.get_secret_value(),
            pool_size=settings.ledger.pool_size,
            statement_timeout_ms=settings.ledger.statement_timeout_ms,
        )
        threads = Threads(settings.ledger.pool_size)
        gateway = StripeGateway(
            settings.stripe.api_key.get_secret_value(),
            api_base=settings.stripe.api_base,
            connect_timeout_seconds=settings.stripe.connect_timeout_seconds,
            read_timeout_seconds=settings.stripe.read_timeout_seconds,
        )
        try:
            async with serve_app(
                operations_app(self._health, self._registry), settings.http.host, settings.http.port
            ) as port:
                _log.info("service.started", port=port, mode=settings.stripe.mode, holder=self._holder)
                self._health.set_ready("pins", False, "not compared yet")
                working = asyncio.create_task(self._start_and_lead(engine, threads, gateway, shutdown))
                stopping = asyncio.create_task(shutdown.event.wait())
                await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
                self._health.mark_draining()
                stopping.cancel()
                await working
        finally:
            await gateway.close()
            threads.close()
            engine.dispose()

    async def _start_and_lead(
        self, engine: Engine, threads: Threads, gateway: StripeGateway, shutdown: Shutdown
    ) -> None:
        stop = shutdown.event
        if not await self._check_pins(engine, threads, gateway, stop):
            return
        producer = await self._start_producer(stop)
        if producer is None:
            return
        try:
            self._health.mark_started()
            ledger_id = (await threads.call(read_pins, engine)).ledger_id
            while not stop.is_set():
                await self._one_term(engine, threads, gateway, producer, self._rules(ledger_id), stop)
        finally:
            try:
                async with asyncio.timeout(5):
                    await producer.stop()
            except (TimeoutError, KafkaError) as error:
                _log.warning("producer.not_stopped", error=str(error))

    def _rules(self, ledger_id: str) -> Rules:
        return Rules(ledger_id, self._settings.sync.closed, self._settings.anomaly.cap)

    async def _check_pins(
        self, engine: Engine, threads: Threads, gateway: StripeGateway, stop: asyncio.Event
    ) -> bool:
        """Compare cluster, account and mode with the ledger's pins. False when told to stop before that was possible.

        What is down is waited for. A mismatch, or a ledger that was never initialised, ends the process.
        """
        attempt = 0
        while not stop.is_set():
            try:
                expected = {
                    "stripe_account": await gateway.account(),
                    "stripe_mode": self._settings.stripe.mode,
                }
                try:
                    expected["kafka_cluster_id"] = await cluster_id(self._settings.kafka)
                except ClusterUnidentified:
                    if not self._settings.ephemeral:
                        raise SystemExit(
                            "the Kafka cluster has no id to compare with the ledger's pin"
                        ) from None
                await threads.call(functools.partial(check_pins, engine, **expected))
            except (PinMismatch, LedgerNotReady) as error:
                raise SystemExit(str(error)) from None
            except CallFailed as error:
                refused = error.row.action is Action.STOP_ALL
                self._metrics.show_stopped(refused)
                self._health.set_ready("pins", False, str(error))
                _log.warning("pins.not_compared", error=str(error))
            except (LedgerUnavailable, KafkaError, OSError) as error:
                self._health.set_ready("pins", False, str(error))
                _log.warning("pins.not_compared", error=f"{type(error).__name__}: {error}")
            else:
                self._metrics.show_stopped(False)
                self._health.set_ready("pins", True)
                return True
            await self._sleep(self._backoff.delay_seconds(min(attempt, 5)), stop)
            attempt += 1
        return False

    async def _start_producer(self, stop: asyncio.Event) -> AIOKafkaProducer | None:
        attempt = 0
        while not stop.is_set():
            producer = new_producer(
                self._settings.kafka,
                idempotent=not self._settings.ephemeral,
                ephemeral=self._settings.ephemeral,
                client_id="tollgate-stripe-sync",
            )
            try:
                await producer.start()
                return producer
            except (KafkaError, OSError) as error:
                await producer.stop()
                self._health.set_ready("kafka", False, str(error))
                _log.warning("producer.not_started", error=str(error))
            await self._sleep(self._backoff.delay_seconds(min(attempt, 5)), stop)
            attempt += 1
        return None

    async def _one_term(
        self,
        engine: Engine,
        threads: Threads,
        gateway: StripeGateway,
        producer: AIOKafkaProducer,
        rules: Rules,
        stop: asyncio.Event,
    ) -> None:
        """Stand by until the lease is ours, then lead until it is lost or we are told to stop."""
        sync = self._settings.sync
        self._health.set_ready("kafka", True)
        self._health.set_ready("stripe", True, "standing by")
        leadership = Leadership(engine, threads, self._clock, self._holder, sync.lease_seconds)
        lease = await self._stand_by(leadership, stop)
        if lease is None:
            return
        _log.info("lease.taken", version=lease.version)
        self._metrics.show_leader(True)
        try:
            await self._leader(
                lease,
                leadership,
                Book(engine, lease, threads),
                ReconciliationLedger(engine, threads),
                gateway,
                producer,
                rules,
            ).lead(stop)
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

    def _leader(
        self,
        lease: Lease,
        leadership: Leadership,
        book: Book,
        reconciling: ReconciliationLedger,
        gateway: StripeGateway,
        producer: AIOKafkaProducer,
        rules: Rules,
    ) -> Leader:
        settings, clock = self._settings, self._clock
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
            book=reconciling,
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
            journal=KafkaJournal(settings.kafka, producer),
            rules=rules,
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
            periods=self._period_keeper(book, gateway, bucket) if settings.periods.enabled else None,
            prices=PriceFetcher(book, gateway, clock),
        )

    def _period_keeper(self, book: Book, gateway: StripeGateway, bucket: TokenBucket) -> PeriodKeeper:
        periods = self._settings.periods
        return PeriodKeeper(
            book=book,
            stripe=gateway,
            bucket=bucket,
            clock=self._clock,
            metrics=self._metrics,
            terms=self._settings.finalization_terms,
            silence_ms=int(periods.instance_silence_seconds * 1000),
            check_seconds=periods.check_seconds,
        )

    def _show_stripe(self, stopped: str | None) -> None:
        self._health.set_ready("stripe", stopped is None, stopped or "sending")

    async def _sleep(self, seconds: float, stop: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(seconds):
                await stop.wait()
        except TimeoutError:
            return


def main() -> int:
    """Read the settings (exit code 2 with every mistake named) and run until told to stop."""
    settings = load_settings(StripeSyncSettings)
    configure_logging(SERVICE, settings.log)
    registry = new_registry(SERVICE, __version__)
    service = Service(settings, SystemClock(), registry)
    return run_service(service.run, settings.shutdown_seconds)


if __name__ == "__main__":
    sys.exit(main())
