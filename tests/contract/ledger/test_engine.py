"""Transactions, snapshots and errors mean the same on both databases."""

from __future__ import annotations

import threading
from decimal import Decimal
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine, insert, select, text, update

from tollgate.ledger.engine import (
    CommitUnknown,
    LedgerRefused,
    LedgerUnavailable,
    check_durability,
    is_transient,
    ledger_transaction,
    open_ledger,
    read_snapshot,
)
from tollgate.ledger.tables import catalogue_state, pins, progress_totals
from tollgate.ledger.types import format_quantity


def _pin(engine: Engine, name: str) -> str | None:
    with read_snapshot(engine) as connection:
        return connection.execute(select(pins.c.value).where(pins.c.name == name)).scalar_one_or_none()


def test_what_the_block_wrote_is_there_after_it(ledger: Engine, second: Engine) -> None:
    """A transaction commits when its block ends."""
    with ledger_transaction(ledger) as connection:
        connection.execute(insert(pins).values(name="a", value="1"))
    assert _pin(second, "a") == "1"


def test_a_block_that_raises_leaves_nothing(ledger: Engine) -> None:
    """The block's own exception comes through, and its writes are gone."""

    def write_and_die() -> None:
        with ledger_transaction(ledger) as connection:
            connection.execute(insert(pins).values(name="a", value="1"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_and_die()
    assert _pin(ledger, "a") is None


def test_nothing_of_sqlalchemy_is_raised(ledger: Engine) -> None:
    """A refused statement raises LedgerRefused, whose text holds neither statement nor parameters."""
    with ledger_transaction(ledger) as connection:
        connection.execute(insert(pins).values(name="a", value="1"))
    with pytest.raises(LedgerRefused) as caught, ledger_transaction(ledger) as connection:
        connection.execute(insert(pins).values(name="a", value="secret-value"))
    assert not is_transient(caught.value)
    assert "secret-value" not in str(caught.value)
    assert "INSERT" not in str(caught.value)


def test_a_snapshot_does_not_move(ledger: Engine, second: Engine) -> None:
    """What another commits meanwhile is not seen inside."""
    with read_snapshot(ledger) as connection:
        before = connection.execute(select(catalogue_state.c.meters_version)).scalar_one()
        with ledger_transaction(second) as writer:
            writer.execute(update(catalogue_state).values(meters_version=7))
        assert connection.execute(select(catalogue_state.c.meters_version)).scalar_one() == before
    with read_snapshot(ledger) as connection:
        assert connection.execute(select(catalogue_state.c.meters_version)).scalar_one() == 7


def test_a_snapshot_cannot_write(ledger: Engine) -> None:
    """A write inside a snapshot is refused, and the connection writes again afterwards."""
    with pytest.raises((LedgerRefused, LedgerUnavailable)), read_snapshot(ledger) as connection:
        connection.execute(insert(pins).values(name="a", value="1"))
    with ledger_transaction(ledger) as connection:
        connection.execute(insert(pins).values(name="a", value="1"))
    assert _pin(ledger, "a") == "1"


def test_a_snapshot_cannot_write_however_often_the_connection_wrote_before(ledger: Engine) -> None:
    """Writing and reading in turn on the connections of one pool: the guard goes up and down with them."""
    for turn in range(3):
        with ledger_transaction(ledger) as connection:
            connection.execute(insert(pins).values(name=f"pin-{turn}", value="1"))
        for _ in range(2):
            with pytest.raises((LedgerRefused, LedgerUnavailable)), read_snapshot(ledger) as connection:
                connection.execute(insert(pins).values(name="never", value="1"))
    assert [_pin(ledger, f"pin-{turn}") for turn in range(3)] == ["1", "1", "1"]
    with read_snapshot(ledger) as connection:
        assert connection.execute(select(pins).where(pins.c.name == "never")).all() == []


def test_writers_queue_and_lose_no_update(ledger: Engine, second: Engine) -> None:
    """Two connections that add to one row at once add both."""

    def add(engine: Engine) -> None:
        for _ in range(50):
            with ledger_transaction(engine) as connection:
                value = connection.execute(
                    select(catalogue_state.c.meters_version).with_for_update()
                ).scalar_one()
                connection.execute(update(catalogue_state).values(meters_version=value + 1))

    threads = [threading.Thread(target=add, args=(engine,)) for engine in (ledger, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with read_snapshot(ledger) as connection:
        assert connection.execute(select(catalogue_state.c.meters_version)).scalar_one() == 100


def test_a_busy_ledger_is_transient(ledger_url: str, ledger: Engine) -> None:
    """A writer that waits past its timeout raises LedgerUnavailable."""
    impatient = open_ledger(ledger_url, statement_timeout_ms=200)
    with ledger_transaction(ledger) as holder:
        holder.execute(update(catalogue_state).values(meters_version=1))
        with pytest.raises(LedgerUnavailable) as caught, ledger_transaction(impatient) as waiting:
            waiting.execute(update(catalogue_state).values(meters_version=2))
    impatient.dispose()
    assert is_transient(caught.value)


def test_a_snapshot_transaction_that_lost_a_race_is_transient(ledger: Engine, second: Engine) -> None:
    """On PostgreSQL a repeatable read that writes what another wrote meanwhile is told to try again."""
    if ledger.dialect.name == "sqlite":
        with ledger_transaction(ledger, isolation="snapshot") as connection:
            connection.execute(update(catalogue_state).values(meters_version=1))
        return

    def lose_the_race() -> None:
        with ledger_transaction(ledger, isolation="snapshot") as connection:
            connection.execute(select(catalogue_state)).all()
            with ledger_transaction(second) as other:
                other.execute(update(catalogue_state).values(meters_version=1))
            connection.execute(update(catalogue_state).values(meters_version=2))

    with pytest.raises(LedgerUnavailable):
        lose_the_race()


@pytest.mark.postgres
def test_a_connection_lost_before_commit_is_transient(postgres_url: str) -> None:
    """The server ended the session while the block worked: nothing was written."""
    engine = open_ledger(postgres_url)

    def be_cut_off() -> None:
        with ledger_transaction(engine) as connection:
            _kill(postgres_url, connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
            connection.execute(text("SELECT 1"))

    with pytest.raises(LedgerUnavailable):
        be_cut_off()
    with read_snapshot(engine) as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()


@pytest.mark.postgres
def test_a_connection_lost_during_commit_is_unknown(postgres_url: str) -> None:
    """The session was ended when COMMIT was sent: whether it happened must be read back."""
    engine = open_ledger(postgres_url)
    with pytest.raises(CommitUnknown) as caught, ledger_transaction(engine) as connection:
        _kill(postgres_url, connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
    assert not is_transient(caught.value)
    with read_snapshot(engine) as connection:
        assert connection.execute(text("SELECT 1")).scalar_one() == 1
    engine.dispose()


@pytest.mark.postgres
def test_a_commit_the_server_refuses_is_known(postgres_url: str) -> None:
    """A deferred constraint fails at COMMIT: the outcome is known, nothing is written."""
    engine = open_ledger(postgres_url)
    with ledger_transaction(engine) as connection:
        connection.execute(text("CREATE TABLE t (x int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    with pytest.raises(LedgerRefused), ledger_transaction(engine) as connection:
        connection.execute(text("INSERT INTO t VALUES (1), (1)"))
    engine.dispose()


def test_a_server_that_is_not_there_is_transient() -> None:
    """Nobody listens: LedgerUnavailable, whichever way the ledger is opened."""
    engine = open_ledger("postgresql://nobody@127.0.0.1:1/none")
    with pytest.raises(LedgerUnavailable), ledger_transaction(engine):
        pass
    with pytest.raises(LedgerUnavailable), read_snapshot(engine):
        pass
    engine.dispose()


def _kill(url: str, pid: int) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


def test_a_ledger_in_memory_is_refused() -> None:
    """Each connection would see another ledger."""
    for url in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(ValueError, match="needs a file"):
            open_ledger(url)


def test_another_database_is_refused() -> None:
    """Only the two that are tested."""
    with pytest.raises(ValueError, match="mysql"):
        open_ledger("mysql://localhost/x")


def test_sqlite_connections_are_durable(tmp_path: Path) -> None:
    """WAL, synchronous=FULL, foreign keys: on every connection."""
    engine = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite3'}")
    with read_snapshot(engine) as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    assert check_durability(engine) == []
    engine.dispose()


def test_an_unsafe_sqlite_connection_is_named(tmp_path: Path) -> None:
    """A connection on which synchronous was lowered is found out."""
    engine = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite3'}", pool_size=1)
    with engine.connect() as connection:
        connection.rollback()
        raw = connection.connection.driver_connection
        assert raw is not None
        raw.execute("PRAGMA synchronous = OFF")
    assert [problem for problem in check_durability(engine) if "synchronous" in problem]
    engine.dispose()


@pytest.mark.postgres
def test_an_unsafe_server_is_named(postgres_url: str) -> None:
    """synchronous_commit = off is found out; on is not."""
    engine = open_ledger(postgres_url)
    before = [problem for problem in check_durability(engine) if "synchronous_commit" in problem]
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = connection.execute(text("SELECT quote_ident(current_database())")).scalar_one()
        connection.execute(text(f"ALTER DATABASE {name} SET synchronous_commit = off"))
    engine.dispose()
    after = [problem for problem in check_durability(engine) if "synchronous_commit" in problem]
    engine.dispose()
    assert (before, len(after)) == ([], 1)


@pytest.mark.parametrize(
    "value",
    [
        Decimal(0),
        Decimal("-0"),
        Decimal("0.000000001"),
        Decimal("12345678901234567890123456789.123456789"),
        Decimal("-99999999999999999999999999999.999999999"),
        Decimal("1e12"),
        Decimal("100.500"),
    ],
)
def test_quantities_keep_every_digit(ledger: Engine, value: Decimal) -> None:
    """All 38 digits come back, in canonical form."""
    with ledger_transaction(ledger) as connection:
        connection.execute(
            insert(progress_totals).values(partition=0, meter_id=1, quantity=value, events=0, unvalued=0)
        )
    with read_snapshot(ledger) as connection:
        found = connection.execute(select(progress_totals.c.quantity)).scalar_one()
    assert found == value
    assert format_quantity(found) == format_quantity(value)


@pytest.mark.parametrize(
    "value", [Decimal("0.0000000001"), Decimal("1e29"), Decimal("NaN"), Decimal("Infinity")]
)
def test_quantities_that_do_not_fit_are_refused(ledger: Engine, value: Decimal) -> None:
    """A tenth decimal place is refused, never rounded away."""
    with pytest.raises(LedgerRefused), ledger_transaction(ledger) as connection:
        connection.execute(
            insert(progress_totals).values(partition=0, meter_id=1, quantity=value, events=0, unvalued=0)
        )


def test_a_frozen_process_holds_its_locks_for_seconds(postgres_url: str) -> None:
    """The server ends a transaction nobody continues: whoever takes over a frozen worker's partitions waits no longer."""
    engine = open_ledger(postgres_url)
    with read_snapshot(engine) as connection:
        idle = connection.execute(
            text("SELECT current_setting('idle_in_transaction_session_timeout')")
        ).scalar()
    engine.dispose()
    assert idle == "5s"
