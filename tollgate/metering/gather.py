"""Many small record batches as one table, column by column and not batch by batch.

Owns the arithmetic of where a column's values lie in plain (uncompressed) record batches of one schema. It refuses to
judge: whatever is not exactly as expected it does not read, and whoever asked has Arrow read it, and say what is wrong.

Arrow spends some forty microseconds on a batch of fourteen columns, whatever its rows. But the metadata of such batches
differs in numbers only, at the same places, so the places are found once and the numbers of all batches are read as
arrays; so are the values then.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

ROWS_MEAN_MAX = 96
"""Rows a batch on average, above which Arrow is about as cheap: it costs by the batch, this by the row."""

_HEADER_BYTES = 8
"""Of an encapsulated message: the continuation marker and the metadata's length."""
_END_OF_STREAM = np.frombuffer(b"\xff\xff\xff\xff\x00\x00\x00\x00", np.uint8)
_METADATA_V5 = 4
_RECORD_BATCH = 3
_ALIGNMENT = 8
_TEXT_BYTES_MAX = 2**31 - 1
"""Of one column: its offsets have 32 bits."""

_Ints = npt.NDArray[np.int64]
_Bytes = npt.NDArray[np.uint8]
_Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Place:
    """Where one column is among a batch's nodes and buffers."""

    name: str
    type: pa.DataType
    nullable: bool
    node: int
    buffer: int


@dataclass(frozen=True, slots=True)
class Plan:
    """How to read some columns of one schema."""

    places: tuple[Place, ...]
    nodes: int
    buffers: int


@dataclass(frozen=True, slots=True)
class _Shape:
    """Where a record batch's metadata holds its numbers, in bytes from the metadata's start."""

    rows: int
    nodes: int
    buffers: int
    body_bytes: int


@dataclass(frozen=True, slots=True)
class _Batches:
    """All batches of a call, behind one another in memory."""

    joined: _Bytes
    rows: _Ints
    bodies: _Ints
    """Where each body begins in `joined`."""
    batch_of: _Ints
    """Of each row of the result, its batch."""
    within: _Ints
    """Of each row of the result, its place in its batch."""


def plan_columns(schema: pa.Schema, columns: Sequence[str], not_null: Collection[str]) -> Plan | None:
    """How to read `columns`, in that order; None when the schema holds a type that is not known here.

    Those in `not_null` may hold no null, whatever the schema says of them.
    """
    buffers = 0
    places: dict[str, Place] = {}
    for node, column in enumerate(schema):
        places[column.name] = Place(column.name, column.type, column.name not in not_null, node, buffers)
        if pa.types.is_string(column.type):
            buffers += 3
        elif pa.types.is_boolean(column.type) or pa.types.is_integer(column.type):
            buffers += 2
        else:
            return None
    return Plan(tuple(places[name] for name in columns), len(schema), buffers)


def gather(values: Sequence[bytes], rows: Sequence[int], start: int, plan: Plan) -> pa.Table | None:
    """The columns of `plan` of all batches, one after the other; None when any of them is not as promised.

    Each value holds a schema message of `start` bytes, equal in all of them, then one record batch of `rows` rows, then
    nothing or the end of the stream.
    """
    batches_of = _locate(values, rows, start, plan)
    if batches_of is None:
        return None
    batches, lengths, nulls, offsets, sizes = batches_of
    columns = []
    for at, place in enumerate(plan.places):
        if not (lengths[:, at] == batches.rows).all():
            return None
        slots = slice(place.buffer, place.buffer + (3 if pa.types.is_string(place.type) else 2))
        column = _column(batches, place, nulls[:, at], offsets[:, slots], sizes[:, slots])
        if column is None:
            return None
        columns.append(column)
    return pa.table(columns, names=[place.name for place in plan.places])


def _locate(
    values: Sequence[bytes], rows: Sequence[int], start: int, plan: Plan
) -> tuple[_Batches, _Ints, _Ints, _Ints, _Ints] | None:
    """The batches, and per batch: rows and nulls of each column of the plan, offset and size of each buffer.

    1. Find the places in the first batch's metadata. 2. Check that all others are equal but for the numbers there.
    3. Check every number that says where something is.
    """
    counts = np.asarray(rows, np.int64)
    metadata_at = start + _HEADER_BYTES
    if start % _ALIGNMENT or not counts.size or counts.min() < 1 or len(values[0]) < metadata_at:
        return None
    marker, metadata_bytes = struct.unpack_from("<ii", values[0], start)
    body_at = metadata_at + metadata_bytes
    if marker != -1 or metadata_bytes <= 0 or body_at % _ALIGNMENT:
        return None
    shape = _find_shape(values[0][metadata_at:body_at], plan)
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    if shape is None or (sizes % _ALIGNMENT).any() or sizes.min() < body_at:
        return None
    joined = np.frombuffer(b"".join(values), np.uint8)
    numbers = joined.view(np.int64)
    starts = np.cumsum(sizes) - sizes

    first_number, last_number = start // _ALIGNMENT, body_at // _ALIGNMENT
    metadata = numbers[(starts // _ALIGNMENT)[:, None] + np.arange(first_number, last_number)]
    fixed = np.ones(last_number - first_number, np.bool_)
    places = {name: (_HEADER_BYTES + getattr(shape, name)) // _ALIGNMENT for name in _Shape.__slots__}
    fixed[[places["rows"], places["body_bytes"]]] = False
    fixed[places["nodes"] : places["nodes"] + 2 * plan.nodes] = False
    fixed[places["buffers"] : places["buffers"] + 2 * plan.buffers] = False
    if not (metadata[:, fixed] == metadata[0, fixed]).all():
        return None

    body_bytes = metadata[:, places["body_bytes"]]
    rest = sizes - body_at - body_bytes
    if (
        not (metadata[:, places["rows"]] == counts).all()
        or (body_bytes < 0).any()
        or not ((rest == 0) | (rest == _END_OF_STREAM.size)).all()
    ):
        return None
    ended = (starts + sizes)[rest > 0]
    if (
        ended.size
        and not (joined[ended[:, None] + np.arange(-_END_OF_STREAM.size, 0)] == _END_OF_STREAM).all()
    ):
        return None
    buffers = metadata[:, places["buffers"] : places["buffers"] + 2 * plan.buffers]
    offsets, buffer_sizes = buffers[:, 0::2], buffers[:, 1::2]
    # Compared one by one: a sum of two of them may wrap.
    if (
        (offsets < 0).any()
        or (offsets % _ALIGNMENT).any()
        or (offsets > body_bytes[:, None]).any()
        or (buffer_sizes < 0).any()
        or (buffer_sizes > body_bytes[:, None] - offsets).any()
    ):
        return None
    nodes = metadata[:, places["nodes"] : places["nodes"] + 2 * plan.nodes]
    of = [place.node for place in plan.places]
    batch_of = np.repeat(np.arange(counts.size), counts)
    within = np.arange(batch_of.size) - (np.cumsum(counts) - counts)[batch_of]
    batches = _Batches(joined, counts, starts + body_at, batch_of, within)
    return batches, nodes[:, 0::2][:, of], nodes[:, 1::2][:, of], offsets, buffer_sizes


def _find_shape(metadata: bytes, plan: Plan) -> _Shape | None:
    """Read the flatbuffer `Message` of a record batch without compression; None for anything else."""
    try:
        (message,) = struct.unpack_from("<i", metadata, 0)
        version = _slot(metadata, message, 0)
        kind = _slot(metadata, message, 1)
        header = _slot(metadata, message, 2)
        body_bytes = _slot(metadata, message, 3)
        if version is None or kind is None or header is None or body_bytes is None:
            return None
        if _slot(metadata, message, 4) is not None:
            return None
        if struct.unpack_from("<h", metadata, version)[0] != _METADATA_V5 or metadata[kind] != _RECORD_BATCH:
            return None
        batch = header + struct.unpack_from("<I", metadata, header)[0]
        rows = _slot(metadata, batch, 0)
        nodes = _vector(metadata, batch, 1, plan.nodes)
        buffers = _vector(metadata, batch, 2, plan.buffers)
        # The fourth is compression, the fifth the buffers of views.
        others = [_slot(metadata, batch, slot) for slot in (3, 4)]
    except (struct.error, IndexError):
        return None
    if rows is None or nodes is None or buffers is None or others != [None, None]:
        return None
    if any(place % _ALIGNMENT for place in (rows, nodes, buffers, body_bytes)):
        return None
    ends = (rows + 8, nodes + 16 * plan.nodes, buffers + 16 * plan.buffers, body_bytes + 8)
    return _Shape(rows, nodes, buffers, body_bytes) if max(ends) <= len(metadata) else None


def _slot(metadata: bytes, table: int, slot: int) -> int | None:
    """Where a flatbuffer table keeps its field number `slot`; None when it does not have it."""
    vtable = table - struct.unpack_from("<i", metadata, table)[0]
    if 6 + 2 * slot > struct.unpack_from("<H", metadata, vtable)[0]:
        return None
    (offset,) = struct.unpack_from("<H", metadata, vtable + 4 + 2 * slot)
    return table + offset if offset else None


def _vector(metadata: bytes, table: int, slot: int, count: int) -> int | None:
    """Where the elements of a flatbuffer vector begin; None when there are not exactly `count`."""
    at = _slot(metadata, table, slot)
    if at is None:
        return None
    vector: int = at + struct.unpack_from("<I", metadata, at)[0]
    return vector + 4 if struct.unpack_from("<I", metadata, vector)[0] == count else None


# ----------------------------------------------------------------------------------------------------- columns


def _column(batches: _Batches, place: Place, nulls: _Ints, offsets: _Ints, sizes: _Ints) -> pa.Array | None:
    """One column of all batches; None when a buffer is too small for its rows."""
    if (nulls < 0).any() or (nulls > batches.rows).any() or (nulls.any() and not place.nullable):
        return None
    validity = None
    if nulls.any():
        if ((nulls > 0) & (sizes[:, 0] * 8 < batches.rows)).any():
            return None
        # A batch without nulls need not have the bits.
        sure = (nulls == 0)[batches.batch_of]
        validity = _pack(_bits(batches, offsets[:, 0]) | sure)
    if pa.types.is_string(place.type):
        return _text(batches, place, validity, offsets[:, 1:], sizes[:, 1:])
    if pa.types.is_boolean(place.type):
        if (sizes[:, 1] * 8 < batches.rows).any():
            return None
        data = _pack(_bits(batches, offsets[:, 1]))
    else:
        width = place.type.bit_width // 8
        if (sizes[:, 1] < batches.rows * width).any():
            return None
        numbers: npt.NDArray[Any] = batches.joined.view(f"<u{width}")
        at = (batches.bodies + offsets[:, 1]) // width
        data = pa.py_buffer(numbers[at[batches.batch_of] + batches.within])
    return pa.Array.from_buffers(place.type, batches.batch_of.size, [validity, data])


def _text(
    batches: _Batches, place: Place, validity: pa.Buffer | None, offsets: _Ints, sizes: _Ints
) -> pa.Array | None:
    if (sizes[:, 0] < (batches.rows + 1) * 4).any():
        return None
    ends = batches.joined.view("<i4")
    at = ((batches.bodies + offsets[:, 0]) // 4)[batches.batch_of] + batches.within
    first, last = ends[at].astype(np.int64), ends[at + 1].astype(np.int64)
    if (first < 0).any() or (last < first).any() or (last > sizes[:, 1][batches.batch_of]).any():
        return None
    lengths = last - first
    new_ends = np.concatenate(([0], np.cumsum(lengths)))
    if new_ends[-1] > _TEXT_BYTES_MAX:
        return None
    # Each byte's place: where its text begins there, minus where it begins here, plus its place here.
    shift = (batches.bodies + offsets[:, 1])[batches.batch_of] + first - new_ends[:-1]
    text = batches.joined[np.repeat(shift, lengths) + np.arange(new_ends[-1])]
    data = [validity, pa.py_buffer(new_ends.astype(np.int32)), pa.py_buffer(text)]
    return pa.Array.from_buffers(place.type, batches.batch_of.size, data)


def _bits(batches: _Batches, offsets: _Ints) -> _Bools:
    """Of each row, its bit in the bitmap at `offsets`; meaningless where a batch has no such bitmap."""
    at = (batches.bodies + offsets)[batches.batch_of] + (batches.within >> 3)
    # Of the last batch it may lie past the end.
    found = batches.joined[np.minimum(at, batches.joined.size - 1)]
    bits: _Bools = (found >> (batches.within & 7).astype(np.uint8) & 1).astype(np.bool_)
    return bits


def _pack(bits: _Bools) -> pa.Buffer:
    return pa.py_buffer(np.packbits(bits, bitorder="little"))
