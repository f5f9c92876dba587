"""The service: what is checked before anything is archived, then the worker until the end.

Owns start and stop. It refuses to contain a rule.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from typing import TypeVar

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from services.archive.directory import PartitionDirectory, PinsDiffer, open_archive
from services.archive.metrics import Metrics
from services.archive.partition import PartitionArchive
from services.archive.settings import ArchiveSettings
from services.archive.worker import HEARTBEAT, Worker
from tollgate import __version__
from tollgate.contracts.archive import ArchivePins, NotAnArchive
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.ledger.engine import LedgerNotReady, LedgerUnavailable, PinMismatch, open_ledger
from tollgate.ledger.init import check_pins
from tollgate.ledger.migrations import check_schema
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock, SystemClock
from tollgate.runtime.faults import Faults
from tollgate.runtime.health import Health
from tollgate.runtime.http import operations_app, serve_app
from tollgate.runtime.kafka import ClusterUnidentified, cluster_id, new_consumer, topic_partitions
from tollgate.runtime.metrics import new_registry
from tollgate.runtime.shutdown import Shutdown

T = TypeVar("T")

SERVICE = "archive"
CLIENT_STOP_SECONDS = 5.0
"""Everything that matters is in files by then; with the broker down the client would wait for it."""

_log = structlog.get_logger(__name__)


class _Ended(Exception):
    """The process was asked to end while it was still starting."""


async def run_archive(settings: ArchiveSettings, shutdown: Shutdown, clock: Clock | None = None) -> None:
    """Archive until `shutdown` is requested, then close what is open.

    Raises SystemExit with a sentence for what an operator must mend: schema, pins, a missing topic, a directory that
    is something else.
    """
    clock = clock or SystemClock()
    backoff = Backoff(0.2, 10.0, rng=random.Random())  # noqa: S311 - jitter
    health = Health(clock)
    registry = new_registry(SERVICE, __version__)
    metrics = Metrics(registry)
    faults = Faults(settings.archive_fault.point, settings.archive_fault.hits)
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(
            serve_app(operations_app(health, registry), settings.http.host, settings.http.port)
        )
        _log.info("operations.listening", host=settings.http.host, port=port)
        try:
            pins = await _check_start(settings, clock, backoff, health, shutdown)
            consumer = await _start_consumer(settings, pins, clock, backoff, health, shutdown)
        except _Ended:
            return
        except (PinsDiffer, NotAnArchive, PinMismatch, LedgerNotReady) as error:
            raise SystemExit(str(error)) from None
        stack.push_async_callback(_stop, consumer)
        executor = ThreadPoolExecutor(1, "archive-files")
        stack.callback(executor.shutdown, wait=False, cancel_futures=True)

        def new_archive(partition: int) -> PartitionArchive:
            directory = PartitionDirectory(settings.archive.directory, partition, faults)
            return PartitionArchive(
                partition, directory, pins.archive_id, settings.archive, clock, metrics, faults
            )

        worker = Worker(
            consumer,
            settings.kafka.topic_name(GATEWAY_EVENTS.name),
            new_archive,
            executor=executor,
            held_bytes_max=settings.archive.held_bytes_max,
            records_max=settings.archive_fetch.records_max,
            # Half of what the group, and half of what a shutdown allows.
            handover_seconds=min(settings.archive_group.session_timeout_seconds, settings.shutdown_seconds)
            / 2,
            backoff=backoff,
            clock=clock,
            health=health,
            metrics=metrics,
            faults=faults,
        )
        health.watch(HEARTBEAT, settings.stuck_seconds)
        _log.info("service.started", directory=str(settings.archive.directory), archive=pins.archive_id)
        stack.callback(health.mark_draining)
        await worker.run(shutdown.event)
        _log.info("service.stopped")


async def _check_start(
    settings: ArchiveSettings, clock: Clock, backoff: Backoff, health: Health, shutdown: Shutdown
) -> ArchivePins:
    """Wait for ledger, broker and directory; refuse any that do not belong together.

    Raises PinMismatch, LedgerNotReady, PinsDiffer, NotAnArchive, SystemExit when the topic does not exist, _Ended.
    """
    topic = settings.kafka.topic_name(GATEWAY_EVENTS.name)
    engine = open_ledger(
        settings.ledger.url.get_secret_value(),
        pool_size=1,
        statement_timeout_ms=settings.ledger.statement_timeout_ms,
    )
    try:

        async def patiently(what: str, ask: Callable[[], Awaitable[T]]) -> T:
            return await _until_possible(what, ask, clock, backoff, health, shutdown)

        await patiently("ledger", lambda: asyncio.to_thread(check_schema, engine))
        cluster = await patiently("broker", lambda: cluster_id(settings.kafka))
        count = await patiently("broker", lambda: topic_partitions(settings.kafka, GATEWAY_EVENTS.name))
        if count is None:
            raise SystemExit(f"topic {topic} does not exist: run `tollgate init`")
        partitions = count
        await patiently(
            "ledger",
            lambda: asyncio.to_thread(
                check_pins, engine, kafka_cluster_id=cluster, events_topic=topic, partitions=partitions
            ),
        )
        return await patiently(
            "directory",
            lambda: asyncio.to_thread(
                open_archive,
                settings.archive.directory,
                kafka_cluster_id=cluster,
                events_topic=topic,
                partitions=partitions,
            ),
        )
    finally:
        # The ledger's pins are all that is asked of it.
        engine.dispose()


async def _start_consumer(
    settings: ArchiveSettings,
    pins: ArchivePins,
    clock: Clock,
    backoff: Backoff,
    health: Health,
    shutdown: Shutdown,
) -> AIOKafkaConsumer:
    async def start() -> AIOKafkaConsumer:
        consumer = new_consumer(
            settings.kafka,
            client_id="tollgate-archive",
            auto_offset_reset="none",
            group=f"{settings.archive_group.name}-{pins.archive_id}",
            session_timeout_ms=int(settings.archive_group.session_timeout_seconds * 1000),
            fetch_max_bytes=settings.archive_fetch.bytes_max,
        )
        try:
            await consumer.start()
        except BaseException:
            # A client that failed to start still holds connections and tasks.
            await _stop(consumer)
            raise
        return consumer

    return await _until_possible("broker", start, clock, backoff, health, shutdown)


async def _until_possible(
    what: str,
    ask: Callable[[], Awaitable[T]],
    clock: Clock,
    backoff: Backoff,
    health: Health,
    shutdown: Shutdown,
) -> T:
    """What `ask` answers, once whoever it asks is there. Raises _Ended at shutdown, and whatever else it raises."""
    attempt = 0
    while not shutdown.requested:
        try:
            answer = await ask()
        except (LedgerUnavailable, KafkaError, ClusterUnidentified, OSError) as error:
            health.set_ready(what, False, str(error))
            _log.warning("start.waiting", on=what, detail=f"{type(error).__name__}: {error}")
        else:
            health.set_ready(what, True)
            return answer
        waiting = asyncio.ensure_future(shutdown.event.wait())
        slept = asyncio.ensure_future(clock.sleep_seconds(backoff.delay_seconds(min(attempt, 60))))
        await asyncio.wait({waiting, slept}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        slept.cancel()
        attempt += 1
    raise _Ended


async def _stop(consumer: AIOKafkaConsumer) -> None:
    try:
        async with asyncio.timeout(CLIENT_STOP_SECONDS):
            await consumer.stop()
    except (KafkaError, TimeoutError) as error:
        _log.warning("client.stopped_by_force", reason=type(error).__name__)
