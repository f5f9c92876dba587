"""Records as rows and back: whatever a recount could ask of a record is the same afterwards."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pyarrow as pa
import pytest

from services.cli.logged import read_rows
from tests.fakes.logged import events_record, raw_record, tick_record
from tests.unit.metering.rows import NOW_MS, batch, row
from tollgate.contracts.archive import NotAnArchive
from tollgate.contracts.archive_rows import (
    RestoredRecord,
    find_records,
    join_rows,
    properties_of,
    restore_records,
    tabulate,
    taken_in_ms,
)
from tollgate.contracts.events import (
    EventHeaders,
    UndecodableRecord,
    decode_batch,
    encode_batch,
    event_schema,
    headers_to_kafka,
)
from tollgate.contracts.records import decode_records


def round_trip(
    records: Sequence[RestoredRecord], more_properties: Sequence[str] = ()
) -> list[RestoredRecord]:
    tables = tabulate(records)
    properties = set(more_properties).union(*(properties_of(table.schema) for table in tables))
    return list(restore_records(join_rows(tables, properties)))


def assert_same(before: Sequence[RestoredRecord], after: Sequence[RestoredRecord]) -> None:
    """Place, stamp, key, headers; the value too, or the batch in it: schema, order of columns and every cell."""
    assert len(after) == len(before)
    for one, other in zip(before, after, strict=True):
        assert (one.partition, one.offset, one.timestamp_ms, one.key, one.headers) == (
            other.partition,
            other.offset,
            other.timestamp_ms,
            other.key,
            other.headers,
        )
        if one.value != other.value:
            expected, found = decode_batch(one.value), decode_batch(other.value)
            assert found.schema.equals(expected.schema, check_metadata=True)
            assert found.equals(expected)
        assert read_rows(one) == read_rows(other)


def made(rng: random.Random, offset: int) -> RestoredRecord:
    """One record as a log may hold it."""
    properties = rng.choice([[], ["model"], ["model", "tokens"], ["größe"]])
    rows = [
        row(
            rng.randrange(2**64),
            id=rng.choice(["", "a", "größer", "x" * 300]),
            time_ms=rng.randrange(-(2**63), 2**63),
            user=rng.choice([None, "", "ada"]),
            status=rng.choice([None, -1, 200]),
            properties={name: rng.choice([None, "", "1"]) for name in properties},
        )
        for _ in range(rng.choice([0, 1, 1, 2, 40, 300]))
    ]
    kind = rng.randrange(12)
    whole = events_record(
        offset,
        rows,
        properties,
        ingest_ms=rng.choice([NOW_MS, NOW_MS + 1]),
        accept_late=rng.random() < 0.2,
        source=rng.choice(["kong", ""]),
    )
    if kind == 0:
        return tick_record(offset)
    if kind == 1:
        return raw_record(offset, rng.randbytes(20), ("contract", b"events/1"), ("rows", b"7"), key=b"k")
    if kind == 2:
        return raw_record(offset, whole.value[: len(whole.value) // 2], *whole.headers)
    if kind == 3:
        return raw_record(offset, whole.value, *whole.headers, ("more", b"\xff"))
    if kind == 4:
        return raw_record(offset, b"")
    if kind == 5:
        return events_record(offset, rows, properties, claimed_rows=len(rows) + 1)
    return whole


@pytest.mark.parametrize("seed", range(12))
def test_every_record_comes_back(seed: int) -> None:
    """Ticks, broken records, wrong headers, whatever was captured: in order, each just as it was."""
    rng = random.Random(seed)
    records = [made(rng, offset) for offset in range(5, 45)]
    assert_same(records, round_trip(records, ["never_carried"]))


def test_a_property_not_carried_is_not_null() -> None:
    """Two records side by side in one table: the one without the column comes back without it, the null as null."""
    records = [
        events_record(0, [row(1)]),
        events_record(1, [row(2, properties={"model": None})], ["model"]),
        events_record(2, [row(3, properties={"model": "a"})], ["model"]),
    ]
    table = join_rows(tabulate(records), ["model"])
    assert table.column("captured").to_pylist() == ["[]", '["model"]', '["model"]']
    assert table.column("properties.model").to_pylist() == [None, None, "a"]
    restored = [decode_batch(record.value) for record in restore_records(table)]
    assert ["properties.model" in each.schema.names for each in restored] == [False, True, True]
    assert_same(records, list(restore_records(table)))


def test_a_schema_that_is_not_the_contracts_is_kept_as_bytes() -> None:
    """A column more, another order, metadata: rows could not say so."""
    plain = batch([row(1)], ["b", "a"])
    more = plain.append_column("extra", pa.array([1]))
    turned = plain.select([*plain.schema.names[:-2], "properties.b", "properties.a"])
    told = plain.replace_schema_metadata({"a": "b"})
    headers = headers_to_kafka(EventHeaders("kong", "i", 1, NOW_MS, ""))
    records = [
        raw_record(i, encode_batch(each), *headers) for i, each in enumerate((more, turned, told, plain))
    ]
    tables = tabulate(records)
    joined = join_rows(tables, ["a", "b"])
    assert [place.kept for place in find_records(joined)] == [True, True, True, False]
    assert_same(records, list(restore_records(joined)))


def test_text_that_is_no_utf8_is_kept_as_bytes_alone() -> None:
    """The neighbours of a record nobody can read are rows all the same."""
    schema = event_schema(())
    bad = batch([row(2, user="xxxx")])
    value = encode_batch(bad).replace(b"xxxx", b"\xff\xfe\xff\xfe")
    assert decode_batch(value).schema == schema
    whole = events_record(1, [row(2)])
    records = [events_record(0, [row(1)]), raw_record(1, value, *whole.headers), events_record(2, [row(3)])]
    joined = join_rows(tabulate(records), [])
    assert [place.kept for place in find_records(joined)] == [False, True, False]
    assert list(restore_records(joined))[1] == records[1]


def test_headers_that_cannot_be_written_again_are_kept() -> None:
    """A number with a sign means the same to a reader and is not the same bytes."""
    whole = events_record(0, [row(1)])
    signed = tuple((name, b"+1" if name == "rows" else value) for name, value in whole.headers)
    (back,) = round_trip([raw_record(0, whole.value, *signed)])
    assert back.headers == signed
    assert back.value == whole.value


def test_an_events_record_with_a_key_keeps_it() -> None:
    """Ingest writes none; rows have no place for one."""
    whole = events_record(0, [row(1)])
    record = raw_record(0, whole.value, *whole.headers, key=b"k")
    assert round_trip([record]) == [record]


def test_rows_too_many_or_too_few_are_no_record() -> None:
    """A row that was written twice, or lost, is damage, and never an event more or less."""
    rows = join_rows(tabulate([events_record(4, [row(1), row(2)])]), [])
    for damaged in (pa.concat_tables([rows, rows]), rows.slice(0, 1)):
        with pytest.raises(NotAnArchive, match=r"offset 4 has \d rows, its header says 2"):
            list(restore_records(damaged))


def test_both_ways_of_counting_read_the_same() -> None:
    """What the fold is told of a record is the same from the log and from its rows."""
    rng = random.Random(3)
    records = [made(rng, offset) for offset in range(60)]
    told, again = decode_records(records), decode_records(round_trip(records))
    for one, other in zip(told, again, strict=True):
        assert type(one) is type(other)
        assert (one.partition, one.offset, getattr(one, "rows", 0)) == (
            other.partition,
            other.offset,
            getattr(other, "rows", 0),
        )


def test_when_a_record_was_taken_in() -> None:
    """Its own header where that can be; Kafka's stamp for all else, and never before the epoch."""
    assert taken_in_ms(events_record(0, [row(1)], ingest_ms=77)) == 77
    assert taken_in_ms(tick_record(0, wall_ms=88)) == 88
    assert taken_in_ms(raw_record(0, b"", ("ingest_ms", b"9" * 400), timestamp_ms=5)) == 5
    assert taken_in_ms(raw_record(0, b"", timestamp_ms=-1)) == 0


def test_a_value_that_is_no_stream_is_kept() -> None:
    """Headers that promise events do not make any."""
    whole = events_record(0, [row(1)])
    record = raw_record(0, b"\0bad", *whole.headers)
    with pytest.raises(UndecodableRecord):
        decode_batch(record.value)
    assert round_trip([record]) == [record]
