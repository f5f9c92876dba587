"""In PostgreSQL each owner's role writes its own tables and reads all."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, Engine, delete, insert, select, text
from sqlalchemy.exc import ProgrammingError

from tests.contract.ledger.conftest import PARTITIONS, PINS
from tollgate.ledger.catalogue import create_source, list_sources
from tollgate.ledger.engine import LedgerRefused, ledger_transaction, open_ledger, read_snapshot
from tollgate.ledger.init import initialise
from tollgate.ledger.roles import ROLES, create_roles
from tollgate.ledger.tables import OWNERS, catalogue_state, metadata, meters

pytestmark = pytest.mark.postgres


@pytest.fixture
def server(postgres_url: str) -> Iterator[Engine]:
    """A ledger made ready on PostgreSQL."""
    engine = open_ledger(postgres_url)
    initialise(engine, PINS, PARTITIONS, now_ms=1_000)
    yield engine
    engine.dispose()


def _allowed(connection: Connection, statement: str) -> bool:
    """Whether the role in force may run it; what it does is undone."""
    savepoint = connection.begin_nested()
    try:
        connection.execute(text(statement))
    except ProgrammingError as error:
        if not isinstance(error.orig, InsufficientPrivilege):
            raise
        return False
    finally:
        savepoint.rollback()
    return True


@pytest.mark.parametrize("owner", sorted(OWNERS))
def test_a_role_writes_its_own_tables_only(server: Engine, owner: str) -> None:
    """For every table: read always; insert, update and delete exactly if the owner is this role's."""
    own = {table.name for table in OWNERS[owner]}
    with ledger_transaction(server) as connection:
        connection.execute(text(f"SET LOCAL ROLE {ROLES[owner]}"))
        for table in metadata.sorted_tables:
            # Statements that touch no row: only the right is asked for.
            column = table.columns.keys()[-1]
            names = ", ".join(table.columns.keys())
            assert _allowed(connection, f"SELECT * FROM {table.name}")
            writes = {
                _allowed(connection, f"DELETE FROM {table.name} WHERE false"),
                _allowed(connection, f"UPDATE {table.name} SET {column} = {column} WHERE false"),
                _allowed(
                    connection,
                    f"INSERT INTO {table.name} ({names}) SELECT {names} FROM {table.name} WHERE false",
                ),
            }
            assert writes == {table.name in own}, table.name


def test_every_table_has_exactly_one_owner() -> None:
    """A table nobody owns could be written by nobody; one with two owners by two services."""
    owned = [table.name for tables in OWNERS.values() for table in tables]
    assert sorted(owned) == sorted(metadata.tables)


def test_the_meter_holds_the_catalogue_still_but_cannot_change_it(server: Engine) -> None:
    """FOR SHARE works for the role; the version stays out of its reach."""
    with ledger_transaction(server) as connection:
        connection.execute(text(f"SET LOCAL ROLE {ROLES['meter']}"))
        connection.execute(select(catalogue_state).with_for_update(read=True)).all()
        assert not _allowed(connection, "UPDATE catalogue_state SET meters_version = 9")


def test_an_engine_opened_with_a_role_has_its_rights(server: Engine, postgres_url: str) -> None:
    """Every connection of the pool acts as the role: catalogue's may make a source, the meter's may not."""
    catalogue = open_ledger(postgres_url, role=ROLES["catalogue"])
    create_source(catalogue, "kong", ["write"], now_ms=1)
    with ledger_transaction(catalogue) as connection:
        connection.execute(
            insert(meters).values(
                name="m", definition={}, from_ms=0, to_ms=None, since_version=1, until_version=None
            )
        )
        connection.execute(delete(meters))
    meter = open_ledger(postgres_url, role=ROLES["meter"])
    assert [source.name for source in list_sources(meter)] == ["kong"]
    with pytest.raises(LedgerRefused, match="permission denied"):
        create_source(meter, "kong", ["write"], now_ms=1)
    for engine in (catalogue, meter):
        engine.dispose()


def test_roles_are_made_again_without_harm(server: Engine) -> None:
    """Idempotent; and a right that should not be there is taken back."""
    with ledger_transaction(server) as connection:
        connection.execute(text(f"GRANT UPDATE ON catalogue_state TO {ROLES['webhooks']}"))
    assert create_roles(server) == tuple(ROLES.values())
    with ledger_transaction(server) as connection:
        connection.execute(text(f"SET LOCAL ROLE {ROLES['webhooks']}"))
        assert not _allowed(connection, "UPDATE catalogue_state SET meters_version = 9")


def test_a_role_cannot_log_in(server: Engine) -> None:
    """The roles are rights, not users."""
    with read_snapshot(server) as connection:
        can = connection.execute(
            text("SELECT rolname FROM pg_roles WHERE rolcanlogin AND rolname = ANY(:names)"),
            {"names": list(ROLES.values())},
        ).all()
    assert can == []


def test_a_user_that_may_not_make_roles_still_initialises(
    server: Engine, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hosted database without CREATEROLE and without the roles: everything else is made, the report says why."""
    name = f"plain_{secrets.token_hex(4)}"
    with ledger_transaction(server) as connection:
        metadata.drop_all(connection)
        connection.execute(text("DROP TABLE alembic_version"))
        connection.execute(text(f"CREATE ROLE {name} NOLOGIN"))
        connection.execute(text(f"GRANT CREATE, USAGE ON SCHEMA public TO {name}"))
    absent = {owner: f"absent_{owner}" for owner in OWNERS}
    monkeypatch.setattr("tollgate.ledger.roles.ROLES", absent)
    plain = open_ledger(postgres_url, role=name)
    try:
        report = initialise(plain, PINS, PARTITIONS, now_ms=2_000)
        assert report.roles == ()
        assert "may not create roles" in report.roles_skipped
        assert report.partitions_added == PARTITIONS
    finally:
        plain.dispose()
        with ledger_transaction(server) as connection:
            connection.execute(text(f"DROP OWNED BY {name}"))
            connection.execute(text(f"DROP ROLE {name}"))
