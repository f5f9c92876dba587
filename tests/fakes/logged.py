"""Records of gateway.events as Kafka hands them out, of every kind the log can hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.unit.metering.rows import NOW_MS, batch
from tollgate.contracts.archive_rows import RestoredRecord
from tollgate.contracts.events import EventHeaders, encode_batch, headers_to_kafka
from tollgate.contracts.ticks import Tick, encode_tick, tick_headers


def events_record(
    offset: int,
    rows: Sequence[Mapping[str, Any]],
    properties: Iterable[str] = (),
    *,
    partition: int = 0,
    ingest_ms: int = NOW_MS,
    source: str = "kong",
    instance: str = "ingest-1",
    accept_late: bool = False,
    claimed_rows: int | None = None,
) -> RestoredRecord:
    """A record of these events."""
    count = len(rows) if claimed_rows is None else claimed_rows
    headers = EventHeaders(source, instance, count, ingest_ms, "capture", accept_late)
    return RestoredRecord(
        partition=partition,
        offset=offset,
        timestamp_ms=ingest_ms + 1,
        key=None,
        value=encode_batch(batch(rows, properties)),
        headers=tuple(headers_to_kafka(headers)),
    )


def tick_record(
    offset: int, wall_ms: int = NOW_MS, acknowledged: int = 0, *, partition: int = 0
) -> RestoredRecord:
    """A tick."""
    value = encode_tick(Tick("ingest-1", wall_ms, acknowledged))
    return RestoredRecord(partition, offset, wall_ms, None, value, tuple(tick_headers("ingest-1")))


def raw_record(
    offset: int,
    value: bytes,
    *headers: tuple[str, bytes],
    partition: int = 0,
    key: bytes | None = None,
    timestamp_ms: int = NOW_MS,
) -> RestoredRecord:
    """Bytes."""
    return RestoredRecord(partition, offset, timestamp_ms, key, value, headers)
