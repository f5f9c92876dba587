"""The log: records and dead letters on their way to Kafka, and what the broker has acknowledged of them.

Owns the producer: sending, counting per partition what was acknowledged, the ticks that say so, and a new producer
when the old one is beyond use. It refuses to know what an event is.

An idempotent producer repeats a record until it is in the log or the broker refuses it, so nothing here repeats
anything. A record the broker refuses leaves a hole in the producer's numbering, after which a partition would refuse
everything that follows: the cure is a new producer, under a new number, and the failed requests' own retries.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import structlog
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from services.ingest.admission import Admission
from services.ingest.ingest_time import IngestTime
from services.ingest.metrics import IngestMetrics
from services.ingest.packer import SealedRecord
from services.ingest.submission import Submission
from tollgate.contracts.dead import DEAD_HEADERS, DeadLetter, encode_dead_letter
from tollgate.contracts.events import headers_to_kafka
from tollgate.contracts.ticks import TICK_INTERVAL_SECONDS, Tick, encode_tick, tick_headers
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock
from tollgate.runtime.health import Health

_STOP_SECONDS = 5.0
"""For a producer that is replaced: what it still holds has already failed, or will be sent again by its sender."""

_READY_AFTER_SECONDS = 2 * TICK_INTERVAL_SECONDS
_log = structlog.get_logger(__name__)


class Producer(Protocol):
    """The part of aiokafka's producer used here."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def send(self, topic: str, value: bytes, **more: Any) -> Awaitable[Any]: ...

    def create_batch(self) -> Any: ...

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> Awaitable[Any]: ...


class EventLog:
    """Writes to `gateway.events` and `gateway.dead`. One event loop, no locks."""

    def __init__(
        self,
        new_producer: Callable[[], Producer],
        *,
        events_topic: str,
        dead_topic: str,
        partitions: int,
        instance: str,
        admission: Admission,
        clock: Clock,
        ingest_time: IngestTime,
        health: Health,
        metrics: IngestMetrics,
        backoff: Backoff,
    ) -> None:
        """Topics by their full names. `instance` must be new with every start of the process."""
        self._new_producer = new_producer
        self._producer: Producer | None = None
        self._events_topic = events_topic
        self._dead_topic = dead_topic
        self._instance = instance
        self._admission = admission
        self._clock = clock
        self._ingest_time = ingest_time
        self._health = health
        self._metrics = metrics
        self._backoff = backoff
        self._acknowledged = [0] * partitions
        # Per partition the ingest times of records sent and not answered, oldest first.
        self._unanswered: list[dict[int, int]] = [{} for _ in range(partitions)]
        self._sequence = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._beyond_use = asyncio.Event()
        self._tick_acknowledged_at = clock.monotonic_seconds()

    @property
    def rows_acknowledged(self) -> Sequence[int]:
        """Per partition, the rows of this instance the broker has acknowledged."""
        return tuple(self._acknowledged)

    async def start(self) -> None:
        """Start the first producer. Raises KafkaError when no broker answers."""
        producer = self._new_producer()
        try:
            await producer.start()
        except BaseException:
            await producer.stop()
            raise
        self._producer = producer

    async def stop(self, timeout_seconds: float) -> None:
        """Send what is left, for at most `timeout_seconds`."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await self._stop_producer(producer, timeout_seconds)
        for task in list(self._tasks):
            task.cancel()

    def produce(self, records: Sequence[SealedRecord]) -> None:
        """Send `records`; each is settled when the broker has answered for it."""
        for record in records:
            self._admission.hold(len(record.value))
        self._metrics.unacknowledged_bytes.set(self._admission.bytes_held)
        self._spawn(self._send_all(records))

    def produce_dead(self, letter: DeadLetter, submission: Submission) -> None:
        """Send a dead letter; one part of `submission` is settled when the broker has answered for it."""
        value = encode_dead_letter(letter)
        self._admission.hold(len(value))
        self._spawn(self._send_letter(letter, value, submission))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send_all(self, records: Sequence[SealedRecord]) -> None:
        for index, record in enumerate(records):
            if index and self._unanswered[record.partition]:
                # Its partition is behind, and sending may have to wait for room: let it not delay the others.
                self._spawn(self._send_record(record))
            else:
                await self._send_record(record)

    async def _send_record(self, record: SealedRecord) -> None:
        unanswered = self._unanswered[record.partition]
        self._sequence += 1
        sequence = self._sequence
        unanswered[sequence] = record.headers.ingest_ms
        started = self._clock.monotonic_seconds()

        def answered(future: asyncio.Future[Any]) -> None:
            del unanswered[sequence]
            acknowledged = self._judge(future)
            self._admission.release(len(record.value))
            if acknowledged:
                self._acknowledged[record.partition] += record.headers.rows
                self._metrics.observe_record(record.headers.rows, self._clock.monotonic_seconds() - started)
            record.settle(acknowledged)

        await self._hand_over(answered, lambda producer: self._send_alone(producer, record))

    async def _send_alone(self, producer: Producer, record: SealedRecord) -> Awaitable[Any]:
        """A record in a Kafka batch of its own: what aiokafka does to let records share one costs as much again."""
        batch = producer.create_batch()
        appended = batch.append(
            key=None, value=record.value, timestamp=None, headers=headers_to_kafka(record.headers)
        )
        if appended is None:
            raise MessageSizeTooLargeError(len(record.value))
        return await producer.send_batch(batch, self._events_topic, partition=record.partition)

    async def _send_letter(self, letter: DeadLetter, value: bytes, submission: Submission) -> None:
        def answered(future: asyncio.Future[Any]) -> None:
            acknowledged = self._judge(future)
            self._admission.release(len(value))
            submission.settle(acknowledged)

        await self._hand_over(
            answered,
            lambda producer: producer.send(
                topic=self._dead_topic, value=value, key=letter.source.encode(), headers=DEAD_HEADERS
            ),
        )

    async def _hand_over(
        self,
        answered: Callable[[asyncio.Future[Any]], None],
        send: Callable[[Producer], Awaitable[Awaitable[Any]]],
    ) -> None:
        """Hand one record to the producer; `answered` is called once, with the broker's answer or the failure."""
        try:
            if self._producer is None:
                raise KafkaError("there is no producer")
            future = asyncio.ensure_future(await send(self._producer))
        except (Exception, asyncio.CancelledError) as error:
            failed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            failed.set_exception(error if isinstance(error, Exception) else KafkaError("stopped"))
            answered(failed)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            future.add_done_callback(answered)

    def _judge(self, future: asyncio.Future[Any]) -> bool:
        """Whether the broker acknowledged. Any refusal makes the producer unfit for what follows."""
        if future.cancelled():
            return False
        error = future.exception()
        if error is None:
            return True
        self._metrics.count_produce_failure(error)
        self._beyond_use.set()
        return False

    async def replace_broken_producers(self) -> None:
        """Make a new producer whenever a record was refused or given up, until cancelled."""
        attempt = 0
        while True:
            await self._beyond_use.wait()
            self._beyond_use.clear()
            replacement = self._new_producer()
            try:
                await replacement.start()
            except Exception as error:
                _log.warning("producer.not_started", error=repr(error), attempt=attempt)
                await self._stop_producer(replacement, _STOP_SECONDS)
                await self._clock.sleep_seconds(self._backoff.delay_seconds(attempt))
                attempt += 1
                self._beyond_use.set()
                continue
            attempt = 0
            replaced, self._producer = self._producer, replacement
            self._metrics.producers_replaced.inc()
            _log.warning("producer.replaced")
            if replaced is not None:
                self._spawn(self._stop_producer(replaced, _STOP_SECONDS))
            # What fails of the old one from here on says nothing about the new one; give it time to fail.
            await self._clock.sleep_seconds(1.0)

    async def _stop_producer(self, producer: Producer, timeout_seconds: float) -> None:
        try:
            async with asyncio.timeout(timeout_seconds):
                await producer.stop()
        except TimeoutError:
            _log.warning("producer.abandoned", after_seconds=timeout_seconds)
        except Exception as error:
            _log.warning("producer.stopped_badly", error=repr(error))

    async def tick_forever(self) -> None:
        """Write a tick to every partition at once and then every ten seconds, until cancelled."""
        while True:
            await self.tick(TICK_INTERVAL_SECONDS)
            await self._clock.sleep_seconds(TICK_INTERVAL_SECONDS)

    async def tick(self, timeout_seconds: float) -> bool:
        """Write one tick to every partition; True when all were acknowledged within `timeout_seconds`.

        A tick counts what was acknowledged before it is sent, so it stands behind those records in the log. Its
        wall time is not after the stamp of any record that may still come behind it.
        """
        answers: list[asyncio.Future[Any]] = []
        ok = True
        try:
            async with asyncio.timeout(timeout_seconds):
                for partition, rows in enumerate(self._acknowledged):
                    now_ms = self._ingest_time.now_ms()
                    oldest_ms = next(iter(self._unanswered[partition].values()), now_ms)
                    tick = Tick(self._instance, min(now_ms, oldest_ms), rows)
                    if self._producer is None:
                        raise KafkaError("there is no producer")
                    answer = await self._producer.send(
                        self._events_topic,
                        encode_tick(tick),
                        partition=partition,
                        headers=tick_headers(self._instance),
                    )
                    answers.append(asyncio.ensure_future(answer))
                await asyncio.gather(*answers)
        except TimeoutError:
            ok = False
        except Exception as error:
            ok = False
            self._metrics.count_produce_failure(error)
            self._beyond_use.set()
        for answer in answers:
            # Marks failures as seen; a tick that never arrives is made good by the next one.
            answer.add_done_callback(lambda done: None if done.cancelled() else done.exception() and None)
        now = self._clock.monotonic_seconds()
        if ok:
            self._tick_acknowledged_at = now
        silent_seconds = now - self._tick_acknowledged_at
        self._health.set_ready(
            "log",
            silent_seconds < _READY_AFTER_SECONDS,
            "acknowledging" if ok else f"nothing acknowledged for {silent_seconds:.0f} s",
        )
        return ok

    async def finish(self, timeout_seconds: float) -> None:
        """The last tick, whose count is final, and the end of the producer."""
        with contextlib.suppress(Exception):
            await self.tick(timeout_seconds)
        await self.stop(timeout_seconds)
