"""Reading a topic for a person: from a position to the end as it was when the reading began, or on and on.

Owns that one loop. It refuses to know what records hold, and never commits anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from aiokafka.errors import KafkaError

from tollgate.runtime.kafka import MAX_REQUEST_BYTES, new_consumer, topic_partitions
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


class LogStalled(Exception):
    """The broker has records it does not hand out."""


class BrokerUnreachable(Exception):
    """No broker answers, or it refuses; the message says where, and what to set."""


@contextmanager
def reaching_broker(settings: KafkaSettings) -> Iterator[None]:
    """What Kafka's client raises inside becomes BrokerUnreachable."""
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        name = type(error).__name__
        raise BrokerUnreachable(
            f"no answer from Kafka at {settings.bootstrap_servers} ({name}); "
            "start it, or set TOLLGATE_KAFKA__BOOTSTRAP_SERVERS"
        ) from error


async def read_topic(
    settings: KafkaSettings,
    topic: str,
    *,
    start: Mapping[int, int] | None = None,
    stop: Mapping[int, int] | None = None,
    from_end: bool = False,
    follow: bool = False,
) -> AsyncGenerator[StoredRecord, None]:
    """Records of `topic` (bare name) of all partitions, or of those in `start` (first offset each).

    Without `follow` it ends where the log ended when it began, or before `stop` (first offset not wanted, by
    partition) where that comes first. Raises NoSuchTopic, LogStalled, BrokerUnreachable.
    """
    async with _consumer(settings, topic) as (consumer, known):
        wanted = known if start is None else [each for each in known if each.partition in start]
        consumer.assign(wanted)
        ends: dict[TopicPartition, int] = await consumer.end_offsets(wanted)
        begins: dict[TopicPartition, int] = await consumer.beginning_offsets(wanted)
        if stop is not None:
            ends = {p: min(end, stop.get(p.partition, end)) for p, end in ends.items()}
        left: dict[TopicPartition, int] = {}
        for partition in wanted:
            first = max((start or {}).get(partition.partition, 0), begins[partition])
            consumer.seek(partition, ends[partition] if from_end else first)
            if not from_end and first < ends[partition]:
                left[partition] = first
        clock = asyncio.get_running_loop().time
        moved_at = clock()
        while follow or left:
            fetched = await consumer.getmany(timeout_ms=500)
            for partition, records in fetched.items():
                for record in records:
                    if follow or record.offset < ends[partition]:
                        yield _to_domain(record)
            for partition, before in list(left.items()):
                position = await consumer.position(partition)
                if position > before:
                    left[partition], moved_at = position, clock()
                if position >= ends[partition]:
                    # Past its end it must not go on fetching what nobody asked for.
                    del left[partition]
                    if not follow:
                        consumer.pause(partition)
            if left and not follow and clock() - moved_at > settings.request_timeout_ms / 1000:
                at = ", ".join(f"{p.partition} at {offset} of {ends[p]}" for p, offset in left.items())
                raise LogStalled(f"{settings.bootstrap_servers} hands out no more of {topic}: partition {at}")


async def read_records(
    settings: KafkaSettings, topic: str, places: Mapping[int, int]
) -> dict[int, StoredRecord]:
    """The record at one offset each of some partitions of `topic` (bare name); those that are there.

    Raises NoSuchTopic, BrokerUnreachable.
    """
    found: dict[int, StoredRecord] = {}
    async with _consumer(settings, topic, fetch_bytes_max=1) as (consumer, known):
        for place in known:
            if place.partition not in places:
                continue
            offset = places[place.partition]
            consumer.assign([place])
            begins, ends = await consumer.beginning_offsets([place]), await consumer.end_offsets([place])
            if not begins[place] <= offset < ends[place]:
                continue
            consumer.seek(place, offset)
            async with asyncio.timeout(settings.request_timeout_ms / 1000):
                record = await consumer.getone(place)
            if record.offset == offset:
                found[place.partition] = _to_domain(record)
    return found


async def find_offsets(settings: KafkaSettings, topic: str, time_ms: int) -> dict[int, int]:
    """By partition of `topic` (bare name), the first offset whose record Kafka stamped at or after `time_ms`; the
    partition's end where there is none. Raises NoSuchTopic, BrokerUnreachable.
    """
    async with _consumer(settings, topic) as (consumer, known):
        found = await consumer.offsets_for_times(dict.fromkeys(known, max(time_ms, 0)))
        ends: dict[TopicPartition, int] = await consumer.end_offsets(known)
        return {
            place.partition: ends[place] if found.get(place) is None else found[place].offset
            for place in known
        }


@asynccontextmanager
async def _consumer(
    settings: KafkaSettings, topic: str, *, fetch_bytes_max: int = MAX_REQUEST_BYTES
) -> AsyncIterator[tuple[AIOKafkaConsumer, list[TopicPartition]]]:
    """A consumer without a group, and the topic's partitions. Raises NoSuchTopic, BrokerUnreachable."""
    with reaching_broker(settings):
        # Asked for by an admin client: asking a consumer would create the topic on a broker that makes them on demand.
        count = await topic_partitions(settings, topic)
        if not count:
            name = settings.topic_name(topic)
            raise NoSuchTopic(f"no topic {name} at {settings.bootstrap_servers}; run `tollgate init`")
        consumer = new_consumer(
            settings,
            client_id="tollgate-cli",
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=fetch_bytes_max,
        )
        try:
            await consumer.start()
            yield consumer, [TopicPartition(settings.topic_name(topic), number) for number in range(count)]
        finally:
            await consumer.stop()


def _to_domain(record: ConsumerRecord[bytes, bytes]) -> StoredRecord:
    return StoredRecord(
        partition=record.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp,
        key=record.key,
        value=record.value or b"",
        headers=tuple(record.headers),
    )
