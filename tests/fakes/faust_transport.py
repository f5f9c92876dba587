"""A transport without a broker: Faust's own conductor, stream, agent and rebalance code run on a log in memory.

Owns polling the log, positions, and rebalances to order. What the meter changes in a Faust consumer is the real
`LedgerConsumer`; only broker and fetching thread are replaced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

import faust
from faust.transport import base, consumer, producer
from faust.types import TP, ConsumerMessage

from services.meter.intake import LogRecord
from services.meter.transport import LedgerConsumer, Positions
from tests.fakes.log import MemoryLog

POLL_RECORDS = 20


class MemoryConsumer(LedgerConsumer, consumer.Consumer):
    """Reads a `MemoryLog`. Assigned nothing until `rebalance`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        transport: Any = self.transport
        self.log_in_memory: MemoryLog = transport.log
        self.topic: str = transport.topic
        transport.made = self
        self.subscribed = asyncio.Event()
        self.at: dict[TP, int] = {}
        self.seeks: list[tuple[int, int]] = []
        self.committed: list[dict[int, int]] = []

    async def rebalance(self, partitions: Iterable[int]) -> None:
        """Revoke everything and assign `partitions`, in the order and with the waits of the real driver."""
        new = {TP(self.topic, partition) for partition in partitions}
        self.app.on_rebalance_start()
        await self.on_partitions_revoked(set(self.at))
        self.at = dict.fromkeys(new, 0)
        self.app.consumer_generation_id += 1
        await self.on_partitions_assigned(new, self.app.consumer_generation_id)

    def displace(self, partition: int, offset: int) -> None:
        """Continue somewhere else, as after an offset out of range."""
        self.at[TP(self.topic, partition)] = offset

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        found: dict[TP, list[LogRecord]] = {}
        for tp in active_partitions or ():
            if tp in self.at:
                bounds = self.log_in_memory.bounds_of(tp.partition)
                at = self.at[tp] if bounds.start <= self.at[tp] <= bounds.end else bounds.start
                records = list(self.log_in_memory.records(tp.partition, at)[:POLL_RECORDS])
                self.at[tp] = at + len(records)
                if records:
                    found[tp] = records
        if not found:
            await asyncio.sleep(0.001)
        return found

    def _to_message(self, tp: TP, record: LogRecord) -> Any:
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            record.offset,
            0.0,
            0,
            list(record.headers),
            None,
            record.value,
            None,
            tp=tp,
            generation_id=self.app.consumer_generation_id,
        )

    async def subscribe(self, topics: Iterable[str]) -> None:
        self.subscribed.set()

    def assignment(self) -> set[TP]:
        return set(self.at)

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        for tp, offset in partitions.items():
            await self._seek(tp, offset)

    async def _seek(self, partition: TP, offset: int) -> None:
        if partition in self.at:
            self.at[partition] = offset
            self.seeks.append((partition.partition, offset))

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        if not offsets:
            raise ValueError(offsets)
        self.committed.append({tp.partition: offset for tp, offset in offsets.items()})
        return True

    async def position(self, tp: TP) -> int | None:
        return self.at.get(tp)

    def highwater(self, tp: TP) -> int:
        return self.log_in_memory.bounds_of(tp.partition).end

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        return {tp: self.highwater(tp) for tp in partitions}

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        return {tp: self.log_in_memory.bounds_of(tp.partition).start for tp in partitions}

    def topic_partitions(self, topic: str) -> int | None:
        return None

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        raise AssertionError("the meter has no keys")

    async def create_topic(self, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("the meter creates no topic")

    async def seek_to_beginning(self, *partitions: TP) -> None:
        raise AssertionError("the meter seeks to offsets only")


class MemoryProducer(producer.Producer):
    """Faust's own producer, which the meter never uses."""

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the meter does not produce through Faust")


class MemoryTransport(base.Transport):
    """Makes the above. `made` is the consumer once Faust has asked for it."""

    Consumer = MemoryConsumer
    Producer = MemoryProducer
    driver_version = "memory"
    source: Positions
    made: MemoryConsumer

    def __init__(
        self, url: list[Any], app: faust.App, loop: asyncio.AbstractEventLoop, log: MemoryLog, topic: str
    ) -> None:
        super().__init__(url, app, loop)
        self.log = log
        self.topic = topic


__all__ = ["MemoryConsumer", "MemoryProducer", "MemoryTransport"]
