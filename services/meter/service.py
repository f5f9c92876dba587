"""The meter as a process: its parts wired together, from the checks at the start to the last flush.

Owns the order of starting and stopping. It refuses to know the environment (`__main__`) and the rules of any part.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from typing import TypeVar

import structlog
from aiokafka.errors import KafkaError

from services.meter.assignment import Assignment
from services.meter.book import LedgerBook
from services.meter.dead import KafkaDeadLetters
from services.meter.faults import FaultPoint
from services.meter.group_commit import GroupCommit
from services.meter.intake import Intake
from services.meter.lag import LagWatch
from services.meter.log import KafkaLog, LogUnavailable
from services.meter.metrics import MeterMetrics
from services.meter.partition import Partitions
from services.meter.pipeline import FlushPolicy, Pipeline
from services.meter.settings import MeterSettings
from services.meter.start import check_start
from services.meter.watchdog import Judge, Watchdog
from services.meter.worker import Worker
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
HINT_SECONDS = 2.0
"""How long a handover or a shutdown waits for the group's offset, which is a hint."""
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
        faults = Faults(settings.fault.point, settings.fault.hits)
        intake = Intake(settings.flush.held_bytes_max)
        partitions = Partitions()
        book = LedgerBook(engine)
        assignment = Assignment(
            intake=intake,
            partitions=partitions,
            book=book,
            log=log,
            clock=clock,
            rules=rules,
            backoff=backoff,
            metrics=metrics,
            faults=faults,
            booking=booking,
            on_change=lambda: _report(health, assignment, pipeline),
        )
        pipeline = Pipeline(
            intake=intake,
            partitions=partitions,
            book=book,
            dead=dead,
            clock=clock,
            rules=rules,
            policy=FlushPolicy(
                interval_seconds=settings.flush.interval_ms / 1000,
                interval_seconds_max=max(settings.flush.interval_ms, settings.flush.interval_max_ms) / 1000,
                eager_bytes=settings.flush.eager_bytes,
                bytes_max=settings.flush.bytes_max,
                misses_max=settings.flush.misses_max,
            ),
            backoff=backoff,
            metrics=metrics,
            faults=faults,
            folding=folding,
            booking=booking,
            on_missed=assignment.missed,
        )

        async def hand_over() -> None:
            faults.reach(FaultPoint.REVOKED)
            # Half of what the group allows: what is not flushed by then is folded by whoever comes next.
            await _within(pipeline.drain(), settings.group.session_timeout_seconds / 2)
            await group_commit.now(HINT_SECONDS)
            assignment.revoke()
            group_commit.revoked()

        async def take_over(assigned: Collection[int]) -> None:
            await assignment.assign(assigned)
            health.mark_started()

        worker = Worker(
            settings,
            settings.kafka.topic_name(GATEWAY_EVENTS.name),
            intake=intake,
            pipeline=pipeline,
            assignment=assignment,
            on_revoked=hand_over,
            on_assigned=take_over,
        )
        assignment.connect(pipeline, worker)
        group_commit = GroupCommit(
            partitions=partitions,
            commit=worker.commit,
            clock=clock,
            interval_seconds=settings.group.commit_interval_seconds,
            faults=faults,
        )

        def beat() -> None:
            health.heartbeat("event_loop")
            _report(health, assignment, pipeline)

        lag = LagWatch(
            partitions=partitions,
            intake=intake,
            log=log,
            clock=clock,
            interval_seconds=settings.watchdog.lag_interval_seconds,
            metrics=metrics,
            excuse=lambda: pipeline.blocked or assignment.loading,
            joining=lambda: worker.joining,
            suspect=assignment.suspect,
            beat=beat,
        )
        watchdog = Watchdog(
            Judge(settings.watchdog.stuck_seconds, settings.watchdog.outage_seconds),
            lambda: lag.pulse,
            clock,
            lambda _reason: exit_at_once(EXIT_WATCHDOG),
        )
        watchdog.start()
        stack.callback(watchdog.stop)
        await _run_until_end(
            shutdown,
            settings,
            health,
            assignment,
            pipeline,
            worker,
            group_commit,
            (pipeline.run(), lag.run(), lag.run_pulse(), group_commit.run(), worker.run(), assignment.failed),
        )


async def _run_until_end(
    shutdown: Shutdown,
    settings: MeterSettings,
    health: Health,
    assignment: Assignment,
    pipeline: Pipeline,
    worker: Worker,
    group_commit: GroupCommit,
    work: Collection[Awaitable[None]],
) -> None:
    """Run `work` until shutdown or the first failure, then stop in order: 1. accept nothing more, 2. flush what waits,
    3. tell the group, 4. leave it. Each step is bounded, so that a broker or ledger that is down cannot hold it up.
    """
    tasks = [asyncio.ensure_future(each) for each in work]
    wish = asyncio.ensure_future(shutdown.event.wait())
    done, _ = await asyncio.wait({wish, *tasks}, return_when=asyncio.FIRST_COMPLETED)
    failures = [error for task in done if task is not wish and (error := task.exception()) is not None]
    orderly = not failures
    health.mark_draining()
    assignment.close()
    flushed = orderly and await _within(pipeline.drain(), settings.shutdown_seconds * 0.4)
    if flushed:
        await group_commit.now(HINT_SECONDS)
    left = await _within(worker.stop(), settings.shutdown_seconds * 0.25)
    for task in (wish, *tasks):
        task.cancel()
    await _within(asyncio.gather(wish, *tasks, return_exceptions=True), HINT_SECONDS)
    if failures:
        raise failures[0]
    _log.info("meter.stopped", flushed=flushed, left_group=left)
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
        await _within(producer.stop(), HINT_SECONDS)


def _report(health: Health, assignment: Assignment, pipeline: Pipeline) -> None:
    """What /readyz says: a stopped partition, or a ledger or broker that holds up work, is not ready."""
    stopped = "; ".join(
        f"{p}: {each.reason}: {each.detail}" for p, each in sorted(assignment.stopped.items())
    )
    health.set_ready("partitions", not stopped, stopped)
    blocked = pipeline.blocked or assignment.loading
    health.set_ready("flush", blocked is None, blocked or "")


async def _within(work: Awaitable[object], seconds: float) -> bool:
    """Whether `work` ended well within `seconds`. It is cancelled when not, and its failure is logged."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    except Exception as error:
        _log.warning("stopping.failed", detail=repr(error))
        return False
    return True


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
