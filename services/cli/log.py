"""Reading a topic for a person: from a position to the end as it was when the reading began, or on and on.

Owns that one loop. It refuses to know what records hold, and never commits anything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from aiokafka import TopicPartition

from tollgate.runtime.kafka import new_consumer
from tollgate.runtime.settings import KafkaSettings


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """One record as Kafka holds it."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


class NoSuchTopic(Exception):
    """The broker does not have the topic: `tollgate init` has not run, or the prefix is another."""


async def read_topic(
    settings: KafkaSettings,
    topic: str,
    *,
    start: dict[int, int] | None = None,
    from_end: bool = False,
    follow: bool = False,
) -> AsyncIterator[StoredRecord]:
    """Records of `topic` (bare name) of all partitions, or of those in `start` (first offset each).

    Without `follow` it ends where the log ended when it began. Raises NoSuchTopic.
    """
    consumer = new_consumer(settings, client_id="tollgate-cli", auto_offset_reset="earliest")
    name = settings.topic_name(topic)
    await consumer.start()
    try:
        known = await consumer._client.fetch_all_metadata()
        partitions = known.partitions_for_topic(name)
        if not partitions:
            raise NoSuchTopic(f"no topic {name} at {settings.bootstrap_servers}; run `tollgate init`")
        wanted = [TopicPartition(name, number) for number in sorted(start or partitions)]
        consumer.assign(wanted)
        ends: dict[TopicPartition, int] = await consumer.end_offsets(wanted)
        begins: dict[TopicPartition, int] = await consumer.beginning_offsets(wanted)
        for partition in wanted:
            first = (start or {}).get(partition.partition, begins[partition])
            consumer.seek(partition, ends[partition] if from_end else max(first, begins[partition]))
        open_ends = {p for p in wanted if await consumer.position(p) < ends[p]}
        while follow or open_ends:
            fetched = await consumer.getmany(timeout_ms=500)
            for partition, records in fetched.items():
                for record in records:
                    if not follow and record.offset >= ends[partition]:
                        break
                    yield StoredRecord(
                        partition=partition.partition,
                        offset=record.offset,
                        timestamp_ms=record.timestamp,
                        key=record.key,
                        value=record.value or b"",
                        headers=tuple(record.headers),
                    )
            for partition in list(open_ends):
                if await consumer.position(partition) >= ends[partition]:
                    open_ends.discard(partition)
    finally:
        await consumer.stop()
