"""Connections and transactions: the one way into the ledger, the same on PostgreSQL and SQLite.

Owns opening, isolation, durability settings and the translation of every driver's error into
`tollgate.ledger.errors`: nothing of SQLAlchemy is raised out of here. It refuses to know any table.

- `ledger_transaction`: a write transaction. Either all of it is in the ledger or none of it; when that cannot be
  known (the connection was lost during COMMIT) it raises CommitUnknown.
- `read_snapshot`: everything read inside is of one moment.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal

import psycopg
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.engine import RootTransaction
from sqlalchemy.exc import DBAPIError, InvalidRequestError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tollgate.ledger.errors import (
    CommitUnknown,
    LedgerError,
    LedgerNotReady,
    LedgerRefused,
    LedgerUnavailable,
    PinMismatch,
)
from tollgate.ledger.sqlite import SYNCHRONOUS_FULL, prepare_connection

__all__ = [
    "CommitUnknown",
    "Connection",
    "Engine",
    "LedgerError",
    "LedgerNotReady",
    "LedgerRefused",
    "LedgerUnavailable",
    "PinMismatch",
    "check_durability",
    "fit_sqlite",
    "is_transient",
    "ledger_transaction",
    "open_ledger",
    "read_snapshot",
]

IDLE_IN_TRANSACTION_MS = 5_000
"""A process frozen inside a transaction holds its locks, and whoever takes its work over waits for them. No transaction
of ours thinks that long between two statements; one that does is rolled back and tried again."""

CONNECT_TIMEOUT_SECONDS = 10
"""A host that does not answer within this is down: the caller's retry, not the kernel's, decides what next."""

_BEGIN_OPTION = "tollgate_begin"

_TRANSIENT_CLASSES = frozenset({"08", "40", "53"})
"""SQLSTATE classes: connection exceptions, rollbacks (serialization, deadlock), insufficient resources."""

_TRANSIENT_STATES = frozenset({"25006", "25P03", "55P03", "57014", "57P01", "57P02", "57P03", "57P05"})
"""Read-only (a failover in progress), idle in a transaction, lock timeout, statement timeout, shutdowns, starting up, idle timeout."""

_COMMIT_DECIDED_CLASSES = frozenset({"22", "23", "25", "40", "42", "55"})
"""SQLSTATE classes the server answers COMMIT with after it has rolled back: the outcome is known."""

_SQLITE_TRANSIENT = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN}
)


def open_ledger(
    url: str, *, pool_size: int = 4, statement_timeout_ms: int = 30_000, role: str | None = None
) -> Engine:
    """An engine for `postgresql://…` or `sqlite:///file`; connects on first use, not here.

    `role` (PostgreSQL): every connection does SET ROLE to it. `statement_timeout_ms` bounds one statement on
    PostgreSQL and the wait for another writer on SQLite. Raises ValueError for any other database and for SQLite in
    memory (each connection would see a ledger of its own).
    """
    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend in ("postgresql", "postgres"):
        return _open_postgresql(parsed, pool_size, statement_timeout_ms, role)
    if backend == "sqlite":
        return _open_sqlite(parsed, pool_size, statement_timeout_ms)
    raise ValueError(f"a ledger is kept in postgresql or sqlite, not in {backend!r}")


def _open_postgresql(url: URL, pool_size: int, statement_timeout_ms: int, role: str | None) -> Engine:
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            # A peer that vanished without a word is noticed within half a minute.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 4,
        },
    )

    def prepare(connection: psycopg.Connection[Any], _record: object) -> None:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', %s, false)", (str(statement_timeout_ms),))
            cursor.execute(
                "SELECT set_config('idle_in_transaction_session_timeout', %s, false)",
                (str(IDLE_IN_TRANSACTION_MS),),
            )
            if role is not None:
                cursor.execute("SELECT set_config('role', %s, false)", (role,))
        connection.autocommit = False

    event.listen(engine, "connect", prepare)
    return engine


def _open_sqlite(url: URL, pool_size: int, busy_timeout_ms: int) -> Engine:
    if not url.database or url.database == ":memory:" or "mode=memory" in str(url):
        raise ValueError("a SQLite ledger needs a file: in memory each connection would see another ledger")
    engine = create_engine(
        url.set(drivername="sqlite+pysqlite"),
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=CONNECT_TIMEOUT_SECONDS,
    )
    fit_sqlite(engine, busy_timeout_ms)
    return engine


def fit_sqlite(engine: Engine, busy_timeout_ms: int, *, guard_reads: bool = True) -> None:
    """Have every connection of a SQLite engine prepared and every transaction begun as the ledger needs it.

    `guard_reads`: a connection refuses to write in a `read_snapshot`. Each change of it makes SQLite forget every
    statement it has prepared, so it is changed only where it has to be.
    """

    def prepare(connection: sqlite3.Connection, _record: object) -> None:
        prepare_connection(connection, busy_timeout_ms)

    def begin(connection: Connection) -> None:
        mode = connection.get_execution_options().get(_BEGIN_OPTION, "IMMEDIATE")
        # On the driver itself: SQLAlchemy's way to it takes ten times as long as the statements do.
        driver, held = connection.connection.driver_connection, connection.connection.info
        assert driver is not None
        if guard_reads and held.get(_BEGIN_OPTION) != mode:
            driver.execute(f"PRAGMA query_only = {'ON' if mode == 'DEFERRED' else 'OFF'}")
            held[_BEGIN_OPTION] = mode
        driver.execute(f"BEGIN {mode}")

    event.listen(engine, "connect", prepare)
    event.listen(engine, "begin", begin)


@contextmanager
def ledger_transaction(
    engine: Engine, *, isolation: Literal["default", "snapshot"] = "default"
) -> Iterator[Connection]:
    """A write transaction: committed when the block ends, rolled back when it raises.

    `default` is READ COMMITTED on PostgreSQL (a compare-and-set sees the latest committed row); `snapshot` reads one
    moment (REPEATABLE READ) and may end in LedgerUnavailable when another wrote what it writes. SQLite has one writer
    at a time in both. Raises LedgerUnavailable (nothing written), CommitUnknown, LedgerRefused (nothing written), and
    whatever the block raises.
    """
    options: dict[str, Any] = {}
    if engine.dialect.name == "postgresql":
        level = "REPEATABLE READ" if isolation == "snapshot" else "READ COMMITTED"
        options["isolation_level"] = level
    with _connection(engine, options) as connection:
        with _translated():
            transaction = connection.begin()
        try:
            with _translated():
                yield connection
        except BaseException:
            _roll_back(connection, transaction)
            raise
        _commit(connection, transaction)


@contextmanager
def read_snapshot(engine: Engine) -> Iterator[Connection]:
    """A read-only transaction: everything read inside is of one moment. Raises LedgerUnavailable, LedgerRefused."""
    if engine.dialect.name == "postgresql":
        options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    else:
        # Deferred: it never waits for a writer nor makes one wait.
        options = {_BEGIN_OPTION: "DEFERRED"}
    with _connection(engine, options) as connection:
        with _translated():
            transaction = connection.begin()
        try:
            with _translated():
                yield connection
        finally:
            _roll_back(connection, transaction)


@contextmanager
def _connection(engine: Engine, options: dict[str, Any]) -> Iterator[Connection]:
    with _translated():
        connection = engine.connect()
        if options:
            connection.execution_options(**options)
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _translated() -> Iterator[None]:
    """The border: an error of SQLAlchemy becomes one of ours."""
    try:
        yield
    except (SQLAlchemyError, psycopg.Error, sqlite3.Error) as error:
        kind = LedgerUnavailable if is_transient(error) else LedgerRefused
        raise kind(_describe(error)) from error


def _roll_back(connection: Connection, transaction: RootTransaction) -> None:
    """Roll back; a connection on which even that fails is thrown away, and the server rolls back for us."""
    try:
        transaction.rollback()
    except (SQLAlchemyError, psycopg.Error, sqlite3.Error):
        with suppress(SQLAlchemyError):
            connection.invalidate()


def _commit(connection: Connection, transaction: RootTransaction) -> None:
    try:
        transaction.commit()
    except (SQLAlchemyError, psycopg.Error, sqlite3.Error) as error:
        decided = _commit_was_refused(error)
        _roll_back(connection, transaction)
        if not decided:
            with suppress(SQLAlchemyError):
                connection.invalidate()
            raise CommitUnknown(_describe(error)) from error
        kind = LedgerUnavailable if is_transient(error) else LedgerRefused
        raise kind(_describe(error)) from error


def _commit_was_refused(error: Exception) -> bool:
    """True when the database answered COMMIT with a rollback; False when its answer is not known."""
    origin = _origin(error)
    if isinstance(origin, psycopg.Error):
        return origin.sqlstate is not None and origin.sqlstate[:2] in _COMMIT_DECIDED_CLASSES
    if isinstance(origin, sqlite3.Error):
        return _sqlite_code(origin) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_CONSTRAINT)
    # Raised before anything was sent, such as committing a transaction the block has ended itself.
    return isinstance(error, InvalidRequestError)


def is_transient(error: BaseException) -> bool:
    """True when the same transaction may succeed later: serialization, deadlock, connection loss, busy, full.

    False for CommitUnknown: that one must be read back, not repeated.
    """
    if isinstance(error, LedgerUnavailable | PoolTimeout):
        return True
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    origin = _origin(error)
    if isinstance(origin, psycopg.Error):
        if origin.sqlstate is None:
            return isinstance(origin, psycopg.OperationalError)
        return origin.sqlstate[:2] in _TRANSIENT_CLASSES or origin.sqlstate in _TRANSIENT_STATES
    if isinstance(origin, sqlite3.Error):
        return _sqlite_code(origin) in _SQLITE_TRANSIENT
    return False


def _origin(error: BaseException) -> BaseException | None:
    return error.orig if isinstance(error, DBAPIError) else error


def _sqlite_code(error: sqlite3.Error) -> int:
    """The primary result code; extended codes keep it in their lowest byte."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def _describe(error: Exception) -> str:
    """One line without statement and parameters, which may hold customers' data."""
    text = str(_origin(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__


def check_durability(engine: Engine) -> list[str]:
    """What would let a committed transaction be lost in a crash, one line each; empty when nothing would."""
    with read_snapshot(engine) as connection:
        if engine.dialect.name == "postgresql":
            found = {
                name: connection.exec_driver_sql(f"SHOW {name}").scalar_one()
                for name in ("fsync", "full_page_writes", "synchronous_commit")
            }
            return [
                f"{name} is off: a crash of the server may lose commits"
                for name in found
                if found[name] == "off"
            ]
        problems = []
        journal = connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()
        if journal != "wal":
            problems.append(
                f"journal_mode is {journal}, not wal: readers and the writer would block each other"
            )
        if int(connection.exec_driver_sql("PRAGMA synchronous").scalar_one()) < SYNCHRONOUS_FULL:
            problems.append("synchronous is below FULL: a power cut may lose commits")
        return problems
