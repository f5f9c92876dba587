"""`python -m services.ingest`: wires the service, starts it, and ends it in good order.

Owns the wiring. The only file of this service that reads the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import structlog
from aiokafka.errors import KafkaError

import tollgate
from services.ingest.book import Book
from services.ingest.log import EventLog
from services.ingest.service import Service, new_backoff
from services.ingest.settings import IngestSettings
from tollgate.contracts.events import derive_seed, seed_fingerprint
from tollgate.contracts.topics import GATEWAY_DEAD, GATEWAY_EVENTS
from tollgate.ledger.engine import open_ledger
from tollgate.ledger.errors import LedgerNotReady, PinMismatch
from tollgate.runtime.clock import Clock, SystemClock
from tollgate.runtime.health import Health
from tollgate.runtime.http import serve_app
from tollgate.runtime.kafka import ClusterUnidentified, cluster_id, topic_partitions
from tollgate.runtime.logging import configure_logging
from tollgate.runtime.memory import keep_freed_memory
from tollgate.runtime.metrics import new_registry
from tollgate.runtime.settings import load_settings
from tollgate.runtime.shutdown import Shutdown, run_service

SERVICE = "ingest"
HEARTBEAT = "event_loop"
_STUCK_SECONDS = 60.0
_DRAIN_SHARE = 0.5
"""Of the time a shutdown may take: for requests in flight. The rest is for the last ticks and the producer."""

_ABANDON_SECONDS = 2.0
"""For a producer that has nothing to send."""

T = TypeVar("T")
_log = structlog.get_logger(__name__)


async def run(settings: IngestSettings, shutdown: Shutdown) -> None:
    """Serve until `shutdown`.

    1. Find the broker and the topic. 2. Tokens: from the ledger, else from the last run's snapshot. 3. Serve.
    4. On the wish to end: no new work, answer what is in flight, say the final counts, close.
    """
    keep_freed_memory()
    clock = SystemClock()
    health = Health(clock)
    registry = new_registry(SERVICE, tollgate.__version__)
    async with contextlib.AsyncExitStack() as stack:
        found = await _until_broker(lambda: _find_topic(settings), shutdown)
        if found is None:
            return
        partitions, pins = found
        service = Service(settings, clock, health, registry, partitions)
        stack.push_async_callback(service.log.stop, _ABANDON_SECONDS)
        if not await _until_broker(lambda: _start(service.log), shutdown):
            return
        engine = open_ledger(
            settings.ledger.url.get_secret_value(),
            pool_size=settings.ledger.pool_size,
            statement_timeout_ms=settings.ledger.statement_timeout_ms,
        )
        stack.callback(engine.dispose)
        service.tokens.load_snapshot()
        book = Book(engine, service.tokens, pins)
        try:
            await book.read()
        except (PinMismatch, LedgerNotReady) as error:
            raise SystemExit(str(error)) from None

        # A drained request still needs these: they end after the server.
        background = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("group_commit", service.commit.run()),
                ("deadlines", service.commit.watch_deadlines()),
                ("ticks", service.log.tick_forever()),
                ("producer", service.log.replace_broken_producers()),
                ("tokens", _refresh(service, book)),
                ("heartbeat", _beat(health, clock)),
            )
        ]
        stopping = asyncio.create_task(shutdown.event.wait(), name="shutdown")
        drain_seconds = settings.shutdown_seconds * _DRAIN_SHARE
        try:
            async with serve_app(
                service.app,
                settings.http.host,
                settings.http.port,
                drain_seconds=max(1, int(drain_seconds)),
                direct=service.direct,
            ) as port:
                # What was made so far lives as long as the process: keep it out of every collection.
                gc.collect()
                gc.freeze()
                gc.set_threshold(50_000, 20, 50)
                health.mark_started()
                _log.info("service.started", host=settings.http.host, port=port, partitions=partitions)
                await asyncio.wait({stopping, *background}, return_when=asyncio.FIRST_COMPLETED)
                health.mark_draining()
                shutdown.request("a part of the service ended")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await service.commit.drain()
        finally:
            stopping.cancel()
            failed = [task for task in background if task.done() and not task.cancelled()]
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await service.log.finish(settings.shutdown_seconds * (1 - _DRAIN_SHARE) / 3)
        for task in failed:
            try:
                task.result()
            except (PinMismatch, LedgerNotReady) as error:
                # A cut-over it was not told of, say: for an operator, and no fault of the program.
                raise SystemExit(str(error)) from None
        _log.info("service.stopped")


async def _start(log: EventLog) -> bool:
    await log.start()
    return True


async def _find_topic(settings: IngestSettings) -> tuple[int, dict[str, str | int]]:
    """The events topic's partition count, and what the ledger must be pinned to. Raises SystemExit without topics."""
    for topic in (GATEWAY_EVENTS.name, GATEWAY_DEAD.name):
        if not await topic_partitions(settings.kafka, topic):
            raise SystemExit(f"no topic {settings.kafka.topic_name(topic)!r}: run `tollgate init`")
    partitions = await topic_partitions(settings.kafka, GATEWAY_EVENTS.name)
    assert partitions is not None
    pins: dict[str, str | int] = {
        "events_topic": settings.kafka.topic_name(GATEWAY_EVENTS.name),
        "partitions": partitions,
        "id_seed_fingerprint": seed_fingerprint(derive_seed(settings.id_seed.get_secret_value())),
    }
    with contextlib.suppress(ClusterUnidentified):
        pins["kafka_cluster_id"] = await cluster_id(settings.kafka)
    return partitions, pins


async def _until_broker(attempt: Callable[[], Awaitable[T]], shutdown: Shutdown) -> T | None:
    """What `attempt` gives once a broker answers; None when the process is asked to end before."""
    backoff = new_backoff()
    tries = 0
    while not shutdown.requested:
        try:
            return await attempt()
        except KafkaError as error:
            _log.warning("broker.not_reached", error=repr(error))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(backoff.delay_seconds(tries)):
                await shutdown.event.wait()
        tries += 1
    return None


async def _refresh(service: Service, book: Book) -> None:
    """Read the tokens every few seconds, until cancelled. Raises PinMismatch when the ledger is not ours."""
    while True:
        known = service.tokens.known
        service.health.set_ready("tokens", known, "known" if known else "never read from the ledger")
        service.metrics.tokens_age_seconds.set(service.tokens.age_seconds if known else 0)
        service.metrics.unacknowledged_bytes.set(service.admission.bytes_held)
        await service.clock.sleep_seconds(service.settings.tokens_refresh_seconds)
        await book.read()


async def _beat(health: Health, clock: Clock) -> None:
    """Show that the event loop turns."""
    health.watch(HEARTBEAT, _STUCK_SECONDS)
    while True:
        health.heartbeat(HEARTBEAT)
        await clock.sleep_seconds(1.0)


def main() -> int:
    """Run until a signal; returns the exit code."""
    settings = load_settings(IngestSettings)
    configure_logging(SERVICE, settings.log)
    return run_service(partial(run, settings), settings.shutdown_seconds)


if __name__ == "__main__":
    sys.exit(main())
