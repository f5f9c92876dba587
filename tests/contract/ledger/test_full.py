"""A ledger without room, and one that may only be read: nothing is written, the same transaction succeeds later.

A full disk of PostgreSQL's is a fault of the storm; a SQLite file that may only be read is refused when it is opened.
"""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, insert, select

from tollgate.ledger.engine import (
    LedgerUnavailable,
    is_transient,
    ledger_transaction,
    open_ledger,
    read_snapshot,
)
from tollgate.ledger.tables import pins


def _pin(engine: Engine, value: str) -> None:
    with ledger_transaction(engine) as connection:
        connection.execute(insert(pins).values(name="a", value=value))


def _pinned(engine: Engine) -> list[str]:
    with read_snapshot(engine) as connection:
        return list(connection.execute(select(pins.c.value).where(pins.c.name == "a")).scalars())


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_full_ledger_is_transient(ledger: Engine) -> None:
    """SQLite out of pages: the transaction is whole or not at all, and goes through once there is room."""
    with ledger_transaction(ledger) as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        room = connection.exec_driver_sql("PRAGMA max_page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerUnavailable) as caught:
        _pin(ledger, "x" * 1_000_000)
    assert is_transient(caught.value)
    assert _pinned(ledger) == []
    with ledger_transaction(ledger) as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {room}")
    _pin(ledger, "x" * 1_000_000)
    assert len(_pinned(ledger)) == 1


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_ledger_that_may_only_be_read_is_transient(ledger_url: str, ledger: Engine) -> None:
    """A standby, or a server whose keeper stopped writes for want of space: wait, never skip."""
    name = ledger_url.rsplit("/", 1)[1].split("?", 1)[0]
    with ledger_transaction(ledger) as connection:
        connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    reader = open_ledger(ledger_url)
    with pytest.raises(LedgerUnavailable) as caught:
        _pin(reader, "1")
    reader.dispose()
    assert is_transient(caught.value)
    assert _pinned(ledger) == []
    with ledger_transaction(ledger) as connection:
        connection.exec_driver_sql(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    writer = open_ledger(ledger_url)
    _pin(writer, "1")
    writer.dispose()
    assert _pinned(ledger) == ["1"]
