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

from services.stripe_sync.book import Threads
from services.stripe_sync.candidate import Candidate
from services.stripe_sync.gateway import CallFailed, StripeGateway
from services.stripe_sync.journal import KafkaJournal
from services.stripe_sync.metrics import SyncMetrics
from services.stripe_sync.outcomes import Action
from services.stripe_sync.settings import StripeSyncSettings
from tollgate import __version__
from tollgate.ledger.engine import Engine, LedgerNotReady, LedgerUnavailable, PinMismatch, open_ledger
from tollgate.ledger.init import check_pins, read_pins
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
                _log.info("service.started", port=port, mode=settings.stripe.mode)
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
            candidate = Candidate(
                self._settings,
                engine=engine,
                threads=threads,
                gateway=gateway,
                journal=KafkaJournal(self._settings.kafka, producer),
                ledger_id=ledger_id,
                holder=f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}",
                clock=self._clock,
                backoff=self._backoff,
                health=self._health,
                metrics=self._metrics,
                faults=Faults(self._settings.sync.fault_point, self._settings.sync.fault_passes),
            )
            while not stop.is_set():
                await candidate.lead_one_term(stop)
        finally:
            try:
                async with asyncio.timeout(5):
                    await producer.stop()
            except (TimeoutError, KafkaError) as error:
                _log.warning("producer.not_stopped", error=str(error))

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
