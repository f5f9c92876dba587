"""Inserting rows that may be there already, the same on PostgreSQL and SQLite.

Owns the two `ON CONFLICT` forms. It refuses to know any table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table
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
