"""A record of the log as rows: what the meter cannot read is as unreadable here, found by other code."""

from __future__ import annotations

import pyarrow as pa
import pytest

from services.cli.log import StoredRecord
from services.cli.logged import read_rows
from services.meter.decode import decode_records
from services.meter.intake import LogRecord
from tests.fakes.events import TIME_MS, Call, batch_of
from tollgate.contracts.events import EventHeaders, decode_batch, encode_batch, headers_to_kafka
from tollgate.contracts.ticks import Tick, encode_tick, tick_headers
from tollgate.metering.definition import MeterSet
from tollgate.metering.fold import CompiledMeters, fold
from tollgate.metering.outcome import TimeRules
from tollgate.metering.seen import SeenIds

VALUE, HEADERS = batch_of([Call("a", status=200), Call("b", "user:bob", status=404)])
Headers = list[tuple[str, bytes]]


def stored(value: bytes, headers: Headers) -> StoredRecord:
    return StoredRecord(2, 9, TIME_MS, None, value, tuple(headers))


def changed(**values: bytes) -> Headers:
    return [(name, values.get(name, value)) for name, value in HEADERS]


def without(column: str) -> bytes:
    batch = decode_batch(VALUE)
    return encode_batch(batch.drop_columns([column]))


def retyped(column: str) -> bytes:
    batch = decode_batch(VALUE)
    at = batch.schema.get_field_index(column)
    return encode_batch(batch.set_column(at, pa.field(column, pa.string()), pa.array(["1"] * batch.num_rows)))


def test_events_become_rows_with_their_place() -> None:
    """Columns, and partition, offset, ingest time of the record."""
    rows = read_rows(stored(VALUE, HEADERS))
    assert [(row["id"], row["account"], row["status"]) for row in rows] == [
        ("a", "user:ada", 200),
        ("b", "user:bob", 404),
    ]
    assert {(row["partition"], row["offset"], row["ingest_ms"], row["accept_late"]) for row in rows} == {
        (2, 9, TIME_MS, False)
    }


def test_accept_late_comes_from_the_header() -> None:
    """Only a replayed record has it."""
    headers = headers_to_kafka(EventHeaders("s", "i", 2, TIME_MS, "", accept_late=True))
    assert [row["accept_late"] for row in read_rows(stored(VALUE, headers))] == [True, True]


def test_a_tick_has_no_rows() -> None:
    """Ticks carry no events."""
    assert read_rows(stored(encode_tick(Tick("i", 1, 2)), list(tick_headers("i")))) == []


BROKEN: dict[str, tuple[bytes, Headers, int]] = {
    "noise": (b"noise", HEADERS, 2),
    "empty": (b"", HEADERS, 2),
    "cut": (VALUE[:-40], HEADERS, 2),
    "bytes after it": (VALUE + b"x", HEADERS, 2),
    "two batches": (VALUE + VALUE, HEADERS, 2),
    "a column is missing": (without("account"), HEADERS, 2),
    "a column of another type": (retyped("status"), HEADERS, 2),
    "fewer rows than promised": (VALUE, changed(rows=b"3"), 3),
    "rows below zero": (VALUE, changed(rows=b"-3"), 1),
    "rows beyond belief": (VALUE, changed(rows=b"9" * 30), 1),
    "rows no number": (VALUE, changed(rows=b"two"), 1),
    "no headers": (VALUE, [], 1),
    "another contract": (VALUE, changed(contract=b"events/2"), 2),
    "another contract of no rows": (VALUE, changed(contract=b"events/2", rows=b"0"), 1),
    "ingest time beyond belief": (VALUE, changed(ingest_ms=b"9" * 15), 2),
    "a tick that is none": (b"{}", list(tick_headers("i")), 1),
    "a tick out of range": (encode_tick(Tick("i", -1, 2)), list(tick_headers("i")), 1),
}


@pytest.mark.parametrize(("value", "headers", "rows"), BROKEN.values(), ids=BROKEN.keys())
def test_what_cannot_be_read_is_accounted_as_the_meter_does(
    value: bytes, headers: Headers, rows: int
) -> None:
    """One row that says how many events it stands for: the number the meter buries as dead."""
    assert read_rows(stored(value, headers)) == [{"partition": 2, "offset": 9, "undecodable": rows}]
    records = decode_records([LogRecord(2, 9, value, tuple(headers))])
    folded = fold(records, {2: SeenIds()}, CompiledMeters.compile(MeterSet(1, ())), TimeRules())
    assert folded.partitions[2].outcomes.dead == rows
