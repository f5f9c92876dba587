"""The log, as seen beside the hot path: its bounds and single records.

Owns a plain consumer without a group, apart from the one Faust drives, so that what it says does not depend on
whether that one still works. It refuses to know what the answers mean.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from tollgate.runtime.kafka import new_consumer
from tollgate.runtime.settings import KafkaSettings


class LogUnavailable(Exception):
    """The broker did not answer in time. Nothing is known; try again."""


@dataclass(frozen=True, slots=True)
class LogBounds:
    """Offsets a partition holds: `[start, end)`."""

    start: int
    end: int


class Log(Protocol):
    """Questions about one topic. Each may raise LogUnavailable."""

    async def bounds(self, partitions: Collection[int]) -> Mapping[int, LogBounds]:
        """What each partition holds now."""
        ...

    async def read(self, partition: int, offset: int) -> bytes | None:
        """The value of the record at exactly `offset`; None when there is no such record."""
        ...


class KafkaLog:
    """The log on Kafka. An async context manager: the client lives as long as the context."""

    def __init__(self, settings: KafkaSettings, topic: str, timeout_seconds: float) -> None:
        self._settings = settings
        self._topic = settings.topic_name(topic)
        self._timeout_seconds = timeout_seconds
        self._consumer: AIOKafkaConsumer | None = None
        # One question at a time: reading moves the client's assignment.
        self._lock = asyncio.Lock()

    async def __aenter__(self) -> KafkaLog:
        """Raises LogUnavailable when no broker answers."""
        consumer = new_consumer(
            self._settings,
            client_id="tollgate-meter-log",
            auto_offset_reset="none",
            # A broker always sends at least one batch: exactly one is wanted.
            max_partition_fetch_bytes=1,
        )
        try:
            await asyncio.wait_for(consumer.start(), self._timeout_seconds)
        except (KafkaError, OSError, TimeoutError) as error:
            await consumer.stop()
            raise LogUnavailable(f"no broker answers: {error!r}") from error
        self._consumer = consumer
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._consumer is not None:
            consumer, self._consumer = self._consumer, None
            try:
                await asyncio.wait_for(consumer.stop(), self._timeout_seconds)
            except (KafkaError, OSError, TimeoutError):
                # The process is ending and this client holds nothing.
                return

    async def bounds(self, partitions: Collection[int]) -> Mapping[int, LogBounds]:
        consumer = self._started()
        wanted = [TopicPartition(self._topic, partition) for partition in partitions]
        if not wanted:
            return {}
        async with self._lock:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    starts = await consumer.beginning_offsets(wanted)
                    ends = await consumer.end_offsets(wanted)
            except (KafkaError, OSError, TimeoutError) as error:
                raise LogUnavailable(f"offsets of {self._topic}: {error!r}") from error
        return {each.partition: LogBounds(starts[each], ends[each]) for each in wanted}

    async def read(self, partition: int, offset: int) -> bytes | None:
        consumer = self._started()
        wanted = TopicPartition(self._topic, partition)
        async with self._lock:
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    consumer.assign([wanted])
                    consumer.seek(wanted, offset)
                    record = await consumer.getone(wanted)
            except (KafkaError, OSError, TimeoutError) as error:
                raise LogUnavailable(f"{self._topic}/{partition}/{offset}: {error!r}") from error
            finally:
                # Stops the client from fetching on behind our back.
                consumer.unsubscribe()
        return bytes(record.value or b"") if record.offset == offset else None

    def _started(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise LogUnavailable("the log's client is not started")
        return self._consumer
