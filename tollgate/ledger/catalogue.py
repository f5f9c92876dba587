"""The meters in force, in versions: every set that ever was can be loaded again, to recount with it.

Owns applying and loading meter sets. It refuses to know YAML and expressions (`tollgate.metering` does), and
when a change takes effect (`meter_changes.py`).

A flush holds the version it folded with FOR SHARE while it commits, and applying meters updates that row: so every
event is counted wholly by one set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, insert, or_, select, update

from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.errors import LedgerNotReady
from tollgate.ledger.meter_changes import MeterChanges, StoredMeter, plan_changes
from tollgate.ledger.sources import (
    SourceToken,
    create_source,
    hash_token,
    list_sources,
    load_sources,
    revoke_source,
)
from tollgate.ledger.tables import catalogue_state, meter_sets, pins
from tollgate.ledger.tables import meters as meters_table
from tollgate.metering.definition import Meter, MeterSet, MeterVersion

__all__ = [
    "ApplyReport",
    "MeterChange",
    "SourceToken",
    "apply_meters",
    "create_source",
    "hash_token",
    "list_sources",
    "load_every_meter",
    "load_layouts",
    "load_meter_set",
    "load_sources",
    "meters_version",
    "put_in_force",
    "revoke_source",
]


@dataclass(frozen=True, slots=True)
class MeterChange:
    """One meter that changed, and from which event time (epoch milliseconds) on."""

    name: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class ApplyReport:
    """What `apply_meters` did."""

    version_before: int
    version: int
    """Equal to `version_before` when nothing changed."""
    kept: tuple[str, ...]
    added: tuple[MeterChange, ...]
    """`at_ms` is 0 for a meter that counts from the beginning of event time."""
    changed: tuple[MeterChange, ...]
    retargeted: tuple[str, ...]
    """Sent or priced differently; counted as before."""
    removed: tuple[MeterChange, ...]


def apply_meters(engine: Engine, meters: Sequence[Meter], source: str, now_ms: int) -> ApplyReport:
    """Make `meters` the meters in force, in one transaction; see `meter_changes.py` for from when.

    `source` is the text they were read from, kept beside the version. Applying what is in force already changes
    nothing. Raises LedgerNotReady before `tollgate init`, ValueError for a name given twice, LedgerUnavailable,
    CommitUnknown.
    """
    with ledger_transaction(engine) as connection:
        before = _version(connection, lock=True)
        plan = plan_changes(_stored(connection, before), meters, now_ms)
        version = before if plan.empty else before + 1
        if not plan.empty:
            _carry_out(connection, plan, version)
            put_in_force(connection, version, source, _pinned_partitions(connection), now_ms)
    return ApplyReport(
        version_before=before,
        version=version,
        kept=plan.kept,
        added=tuple(MeterChange(begin.meter.name, begin.from_ms) for begin in plan.added),
        changed=tuple(MeterChange(end.name, end.to_ms) for end, _ in plan.changed),
        retargeted=tuple(change.meter.name for change in plan.retargeted),
        removed=tuple(MeterChange(end.name, end.to_ms) for end in plan.removed),
    )


def meters_version(engine: Engine) -> int:
    """The version of the meter set in force; 0 before the first. Raises LedgerNotReady before `tollgate init`."""
    with read_snapshot(engine) as connection:
        return _version(connection, lock=False)


def load_meter_set(engine: Engine, version: int | None = None) -> MeterSet:
    """The meter set in force, or a past one as it was when it was in force (but for how it was sent and priced).

    Raises LedgerNotReady before `tollgate init`, LookupError for a version that never was.
    """
    with read_snapshot(engine) as connection:
        current = _version(connection, lock=False)
        wanted = current if version is None else version
        if not 0 <= wanted <= current:
            raise LookupError(f"there is no meter set {wanted}: the one in force is {current}")
        return MeterSet(
            version=wanted,
            meters=tuple(
                MeterVersion(
                    meter_id=stored.meter_id, meter=stored.meter, from_ms=stored.from_ms, to_ms=stored.to_ms
                )
                for stored in _stored(connection, wanted)
            ),
            partitions=_partitions(connection, wanted),
        )


def load_layouts(engine: Engine) -> dict[int, int]:
    """By version of the meter set, the partition count of the log while it was in force; 0 where it is not known."""
    with read_snapshot(engine) as connection:
        rows = connection.execute(select(meter_sets.c.version, meter_sets.c.partitions)).all()
        return {row.version: row.partitions or 0 for row in rows}


def put_in_force(connection: Connection, version: int, source: str, partitions: int, now_ms: int) -> None:
    """Make `version` the set in force, in the caller's transaction, which holds the catalogue's row."""
    connection.execute(
        insert(meter_sets).values(
            version=version, applied_ms=now_ms, source=source, partitions=partitions or None
        )
    )
    connection.execute(update(catalogue_state).values(meters_version=version))


def load_every_meter(engine: Engine) -> dict[int, Meter]:
    """Every meter version there ever was, by meter id."""
    with read_snapshot(engine) as connection:
        rows = connection.execute(select(meters_table.c.meter_id, meters_table.c.definition))
        return {row.meter_id: Meter.from_document(row.definition) for row in rows}


def _version(connection: Connection, *, lock: bool) -> int:
    statement = select(catalogue_state.c.meters_version)
    found = connection.execute(statement.with_for_update() if lock else statement).scalar_one_or_none()
    if found is None:
        raise LedgerNotReady("the ledger has no meter catalogue: run `tollgate init`")
    return int(found)


def _partitions(connection: Connection, version: int) -> int:
    statement = select(meter_sets.c.partitions).where(meter_sets.c.version == version)
    return connection.execute(statement).scalar_one_or_none() or 0


def _pinned_partitions(connection: Connection) -> int:
    pinned = connection.execute(select(pins.c.value).where(pins.c.name == "partitions")).scalar_one_or_none()
    return int(pinned or 0)


def _stored(connection: Connection, version: int) -> list[StoredMeter]:
    """Every meter version in set `version`, with the end it had then."""
    table = meters_table.c
    rows = connection.execute(
        select(meters_table)
        .where(
            table.since_version <= version,
            or_(table.until_version.is_(None), table.until_version > version),
        )
        .order_by(table.meter_id)
    )
    return [
        StoredMeter(
            meter_id=row.meter_id,
            meter=Meter.from_document(row.definition),
            from_ms=row.from_ms,
            to_ms=row.to_ms if row.ended_version is not None and row.ended_version <= version else None,
        )
        for row in rows
    ]


def _carry_out(connection: Connection, plan: MeterChanges, version: int) -> None:
    for end in [*(end for end, _ in plan.changed), *plan.removed]:
        connection.execute(
            update(meters_table)
            .where(meters_table.c.meter_id == end.meter_id)
            .values(
                to_ms=end.to_ms, ended_version=version, until_version=version if end.never_began else None
            )
        )
    for retarget in plan.retargeted:
        connection.execute(
            update(meters_table)
            .where(meters_table.c.meter_id == retarget.meter_id)
            .values(definition=retarget.meter.to_document())
        )
    for begin in [*plan.added, *(begin for _, begin in plan.changed)]:
        connection.execute(
            insert(meters_table).values(
                name=begin.meter.name,
                definition=begin.meter.to_document(),
                from_ms=begin.from_ms,
                to_ms=None,
                since_version=version,
                ended_version=None,
                until_version=None,
            )
        )
