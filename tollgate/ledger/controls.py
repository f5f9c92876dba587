"""Controls: what operators and stripe_sync itself have switched, one named text each.

Owns the `controls` table. It refuses to know what obeys them.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, Engine, delete, select

from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.insertion import put
from tollgate.ledger.tables import controls

PAUSED = "paused"
SYNC_NOW = "sync_now"
HALTED = "halted:"
"""Followed by a Billing Meter's event_name; the value says why nothing is sent to it."""


def read_controls(connection: Connection) -> dict[str, str]:
    """Every control."""
    rows = connection.execute(select(controls.c.name, controls.c.value))
    return {row.name: row.value for row in rows}


def write_controls(connection: Connection, values: Mapping[str, str | None], now_ms: int) -> None:
    """Set controls; None removes one."""
    gone = [name for name, value in values.items() if value is None]
    if gone:
        connection.execute(delete(controls).where(controls.c.name.in_(gone)))
    put(
        connection,
        controls,
        [
            {"name": name, "value": value, "changed_ms": now_ms}
            for name, value in values.items()
            if value is not None
        ],
    )


def load_controls(engine: Engine) -> dict[str, str]:
    """Every control."""
    with read_snapshot(engine) as connection:
        return read_controls(connection)


def set_control(engine: Engine, name: str, value: str | None, now_ms: int) -> None:
    """Set one control; None removes it."""
    with ledger_transaction(engine) as connection:
        write_controls(connection, {name: value}, now_ms)


def set_paused(engine: Engine, paused: bool, now_ms: int, reason: str = "by an operator") -> None:
    """Pause planning and sending everywhere, or go on. A call already under way ends as it would have."""
    set_control(engine, PAUSED, reason if paused else None, now_ms)


def is_paused(engine: Engine) -> bool:
    """Whether an operator has paused planning and sending."""
    return PAUSED in load_controls(engine)


def request_sync_now(engine: Engine, now_ms: int) -> None:
    """Ask the leader to plan at once instead of at its next cadence. It notices within about a second."""
    set_control(engine, SYNC_NOW, str(now_ms), now_ms)
