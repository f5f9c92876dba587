"""What a peer says it has counted, read from where it keeps it: a topic, a table's changelog, a database.

Owns the reading, each (account, window start) with its last row. It refuses to judge it.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from tollgate.runtime.kafka import admin_client, new_consumer
from tollgate.runtime.settings import KafkaSettings

Rows = dict[tuple[str, int], dict[str, Any]]
Decode = Callable[[bytes, Any], tuple[str, int, dict[str, Any]]]
"""Key and value of a record, as (account, window start, row)."""

_QUIET_SECONDS = 3.0
_HANGING_SECONDS = 150.0
"""More than the broker gives a transaction whose producer is gone (`transaction.timeout.ms`, a minute by default)."""


def decode_streams(key: bytes, value: Any) -> tuple[str, int, dict[str, Any]]:
    """`account@start`, and the row."""
    account, _, window_ms = key.decode().rpartition("@")
    return account, int(window_ms), value


def decode_quix(key: bytes, value: Any) -> tuple[str, int, dict[str, Any]]:
    """The account, and the row between its window's bounds."""
    return key.decode(), value["start"], value["value"]


def decode_faust(key: bytes, value: Any) -> tuple[str, int, dict[str, Any]]:
    """A windowed table's key, account and bounds in seconds, and the row."""
    account, (start_seconds, _) = msgspec.json.decode(key)
    return account, round(start_seconds * 1000), value


def read_topic(bootstrap: str, topic: str, decode: Decode) -> Rows:
    """Every row of a topic, committed records only."""
    rows: Rows = {}
    for key, value in asyncio.run(_read_all(KafkaSettings(bootstrap_servers=bootstrap), topic)):
        if value is None:
            continue
        account, window_ms, row = decode(key, msgspec.json.decode(value))
        rows[account, window_ms] = row
    return rows


async def _read_all(settings: KafkaSettings, topic: str) -> list[tuple[bytes, bytes | None]]:
    left = await _ends(settings, topic)
    if not left:
        return []
    records = []
    deadline = time.monotonic() + _HANGING_SECONDS
    consumer = new_consumer(settings, client_id="benchmark-totals", auto_offset_reset="earliest")
    await consumer.start()
    try:
        consumer.assign(list(left))
        while left:
            found = await consumer.getmany(*left, timeout_ms=int(_QUIET_SECONDS * 1000))
            # The end of a transaction is a record nobody is shown: nothing more to come is the end as well, unless the
            # killed process' own transaction is still open and hides what came after it.
            if not found and (
                time.monotonic() > deadline
                or all((consumer.last_stable_offset(place) or 0) >= end for place, end in left.items())
            ):
                break
            for partition, batch in found.items():
                records += [(record.key, record.value) for record in batch]
                if batch[-1].offset + 1 >= left[partition]:
                    del left[partition]
    finally:
        await consumer.stop()
    return records


async def _ends(settings: KafkaSettings, topic: str) -> dict[TopicPartition, int]:
    """Where each partition that holds anything ends, open transactions included: a consumer of committed records is
    told where the first of them begins instead."""
    consumer = AIOKafkaConsumer(bootstrap_servers=settings.bootstrap_servers)
    await consumer.start()
    try:
        await consumer._client.add_topic(topic)
        await consumer._client.force_metadata_update()
        places = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
        ends: dict[TopicPartition, int] = await consumer.end_offsets(places)
    finally:
        await consumer.stop()
    return {place: end for place, end in ends.items() if end}


def read_database(path: Path) -> Rows:
    """Every row of the hand-written loop's table."""
    database = sqlite3.connect(path)
    try:
        found: Iterator[tuple[str, int, bytes]] = database.execute(
            "SELECT account, window_ms, usage FROM usage"
        )
        return {(account, window_ms): msgspec.json.decode(usage) for account, window_ms, usage in found}
    finally:
        database.close()


def read_committed(bootstrap: str, group: str, topic: str) -> int:
    """Records of the topic that the group has committed, over all partitions."""

    async def ask() -> int:
        async with admin_client(KafkaSettings(bootstrap_servers=bootstrap)) as admin:
            offsets = await admin.list_consumer_group_offsets(group)
        return sum(max(0, found.offset) for partition, found in offsets.items() if partition.topic == topic)

    return asyncio.run(ask())
