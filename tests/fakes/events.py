"""Events for tests of the meter: batches as ingest writes them, with only what a test wants to choose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from tollgate.contracts.events import SCHEMA, EventHeaders, encode_batch, hash_id, headers_to_kafka

SEED = 7
TIME_MS = 1_700_000_000_000
"""The moment the tests' events happen: 2023-11-14 22:13:20 UTC."""


@dataclass(frozen=True, slots=True)
class Call:
    """One event."""

    id: str
    account: str = "user:ada"
    time_ms: int = TIME_MS
    status: int = 200


def batch_of(calls: Sequence[Call], instance: str = "ingest-1") -> tuple[bytes, list[tuple[str, bytes]]]:
    """The value and headers of the record that carries `calls`, as `instance` writes it."""
    columns: dict[str, list[object]] = {name: [None] * len(calls) for name in SCHEMA.names}
    columns["id_hash"] = [hash_id(call.id, SEED) for call in calls]
    columns["id_weak"] = [False] * len(calls)
    columns["id"] = [call.id for call in calls]
    columns["time_ms"] = [call.time_ms for call in calls]
    columns["account"] = [call.account for call in calls]
    columns["gateway"] = ["kong"] * len(calls)
    columns["status"] = [call.status for call in calls]
    columns["weight"] = [1] * len(calls)
    value = encode_batch(pa.RecordBatch.from_pydict(columns, schema=SCHEMA))
    headers = EventHeaders("test", instance, len(calls), TIME_MS, "")
    return value, headers_to_kafka(headers)
