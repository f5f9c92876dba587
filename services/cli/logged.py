"""A record of the log as the rows a recount takes.

Owns a reading of records that shares nothing with the meter's: one record at a time, by Arrow's own reader, judged by
the contract alone. It refuses to know meters.
"""

from __future__ import annotations

import json
from decimal import Decimal

import msgspec
import pyarrow as pa

from tollgate.contracts import amendments, ticks
from tollgate.contracts.archive_rows import LoggedRecord
from tollgate.contracts.events import (
    CONTRACT,
    PROPERTY_PREFIX,
    SCHEMA,
    EventHeaders,
    UndecodableRecord,
    contract_of,
    headers_from_kafka,
)

Row = dict[str, object]

ROWS_MAX = 10_000_000
"""More events than any record holds: a header that claims more is not believed."""
TIME_MS_MAX = 253_402_300_799_999
"""The end of the year 9999: a header beyond it is noise."""


def read_rows(record: LoggedRecord) -> list[Row]:
    """A row for each event, one for an amendment; none for a tick; one row `undecodable` for anything else."""
    place: Row = {"partition": record.partition, "offset": record.offset}
    contract = contract_of(record.headers)
    if contract == ticks.CONTRACT and _is_tick(record.value):
        return []
    if contract == amendments.CONTRACT:
        return [place | _read_amendment(record.value)]
    try:
        if contract != CONTRACT:
            raise UndecodableRecord(f"contract {contract!r}")
        headers = headers_from_kafka(record.headers)
        batch = _read_batch(record.value, headers)
    except UndecodableRecord:
        return [place | {"undecodable": _claimed(record)}]
    place |= {"ingest_ms": headers.ingest_ms, "accept_late": headers.accept_late}
    # By hand: a recount shares no code with what it checks, nor does this reading of the name.
    said = headers.instance.rpartition("/")
    if said[1] and said[2].isascii() and said[2].isdigit() and said[2][0] != "0" and len(said[2]) <= 6:
        place["written_for"] = int(said[2])
    names = batch.schema.names
    columns = [column.to_pylist() for column in batch.columns]
    return [place | dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _read_amendment(value: bytes) -> Row:
    try:
        told = json.loads(value, parse_float=Decimal)
        names = {field.name for field in msgspec.structs.fields(amendments.Amendment)}
        if not isinstance(told, dict) or not names - {"dimensions"} <= told.keys() <= names:
            raise ValueError("not its fields")
        texts = ("amendment_id", "meter", "account", "quantity", "reason", "by")
        whole = ("meter_id", "window_start_ms", "time_ms", "written_ms")
        if not all(type(told[name]) is str for name in texts) or type(told.get("dimensions", "")) is not str:
            raise ValueError("not text")
        if not all(type(told[name]) is int and abs(told[name]) < 2**63 for name in whole):
            raise ValueError("not whole")
        quantity = Decimal(told["quantity"])
        places = quantity.as_tuple().exponent
        if not quantity.is_finite() or not quantity or not isinstance(places, int):
            raise ValueError("no quantity")
        if (places < -9 and quantity * 10**9 % 1) or abs(quantity) > Decimal(10) ** 24:
            raise ValueError("out of range")
        if not all(0 <= told[name] <= TIME_MS_MAX for name in ("time_ms", "written_ms")):
            raise ValueError("out of range")
        account, dimensions = told["account"], told.get("dimensions", "")
        if "\0" in account + dimensions or not 1 <= len(account.encode()) <= 1_000:
            raise ValueError("no account")
        if len(dimensions.encode()) > 1_200:
            raise ValueError("no dimensions")
    except (ValueError, ArithmeticError):
        return {"undecodable": 1}
    return {
        "amendment": told["amendment_id"],
        "meter_id": told["meter_id"],
        "account": told["account"],
        "dimensions": told.get("dimensions", ""),
        "window_start_ms": told["window_start_ms"],
        "time_ms": told["time_ms"],
        "quantity": quantity,
    }


def _is_tick(value: bytes) -> bool:
    try:
        tick = ticks.decode_tick(value)
    except ValueError:
        return False
    return 0 <= tick.wall_ms <= TIME_MS_MAX and 0 <= tick.rows_acknowledged < 2**63


def _read_batch(value: bytes, headers: EventHeaders) -> pa.RecordBatch:
    """The record's batch. Raises UndecodableRecord unless it is what the headers and the contract promise."""
    if not 0 <= headers.rows <= ROWS_MAX or not 0 <= headers.ingest_ms <= TIME_MS_MAX:
        raise UndecodableRecord(f"{headers.rows} rows at {headers.ingest_ms} ms")
    source = pa.BufferReader(value)
    try:
        with pa.ipc.open_stream(source) as reader:
            batches = list(reader)
        for batch in batches:
            batch.validate()
        left_bytes = source.size() - source.tell()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UndecodableRecord(str(error)) from error
    if len(batches) != 1 or left_bytes:
        raise UndecodableRecord(f"{len(batches)} batches, {left_bytes} bytes after them")
    batch = batches[0]
    schema = batch.schema
    if batch.num_rows != headers.rows or len(set(schema.names)) != len(schema.names):
        raise UndecodableRecord(f"{batch.num_rows} rows, {headers.rows} promised")
    for column in SCHEMA:
        if column.name not in schema.names or schema.field(column.name).type != column.type:
            raise UndecodableRecord(f"no {column.name} of type {column.type}")
        if not column.nullable and batch.column(column.name).null_count:
            raise UndecodableRecord(f"null in {column.name}")
    if any(f.type != pa.string() for f in schema if f.name.startswith(PROPERTY_PREFIX)):
        raise UndecodableRecord("a property that is no text")
    return batch


def _claimed(record: LoggedRecord) -> int:
    """How many events a record nobody can read counts for: what an events record's headers promise, else what a
    `rows` header says, at least one.
    """
    if contract_of(record.headers) == CONTRACT:
        try:
            headers = headers_from_kafka(record.headers)
        except UndecodableRecord:
            pass
        else:
            if 0 <= headers.rows <= ROWS_MAX and 0 <= headers.ingest_ms <= TIME_MS_MAX:
                return headers.rows
    for name, text in record.headers:
        # A length bound first: turning a megabyte of digits into an int takes seconds.
        if name == "rows" and len(text) <= len(str(ROWS_MAX)) and text.isdigit() and int(text) <= ROWS_MAX:
            return max(1, int(text))
    return 1
