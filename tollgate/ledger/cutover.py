"""The cut-over to more partitions: what the ledger must have before, and the one transaction that makes it so.

Owns the copies of seen ids and the change of pins, progress and meter set. It refuses to know Kafka: how far each
partition's log reaches it is told.

Partitions grow to a multiple, so that an account of partition p goes to one of p, p + n, p + 2n, …: a new partition has
one parent, `partition mod n`, and begins with all ids its parent remembers. A parent's ids are a superset of what its
children need, by account: too many harm nothing, since a parent would have found the same duplicates. Copies carry the
offsets 0 and below, in their order: nothing of a partition's own log lies there.

The partition count is part of the meter set in force. Flushes take its version FOR SHARE, so none is folded half by the
old count, and a worker that slept through the change folds again with the new one. A record whose instance knew another
count than its offset's set says is dead: so it does not matter who missed what, and when.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, bindparam, delete, func, insert, literal, select, text, update

from tollgate.ledger.audit import AuditEntry, write_audit
from tollgate.ledger.catalogue import put_in_force
from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.errors import LedgerNotReady
from tollgate.ledger.init import write_progress
from tollgate.ledger.insertion import insert_missing
from tollgate.ledger.tables import catalogue_state, meter_sets, pins, progress, seen_ids

_PARTITIONS = "partitions"


class NotDrained(Exception):
    """The log holds records the ledger has not. `behind`: how many, by partition."""

    def __init__(self, behind: Mapping[int, int]) -> None:
        self.behind = dict(behind)
        named = ", ".join(f"{partition} by {records}" for partition, records in sorted(behind.items()))
        super().__init__(f"partitions are not counted to their end: {named} records")


class IdsMissing(Exception):
    """A new partition lacks ids its parent has: they have to be copied first."""


class CannotGrow(ValueError):
    """The partition count asked for cannot follow the one there is."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the ledger stands, of one moment."""

    partitions: int
    """Pinned."""
    next_offsets: Mapping[int, int]
    ids: int
    """Seen ids of all partitions, those of new ones left out."""
    ids_copied: int
    """Seen ids that partitions beyond the pinned count have."""


def find_parents(before: int, after: int) -> dict[int, int]:
    """By new partition, the one its accounts come from. Raises CannotGrow unless `after` is a multiple of `before`."""
    if after <= before or after % before:
        raise CannotGrow(
            f"{after} is no multiple of {before}: each new partition must get its accounts from one that is there "
            f"(take {before * 2}, {before * 3}, {before * 4}, …; there is no way to fewer)"
        )
    return {partition: partition % before for partition in range(before, after)}


def read_standing(engine: Engine) -> Standing:
    """Where the ledger stands. Raises LedgerNotReady before `tollgate init`."""
    with read_snapshot(engine) as connection:
        before = _pinned(connection)
        offsets = _offsets(connection)
        held = _ids_held(connection)
    return Standing(
        before,
        offsets,
        sum(count for (partition, _), count in held.items() if partition < before),
        sum(count for (partition, _), count in held.items() if partition >= before),
    )


def copy_ids(
    engine: Engine, before: int, after: int, on_copied: Callable[[int, int, int], None] = lambda *_: None
) -> int:
    """Give each new partition all ids its parent remembers; how many were copied now.

    One transaction a partition and event day; what is there already is left, so a copying that was cut off goes on.
    `on_copied` is told (partition, day, ids). Raises CannotGrow; LookupError when the ledger is no longer at `before`.
    """
    copied = 0
    for partition, parent in find_parents(before, after).items():
        day: int | None = None
        while True:
            with ledger_transaction(engine) as connection:
                _lock(connection, before)
                day = _next_day(connection, parent, day)
                if day is None:
                    break
                count = _copy_day(connection, partition, parent, day)
            copied += count
            on_copied(partition, day, count)
    return copied


def switch(
    engine: Engine, before: int, after: int, ends: Mapping[int, int], entry: AuditEntry, now_ms: int
) -> int:
    """Put `after` partitions in force, in one transaction; the meter set's new version.

    `ends`: by partition, where its log ends. 1. Lock pins, the meter set and progress. 2. Everything is counted to
    `ends`. 3. Every new partition has its parent's ids. 4. Progress of new partitions, pins, the meter set with its
    partition count, the audit entry.

    Raises NotDrained, IdsMissing, CannotGrow; LookupError when the ledger is no longer at `before`. Nothing is written
    then.
    """
    parents = find_parents(before, after)
    with ledger_transaction(engine) as connection:
        _lock(connection, before)
        version = connection.execute(
            select(catalogue_state.c.meters_version).with_for_update()
        ).scalar_one_or_none()
        if version is None:
            raise LedgerNotReady("the ledger has no meter catalogue: run `tollgate init`")
        offsets = _offsets(connection, lock=True)
        _require_drained(offsets, ends)
        _require_ids(connection, parents)
        # Left by a plan for more partitions that was given up.
        connection.execute(delete(seen_ids).where(seen_ids.c.partition >= after))
        write_progress(connection, after, now_ms)
        connection.execute(update(pins).where(pins.c.name == _PARTITIONS).values(value=str(after)))
        if version == 0:
            nothing = {"version": 0, "applied_ms": 0, "source": "", "partitions": before}
            insert_missing(connection, meter_sets, [nothing])
        # Sets that do not say counted what was written for this many: there was no way to another count but this one.
        unsaid = meter_sets.c.partitions.is_(None)
        connection.execute(update(meter_sets).where(unsaid).values(partitions=before))
        source = connection.execute(
            select(meter_sets.c.source).where(meter_sets.c.version == version)
        ).scalar_one()
        put_in_force(connection, version + 1, source, after, now_ms)
        write_audit(connection, entry)
    return int(version) + 1


def find_behind(next_offsets: Mapping[int, int], ends: Mapping[int, int]) -> dict[int, int]:
    """Records of the log the ledger has not, by partition, where there are any; negative where the log is too short."""
    return {
        partition: ends.get(partition, 0) - offset
        for partition, offset in next_offsets.items()
        if ends.get(partition, 0) != offset
    }


def _require_drained(offsets: Mapping[int, int], ends: Mapping[int, int]) -> None:
    behind = find_behind(offsets, ends)
    if behind:
        raise NotDrained(behind)


def _require_ids(connection: Connection, parents: Mapping[int, int]) -> None:
    held = _ids_held(connection)
    for partition, parent in parents.items():
        for (of, day), count in held.items():
            # More would be as wrong: it would be another parent's.
            if of == parent and held.get((partition, day), 0) != count:
                raise IdsMissing(
                    f"partition {partition} has {held.get((partition, day), 0)} of the {count} ids of day {day} "
                    f"that partition {parent} has"
                )


def _copy_day(connection: Connection, partition: int, parent: int, day: int) -> int:
    held = _ids_held(connection, (partition, parent), day)
    wanted = held.get((parent, day), 0)
    # A day's ids only ever become more, until they go all at once: as many is the same.
    if held.get((partition, day), 0) == wanted:
        return 0
    ids = seen_ids.c
    connection.execute(delete(seen_ids).where(ids.partition == partition, ids.day == day))
    end = select(progress.c.next_offset).where(progress.c.partition == parent).scalar_subquery()
    rows = select(literal(partition), ids.day, ids.to_offset - end, ids.ids, ids.count).where(
        ids.partition == parent, ids.day == day
    )
    connection.execute(insert(seen_ids).from_select(["partition", "day", "to_offset", "ids", "count"], rows))
    return wanted


def _lock(connection: Connection, before: int) -> None:
    """Nobody else cuts over meanwhile, and nobody has. A new partition's ids are its own once it counts: raises
    LookupError rather than touch them."""
    if connection.dialect.name == "postgresql":
        # A day of ids may be gigabytes; it is copied by the server, and nothing waits for it but another cut-over.
        connection.execute(text("SET LOCAL statement_timeout = 0"))
    pinned = _pinned(connection, lock=True)
    if pinned != before:
        raise LookupError(
            f"the ledger has {pinned} partitions now, not {before}: another cut-over was quicker"
        )


def _pinned(connection: Connection, *, lock: bool = False) -> int:
    statement = select(pins.c.value).where(pins.c.name == bindparam("pin", _PARTITIONS))
    found = connection.execute(statement.with_for_update() if lock else statement).scalar_one_or_none()
    if found is None:
        raise LedgerNotReady("the ledger is not pinned to any partition count yet: run `tollgate init`")
    return int(found)


def _offsets(connection: Connection, *, lock: bool = False) -> dict[int, int]:
    statement = select(progress.c.partition, progress.c.next_offset).order_by(progress.c.partition)
    rows = connection.execute(statement.with_for_update() if lock else statement)
    return {row.partition: row.next_offset for row in rows}


def _ids_held(
    connection: Connection, partitions: tuple[int, ...] = (), day: int | None = None
) -> dict[tuple[int, int], int]:
    ids = seen_ids.c
    statement = select(ids.partition, ids.day, func.sum(ids.count).label("held")).group_by(
        ids.partition, ids.day
    )
    if partitions:
        statement = statement.where(ids.partition.in_(partitions))
    if day is not None:
        statement = statement.where(ids.day == day)
    return {(row.partition, row.day): int(row.held) for row in connection.execute(statement)}


def _next_day(connection: Connection, partition: int, after: int | None) -> int | None:
    days = select(func.min(seen_ids.c.day)).where(seen_ids.c.partition == partition)
    if after is not None:
        days = days.where(seen_ids.c.day > after)
    found: int | None = connection.execute(days).scalar()
    return found
