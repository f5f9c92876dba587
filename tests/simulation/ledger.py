"""The ledger of a run: the real schema and transactions on SQLite in memory, and what can happen to a commit.

Owns one connection that every process of every run shares, one run after the other: a fresh ledger is a copy of a
template, and SQLAlchemy's compiled statements stay warm. It refuses to know what is in the tables.

A transaction can fail to begin, be refused at its commit, be done or not done with the answer lost, and its process can
die right before or after it. All of it goes through the real `tollgate.ledger.engine`, which has to find out.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import StaticPool

from tollgate.ledger.engine import fit_sqlite, open_ledger

STATEMENTS = 1000
"""Prepared and kept: more than the services have, fewer and each run prepares them again and again."""

Strike = Callable[[str], str | None]
"""Told `read`, `write` or `commit`, the kind of trouble there, if any."""

UNAVAILABLE = "unavailable"
REFUSED = "refused"
UNKNOWN_LOST = "unknown_lost"
"""Not committed, and the answer is lost."""
UNKNOWN_DONE = "unknown_done"
"""Committed, and the answer is lost."""
CRASH_AFTER = "crash_after"
"""Committed, and the process dies before it knows."""


def _nothing(_: str) -> str | None:
    return None


class _Connection(sqlite3.Connection):
    """A connection that is never closed, and whose commits can go wrong."""

    ledger: SimulatedLedger

    def commit(self) -> None:
        kind = self.ledger.strike("commit")
        if kind == REFUSED:
            raise _error("the database is locked", sqlite3.SQLITE_BUSY)
        if kind == UNKNOWN_LOST:
            raise _error("the link was cut at COMMIT", sqlite3.SQLITE_IOERR)
        super().commit()
        self.ledger.commits += 1
        if kind == UNKNOWN_DONE:
            raise _error("the link was cut after COMMIT", sqlite3.SQLITE_IOERR)
        if kind == CRASH_AFTER:
            self.ledger.die()

    def close(self) -> None:
        # What the server does with a connection that is gone.
        self.rollback()


class SimulatedLedger:
    """The one connection. `strike` and `die` are set for each run."""

    def __init__(self, templates: Mapping[str, Callable[[Engine], None]]) -> None:
        """By name, what fills a template: schema, pins, meters."""
        self.strike: Strike = _nothing
        self.die: Callable[[], None] = lambda: None
        self.commits = 0
        self._templates = {name: _template(prepare) for name, prepare in templates.items()}
        self._connection = sqlite3.connect(
            ":memory:", factory=_Connection, check_same_thread=False, cached_statements=STATEMENTS
        )
        self._connection.ledger = self
        self._backup = sqlite3.connect(":memory:", check_same_thread=False)
        self.engine = create_engine(
            "sqlite+pysqlite://", poolclass=StaticPool, creator=lambda: self._connection
        )
        event.listen(self.engine, "begin", self._begin)
        # One connection for reads and writes: guarded, it would prepare every statement anew in every transaction.
        fit_sqlite(self.engine, 1000, guard_reads=False)

    def make_anew(self, template: str) -> None:
        """A fresh ledger for the next run."""
        self.strike, self.die = _nothing, lambda: None
        self._templates[template].backup(self._connection)
        self.commits = 0

    def back_up(self) -> None:
        """Keep what is in the ledger now."""
        self._connection.backup(self._backup)

    def restore(self) -> None:
        """Put back what was kept: commits since are lost."""
        self._backup.backup(self._connection)

    def query(self, statement: str, *parameters: Any) -> list[Any]:
        """What an onlooker reads, outside all troubles."""
        return self._connection.execute(statement, parameters).fetchall()

    def _begin(self, connection: Connection) -> None:
        options = connection.get_execution_options()
        kind = self.strike("read" if options.get("tollgate_begin") == "DEFERRED" else "write")
        if kind is not None:
            raise _error("no connection", sqlite3.SQLITE_CANTOPEN)


def _template(prepare: Callable[[Engine], None]) -> sqlite3.Connection:
    template = sqlite3.connect(":memory:", check_same_thread=False)
    with TemporaryDirectory() as directory:
        path = Path(directory) / "template.db"
        engine = open_ledger(f"sqlite:///{path}")
        prepare(engine)
        engine.dispose()
        source = sqlite3.connect(path)
        source.backup(template)
        source.close()
    return template


def _error(text: str, code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error
