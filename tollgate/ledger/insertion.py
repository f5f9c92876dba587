"""Inserting rows, the same on PostgreSQL and SQLite.

Owns the two `ON CONFLICT` forms, and the quickest way in for rows that cannot be there. It refuses to know any table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import Connection, Table, insert
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
    """Insert `rows`, all with the same columns and none of them there yet; what they break is raised as by INSERT.

    PostgreSQL copies them: a quarter of what INSERT costs from a few hundred on.
    """
    if not rows:
        return
    if connection.dialect.name != "postgresql":
        connection.execute(insert(table), list(rows))
        return
    columns = [table.c[name] for name in rows[0]]
    dialect = connection.dialect
    encoders = [column.type.dialect_impl(dialect).bind_processor(dialect) for column in columns]
    target = sql.SQL("COPY {} ({}) FROM STDIN").format(
        sql.Identifier(table.name), sql.SQL(", ").join(sql.Identifier(column.name) for column in columns)
    )
    driver = connection.connection.driver_connection
    assert isinstance(driver, psycopg.Connection), "PostgreSQL is spoken to through psycopg"
    with driver.cursor() as cursor, cursor.copy(target) as copy:
        for row in rows:
            copy.write_row(
                [
                    encode(row[column.name]) if encode is not None else row[column.name]
                    for column, encode in zip(columns, encoders, strict=True)
                ]
            )
