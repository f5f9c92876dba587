"""The lease: which one process may plan and send.

Owns the `leases` table. A lease's version rises with every take-over, and every change of a posting's state carries
it: whoever lost the lease changes nothing any more, however long it slept. It refuses to know what is led.

No clock of another machine is trusted: a standby takes over once it has itself watched the row stand still for the
whole duration (`Observation`), measured on its own monotonic clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from sqlalchemy import Connection, Engine, Update, and_, bindparam, select, update

from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.insertion import insert_missing
from tollgate.ledger.tables import leases

RELEASED = ""
"""The holder of a lease that was given back: free at once."""

IDLE_TRANSACTION_TIMEOUT_MS = 10_000
"""PostgreSQL ends a fenced transaction whose process went silent, or a stopped leader would keep the row locked and
no standby could ever take over."""


class LeaseLost(Exception):
    """Another process holds the lease now. Nothing of the refused transaction was written."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as this process holds it."""

    name: str
    holder: str
    version: int


@dataclass(frozen=True, slots=True)
class Observation:
    """The row as last seen. Two equal observations mean that nobody renewed it in between."""

    holder: str
    version: int
    expires_ms: int


def read_lease(engine: Engine, name: str) -> Observation | None:
    """The lease row, or None before the first holder."""
    with read_snapshot(engine) as connection:
        row = connection.execute(
            select(leases.c.holder, leases.c.version, leases.c.expires_ms).where(leases.c.name == name)
        ).one_or_none()
    return None if row is None else Observation(row.holder, row.version, row.expires_ms)


def take_lease(
    engine: Engine, name: str, holder: str, seen: Observation | None, expires_ms: int
) -> Lease | None:
    """Take the lease if its row is still as `seen` (None: absent). Returns None if somebody was quicker.

    The caller has waited as long as the lease lasts, unless `seen` is None or released.
    """
    version = 1 if seen is None else seen.version + 1
    row = {"name": name, "holder": holder, "version": version, "expires_ms": expires_ms}
    with ledger_transaction(engine) as connection:
        if seen is None:
            taken = insert_missing(connection, leases, [row])
        else:
            taken = connection.execute(
                update(leases)
                .where(
                    and_(
                        leases.c.name == name,
                        leases.c.holder == seen.holder,
                        leases.c.version == seen.version,
                        leases.c.expires_ms == seen.expires_ms,
                    )
                )
                .values(row)
            ).rowcount
        if taken != 1:
            return None
    return Lease(name, holder, version)


def renew_lease(engine: Engine, lease: Lease, expires_ms: int) -> None:
    """Show that the holder lives. Raises LeaseLost. `expires_ms` must differ from the last one written."""
    with ledger_transaction(engine) as connection:
        _touch(connection, lease, expires_ms=expires_ms)


def release_lease(engine: Engine, lease: Lease) -> None:
    """Give the lease back, so that a standby need not wait. Raises LeaseLost."""
    with ledger_transaction(engine) as connection:
        _touch(connection, lease, holder=RELEASED)


def fence(connection: Connection, lease: Lease, *, idle_ms: int = IDLE_TRANSACTION_TIMEOUT_MS) -> None:
    """Make the transaction fail unless `lease` is still the one in force. Its first statement, always.

    It locks the row, so a take-over waits for this transaction or this transaction sees the take-over: for `idle_ms`
    at most, should this process freeze between two statements.
    """
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SET LOCAL idle_in_transaction_session_timeout = {idle_ms}")
    _touch(connection, lease, version=lease.version)


def _touch(connection: Connection, lease: Lease, **values: object) -> None:
    held = {"held_name": lease.name, "held_holder": lease.holder, "held_version": lease.version}
    changed = connection.execute(_touch_statement(tuple(values)), held | values)
    if changed.rowcount != 1:
        raise LeaseLost(f"{lease.name}: version {lease.version} of {lease.holder} is no longer in force")


@cache
def _touch_statement(columns: tuple[str, ...]) -> Update:
    """Kept: it is the first statement of every transaction of a leader, and building it cost more than running it."""
    return (
        update(leases)
        .where(
            and_(
                leases.c.name == bindparam("held_name"),
                leases.c.holder == bindparam("held_holder"),
                leases.c.version == bindparam("held_version"),
            )
        )
        .values({column: bindparam(column) for column in columns})
    )
