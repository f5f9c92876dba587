"""The meter's parts wired to one another.

Owns which part is told of what, the order in which partitions are handed over, and the order of stopping. It refuses to know where ledger,
log and clock come from: whoever assembles it says so, a process (`service.py`) or a simulation of many.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Executor
from typing import Any

import structlog

from services.meter.assignment import Assignment
from services.meter.book import Book
from services.meter.dead import DeadLetters
from services.meter.faults import FaultPoint
from services.meter.group_commit import GroupCommit
from services.meter.intake import Intake
from services.meter.lag import LagWatch
from services.meter.log import Log
from services.meter.metrics import MeterMetrics
from services.meter.partition import Partitions
from services.meter.pipeline import FlushPolicy, Pipeline
from services.meter.settings import MeterSettings
from services.meter.worker import Worker
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.metering.fold import CompiledMeters
from tollgate.metering.meter import MeterSet
from tollgate.metering.outcome import TimeRules
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults
from tollgate.runtime.health import Health

_log = structlog.stdlib.get_logger(__name__)

HINT_SECONDS = 2.0
"""How long a handover or a shutdown waits for the group's offset, which is a hint."""


class Meter:
    """One process' parts. Belongs to one event loop; `folding` and `booking` have one thread each."""

    def __init__(
        self,
        settings: MeterSettings,
        *,
        book: Book,
        log: Log,
        dead: DeadLetters,
        rules: TimeRules,
        clock: Clock,
        backoff: Backoff,
        health: Health,
        metrics: MeterMetrics,
        faults: Faults[FaultPoint],
        folding: Executor,
        booking: Executor,
        worker: Callable[..., Worker] = Worker,
        compile_meters: Callable[[MeterSet], CompiledMeters] = CompiledMeters.compile,
    ) -> None:
        self._settings = settings
        self._health = health
        self._faults = faults
        intake = Intake(settings.flush.held_bytes_max)
        partitions = Partitions()
        self.assignment = Assignment(
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
            on_change=self._report,
        )
        self.pipeline = Pipeline(
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
            on_missed=self.assignment.missed,
            compile_meters=compile_meters,
        )
        self.worker = worker(
            settings,
            settings.kafka.topic_name(GATEWAY_EVENTS.name),
            intake=intake,
            pipeline=self.pipeline,
            assignment=self.assignment,
            on_revoked=self._hand_over,
            on_assigned=self._take_over,
        )
        self.assignment.connect(self.pipeline, self.worker)
        self.group_commit = GroupCommit(
            partitions=partitions,
            commit=self.worker.commit,
            clock=clock,
            interval_seconds=settings.group.commit_interval_seconds,
            faults=faults,
        )
        self.lag = LagWatch(
            partitions=partitions,
            intake=intake,
            log=log,
            clock=clock,
            interval_seconds=settings.watchdog.lag_interval_seconds,
            metrics=metrics,
            excuse=lambda: self.pipeline.blocked or self.assignment.loading,
            joining=lambda: self.worker.joining,
            suspect=self.assignment.suspect,
            beat=self._beat,
        )

    async def run(self, stop: asyncio.Event) -> tuple[bool, bool]:
        """Count until `stop` or the first failure, then stop in order: 1. accept nothing more, 2. flush what waits,
        3. tell the group, 4. leave it. Each step is bounded, so that a broker or ledger that is down cannot hold it up.

        Returns whether everything was flushed, and whether the group was left. Raises what failed.
        """
        work = (
            self.pipeline.run(),
            self.lag.run(),
            self.lag.run_pulse(),
            self.group_commit.run(),
            self.worker.run(),
            self.assignment.failed,
        )
        tasks = [asyncio.ensure_future(each) for each in work]
        wish = asyncio.ensure_future(stop.wait())
        done, _ = await asyncio.wait({wish, *tasks}, return_when=asyncio.FIRST_COMPLETED)
        failures = [error for task in done if task is not wish and (error := task.exception()) is not None]
        self._health.mark_draining()
        self.assignment.close()
        allowed_seconds = self._settings.shutdown_seconds
        flushed = not failures and await within(self.pipeline.drain(), allowed_seconds * 0.4)
        if flushed:
            await self.group_commit.now(HINT_SECONDS)
        left = await within(self.worker.stop(), allowed_seconds * 0.25)
        for task in (wish, *tasks):
            task.cancel()
        await within(asyncio.gather(wish, *tasks, return_exceptions=True), HINT_SECONDS)
        if failures:
            raise failures[0]
        _log.info("meter.stopped", flushed=flushed, left_group=left)
        return flushed, left

    async def _hand_over(self) -> None:
        self._faults.reach(FaultPoint.REVOKED)
        # Half of what the group allows: what is not flushed by then is folded by whoever comes next.
        await within(self.pipeline.drain(), self._settings.group.session_timeout_seconds / 2)
        await self.group_commit.now(HINT_SECONDS)
        self.assignment.revoke()
        self.group_commit.revoked()

    async def _take_over(self, assigned: Collection[int]) -> None:
        await self.assignment.assign(assigned)
        self._health.mark_started()

    def _beat(self) -> None:
        self._health.heartbeat("event_loop")
        self._report()

    def _report(self) -> None:
        """What /readyz says: a stopped partition, or a ledger or broker that holds up work, is not ready."""
        stopped = "; ".join(
            f"{p}: {each.reason}: {each.detail}" for p, each in sorted(self.assignment.stopped.items())
        )
        self._health.set_ready("partitions", not stopped, stopped)
        blocked = self.pipeline.blocked or self.assignment.loading
        self._health.set_ready("flush", blocked is None, blocked or "")


async def within(work: Awaitable[Any], seconds: float) -> bool:
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
