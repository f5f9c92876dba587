"""What a topic holds: read back record by record, for the counts of a benchmark.

Owns the reading of `gateway.events` from its beginning and the writing of a backlog. It refuses to know any service.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from benchmarks.backlog import BacklogRecord
from tollgate.contracts.events import (
    CONTRACT,
    contract_of,
    decode_batch,
    headers_from_kafka,
    headers_to_kafka,
)
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.runtime.kafka import new_consumer, new_producer
from tollgate.runtime.settings import KafkaSettings

_UNANSWERED_MAX = 500


@dataclass(slots=True)
class LogContents:
    """Every events record of the topic, ticks left out."""

    records: int = 0
    promised: int = 0
    """Rows by the headers."""
    accounts: Counter[str] = field(default_factory=Counter)
    """Rows by account, of the decoded values."""
    bytes: int = 0


def read_log(settings: KafkaSettings) -> LogContents:
    """Read the topic from beginning to end."""
    return asyncio.run(_read_log(settings))


async def _read_log(settings: KafkaSettings) -> LogContents:
    contents = LogContents()
    consumer = new_consumer(settings, client_id="benchmark-reader", auto_offset_reset="none")
    topic = settings.topic_name(GATEWAY_EVENTS.name)
    await consumer.start()
    try:
        # The metadata of a topic that nobody subscribed to comes with the first question about it.
        await consumer._client.set_topics([topic])
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        left = {partition for partition, end in ends.items() if end}
        while left:
            for partition, records in (await consumer.getmany(*left, timeout_ms=1000)).items():
                for record in records:
                    _note(contents, record)
                if records[-1].offset + 1 >= ends[partition]:
                    left.discard(partition)
    finally:
        await consumer.stop()
    return contents


def _note(contents: LogContents, record: ConsumerRecord) -> None:
    if contract_of(record.headers) != CONTRACT:
        return
    contents.records += 1
    contents.promised += headers_from_kafka(record.headers).rows
    contents.bytes += len(record.value)
    contents.accounts.update(decode_batch(record.value).column("account").to_pylist())


def write_log(settings: KafkaSettings, records: Iterable[BacklogRecord]) -> None:
    """Put every record into the topic, in order, acknowledged."""
    asyncio.run(_write_log(settings, records))


async def _write_log(settings: KafkaSettings, records: Iterable[BacklogRecord]) -> None:
    producer = new_producer(settings, idempotent=True, client_id="benchmark-writer")
    topic = settings.topic_name(GATEWAY_EVENTS.name)
    await producer.start()
    try:
        answers = []
        for record in records:
            answers.append(
                await producer.send(
                    topic,
                    record.value,
                    partition=record.partition,
                    headers=headers_to_kafka(record.headers),
                )
            )
            if len(answers) >= _UNANSWERED_MAX:
                await asyncio.gather(*answers)
                answers.clear()
        await asyncio.gather(*answers)
    finally:
        await producer.stop()
