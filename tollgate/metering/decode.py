"""Many records' values as few Arrow tables.

Owns the reading of Arrow IPC streams in bulk and the judgement whether a value is what contract `events/1` promises.
It refuses to know what is done with the columns.

Opening a stream costs tens of microseconds whatever its size. Records written under one capture configuration start
with the same schema message, byte for byte, so their batches are joined behind one schema and read with one call, and
only the columns asked for are decompressed; batches of a few rows are not even read one by one (`gather`). Whatever
does not fit that way is read alone, so that a broken record never takes its neighbours along.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import pyarrow as pa

from tollgate.metering.event import PROPERTY_PREFIX, SCHEMA
from tollgate.metering.gather import ROWS_MEAN_MAX, Plan, gather, plan_columns
from tollgate.metering.records import EventsRecord

_CONTINUATION = b"\xff\xff\xff\xff"
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_INGEST_MS_MAX = 2**53
"""Far past any clock; keeps arithmetic on times within 64 bits."""

_NOT_NULL = frozenset(column.name for column in SCHEMA if not column.nullable)

_SCHEMAS_CACHED = 256
"""Capture configurations in flight at once; a rolling change of settings has two."""


class Undecodable(ValueError):
    """A value is not what its headers or the contract promise."""


@dataclass(frozen=True, slots=True)
class Broken:
    """A record that cannot be decoded, by its place among those given, and why."""

    index: int
    detail: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """Records that carry the same columns: their places, in the order of the table's rows, and the rows."""

    indexes: list[int]
    absent: frozenset[str]
    """Property columns asked for that these records do not carry."""
    table: pa.Table


@dataclass(frozen=True, slots=True)
class _Layout:
    """One schema message: where the columns asked for are."""

    fields: tuple[int, ...]
    columns: tuple[str, ...]
    absent: frozenset[str]
    plan: Plan | None
    """How to gather them; None when the schema holds a type that cannot be."""


class Decoder(Protocol):
    """Where the columns of records come from: their values, or a table they were put into before."""

    def decode(
        self, records: Sequence[EventsRecord], columns: Iterable[str]
    ) -> tuple[list[Decoded], list[Broken]]:
        """`columns` (fixed names, and properties where captured) of many records; what cannot be decoded, and why."""
        ...

    def decode_whole(self, record: EventsRecord) -> pa.Table:
        """Every column of one record that `decode` could read."""
        ...


class _Values:
    """Decodes records' values, as the log holds them."""

    def decode(
        self, records: Sequence[EventsRecord], columns: Iterable[str]
    ) -> tuple[list[Decoded], list[Broken]]:
        return decode_records(records, columns)

    def decode_whole(self, record: EventsRecord) -> pa.Table:
        return decode_whole(record)


VALUES: Decoder = _Values()


def schema_message(value: bytes) -> bytes:
    """The message a value begins with, equal for all records of one schema. Raises Undecodable when there is none."""
    return value[: _message_end(value, 0)]


def read_schema(message: bytes) -> pa.Schema:
    """The schema of a `schema_message`. Raises Undecodable when it is none, or not of the contract."""
    _read_layout(message, ())
    return _read_schema(message)


def decode_records(
    records: Sequence[EventsRecord], columns: Iterable[str]
) -> tuple[list[Decoded], list[Broken]]:
    """Decode `columns` (fixed names, and properties where captured) of many records."""
    wanted = tuple(sorted(columns))
    groups: dict[bytes, list[int]] = {}
    broken: list[Broken] = []
    prefix: bytes | None = None
    for index, record in enumerate(records):
        # Nearly always that of the record before: looking for its end costs more than comparing.
        if prefix is None or not record.value.startswith(prefix):
            try:
                prefix = record.value[: _message_end(record.value, 0)]
            except Undecodable as error:
                broken.append(Broken(index, str(error)))
                continue
        groups.setdefault(prefix, []).append(index)
    decoded: list[Decoded] = []
    for prefix, indexes in groups.items():
        found, unreadable = _decode_group(records, prefix, indexes, wanted)
        decoded += found
        broken += unreadable
    broken.sort(key=lambda item: item.index)
    return decoded, broken


def _decode_group(
    records: Sequence[EventsRecord], prefix: bytes, indexes: list[int], wanted: tuple[str, ...]
) -> tuple[list[Decoded], list[Broken]]:
    """Decode records with the same schema message: by arithmetic, else with one call, else one by one."""
    broken: list[Broken] = []
    try:
        layout = _read_layout(prefix, wanted)
    except Undecodable as error:
        return [], [Broken(index, str(error)) for index in indexes]
    gathered = _gather([records[index] for index in indexes], len(prefix), layout)
    if gathered is not None:
        return [Decoded(indexes, layout.absent, gathered)], broken
    sound: list[int] = []
    for index in indexes:
        try:
            _check_frame(records[index], len(prefix))
        except Undecodable as error:
            broken.append(Broken(index, str(error)))
        else:
            sound.append(index)
    if not sound:
        return [], broken
    try:
        return [Decoded(sound, layout.absent, _read_joined(records, prefix, sound, layout))], broken
    except Undecodable:
        decoded: list[Decoded] = []
        for index in sound:
            try:
                table = _read_joined(records, prefix, [index], layout)
            except Undecodable as error:
                broken.append(Broken(index, str(error)))
            else:
                decoded.append(Decoded([index], layout.absent, table))
        return decoded, broken


def _gather(records: list[EventsRecord], start: int, layout: _Layout) -> pa.Table | None:
    """The records by arithmetic; None when they are too large for it to pay, or one of them is not as promised."""
    rows = [record.rows for record in records]
    if layout.plan is None or sum(rows) > ROWS_MEAN_MAX * len(rows):
        return None
    if not all(0 <= record.ingest_ms < _INGEST_MS_MAX for record in records):
        return None
    return gather([record.value for record in records], rows, start, layout.plan)


def decode_whole(record: EventsRecord) -> pa.Table:
    """Every column of one record that `decode_records` could read."""
    with pa.ipc.open_stream(record.value) as reader:
        return reader.read_all()


def encode_rows(table: pa.Table) -> bytes:
    """These rows as an Arrow IPC stream of one batch."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.combine_chunks().to_batches():
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def _check_frame(record: EventsRecord, schema_end: int) -> None:
    """Raises Undecodable unless the value is one schema, which ends at `schema_end`, one batch and nothing else."""
    if record.rows < 0 or not 0 <= record.ingest_ms < _INGEST_MS_MAX:
        raise Undecodable(f"headers promise {record.rows} rows at {record.ingest_ms} ms")
    rest = record.value[_message_end(record.value, schema_end) :]
    if rest not in (b"", _END_OF_STREAM):
        raise Undecodable("more than one record batch, or bytes after it")


def _message_end(value: bytes, start: int) -> int:
    """Where the encapsulated message at `start` ends: its metadata is a flatbuffer that holds the body's length.

    Raises Undecodable when there is none.
    """
    try:
        return _find_message_end(value, start)
    except (struct.error, IndexError) as error:
        raise Undecodable("not an Arrow IPC stream of one record batch") from error


def _find_message_end(value: bytes, start: int) -> int:
    if value[start : start + 4] != _CONTINUATION:
        raise Undecodable("not an Arrow IPC stream")
    (metadata_bytes,) = struct.unpack_from("<i", value, start + 4)
    if metadata_bytes <= 0:
        raise Undecodable("an Arrow IPC stream without a record batch")
    table = start + 8 + struct.unpack_from("<i", value, start + 8)[0]
    vtable = table - struct.unpack_from("<i", value, table)[0]
    vtable_bytes = struct.unpack_from("<H", value, vtable)[0]
    # Message { version, header_type, header, bodyLength }: the fourth slot, absent when zero.
    slot = struct.unpack_from("<H", value, vtable + 10)[0] if vtable_bytes > 10 else 0
    body_bytes: int = struct.unpack_from("<q", value, table + slot)[0] if slot else 0
    end: int = start + 8 + metadata_bytes + body_bytes
    if body_bytes < 0 or end > len(value):
        raise Undecodable("an Arrow IPC stream that is cut short")
    return end


@lru_cache(maxsize=_SCHEMAS_CACHED)
def _read_schema(prefix: bytes) -> pa.Schema:
    try:
        return pa.ipc.read_schema(pa.py_buffer(prefix))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Undecodable(f"not an Arrow schema: {error}") from error


@lru_cache(maxsize=_SCHEMAS_CACHED)
def _read_layout(prefix: bytes, wanted: tuple[str, ...]) -> _Layout:
    schema = _read_schema(prefix)
    if len(set(schema.names)) != len(schema.names):
        raise Undecodable("a column appears twice")
    for column in SCHEMA:
        index = schema.get_field_index(column.name)
        if index < 0 or schema.field(index).type != column.type:
            raise Undecodable(f"column {column.name} is missing or not of type {column.type}")
    for column in schema:
        if column.name.startswith(PROPERTY_PREFIX) and column.type != pa.string():
            raise Undecodable(f"column {column.name} is not of type {pa.string()}")
    present = tuple(name for name in wanted if name in schema.names)
    return _Layout(
        fields=tuple(schema.get_field_index(name) for name in present),
        columns=present,
        absent=frozenset(wanted) - frozenset(present),
        plan=plan_columns(schema, present, _NOT_NULL),
    )


def _read_joined(
    records: Sequence[EventsRecord], prefix: bytes, indexes: list[int], layout: _Layout
) -> pa.Table:
    """One table of several records with the same schema. Raises Undecodable when any of them is not as promised."""
    parts = [prefix]
    start = len(prefix)
    for index in indexes:
        value = records[index].value
        parts.append(value[start : -len(_END_OF_STREAM)] if value.endswith(_END_OF_STREAM) else value[start:])
    parts.append(_END_OF_STREAM)
    options = pa.ipc.IpcReadOptions(included_fields=list(layout.fields), use_threads=False)
    try:
        with pa.ipc.open_stream(pa.py_buffer(b"".join(parts)), options=options) as reader:
            table = reader.read_all()
        table.validate()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Undecodable(f"not a record batch of its schema: {error}") from error
    found = [len(chunk) for chunk in table.column(0).chunks]
    promised = [records[index].rows for index in indexes]
    if found != promised:
        raise Undecodable(f"the headers promise {promised[0]} rows, the batch holds {sum(found)}")
    for name in layout.columns:
        if name in _NOT_NULL and table.column(name).null_count:
            raise Undecodable(f"column {name} holds a null")
    return table.select(list(layout.columns))
