"""The schema the migrations make is the one the program is written for."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, Engine, inspect, text

from tollgate.ledger.engine import LedgerNotReady, ledger_transaction, open_ledger, read_snapshot
from tollgate.ledger.migrations import check_schema, migrate, required_version, schema_version
from tollgate.ledger.tables import metadata


def _describe(connection: Connection, schema: str | None = None) -> dict[str, Any]:
    """Everything the database says about the tables of a schema, in comparable form."""
    inspector = inspect(connection)
    found = {}
    for name in inspector.get_table_names(schema=schema):
        if name == "alembic_version":
            continue
        found[name] = {
            "columns": [
                (
                    column["name"],
                    str(column["type"]),
                    column["nullable"],
                    column.get("comment"),
                    column["default"] is not None,
                )
                for column in inspector.get_columns(name, schema=schema)
            ],
            "key": inspector.get_pk_constraint(name, schema=schema)["constrained_columns"],
            "checks": sorted(
                str(check["sqltext"]) for check in inspector.get_check_constraints(name, schema=schema)
            ),
            "unique": sorted(
                tuple(unique["column_names"])
                for unique in inspector.get_unique_constraints(name, schema=schema)
            ),
            "indexes": sorted(
                (str(index["name"]), tuple(index["column_names"]), bool(index["unique"]))
                for index in inspector.get_indexes(name, schema=schema)
            ),
        }
    return found


def test_the_migrated_schema_is_the_tables_schema(empty_ledger: Engine) -> None:
    """Alembic finds nothing to change, and what the database says of both is equal, checks and comments included."""
    migrate(empty_ledger)
    with ledger_transaction(empty_ledger) as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []
        migrated = _describe(connection)
    assert migrated.keys() == metadata.tables.keys()
    with ledger_transaction(empty_ledger) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("CREATE SCHEMA fresh"))
            connection.execute(text("SET LOCAL search_path TO fresh"))
        else:
            metadata.drop_all(connection)
        metadata.create_all(connection)
        fresh = _describe(connection, "fresh" if connection.dialect.name == "postgresql" else None)
    assert migrated == fresh


def test_a_ledger_says_what_to_run(empty_ledger: Engine) -> None:
    """Empty, older and newer ledgers are each refused with what to do; the right one is not."""
    assert schema_version(empty_ledger) is None
    with pytest.raises(LedgerNotReady, match="tollgate init"):
        check_schema(empty_ledger)
    migrate(empty_ledger)
    assert schema_version(empty_ledger) == required_version()
    check_schema(empty_ledger)
    with ledger_transaction(empty_ledger) as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerNotReady, match="install the newer"):
        check_schema(empty_ledger)


def test_migrating_twice_changes_nothing(empty_ledger: Engine) -> None:
    """The second call finds everything there."""
    migrate(empty_ledger)
    with ledger_transaction(empty_ledger) as connection:
        connection.execute(text("INSERT INTO pins (name, value) VALUES ('a', 'b')"))
    migrate(empty_ledger)
    with read_snapshot(empty_ledger) as connection:
        assert connection.execute(text("SELECT value FROM pins")).scalar_one() == "b"


def test_two_processes_may_migrate_at_once(ledger_url: str) -> None:
    """They queue; neither fails."""
    failures: list[Exception] = []

    def run() -> None:
        engine = open_ledger(ledger_url)
        try:
            migrate(engine)
        except Exception as error:
            failures.append(error)
        finally:
            engine.dispose()

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_migration_that_fails_leaves_no_trace(empty_ledger: Engine) -> None:
    """A table already in the way: nothing of the migration stays, on SQLite too."""
    with ledger_transaction(empty_ledger) as connection:
        connection.execute(text("CREATE TABLE usage (x integer)"))
    with pytest.raises(Exception, match="usage"):
        migrate(empty_ledger)
    with read_snapshot(empty_ledger) as connection:
        assert inspect(connection).get_table_names() == ["usage"]
