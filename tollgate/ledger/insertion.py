"""Inserting rows, the same on PostgreSQL and SQLite.

Owns the two `ON CONFLICT` forms, and the quickest way in for rows that cannot be there. It refuses to know any table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import JSON, Column, Connection, Dialect, Table, insert
from sqlalchemy.dialects import postgresql, sqlite

Rows = Sequence[Mapping[str, Any]]


def _insert(connection: Connection, table: Table) -> Any:
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def insert_missing(connection: Connection, table: Table, rows: Rows) -> int:
    """Insert each of `rows` whose primary key is absent; returns how many were. The others stay as they are."""
    statement = _insert(connection, table).on_conflict_do_nothing().returning(*table.primary_key)
    return sum(len(connection.execute(statement, row).all()) for row in rows)


def put(connection: Connection, table: Table, rows: Rows) -> None:
    """Insert `rows`; one whose primary key is there already replaces that row's other columns."""
    if not rows:
        return
    statement = _insert(connection, table)
    keys = [column.name for column in table.primary_key]
    values = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    if values:
        statement = statement.on_conflict_do_update(index_elements=keys, set_=values)
    else:
        statement = statement.on_conflict_do_nothing()
    connection.execute(statement, list(rows))


def insert_new(connection: Connection, table: Table, rows: Rows) -> None:
    """Insert `rows`, all with the same columns and none of them there yet; what they break is raised as by INSERT."""
    if rows:
        names = list(rows[0])
        insert_columns(connection, table, names, ([row[name] for name in names] for row in rows))


def insert_columns(
    connection: Connection,
    table: Table,
    names: Sequence[str],
    rows: Iterable[Sequence[Any]],
    shared: Mapping[str, Any] | None = None,
) -> None:
    """As `insert_new`, of one row or more that hold values of `names`; `shared` are columns alike in all of them.

    PostgreSQL copies them: a quarter of what INSERT costs from a few hundred on, and it writes the first rows while the
    last ones are still being made.
    """
    alike = shared or {}
    if connection.dialect.name != "postgresql":
        connection.execute(insert(table), [{**dict(zip(names, row, strict=True)), **alike} for row in rows])
        return
    columns = [*names, *alike]
    encoders = [_encoder(table.c[name], connection.dialect) for name in columns]
    tail = [encode(value) for value, encode in zip(alike.values(), encoders[len(names) :], strict=True)]
    encoded = [(n, encode) for n, encode in enumerate(encoders[: len(names)]) if encode is not _as_it_is]
    target = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.name), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection), "PostgreSQL is spoken to through psycopg"
    with driver.cursor() as cursor, cursor.copy(target) as copy:
        for row in rows:
            values = [*row, *tail]
            for n, encode in encoded:
                values[n] = encode(values[n])
            copy.write_row(values)


def _as_it_is(value: Any) -> Any:
    return value


def _encoder(column: Column[Any], dialect: Dialect) -> Callable[[Any], Any]:
    """What makes a value of `column` one that the driver takes; a document that is in many rows is written out once."""
    kind = column.type.dialect_impl(dialect)
    if not isinstance(kind, JSON):
        return kind.bind_processor(dialect) or _as_it_is
    written: dict[int, str] = {}

    def encode_once(document: Any) -> str:
        # By identity: the rows hold every document until the last is written, so no two have the same.
        if id(document) not in written:
            written[id(document)] = json.dumps(document)
        return written[id(document)]

    return encode_once
