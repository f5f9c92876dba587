"""The schema's versions: bringing a ledger to the one this program is written for, and telling when it is not.

Owns running Alembic from inside the program. It refuses to know what the tables are for.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, text

from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.errors import LedgerNotReady

__all__ = ["check_schema", "migrate", "required_version", "schema_version"]

_MIGRATION_LOCK = 7_861_203_344_106_121
"""Key of PostgreSQL's advisory lock: two processes that migrate at once do so one after the other."""


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest version, in one transaction; nothing when it is there already.

    Safe to call from several processes at once. Raises LedgerUnavailable, LedgerRefused.
    """
    with ledger_transaction(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
        config = _config()
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def schema_version(engine: Engine) -> str | None:
    """The version the ledger's schema is at, or None before the first migration. Raises LedgerUnavailable."""
    with read_snapshot(engine) as connection:
        return _current(connection)


def required_version() -> str:
    """The schema version this program is written for."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    assert head is not None
    return head


def check_schema(engine: Engine) -> None:
    """Return when the schema is the one this program is written for; else raise LedgerNotReady saying what to run."""
    found, required = schema_version(engine), required_version()
    if found is None:
        raise LedgerNotReady("the ledger is empty: run `tollgate init`")
    if found == required:
        return
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if found in known:
        raise LedgerNotReady(
            f"the ledger's schema is at version {found}, this program needs {required}: run `tollgate init`"
        )
    raise LedgerNotReady(
        f"the ledger's schema is at version {found}, which this program (needs {required}) does not know: "
        "it is older than the ledger; install the newer Tollgate"
    )


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _config() -> Config:
    config = Config()
    # ConfigParser reads a lone percent sign as an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config
