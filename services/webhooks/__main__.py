"""`python -m services.webhooks [run|import]`: wires the service, or imports what was at Stripe before it.

Owns the wiring, start and stop. The only file here that reads the environment.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError

import tollgate
from services.webhooks.consumer import HEARTBEAT, Consumer
from services.webhooks.errors import Permanent, Transient, TransientReason
from services.webhooks.event import Shape
from services.webhooks.faults import FaultPoint
from services.webhooks.gateway import StripeGateway
from services.webhooks.http import Door, WebhookEndpoint, create_app
from services.webhooks.importer import Bookmark, ImportProgress, import_customers
from services.webhooks.metrics import Metrics
from services.webhooks.pace import Pace
from services.webhooks.poll import EventPoll
from services.webhooks.projector import Projector
from services.webhooks.settings import WebhooksServiceSettings
from services.webhooks.store import KafkaEventStore
from tollgate.contracts.topics import STRIPE_EVENTS
from tollgate.ledger.customers import CustomerBook
from tollgate.ledger.engine import Engine, open_ledger
from tollgate.ledger.errors import CommitUnknown, LedgerNotReady, LedgerUnavailable
from tollgate.ledger.imports import ImportShelf
from tollgate.ledger.init import check_pins
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import SystemClock
from tollgate.runtime.faults import Faults
from tollgate.runtime.health import Health
from tollgate.runtime.http import operations_app, serve_app
from tollgate.runtime.kafka import new_consumer, new_producer
from tollgate.runtime.logging import configure_logging
from tollgate.runtime.metrics import new_registry
from tollgate.runtime.settings import load_settings
from tollgate.runtime.shutdown import Shutdown, run_service

T = TypeVar("T")

SERVICE = "webhooks"
GROUP = "tollgate.webhooks"

STUCK_SECONDS = 300.0
"""A batch whose every call to Stripe runs into its timeout beats at least this often; slower means stuck."""

CLIENT_STOP_SECONDS = 5.0
"""Nothing that a client could still write or commit at the end is needed: both are repeated harmlessly."""

_log = structlog.get_logger(__name__)


class Stopped(Exception):
    """The process was asked to end while it was still starting."""


class Service:
    """The parts that both commands need."""

    def __init__(self, settings: WebhooksServiceSettings) -> None:
        self.settings = settings
        self.clock = SystemClock()
        self.engine: Engine = open_ledger(
            settings.ledger.url.get_secret_value(),
            pool_size=settings.ledger.pool_size,
            statement_timeout_ms=settings.ledger.statement_timeout_ms,
        )
        self.book = CustomerBook(self.engine, settings.webhooks.mapping_rules)
        self.backoff = Backoff(0.5, max(0.5, settings.webhooks.retry_seconds_max), rng=random.Random())  # noqa: S311
        assert settings.stripe.api_key is not None, "checked by the settings"
        self.gateway = StripeGateway(
            settings.stripe.api_key.get_secret_value(),
            api_base=settings.stripe.api_base,
            timeout_seconds=settings.stripe.timeout_seconds,
            pace=Pace(settings.stripe.reads_per_second, self.clock),
        )

    async def check_pins(self) -> None:
        """Refuse a ledger that belongs to another Stripe account or mode. Raises PinMismatch, Transient."""
        account = await self.gateway.account()
        try:
            await asyncio.to_thread(
                lambda: check_pins(self.engine, stripe_account=account.account_id, stripe_mode=account.mode)
            )
        except (LedgerUnavailable, CommitUnknown, LedgerNotReady) as error:
            raise Transient(TransientReason.LEDGER_UNAVAILABLE, str(error)) from error

    async def close(self) -> None:
        await self.gateway.close()
        self.engine.dispose()


# ------------------------------------------------------------------------------------------------- run


async def run(settings: WebhooksServiceSettings, shutdown: Shutdown) -> None:
    """Serve and project until `shutdown`.

    Taking events in depends on the broker alone. The ledger and Stripe are needed by the projector only: while either
    is away, events keep arriving in the log and wait there.
    """
    service = Service(settings)
    clock = service.clock
    health = Health(clock)
    registry = new_registry(SERVICE, tollgate.__version__)
    metrics = Metrics(registry)
    faults = Faults(settings.webhooks.fault_point, settings.webhooks.fault_hit)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(service.close)
        try:
            producer = await _with_broker(lambda: _start_producer(settings), service.backoff, shutdown)
        except Stopped:
            return
        stack.push_async_callback(_stop, producer)
        store = KafkaEventStore(
            producer,
            settings.kafka.topic_name(STRIPE_EVENTS.name),
            settings.webhooks.store_timeout_seconds,
        )
        endpoint = WebhookEndpoint(_door(settings), store, clock, metrics, faults)
        app = create_app(endpoint, operations_app(health, registry))
        port = await stack.enter_async_context(serve_app(app, settings.http.host, settings.http.port))
        health.mark_started()
        health.set_ready("broker", True)
        _log.info("service.started", host=settings.http.host, port=port)
        projecting = asyncio.create_task(
            _project(service, health, metrics, faults, shutdown), name="projector"
        )
        polling = asyncio.create_task(_poll(service, store, metrics, shutdown), name="poll")
        stopping = asyncio.create_task(shutdown.event.wait(), name="shutdown")
        await asyncio.wait({projecting, polling, stopping}, return_when=asyncio.FIRST_COMPLETED)
        health.mark_draining()
        shutdown.request("a part of the service ended")
        stopping.cancel()
        # What is cut off here is found in the log again: nothing was committed for it.
        await asyncio.wait({projecting, polling}, timeout=settings.shutdown_seconds / 2)
        for task in (projecting, polling):
            task.cancel()
        ended = await asyncio.gather(projecting, polling, return_exceptions=True)
        # A service that cannot project must not look as if it had ended in good order.
        for result in ended:
            if isinstance(result, Exception):
                raise result
        _log.info("service.stopped")


def _door(settings: WebhooksServiceSettings) -> Door:
    return Door(
        secrets={
            Shape.CLASSIC: [secret.get_secret_value() for secret in settings.stripe.webhook_secrets],
            Shape.THIN: [secret.get_secret_value() for secret in settings.stripe.thin_secrets],
        },
        tolerance_seconds=settings.webhooks.tolerance_seconds,
        body_bytes_max=settings.webhooks.body_bytes_max,
        in_flight_max=settings.webhooks.in_flight_max,
    )


async def _project(
    service: Service, health: Health, metrics: Metrics, faults: Faults[FaultPoint], shutdown: Shutdown
) -> None:
    """Check the pins, bring the mappings in line with the rules, then consume until shutdown."""
    settings = service.settings
    try:
        await _until_possible(service.check_pins, service.backoff, shutdown, metrics)
        remapped = await _until_possible(lambda: _remap(service), service.backoff, shutdown, metrics)
        _log.info("mappings.checked", customers_changed=remapped)
        consumer = await _with_broker(lambda: _start_consumer(settings), service.backoff, shutdown)
    except Stopped:
        return
    try:
        projector = Projector(service.gateway, service.book, service.clock, metrics, faults)
        health.watch(HEARTBEAT, STUCK_SECONDS)
        await Consumer(
            consumer,
            projector,
            service.clock,
            metrics,
            health,
            faults,
            backoff=service.backoff,
            permanent_tries_max=settings.webhooks.permanent_tries_max,
            batch_records_max=settings.webhooks.batch_records_max,
        ).run(shutdown.event)
    finally:
        health.unwatch(HEARTBEAT)
        await _stop(consumer)


async def _remap(service: Service) -> int:
    try:
        return await asyncio.to_thread(service.book.remap, service.clock.now_ms())
    except (LedgerUnavailable, CommitUnknown, LedgerNotReady) as error:
        raise Transient(TransientReason.LEDGER_UNAVAILABLE, str(error)) from error


async def _poll(service: Service, store: KafkaEventStore, metrics: Metrics, shutdown: Shutdown) -> None:
    interval_seconds = service.settings.webhooks.poll_interval_seconds
    if interval_seconds == 0:
        await shutdown.event.wait()
        return
    try:
        await _until_possible(service.check_pins, service.backoff, shutdown, metrics)
    except Stopped:
        return
    poll = EventPoll(
        service.gateway,
        service.book,
        store,
        service.clock,
        metrics,
        interval_seconds,
        service.settings.webhooks.poll_settling_seconds,
    )
    await poll.run(shutdown.event)


async def _until_possible(
    attempt: Callable[[], Awaitable[T]], backoff: Backoff, shutdown: Shutdown, metrics: Metrics
) -> T:
    """Try until it is no longer Transient. Raises Stopped at shutdown, and whatever else `attempt` raises."""
    tries = 0
    while True:
        try:
            return await attempt()
        except Transient as error:
            metrics.retries.labels(error.reason).inc()
            _log.warning("start.delayed", reason=error.reason, detail=error.detail)
        await _wait(backoff.delay_seconds(tries), shutdown)
        tries += 1


async def _with_broker(start: Callable[[], Awaitable[T]], backoff: Backoff, shutdown: Shutdown) -> T:
    """Start a client of the broker, trying again while there is none. Raises Stopped at shutdown."""
    tries = 0
    while True:
        try:
            return await start()
        except KafkaError as error:
            _log.warning("broker.unavailable", reason=type(error).__name__)
        await _wait(backoff.delay_seconds(tries), shutdown)
        tries += 1


async def _wait(seconds: float, shutdown: Shutdown) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(shutdown.event.wait(), seconds)
    if shutdown.requested:
        raise Stopped


async def _start_producer(settings: WebhooksServiceSettings) -> AIOKafkaProducer:
    producer = new_producer(
        settings.kafka,
        idempotent=not settings.ephemeral,
        ephemeral=settings.ephemeral,
        client_id=f"tollgate-{SERVICE}",
    )
    await _started(producer)
    return producer


async def _start_consumer(settings: WebhooksServiceSettings) -> AIOKafkaConsumer:
    consumer = new_consumer(
        settings.kafka,
        client_id=f"tollgate-{SERVICE}",
        # An event older than the topic keeps is found again by the poll or an import.
        auto_offset_reset="earliest",
        topics=[STRIPE_EVENTS.name],
        group=GROUP,
        session_timeout_ms=int(settings.webhooks.session_timeout_seconds * 1000),
    )
    await _started(consumer)
    return consumer


async def _stop(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    """Stop a client, but not for longer than it is worth: with the broker down both wait for it."""
    try:
        async with asyncio.timeout(CLIENT_STOP_SECONDS):
            await client.stop()
    except (KafkaError, TimeoutError) as error:
        _log.warning("client.stopped_by_force", client=type(client).__name__, reason=type(error).__name__)


async def _started(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    try:
        await client.start()
    except BaseException:
        # A client that failed to start still holds connections and tasks.
        await _stop(client)
        raise


# ---------------------------------------------------------------------------------------------- import


async def import_existing(
    settings: WebhooksServiceSettings, bookmark: Bookmark | None, *, from_start: bool
) -> int:
    """Import, saying on stderr how far it is; the exit code."""
    service = Service(settings)

    def say(progress: ImportProgress) -> None:
        sys.stderr.write(f"{progress.customers} customers, {progress.subscriptions} subscriptions\n")

    try:
        await service.check_pins()
        done = await import_customers(
            service.gateway,
            service.book,
            ImportShelf(service.engine, "customers"),
            service.clock,
            service.backoff,
            bookmark=bookmark,
            from_start=from_start,
            on_progress=say,
        )
    except (Transient, Permanent) as error:
        sys.stderr.write(f"{error}\nimport again to go on from here\n")
        return 1
    finally:
        await service.close()
    sys.stdout.write(f"imported {done.customers} customers and {done.subscriptions} subscriptions\n")
    return 0


def _parse_bookmark(text: str) -> Bookmark:
    try:
        return Bookmark.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m services.webhooks", description="Keeps customers in step with Stripe."
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.add_parser("run", help="serve and project until SIGTERM (the default)")
    importing = commands.add_parser("import", help="bring in what was at Stripe before")
    importing.add_argument(
        "--resume",
        type=_parse_bookmark,
        metavar="BOOKMARK",
        help="go on after this customer or subscription, e.g. customers:cus_123, wherever the last import was",
    )
    importing.add_argument(
        "--from-start", action="store_true", help="begin at the beginning, wherever the last import was"
    )
    chosen = parser.parse_args(arguments)
    settings = load_settings(WebhooksServiceSettings)
    configure_logging(SERVICE, settings.log)
    if chosen.command == "import":
        return asyncio.run(import_existing(settings, chosen.resume, from_start=chosen.from_start))
    return run_service(lambda shutdown: run(settings, shutdown), settings.shutdown_seconds)


if __name__ == "__main__":
    sys.exit(main())
