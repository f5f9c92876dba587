"""Events of tests: rows as dicts, and the records that carry them. Only what a test cares about is named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import polars as pl
import pyarrow as pa

from tollgate.contracts.events import encode_batch
from tollgate.metering.event import PROPERTY_PREFIX, SCHEMA, event_schema
from tollgate.metering.fold import EventsRecord
from tollgate.metering.meter import Meter, MeterSet, MeterVersion, Metric, MetricKind, WindowSize
from tollgate.metering.usage import USAGE_KEY

NOW_MS = 1_700_000_000_000
"""Tuesday 2023-11-14 22:13:20 UTC."""
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

Row = dict[str, Any]

_DEFAULTS: Row = {
    "id_weak": False,
    "id": "",
    "time_ms": NOW_MS,
    "account": "user:ada",
    "gateway": "kong",
    "weight": 1,
}


def row(id_hash: int, /, **columns: Any) -> Row:
    """One event; properties as `properties={...}`."""
    properties = columns.pop("properties", {})
    named = {f"{PROPERTY_PREFIX}{name}": value for name, value in properties.items()}
    return {**dict.fromkeys(SCHEMA.names), **_DEFAULTS, "id_hash": id_hash, **columns, **named}


def batch(rows: Sequence[Mapping[str, Any]], properties: Iterable[str] = ()) -> pa.RecordBatch:
    """The rows as a record batch that captures `properties`."""
    schema = event_schema(properties)
    return pa.RecordBatch.from_arrays(
        [pa.array([event.get(column.name) for event in rows], column.type) for column in schema],
        schema=schema,
    )


def record(
    rows: Sequence[Mapping[str, Any]],
    offset: int = 0,
    *,
    partition: int = 0,
    properties: Iterable[str] = (),
    ingest_ms: int = NOW_MS,
    accept_late: bool = False,
    instance: str = "ingest-1",
    claimed_rows: int | None = None,
) -> EventsRecord:
    """A record of these rows, `claimed_rows` when its header lies."""
    return EventsRecord(
        partition=partition,
        offset=offset,
        rows=len(rows) if claimed_rows is None else claimed_rows,
        instance=instance,
        source="test",
        ingest_ms=ingest_ms,
        accept_late=accept_late,
        value=encode_batch(batch(rows, properties)),
    )


def meter(
    metric: Metric | str = "count",
    where: str | None = None,
    *,
    name: str = "m",
    window: WindowSize = WindowSize.HOUR,
    group_by: tuple[str, ...] = (),
) -> Meter:
    """A meter; `metric` as meters.yaml has it: `count`, or `sum properties.x`."""
    if isinstance(metric, str):
        kind, _, expression = metric.partition(" ")
        metric = Metric(MetricKind(kind), expression or None)
    return Meter(name, where, metric, window, group_by)


def meter_set(*meters: Meter, from_ms: int = 0, to_ms: int | None = None) -> MeterSet:
    """The meters with ids 1, 2, …"""
    return MeterSet(1, tuple(MeterVersion(i, m, from_ms, to_ms) for i, m in enumerate(meters, start=1)))


UsageTotals = dict[tuple[Any, ...], tuple[Decimal, int, int]]
"""(quantity, events, unvalued) by (partition, meter id, window start, account, dimensions)."""


def usage_totals(usage: pl.DataFrame) -> UsageTotals:
    """A usage frame as a dict."""
    return {
        tuple(found[name] for name in USAGE_KEY): (found["quantity"], found["events"], found["unvalued"])
        for found in usage.to_dicts()
    }
