"""Making a ledger, and what it is pinned to.

Owns the pins and the rows that must exist before the first service starts. It refuses to know where the pinned values
come from (Kafka, Stripe): it is told.

A pin is written once. A second `initialise`, and every service at its start, must name the same value: a ledger filled
from one topic and continued from another would count both as one.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, fields

from sqlalchemy import Connection, Engine, Table, inspect, select
from sqlalchemy.dialects import postgresql, sqlite

from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.errors import LedgerNotReady, PinMismatch
from tollgate.ledger.migrations import migrate, required_version
from tollgate.ledger.roles import can_create_roles, create_roles
from tollgate.ledger.tables import (
    catalogue_state,
    directory_state,
    pins,
    progress,
    progress_epochs,
    stripe_sequence,
)
from tollgate.metering.outcome import TimeRules

__all__ = [
    "InitReport",
    "PinMismatch",
    "Pins",
    "check_pins",
    "initialise",
    "new_ledger_id",
    "read_pins",
    "read_rules",
    "write_progress",
]


@dataclass(frozen=True, slots=True)
class Pins:
    """What a ledger belongs to. An empty value means "not known yet": it pins nothing and contradicts nothing."""

    kafka_cluster_id: str
    events_topic: str
    partitions: int
    """Of the events topic; 0 means not known yet."""
    stripe_account: str
    stripe_mode: str
    """test or live."""
    id_seed_fingerprint: str
    ledger_id: str
    """This ledger's own name: part of every posting's identifier, so that two ledgers never collide at Stripe."""
    accept_age_hours: int | None = 72
    """How old an event may be. Never changed: a longer time would count retries whose ids were forgotten in the
    shorter one, and no recount would come to the same numbers."""
    future_seconds: int | None = 300
    """How far ahead of its ingest time an event may be. Never changed, for the recount's sake."""


@dataclass(frozen=True, slots=True)
class InitReport:
    """What `initialise` found and made."""

    schema_version: str
    pins: Pins
    """As they are now."""
    pinned: tuple[str, ...]
    """Pins written by this call."""
    partitions_added: int
    """Progress rows written by this call."""
    roles: tuple[str, ...]
    """Roles that now have their rights; empty on SQLite."""
    roles_skipped: str = ""
    """Why there are no roles on PostgreSQL, for people; empty otherwise."""


def new_ledger_id() -> str:
    """A name no other ledger has."""
    return f"ledger_{secrets.token_hex(8)}"


def initialise(engine: Engine, pins: Pins, partitions: int, now_ms: int) -> InitReport:
    """Make the ledger ready: schema, roles, pins, one progress row a partition at offset 0, the single-row states.

    Idempotent; what is there is kept. An empty `pins.ledger_id` keeps the one there is, or makes one. Raises
    PinMismatch (nothing written) when a pin differs, ValueError when `partitions` is not the pinned count,
    LedgerUnavailable, LedgerRefused.
    """
    if partitions < 1 or pins.partitions not in (0, partitions):
        raise ValueError(f"{partitions} partitions asked for, {pins.partitions} to pin")
    wanted = _to_rows(pins) | {"partitions": str(partitions)}
    # Before the schema is touched: a ledger that is not ours is left as it was.
    if _has_pins(engine):
        with read_snapshot(engine) as connection:
            _compare(_stored(connection), wanted)
    migrate(engine)
    skipped = ""
    roles: tuple[str, ...] = ()
    if can_create_roles(engine):
        roles = create_roles(engine)
    else:
        skipped = "this database user may not create roles: every service writes with its own user's rights"
    with ledger_transaction(engine) as connection:
        before = _stored(connection)
        wanted.setdefault("ledger_id", before.get("ledger_id") or new_ledger_id())
        _write_pins(connection, wanted)
        # Read back: of two processes that initialise at once, one wrote.
        after = _stored(connection)
        _compare(after, wanted)
        added = write_progress(connection, partitions, now_ms)
        for table, column in (
            (catalogue_state, "meters_version"),
            (stripe_sequence, "value"),
            (directory_state, "version"),
        ):
            _insert_new(connection, table, [{"id": 1, column: 0}])
    return InitReport(
        schema_version=required_version(),
        pins=_from_rows(after),
        pinned=tuple(sorted(after.keys() - before.keys())),
        partitions_added=added,
        roles=roles,
        roles_skipped=skipped,
    )


def read_pins(engine: Engine) -> Pins:
    """The pins; raises LedgerNotReady when there are none."""
    with read_snapshot(engine) as connection:
        stored = _stored(connection) if inspect(connection).has_table("pins") else {}
    if not stored:
        raise LedgerNotReady("the ledger has no pins: run `tollgate init`")
    return _from_rows(stored)


def read_rules(engine: Engine) -> TimeRules:
    """The rules by which every worker counts, and every recount; raises LedgerNotReady when there are none."""
    pinned = read_pins(engine)
    if pinned.accept_age_hours is None or pinned.future_seconds is None:
        raise LedgerNotReady("the ledger does not say how old an event may be: run `tollgate init`")
    return TimeRules(
        accept_age_ms=pinned.accept_age_hours * 3_600_000, future_ms=pinned.future_seconds * 1_000
    )


def check_pins(engine: Engine, **expected: str | int) -> Pins:
    """The pins, after comparing those named with what this process sees.

    Raises PinMismatch naming every difference, LedgerNotReady when one named is not pinned yet, ValueError for a name
    that is no pin.
    """
    unknown = expected.keys() - {field.name for field in fields(Pins)}
    if unknown:
        raise ValueError(f"no such pin: {', '.join(sorted(unknown))}")
    pinned = read_pins(engine)
    stored = _to_rows(pinned)
    _compare(stored, {name: str(value) for name, value in expected.items()})
    missing = sorted(expected.keys() - stored.keys())
    if missing:
        raise LedgerNotReady(f"the ledger is not pinned to any {', '.join(missing)} yet: run `tollgate init`")
    return pinned


def _compare(stored: dict[str, str], wanted: dict[str, str]) -> None:
    differences = {
        name: (stored[name], value)
        for name, value in wanted.items()
        if name in stored and stored[name] != value
    }
    if differences:
        raise PinMismatch(differences)


def _to_rows(pins: Pins) -> dict[str, str]:
    values = {field.name: getattr(pins, field.name) for field in fields(Pins)}
    # An event may be no second ahead: 0 is a rule there, and "not known" everywhere else.
    return {
        name: str(value) for name, value in values.items() if value or (name, value) == ("future_seconds", 0)
    }


def _from_rows(stored: dict[str, str]) -> Pins:
    return Pins(
        kafka_cluster_id=stored.get("kafka_cluster_id", ""),
        events_topic=stored.get("events_topic", ""),
        partitions=int(stored.get("partitions", "0")),
        stripe_account=stored.get("stripe_account", ""),
        stripe_mode=stored.get("stripe_mode", ""),
        id_seed_fingerprint=stored.get("id_seed_fingerprint", ""),
        ledger_id=stored.get("ledger_id", ""),
        accept_age_hours=int(stored["accept_age_hours"]) if "accept_age_hours" in stored else None,
        future_seconds=int(stored["future_seconds"]) if "future_seconds" in stored else None,
    )


def _has_pins(engine: Engine) -> bool:
    with read_snapshot(engine) as connection:
        return inspect(connection).has_table("pins")


def _stored(connection: Connection) -> dict[str, str]:
    return {row.name: row.value for row in connection.execute(select(pins))}


def _write_pins(connection: Connection, wanted: dict[str, str]) -> None:
    _insert_new(connection, pins, [{"name": name, "value": value} for name, value in sorted(wanted.items())])


def write_progress(connection: Connection, partitions: int, now_ms: int) -> int:
    """Progress at offset 0 for those of the first `partitions` that have none, in the caller's transaction; how many."""
    counters = (
        "received",
        "counted",
        "unmatched",
        "duplicate",
        "late",
        "dead",
        "weak_duplicate",
        "ingest_ms",
    )
    rows: list[dict[str, object]] = [
        {
            "partition": partition,
            "next_offset": 0,
            "fingerprint": "",
            "meters_version": 0,
            **dict.fromkeys(counters, 0),
            "committed_ms": now_ms,
        }
        for partition in range(partitions)
    ]
    present = set(connection.execute(select(progress.c.partition)).scalars())
    _insert_new(connection, progress, rows)
    _insert_new(
        connection,
        progress_epochs,
        [{"partition": row["partition"], "from_offset": 0, "meters_version": 0} for row in rows],
    )
    return len({row["partition"] for row in rows} - present)


def _insert_new(connection: Connection, table: Table, rows: list[dict[str, object]]) -> None:
    """Insert the rows whose key is not there yet."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(insert(table).on_conflict_do_nothing(), rows)
