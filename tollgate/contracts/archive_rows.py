"""Rows of contract `archive/1`: records of the log as columns, and back, so that nothing a recount asks for is lost.

Owns both directions. It refuses to know files.

An events record becomes a row an event, with what its headers say beside the event's own columns, but only where the
record can be made again from its rows: headers, columns and values just as they were. `captured` names the properties
the record carried, since a column it did not carry is not the same as one that is null. Every other record, a tick, an
amendment, whatever nobody can decode, is one row that keeps its key, headers and value as bytes. So each offset has a
row, and whoever reads the rows judges what they would have judged in the log.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tollgate.contracts.archive import NotAnArchive
from tollgate.contracts.events import (
    CONTRACT,
    EventHeaders,
    UndecodableRecord,
    contract_of,
    encode_batch,
    event_schema,
    headers_from_kafka,
    headers_to_kafka,
)
from tollgate.contracts.records import ROWS_MAX, TIME_MS_MAX
from tollgate.metering.decode import Undecodable, decode_records, read_schema, schema_message
from tollgate.metering.event import PROPERTY_PREFIX
from tollgate.metering.records import EventsRecord

RECORD_SCHEMA: pa.Schema = pa.schema(
    [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        # The event's place in its record, from 0; null in the row of a record kept as bytes.
        pa.field("row", pa.int32()),
        # When the log was given the record, epoch ms, by Kafka's own stamp.
        pa.field("logged_ms", pa.int64(), nullable=False),
        # The record's headers, repeated in each of its rows.
        pa.field("rows", pa.int32()),
        pa.field("source", pa.string()),
        pa.field("instance", pa.string()),
        pa.field("ingest_ms", pa.int64()),
        pa.field("capture", pa.string()),
        pa.field("accept_late", pa.bool_()),
        # Property columns the record carried: a JSON list of their names without prefix, in their order.
        pa.field("captured", pa.string()),
    ]
)
"""What stands beside the columns of an event."""

KEPT_SCHEMA: pa.Schema = pa.schema(
    [
        pa.field("key", pa.binary()),
        pa.field(
            "headers", pa.list_(pa.struct([pa.field("name", pa.string()), pa.field("value", pa.binary())]))
        ),
        pa.field("value", pa.binary()),
    ]
)
"""A record kept as bytes; null in the row of an event."""

_SCHEMAS_CACHED = 256
"""Capture configurations in flight at once; a rolling change of settings has two."""


class LoggedRecord(Protocol):
    """One record as Kafka holds it."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp_ms(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes]]: ...


@dataclass(frozen=True, slots=True)
class RestoredRecord:
    """A `LoggedRecord` made again: equal in all but the encoding of an event's columns."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one record stands in a table of rows: `[start, start + rows)`."""

    partition: int
    offset: int
    start: int
    rows: int
    kept: bool
    """One row, as bytes."""


def taken_in_ms(record: LoggedRecord) -> int:
    """When a record was taken in, epoch ms: by its own header where it has one that can be, else by Kafka's stamp."""
    for name, value in record.headers:
        if name == "ingest_ms" and len(value) <= len(str(TIME_MS_MAX)) and value.isdigit():
            return min(int(value), TIME_MS_MAX)
    return max(record.timestamp_ms, 0)


def row_schema(properties: Iterable[str] = ()) -> pa.Schema:
    """The schema of rows whose records carry some of `properties` (names without prefix), of a file and of a table."""
    event = [field.with_nullable(True) for field in event_schema(properties)]
    return pa.schema([*RECORD_SCHEMA, *event, *KEPT_SCHEMA])


def properties_of(schema: pa.Schema) -> frozenset[str]:
    """The properties a schema has columns for, without prefix."""
    return frozenset(
        name.removeprefix(PROPERTY_PREFIX) for name in schema.names if name.startswith(PROPERTY_PREFIX)
    )


# ----------------------------------------------------------------------------------------- into rows


def tabulate(records: Sequence[LoggedRecord]) -> list[pa.Table]:
    """Records of the log as tables of rows, each with the property columns its records carry. Joined by `join_rows`."""
    kept: list[LoggedRecord] = []
    by_captured: dict[tuple[str, ...], list[tuple[LoggedRecord, EventHeaders]]] = {}
    for record in records:
        headers = _plain_headers(record)
        captured = None if headers is None else _captured(record.value)
        if headers is None or captured is None:
            kept.append(record)
        else:
            by_captured.setdefault(captured, []).append((record, headers))
    tables: list[pa.Table] = []
    for captured, found in by_captured.items():
        made, unreadable = _event_rows(captured, found)
        tables += made
        kept += unreadable
    if kept:
        tables.append(_kept_rows(kept))
    return tables


def join_rows(tables: Sequence[pa.Table], properties: Iterable[str]) -> pa.Table:
    """One table of `row_schema(properties)`, ordered by (offset, row). Of one partition; properties hold every table's."""
    schema = row_schema(properties)
    whole = [
        pa.table(
            [
                table.column(field.name)
                if field.name in table.schema.names
                else pa.nulls(len(table), field.type)
                for field in schema
            ],
            schema=schema,
        )
        for table in tables
    ]
    joined = pa.concat_tables(whole) if whole else schema.empty_table()
    offsets = joined.column("offset").to_numpy()
    if np.all(offsets[1:] >= offsets[:-1]):
        return joined
    # Stable, and a record's rows stand together and in their order.
    return joined.take(pa.array(np.argsort(offsets, kind="stable")))


def _plain_headers(record: LoggedRecord) -> EventHeaders | None:
    """The headers of an events record that can be written again just as they are; None for any other."""
    if record.key is not None or contract_of(record.headers) != CONTRACT:
        return None
    try:
        headers = headers_from_kafka(record.headers)
    except UndecodableRecord:
        return None
    if not 0 < headers.rows <= ROWS_MAX or not 0 <= headers.ingest_ms <= TIME_MS_MAX:
        return None
    return headers if headers_to_kafka(headers) == list(record.headers) else None


def _captured(value: bytes) -> tuple[str, ...] | None:
    """The properties a value carries, when it has the contract's columns and no other, in the contract's order."""
    try:
        return _captured_by(schema_message(value))
    except Undecodable:
        return None


@lru_cache(maxsize=_SCHEMAS_CACHED)
def _captured_by(message: bytes) -> tuple[str, ...] | None:
    schema = read_schema(message)
    captured = tuple(
        name.removeprefix(PROPERTY_PREFIX) for name in schema.names if name.startswith(PROPERTY_PREFIX)
    )
    return captured if schema.equals(event_schema(captured), check_metadata=True) else None


def _event_rows(
    captured: tuple[str, ...], found: Sequence[tuple[LoggedRecord, EventHeaders]]
) -> tuple[list[pa.Table], list[LoggedRecord]]:
    """Records that carry the same columns as tables; and those of them nobody can read."""
    names = event_schema(captured).names
    unreadable: list[LoggedRecord] = []
    tables: list[pa.Table] = []
    decoded, broken = decode_records([_to_events(*each) for each in found], names)
    unreadable += [found[item.index][0] for item in broken]
    for part in decoded:
        try:
            part.table.validate(full=True)
        except (pa.ArrowException, ValueError):
            # Text that is no UTF-8, say: in one of them, and the others are to be rows all the same.
            if len(part.indexes) > 1:
                for index in part.indexes:
                    made, left = _event_rows(captured, [found[index]])
                    tables += made
                    unreadable += left
            else:
                unreadable.append(found[part.indexes[0]][0])
            continue
        tables.append(
            _with_headers(captured, [found[index] for index in part.indexes], part.table.select(names))
        )
    return tables, unreadable


def _to_events(record: LoggedRecord, headers: EventHeaders) -> EventsRecord:
    return EventsRecord(
        partition=record.partition,
        offset=record.offset,
        rows=headers.rows,
        instance=headers.instance,
        source=headers.source,
        ingest_ms=headers.ingest_ms,
        accept_late=headers.accept_late,
        value=record.value,
    )


def _with_headers(
    captured: tuple[str, ...], found: Sequence[tuple[LoggedRecord, EventHeaders]], events: pa.Table
) -> pa.Table:
    """The events' columns with those of their records before them."""
    lengths = np.fromiter((headers.rows for _, headers in found), np.int64, len(found))
    of = np.repeat(np.arange(len(found)), lengths)
    starts = np.cumsum(lengths) - lengths

    def number(read: Callable[[LoggedRecord, EventHeaders], int]) -> npt.NDArray[np.int64]:
        return np.fromiter((read(*each) for each in found), np.int64, len(found))[of]

    def text(read: Callable[[EventHeaders], str]) -> pa.Array:
        return pa.array([read(headers) for _, headers in found], pa.string()).take(pa.array(of))

    columns = [
        number(lambda record, _: record.partition),
        number(lambda record, _: record.offset),
        np.arange(int(lengths.sum())) - starts[of],
        number(lambda record, _: record.timestamp_ms),
        lengths[of],
        text(lambda headers: headers.source),
        text(lambda headers: headers.instance),
        number(lambda _, headers: headers.ingest_ms),
        text(lambda headers: headers.capture),
        number(lambda _, headers: headers.accept_late).astype(np.bool_),
        pa.repeat(pa.scalar(json.dumps(captured, ensure_ascii=False), pa.string()), len(events)),
    ]
    beside = pa.table(
        [
            pa.array(column, field.type) if isinstance(column, np.ndarray) else column
            for column, field in zip(columns, RECORD_SCHEMA, strict=True)
        ],
        schema=RECORD_SCHEMA,
    )
    schema = pa.schema([*RECORD_SCHEMA, *(field.with_nullable(True) for field in events.schema)])
    return pa.table([*beside.columns, *events.columns], schema=schema)


def _kept_rows(kept: Sequence[LoggedRecord]) -> pa.Table:
    """One row for each, with its bytes."""
    schema = pa.schema(
        [RECORD_SCHEMA.field(name) for name in ("partition", "offset", "logged_ms")] + list(KEPT_SCHEMA)
    )
    return pa.table(
        {
            "partition": [record.partition for record in kept],
            "offset": [record.offset for record in kept],
            "logged_ms": [record.timestamp_ms for record in kept],
            "key": [record.key for record in kept],
            "headers": [
                [{"name": name, "value": value} for name, value in record.headers] for record in kept
            ],
            "value": [record.value for record in kept],
        },
        schema=schema,
    )


# ----------------------------------------------------------------------------------------- and back


def find_records(table: pa.Table) -> list[Place]:
    """Where each record stands in a table of rows (the columns partition, offset, row and rows suffice), in order.

    Raises NotAnArchive where a record has more or fewer rows than its header said.
    """
    if not len(table):
        return []
    offsets = table.column("offset").to_numpy()
    kept = table.column("row").is_null().to_numpy()
    starts = np.flatnonzero(np.concatenate(([True], offsets[1:] != offsets[:-1])))
    ends = np.append(starts[1:], len(table))
    told = table.column("rows").take(pa.array(starts)).fill_null(1).to_numpy()
    wrong = np.flatnonzero(told != ends - starts)
    if wrong.size:
        at = int(wrong[0])
        raise NotAnArchive(
            f"offset {offsets[starts[at]]} has {ends[at] - starts[at]} rows, its header says {told[at]}"
        )
    partition = table.column("partition")[0].as_py()
    return [
        Place(partition, offset, start, end - start, is_kept)
        for offset, start, end, is_kept in zip(
            offsets[starts].tolist(), starts.tolist(), ends.tolist(), kept[starts].tolist(), strict=True
        )
    ]


def restore_records(table: pa.Table) -> Iterator[RestoredRecord]:
    """Each record of a table with every column, as the log held it: other bytes may say the same events."""
    for place in find_records(table):
        rows = table.slice(place.start, place.rows)
        yield restore_kept(rows, place) if place.kept else _restore_events(rows, place)


def restore_kept(rows: pa.Table, place: Place) -> RestoredRecord:
    """The record whose one row `rows` is. Needs the columns of `KEPT_SCHEMA` and logged_ms."""
    (row,) = rows.select(["logged_ms", *KEPT_SCHEMA.names]).to_pylist()
    return RestoredRecord(
        partition=place.partition,
        offset=place.offset,
        timestamp_ms=row["logged_ms"],
        key=row["key"],
        value=row["value"],
        headers=tuple((header["name"], header["value"]) for header in row["headers"]),
    )


def restore_events(rows: pa.Table) -> bytes:
    """The value of the record whose rows these are, with each event's column: an Arrow stream of one batch."""
    schema = event_schema(json.loads(rows.column("captured")[0].as_py()))
    columns = [rows.column(field.name).combine_chunks() for field in schema]
    return encode_batch(pa.RecordBatch.from_arrays(columns, schema=schema))


def _restore_events(rows: pa.Table, place: Place) -> RestoredRecord:
    first = rows.slice(0, 1).select(RECORD_SCHEMA.names).to_pylist()[0]
    headers = EventHeaders(
        source=first["source"],
        instance=first["instance"],
        rows=first["rows"],
        ingest_ms=first["ingest_ms"],
        capture=first["capture"],
        accept_late=first["accept_late"],
    )
    return RestoredRecord(
        partition=place.partition,
        offset=place.offset,
        timestamp_ms=first["logged_ms"],
        key=None,
        value=restore_events(rows),
        headers=tuple(headers_to_kafka(headers)),
    )
