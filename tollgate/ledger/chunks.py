"""Long lists of keys in statements a database takes.

Owns how many keys go in one statement and how they are asked for: as arrays on PostgreSQL, whose statement is the same
whatever the number of keys, as IN lists on SQLite. It refuses to know any table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import polars as pl
from sqlalchemy import (
    ARRAY,
    Column,
    ColumnElement,
    Connection,
    Text,
    bindparam,
    cast,
    column,
    func,
    literal,
    select,
    tuple_,
)

from tollgate.ledger.arrays import bind_array
from tollgate.ledger.plan_rows import (
    Slot,
)

_T = TypeVar("_T")

CHUNK = 400
"""Keys in one IN list: three parameters each stay far below SQLite's limit of 32,766."""

_ARRAY_CHUNK = 10_000
"""Keys in one array: a few hundred kilobytes."""


def chunks(values: Iterable[_T]) -> Iterable[list[_T]]:
    return _cut(list(values), CHUNK)


def key_chunks(connection: Connection, keys: Iterable[_T]) -> Iterator[list[_T]]:
    """`keys` in lists as long as `among` takes them."""
    return _cut(list(keys), _ARRAY_CHUNK if connection.dialect.name == "postgresql" else CHUNK)


def _cut(values: list[_T], size: int) -> Iterator[list[_T]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _array(kind: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[Any]:
    """`values` of a column as one parameter."""
    return cast(bindparam(None, bind_array(pl.Series(values)), type_=Text), ARRAY(kind.type))


def among(
    connection: Connection, columns: Sequence[ColumnElement[Any]], keys: Sequence[Sequence[Any]]
) -> ColumnElement[bool]:
    """Whether the values of `columns` are one of `keys`, each with a value a column."""
    if connection.dialect.name != "postgresql":
        if len(columns) == 1:
            return columns[0].in_([key[0] for key in keys])
        return tuple_(*columns).in_([tuple(key) for key in keys])
    names = [f"key_{number}" for number in range(len(columns))]
    arrays = [_array(kind, values) for values, kind in zip(zip(*keys, strict=True), columns, strict=True)]
    wanted = (
        func.unnest(*arrays)
        .table_valued(*(column(name, kind.type) for name, kind in zip(names, columns, strict=True)))
        .render_derived()
    )
    one_of = select(*(wanted.c[name] for name in names))
    return (columns[0] if len(columns) == 1 else tuple_(*columns)).in_(one_of)


def load_present(connection: Connection, known: Column[Any], keys: Sequence[Any]) -> set[Any]:
    """Those of `keys` that a row of the table of `known`, which must be indexed, has there."""
    found: set[Any] = set()
    for chunk in key_chunks(connection, keys):
        if connection.dialect.name == "postgresql":
            wanted = (
                func.unnest(_array(known, chunk)).table_valued(column("key", known.type)).render_derived()
            )
            # One by one, by the index: of `IN` PostgreSQL thinks that most of the table is meant, and reads all of it.
            one = select(literal(1)).where(known == wanted.c.key).limit(1).correlate(wanted).scalar_subquery()
            statement = select(wanted.c.key).where(one.is_not(None))
        else:
            statement = select(known).where(known.in_(chunk)).distinct()
        found.update(connection.execute(statement).scalars())
    return found


def is_slot(connection: Connection, table: Any, slots: Sequence[Slot]) -> ColumnElement[bool]:
    """Whether a row of `table` is of one of `slots`."""
    return among(connection, [table.c.meter_id, table.c.window_start_ms, table.c.account], slots)
