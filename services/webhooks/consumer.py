"""The consumer: events from the topic to the projector, in order within a customer, none skipped.

Owns offsets, tries and waiting. It refuses to know what projecting is. A record is done when the ledger has it; its
offset is committed afterwards and is only a hint, since a record seen twice is found in the inbox.

- transient: the partition waits with growing delays and begins again at the same record; others go on;
- permanent: tried a few times, since Stripe's reads can lag behind its events, then parked in the inbox.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from services.webhooks.errors import Permanent, PermanentReason, Transient
from services.webhooks.event import StripeEvent, parse_event
from services.webhooks.faults import FaultPoint
from services.webhooks.metrics import Metrics
from services.webhooks.projector import Batch
from tollgate.ledger.billing import Receipt
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock
from tollgate.runtime.faults import Faults
from tollgate.runtime.health import Health

POLL_TIMEOUT_MS = 500
"""How long a stop may go unnoticed while there is nothing to do."""

HEARTBEAT = "projector"

_log = structlog.get_logger(__name__)


class Log(Protocol):
    """What is used of AIOKafkaConsumer."""

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> Mapping[TopicPartition, Sequence[Any]]: ...

    def assignment(self) -> Any: ...

    def seek(self, partition: TopicPartition, offset: int) -> None: ...

    def pause(self, *partitions: TopicPartition) -> None: ...

    def resume(self, *partitions: TopicPartition) -> None: ...

    def highwater(self, partition: TopicPartition) -> int | None: ...

    async def commit(self, offsets: Mapping[TopicPartition, int] | None = None) -> None: ...


class Target(Protocol):
    """What is used of the projector."""

    async def project(self, event: StripeEvent, batch: Batch) -> str: ...

    async def park(self, receipt: Receipt, reason: PermanentReason) -> None: ...


@dataclass(frozen=True, slots=True)
class _Stuck:
    """A partition's head that has not been done yet: what was tried, and when to try again."""

    offset: int
    transient_tries: int
    permanent_tries: int
    retry_at_seconds: float


class _NotYet(Exception):
    """This record stays; try again after a while."""

    def __init__(self, permanent: bool) -> None:
        self.permanent = permanent


class Consumer:
    """Feeds the projector. One event loop; partitions are worked on side by side, each in its own order."""

    def __init__(
        self,
        log: Log,
        target: Target,
        clock: Clock,
        metrics: Metrics,
        health: Health,
        faults: Faults[FaultPoint],
        *,
        backoff: Backoff,
        permanent_tries_max: int,
        batch_records_max: int,
    ) -> None:
        self._log = log
        self._target = target
        self._clock = clock
        self._metrics = metrics
        self._health = health
        self._faults = faults
        self._backoff = backoff
        self._permanent_tries_max = permanent_tries_max
        self._batch_records_max = batch_records_max
        self._stuck: dict[TopicPartition, _Stuck] = {}
        self._next: dict[TopicPartition, int] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; the record in hand is finished first. Raises what the log raises."""
        while not stop.is_set():
            await self.step(stop)

    async def step(self, stop: asyncio.Event) -> None:
        """Take what is there, at most a batch, and project it."""
        self._health.heartbeat(HEARTBEAT)
        self._resume_due()
        taken = await self._log.getmany(timeout_ms=POLL_TIMEOUT_MS, max_records=self._batch_records_max)
        batch = Batch()
        await asyncio.gather(
            *(self._project_partition(part, records, batch, stop) for part, records in taken.items())
        )
        self._measure_lag()

    def _resume_due(self) -> None:
        assigned = self._log.assignment()
        now = self._clock.monotonic_seconds()
        for part, stuck in list(self._stuck.items()):
            if part not in assigned:
                del self._stuck[part]
            elif stuck.retry_at_seconds <= now:
                self._log.resume(part)

    async def _project_partition(
        self, part: TopicPartition, records: Sequence[Any], batch: Batch, stop: asyncio.Event
    ) -> None:
        done_to: int | None = None
        for record in records:
            if stop.is_set():
                break
            try:
                await self._project_record(part, record, batch)
            except _NotYet as not_yet:
                self._hold(part, record.offset, permanent=not_yet.permanent)
                break
            self._stuck.pop(part, None)
            done_to = record.offset + 1
            self._health.heartbeat(HEARTBEAT)
        if done_to is not None:
            self._next[part] = done_to
            await self._commit(part, done_to)

    async def _project_record(self, part: TopicPartition, record: Any, batch: Batch) -> None:
        """Bring one record to an end: projected, or parked. Raises _NotYet."""
        receipt = Receipt(f"record:{part.topic}/{part.partition}/{record.offset}", "", "", "", 0)
        try:
            event = parse_event(record.value)
            receipt = event.to_receipt()
            await self._target.project(event, batch)
        except Transient as error:
            self._metrics.retries.labels(error.reason).inc()
            _log.warning("event.delayed", event_id=receipt.event_id, reason=error.reason, detail=error.detail)
            raise _NotYet(permanent=False) from None
        except Permanent as error:
            await self._try_or_park(part, record.offset, receipt, error.reason, error.detail)
        except Exception as error:
            _log.exception("event.failed", event_id=receipt.event_id)
            detail = type(error).__name__
            await self._try_or_park(part, record.offset, receipt, PermanentReason.INTERNAL, detail)

    async def _try_or_park(
        self, part: TopicPartition, offset: int, receipt: Receipt, reason: PermanentReason, detail: str
    ) -> None:
        stuck = self._stuck.get(part)
        tries = 1 + (stuck.permanent_tries if stuck is not None and stuck.offset == offset else 0)
        if tries < self._permanent_tries_max and reason is not PermanentReason.UNREADABLE:
            raise _NotYet(permanent=True)
        try:
            await self._target.park(receipt, reason)
        except Transient as error:
            self._metrics.retries.labels(error.reason).inc()
            raise _NotYet(permanent=False) from None
        self._metrics.projected.labels("parked", f"failed:{reason}").inc()
        _log.error("event.parked", event_id=receipt.event_id, type=receipt.type, reason=reason, detail=detail)

    def _hold(self, part: TopicPartition, offset: int, *, permanent: bool) -> None:
        """Leave the partition alone for a while, then begin again at `offset`."""
        stuck = self._stuck.get(part)
        if stuck is None or stuck.offset != offset:
            stuck = _Stuck(offset, 0, 0, 0.0)
        tries = stuck.transient_tries + stuck.permanent_tries
        self._stuck[part] = _Stuck(
            offset,
            stuck.transient_tries + (not permanent),
            stuck.permanent_tries + permanent,
            self._clock.monotonic_seconds() + self._backoff.delay_seconds(tries),
        )
        try:
            self._log.seek(part, offset)
            self._log.pause(part)
        except IllegalStateError:
            # Taken away in the meantime: its new owner begins at the committed offset.
            self._stuck.pop(part, None)

    async def _commit(self, part: TopicPartition, next_offset: int) -> None:
        try:
            await self._log.commit({part: next_offset})
        except (KafkaError, IllegalStateError) as error:
            _log.warning("offset.not_committed", partition=part.partition, reason=type(error).__name__)
            return
        self._faults.reach(FaultPoint.COMMITTED)

    def _measure_lag(self) -> None:
        assigned = self._log.assignment()
        self._next = {part: offset for part, offset in self._next.items() if part in assigned}
        lag = 0
        for part, next_offset in self._next.items():
            end = self._log.highwater(part)
            lag += max(0, end - next_offset) if end is not None else 0
        self._metrics.lag.set(lag)
