"""Gathering: exactly what Arrow reads, or nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.metering.rows import batch, row
from tollgate.contracts.events import encode_batch
from tollgate.metering.event import event_schema
from tollgate.metering.gather import gather, plan_columns

COLUMNS = ("id_hash", "id_weak", "time_ms", "account", "user", "status", "latency_ms", "properties.model")
NOT_NULL = frozenset({"id_hash", "id_weak", "time_ms", "account"})
SCHEMA = event_schema(["model", "tokens"])
_TEXTS = (None, "", "a", "größer", "x" * 300, "user:ada")


def made(rng: random.Random, rows: int) -> pa.RecordBatch:
    """A batch of random events, some of its columns without any null."""
    whole = rng.random() < 0.3
    texts = [text for text in _TEXTS if text is not None] if whole else _TEXTS
    return batch(
        [
            row(
                rng.randrange(2**64),
                id_weak=rng.random() < 0.5,
                time_ms=rng.randrange(-(2**63), 2**63),
                account=rng.choice([text for text in _TEXTS if text]),
                user=rng.choice(texts),
                status=rng.choice([None, -1, 200, 32_767]),
                latency_ms=rng.choice([0, 1, 2**62] if whole else [None, 7]),
                properties={"model": rng.choice(texts), "tokens": "1"},
            )
            for _ in range(rows)
        ],
        ["model", "tokens"],
    )


def prefix_bytes(value: bytes) -> int:
    """Where the schema message ends, from what every batch of the schema begins with."""
    sink = pa.BufferOutputStream()
    pa.ipc.new_stream(sink, SCHEMA).close()
    end = len(sink.getvalue()) - 8
    assert value[:end] == bytes(sink.getvalue())[:end]
    return end


def gathered(values: Sequence[bytes], rows: Sequence[int]) -> pa.Table | None:
    plan = plan_columns(SCHEMA, COLUMNS, NOT_NULL)
    assert plan is not None
    return gather(values, rows, prefix_bytes(values[0]), plan)


def by_arrow(value: bytes) -> pa.Table:
    # As the fold asks for it: what nobody reads may be damaged.
    options = pa.ipc.IpcReadOptions(included_fields=[SCHEMA.get_field_index(name) for name in COLUMNS])
    with pa.ipc.open_stream(value, options=options) as reader:
        table = reader.read_all().select(list(COLUMNS))
    table.validate()
    return table


@pytest.mark.parametrize("seed", range(20))
def test_it_reads_what_arrow_reads(seed: int) -> None:
    """Any rows, nulls, empty and long texts, with and without an end of the stream."""
    rng = random.Random(seed)
    batches = [made(rng, rng.choice([1, 1, 2, 5, 9, 64, 65])) for _ in range(rng.choice([1, 2, 30]))]
    values = [encode_batch(each) for each in batches]
    values = [value.removesuffix(value[-8:]) if rng.random() < 0.3 else value for value in values]
    table = gathered(values, [each.num_rows for each in batches])
    assert table is not None
    table.validate(full=True)
    expected = pa.Table.from_batches(batches).select(list(COLUMNS))
    assert table.to_pydict() == expected.to_pydict()
    assert [column.null_count for column in table.columns] == [c.null_count for c in expected.columns]


@pytest.mark.parametrize("damaged_batch", range(3))
def test_a_damaged_batch_is_read_as_arrow_reads_it_or_left_to_arrow(damaged_batch: int) -> None:
    """Every byte of one batch's message damaged in turn: never a table that Arrow would not read the same."""
    rng = random.Random(damaged_batch)
    values = [encode_batch(made(rng, 3)) for _ in range(3)]
    sound = [by_arrow(value) for value in values]
    left = 0
    for at in range(prefix_bytes(values[0]), len(values[damaged_batch])):
        damaged = bytearray(values[damaged_batch])
        damaged[at] ^= 1 << rng.randrange(8)
        table = gathered([*values[:damaged_batch], bytes(damaged), *values[damaged_batch + 1 :]], [3, 3, 3])
        if table is None:
            left += 1
            continue
        try:
            read = by_arrow(bytes(damaged))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise AssertionError(f"byte {at}: Arrow refuses it") from error
        whole = pa.concat_tables([*sound[:damaged_batch], read, *sound[damaged_batch + 1 :]])
        for name in COLUMNS:
            assert _raw(table.column(name)) == _raw(whole.column(name)), (name, at)
    assert left > 500, "the damage was seen"


def _raw(column: pa.ChunkedArray) -> list[object]:
    """Values that compare, though a text is no UTF-8 any more."""
    if pa.types.is_string(column.type):
        column = pa.chunked_array([chunk.view(pa.binary()) for chunk in column.chunks])
    return column.to_pylist()  # type: ignore[no-any-return]


def test_what_it_does_not_understand_it_does_not_read() -> None:
    """Compression, no rows, a wrong number of rows, more than one batch, a null where none may be."""
    large = batch(
        [row(number, properties={"model": "m", "tokens": "1"}) for number in range(300)], ["model", "tokens"]
    )
    small = batch([row(1, properties={"model": "m", "tokens": "1"})], ["model", "tokens"])
    assert gathered([encode_batch(large)], [300]) is None
    assert gathered([encode_batch(small.slice(0, 0))], [0]) is None
    assert gathered([encode_batch(small)], [2]) is None
    assert gathered([encode_batch(small), encode_batch(small)[:-16]], [1, 1]) is None
    assert gathered([encode_batch(small) + b"\0" * 8], [1]) is None
    twice = encode_batch(small)[:-8] + encode_batch(small)[prefix_bytes(encode_batch(small)) :]
    assert gathered([twice], [1]) is None
    plan = plan_columns(SCHEMA, ("user",), {"user"})
    assert plan is not None
    assert gather([encode_batch(small)], [1], prefix_bytes(encode_batch(small)), plan) is None


def test_a_schema_with_another_type_is_left_to_arrow() -> None:
    """Its buffers cannot be told apart here."""
    assert plan_columns(pa.schema([("a", pa.list_(pa.int8())), ("b", pa.int8())]), ["b"], ()) is None
    assert plan_columns(pa.schema([("a", pa.int8()), ("b", pa.string())]), ["b"], ()) is not None


def test_numbers_of_all_widths() -> None:
    """Every width lies on its own alignment."""
    schema = pa.schema([(f"c{width}", pa.type_for_alias(f"int{width}")) for width in (8, 16, 32, 64)])
    batches = [
        pa.RecordBatch.from_arrays(
            [pa.array(np.arange(rows) - 2, column.type) for column in schema], schema=schema
        )
        for rows in (1, 3, 7)
    ]
    values = []
    for each in batches:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, schema) as writer:
            writer.write_batch(each)
        values.append(bytes(sink.getvalue()))
    empty = pa.BufferOutputStream()
    pa.ipc.new_stream(empty, schema).close()
    plan = plan_columns(schema, schema.names, ())
    assert plan is not None
    table = gather(values, [1, 3, 7], len(empty.getvalue()) - 8, plan)
    assert table is not None
    assert table.to_pydict() == pa.Table.from_batches(batches).to_pydict()
