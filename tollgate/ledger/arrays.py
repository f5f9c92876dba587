"""Writing many rows in one go: one statement over arrays on PostgreSQL, one prepared statement on SQLite.

Owns the shape of such statements and how each database says "add", "larger" and "smaller". It refuses to know which
table is written and why. Rows, not events, are what a flush costs: never one round trip a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
from sqlalchemy import Connection

Array = Sequence[Any] | pl.Series
"""One column of the rows to write."""

CHUNK_ROWS = 20_000
"""Rows in one statement: bounds its memory and keeps it far from the statement timeout."""


@dataclass(frozen=True, slots=True)
class Words:
    """How a database says what the ledger needs. `{0}` and `{1}` are the operands."""

    quantity_add: str
    quantity_max: str
    quantity_min: str
    larger: str
    """Of two integers."""


POSTGRESQL = Words("({0} + {1})", "greatest({0}, {1})", "least({0}, {1})", "greatest({0}, {1})")
SQLITE = Words("quantity_add({0}, {1})", "quantity_max({0}, {1})", "quantity_min({0}, {1})", "max({0}, {1})")


def words_of(connection: Connection) -> Words:
    """The words of this connection's database."""
    return POSTGRESQL if connection.dialect.name == "postgresql" else SQLITE


@dataclass(frozen=True, slots=True)
class Upsert:
    """INSERT … ON CONFLICT (keys) DO UPDATE SET …, or DO NOTHING without updates.

    In `updates` the row there is called `held` and the row that came `excluded`.
    """

    table: str
    columns: Mapping[str, str]
    """Column names with their PostgreSQL types, in the order of the arrays."""
    keys: tuple[str, ...]
    updates: Mapping[str, str]


def write_rows(connection: Connection, upsert: Upsert, arrays: Mapping[str, Array]) -> None:
    """Upsert the rows whose columns are `arrays`, all of one length; keys must be unique among them."""
    columns = [arrays[name] for name in upsert.columns]
    rows = len(columns[0])
    for start in range(0, rows, CHUNK_ROWS):
        chunk = [column[start : start + CHUNK_ROWS] for column in columns]
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql(
                _into(upsert) + rows_from_arrays(upsert.columns, _driver_mark) + _on_conflict(upsert),
                dict(zip(upsert.columns, map(bind_array, chunk), strict=True)),
            )
        else:
            marks = ", ".join("?" * len(columns))
            connection.exec_driver_sql(
                f"{_into(upsert)} VALUES ({marks}) {_on_conflict(upsert)}",
                list(zip(*chunk, strict=True)),
            )


def bind_array(column: Array) -> object:
    """A column as psycopg takes it for a PostgreSQL array.

    A series of numbers or texts becomes the array's literal, joined by Polars: ten times faster than psycopg's own
    writing of a list, one element after the other in Python. A tuple must become a list, since psycopg would send a
    composite value.
    """
    if not isinstance(column, pl.Series):
        return list(column)
    quoted = column.cast(pl.String)
    if column.dtype == pl.String:
        escaped = quoted.str.replace_all("\\", "\\\\", literal=True).str.replace_all('"', '\\"', literal=True)
        quoted = pl.select(pl.format('"{}"', pl.lit(escaped))).to_series()
    return "{" + (quoted.str.join(",").item() or "") + "}"


def _driver_mark(name: str, kind: str) -> str:
    """Bytes go as they are: written out as text they are twice as many, and took 35 ms of CPU here and 150 there for
    the seen ids of a large flush, of 2 and 28."""
    return f"%({name})b" if kind == "bytea" else f"%({name})s"


def rows_from_arrays(
    columns: Mapping[str, str], mark: Callable[[str, str], str] = lambda name, _: f":{name}"
) -> str:
    """PostgreSQL: a SELECT whose rows are the bound arrays, one parameter a column. `mark` writes the parameter of a
    column's name and type."""
    arrays = ", ".join(f"CAST({mark(name, kind)} AS {kind}[])" for name, kind in columns.items())
    names = ", ".join(columns)
    return f" SELECT {names} FROM unnest({arrays}) AS rows ({names}) "  # noqa: S608 (names are ours)


def _into(upsert: Upsert) -> str:
    return f"INSERT INTO {upsert.table} AS held ({', '.join(upsert.columns)})"


def _on_conflict(upsert: Upsert) -> str:
    if not upsert.updates:
        return " ON CONFLICT DO NOTHING"
    changes = ", ".join(f"{column} = {value}" for column, value in upsert.updates.items())
    return f" ON CONFLICT ({', '.join(upsert.keys)}) DO UPDATE SET {changes}"
