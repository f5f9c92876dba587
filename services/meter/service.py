"""The meter as a process: its parts wired together, from the checks at the start to the last flush.

Owns the order of starting. It refuses to know the environment (`__main__`) and the rules of any part.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import structlog
from aiokafka.errors import KafkaError

from services.meter.assembly import HINT_SECONDS, Meter, within
from services.meter.book import LedgerBook
from services.meter.dead import KafkaDeadLetters
from services.meter.log import KafkaLog, LogUnavailable
from services.meter.metrics import MeterMetrics
from services.meter.settings import MeterSettings
from services.meter.start import check_start
from services.meter.watchdog import Judge, Watchdog
from tollgate.contracts.topics import GATEWAY_DEAD, GATEWAY_EVENTS
from tollgate.ledger.engine import open_ledger
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock, SystemClock
from tollgate.runtime.faults import Faults
from tollgate.runtime.health import Health
from tollgate.runtime.http import operations_app, serve_app
from tollgate.runtime.kafka import new_producer
from tollgate.runtime.metrics import new_registry
from tollgate.runtime.shutdown import Shutdown, exit_at_once

T = TypeVar("T")

_log = structlog.stdlib.get_logger(__name__)

ASK_SECONDS = 10.0
"""How long one question to the broker beside the hot path may take."""
EXIT_WATCHDOG = 70
"""EX_SOFTWARE: tells a supervisor's log apart from a failure that was reported in order."""


async def run_meter(settings: MeterSettings, shutdown: Shutdown, clock: Clock | None = None) -> None:
    """Count until `shutdown` is requested.

    Raises SystemExit with a sentence for what an operator must mend (schema, pins, a missing topic), Fenced,
    NothingLeft or whatever else makes going on wrong.
    """
    clock = clock or SystemClock()
    backoff = Backoff(0.2, 10.0, rng=random.Random())  # noqa: S311 - jitter
    health = Health(clock)
    health.watch("event_loop", settings.watchdog.stuck_seconds)
    registry = new_registry("meter", _version())
    metrics = MeterMetrics(registry)
    async with AsyncExitStack() as stack:
        port = await stack.enter_async_context(
            serve_app(operations_app(health, registry), settings.http.host, settings.http.port)
        )
        _log.info("operations.listening", host=settings.http.host, port=port)
        engine = open_ledger(
            settings.ledger.url.get_secret_value(),
            pool_size=settings.ledger.pool_size,
            statement_timeout_ms=settings.ledger.statement_timeout_ms,
        )
        stack.callback(engine.dispose)
        booking = ThreadPoolExecutor(1, "meter-booking")
        folding = ThreadPoolExecutor(1, "meter-folding")
        stack.callback(booking.shutdown, wait=False, cancel_futures=True)
        stack.callback(folding.shutdown, wait=False, cancel_futures=True)

        rules = await _or_shutdown(check_start(settings, engine, clock, backoff, health), shutdown)
        if rules is None:
            return
        log = await stack.enter_async_context(KafkaLog(settings.kafka, GATEWAY_EVENTS.name, ASK_SECONDS))
        dead = await stack.enter_async_context(_dead_letters(settings))
        meter = Meter(
            settings,
            book=LedgerBook(engine),
            log=log,
            dead=dead,
            rules=rules,
            clock=clock,
            backoff=backoff,
            health=health,
            metrics=metrics,
            faults=Faults(settings.fault.point, settings.fault.hits),
            folding=folding,
            booking=booking,
        )
        watchdog = Watchdog(
            Judge(settings.watchdog.stuck_seconds, settings.watchdog.outage_seconds),
            lambda: meter.lag.pulse,
            clock,
            lambda _reason: exit_at_once(EXIT_WATCHDOG),
        )
        watchdog.start()
        stack.callback(watchdog.stop)
        flushed, left = await meter.run(shutdown.event)
        if flushed and not left:
            # Faust's threads wait for a broker that is down and would keep the process; everything is in the ledger.
            os._exit(0)


@asynccontextmanager
async def _dead_letters(settings: MeterSettings) -> AsyncIterator[KafkaDeadLetters]:
    producer = new_producer(
        settings.kafka,
        idempotent=not settings.ephemeral,
        ephemeral=settings.ephemeral,
        client_id="tollgate-meter-dead",
    )
    try:
        await producer.start()
    except (KafkaError, OSError) as error:
        await producer.stop()
        raise LogUnavailable(f"no broker answers: {error!r}") from error
    try:
        yield KafkaDeadLetters(
            producer,
            settings.kafka.topic_name(GATEWAY_DEAD.name),
            settings.kafka.topic_name(GATEWAY_EVENTS.name),
            settings.kafka.request_timeout_ms / 1000 + 1,
        )
    finally:
        # Every letter that mattered was awaited already.
        await within(producer.stop(), HINT_SECONDS)


async def _or_shutdown(work: Awaitable[T], shutdown: Shutdown) -> T | None:
    """What `work` comes to; None when shutdown is requested first."""
    task = asyncio.ensure_future(work)
    wish = asyncio.ensure_future(shutdown.event.wait())
    await asyncio.wait({task, wish}, return_when=asyncio.FIRST_COMPLETED)
    wish.cancel()
    if task.done():
        return task.result()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    return None


def _version() -> str:
    try:
        return version("tollgate")
    except PackageNotFoundError:
        return "0+unknown"
