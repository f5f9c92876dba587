"""The one transaction: a fold of the log becomes part of the ledger, once or not at all.

Owns the compare-and-set and everything written with it. It refuses to know how a fold is made, and Kafka.

It does not matter who folded `[from_offset, next_offset)`, nor how often: a fold is a function of the log, of the
ledger at `from_offset` and of the meter set, so whoever commits first has done everybody's work, and the rest change
no row.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import polars as pl
from sqlalchemy import Connection, Engine, Select, bindparam, select

from tollgate.ledger.arrays import Upsert, Words, words_of, write_rows
from tollgate.ledger.distinct import insert_distinct
from tollgate.ledger.engine import ledger_transaction
from tollgate.ledger.errors import LedgerNotReady, MetersChanged
from tollgate.ledger.tables import catalogue_state, progress
from tollgate.metering.errors import InvariantViolated
from tollgate.metering.metric import (
    COMBINE_ADD,
    COMBINE_DISTINCT,
    COMBINE_LATEST,
    COMBINE_MAX,
    COMBINE_MIN,
)
from tollgate.metering.outcome import Fold, PartitionFold

_USAGE_KEYS = ("partition", "meter_id", "window_start_ms", "account", "dimensions")

_USAGE_COLUMNS = {
    "partition": "integer",
    "meter_id": "bigint",
    "window_start_ms": "bigint",
    "account": "text",
    "dimensions": "text",
    "quantity": "numeric",
    "events": "bigint",
    "unvalued": "bigint",
    "latest_event_ms": "bigint",
    "order_ms": "bigint",
    "order_offset": "bigint",
    "changed_offset": "bigint",
}


class _Missed(Exception):
    """Rolls the transaction back."""

    def __init__(self, partitions: frozenset[int]) -> None:
        self.partitions = partitions


def commit_fold(
    engine: Engine,
    fold: Fold,
    fingerprints: Mapping[int, str],
    meters_version: int,
    now_ms: int,
    partitions: Collection[int] | None = None,
) -> frozenset[int]:
    """Commit the fold of `partitions` (default: all of it), whole or not at all.

    1. Take the meter set's version FOR SHARE: it must be the one folded with.
    2. Lock the partitions' progress, in order; each must stand at the fold's `from_offset`.
    3. Move progress to `next_offset`, with outcomes, the fingerprint of the record before it, and the meter set.
    4. Insert the distinct values; those that are new count.
    5. Upsert usage, totals and ingest instances; insert the ids seen.

    `fingerprints` maps each partition to that of record `next_offset - 1`; `now_ms` is kept for people only.

    Returns the partitions whose progress stood elsewhere: then nothing is written for any (drop those, retry the
    rest); empty means committed. Raises MetersChanged, LedgerNotReady (a partition has no progress row),
    LedgerUnavailable (nothing written), CommitUnknown (read progress back).
    """
    chosen = sorted(fold.partitions if partitions is None else partitions)
    folds = [fold.partitions[partition] for partition in chosen]
    if not folds:
        return frozenset()
    try:
        with ledger_transaction(engine) as connection:
            _require_meters(connection, meters_version)
            stood = _require_progress(connection, folds)
            _move_progress(connection, folds, fingerprints, meters_version, now_ms)
            _note_epochs(connection, folds, stood, meters_version)
            usage = _usage_of(connection, fold, chosen)
            _upsert_usage(connection, usage, {part.partition: part.next_offset for part in folds})
            _upsert_totals(connection, usage)
            _upsert_instances(connection, folds)
            _insert_seen(connection, folds)
    except _Missed as missed:
        return missed.partitions
    return frozenset()


def _require_meters(connection: Connection, meters_version: int) -> None:
    current = connection.execute(_meters_in_force()).scalar_one_or_none()
    if current is None:
        raise LedgerNotReady("the ledger has no meter catalogue: run `tollgate init`")
    if current != meters_version:
        raise MetersChanged(current)


@cache
def _meters_in_force() -> Select[Any]:
    return select(catalogue_state.c.meters_version).with_for_update(read=True)


def _require_progress(connection: Connection, folds: Sequence[PartitionFold]) -> dict[int, int]:
    """Lock the progress rows in ascending order (so that two flushes queue and never deadlock); their meter sets."""
    rows = connection.execute(_lock_progress(), {"wanted": [part.partition for part in folds]}).all()
    offsets = {row.partition: row.next_offset for row in rows}
    absent = sorted(part.partition for part in folds if part.partition not in offsets)
    if absent:
        raise LedgerNotReady(f"partitions {absent} have no progress row: run `tollgate init`")
    missed = frozenset(part.partition for part in folds if offsets[part.partition] != part.from_offset)
    if missed:
        raise _Missed(missed)
    return {row.partition: row.meters_version for row in rows}


@cache
def _lock_progress() -> Select[Any]:
    return (
        select(progress.c.partition, progress.c.next_offset, progress.c.meters_version)
        .where(progress.c.partition.in_(bindparam("wanted", expanding=True)))
        .order_by(progress.c.partition)
        .with_for_update()
    )


def _move_progress(
    connection: Connection,
    folds: Sequence[PartitionFold],
    fingerprints: Mapping[int, str],
    meters_version: int,
    now_ms: int,
) -> None:
    counters = ("received", "counted", "unmatched", "duplicate", "weak_duplicate", "late", "dead")
    larger = words_of(connection).larger.format("held.ingest_ms", "excluded.ingest_ms")
    upsert = Upsert(
        table="progress",
        columns={
            "partition": "integer",
            "next_offset": "bigint",
            "fingerprint": "text",
            "meters_version": "bigint",
            **dict.fromkeys(counters, "bigint"),
            "ingest_ms": "bigint",
            "committed_ms": "bigint",
        },
        keys=("partition",),
        updates={
            "next_offset": "excluded.next_offset",
            "fingerprint": "excluded.fingerprint",
            "meters_version": "excluded.meters_version",
            **{name: f"held.{name} + excluded.{name}" for name in counters},
            "ingest_ms": larger,
            "committed_ms": "excluded.committed_ms",
        },
    )
    write_rows(
        connection,
        upsert,
        {
            "partition": [part.partition for part in folds],
            "next_offset": [part.next_offset for part in folds],
            "fingerprint": [fingerprints[part.partition] for part in folds],
            "meters_version": [meters_version] * len(folds),
            **{name: [getattr(part.outcomes, name) for part in folds] for name in counters},
            "ingest_ms": [part.ingest_ms_max for part in folds],
            "committed_ms": [now_ms] * len(folds),
        },
    )


def _note_epochs(
    connection: Connection, folds: Sequence[PartitionFold], stood: Mapping[int, int], meters_version: int
) -> None:
    moved = [part for part in folds if stood[part.partition] != meters_version]
    write_rows(
        connection,
        Upsert(
            table="progress_epochs",
            columns={"partition": "integer", "from_offset": "bigint", "meters_version": "bigint"},
            keys=("partition", "from_offset"),
            updates={"meters_version": "excluded.meters_version"},
        ),
        {
            "partition": [part.partition for part in moved],
            "from_offset": [part.from_offset for part in moved],
            "meters_version": [meters_version] * len(moved),
        },
    )


def _usage_of(connection: Connection, fold: Fold, chosen: Sequence[int]) -> pl.DataFrame:
    """The usage of the chosen partitions, with the quantity of distinct metrics: how many values were new."""
    usage, distinct = fold.usage, fold.distinct
    if len(chosen) < len(fold.partitions):
        usage = usage.filter(pl.col("partition").is_in(list(chosen)))
        distinct = distinct.filter(pl.col("partition").is_in(list(chosen)))
    if distinct.height == 0:
        return usage
    new = insert_distinct(connection, distinct)
    joined = usage.join(new, on=_USAGE_KEYS, how="left", maintain_order="left").with_columns(
        pl.col("new_values").fill_null(0)
    )
    if joined["new_values"].sum() != new["new_values"].sum():
        raise InvariantViolated("a fold holds distinct values of a window that has no usage row")
    return joined.with_columns(
        pl.when(pl.col("combine") == COMBINE_DISTINCT)
        .then(pl.col("new_values").cast(pl.Decimal(38, 9)))
        .otherwise(pl.col("quantity"))
        .alias("quantity")
    ).drop("new_values")


def _upsert_usage(connection: Connection, usage: pl.DataFrame, next_offsets: Mapping[int, int]) -> None:
    frame = usage.with_columns(
        pl.col("partition").replace_strict(next_offsets, return_dtype=pl.Int64).alias("changed_offset"),
        quantity_text(pl.col("quantity")).alias("quantity"),
        # A count of new values is added like any other.
        pl.when(pl.col("combine") == COMBINE_DISTINCT)
        .then(COMBINE_ADD)
        .otherwise(pl.col("combine"))
        .alias("combine"),
    )
    words = words_of(connection)
    for combine in sorted(frame["combine"].unique().to_list()):
        rows = frame.filter(pl.col("combine") == combine)
        upsert = Upsert("usage", _USAGE_COLUMNS, _USAGE_KEYS, _combined(words, combine))
        write_rows(connection, upsert, {name: rows[name] for name in _USAGE_COLUMNS})


def quantity_text(quantity: pl.Expr) -> pl.Expr:
    """The canonical text of Decimal(38, 9) quantities: no trailing zeros."""
    return quantity.cast(pl.Decimal(38, 9)).cast(pl.String).str.strip_chars_end("0").str.strip_chars_end(".")


def _combined(words: Words, combine: int) -> dict[str, str]:
    """How a delta meets the usage row there is. A side without a valued event has no quantity to offer."""
    held, new = "held.quantity", "excluded.quantity"
    later = "(excluded.order_ms, excluded.order_offset) > (held.order_ms, held.order_offset)"
    only_new = "held.events = 0"
    only_held = "excluded.events = 0"

    def choose(otherwise: str) -> str:
        return f"CASE WHEN {only_held} THEN {held} WHEN {only_new} THEN {new} ELSE {otherwise} END"

    quantity = {
        COMBINE_ADD: words.quantity_add.format(held, new),
        COMBINE_MAX: choose(words.quantity_max.format(held, new)),
        COMBINE_MIN: choose(words.quantity_min.format(held, new)),
        COMBINE_LATEST: choose(f"CASE WHEN {later} THEN {new} ELSE {held} END"),
    }[combine]
    takes_new = f"{only_new} OR ({later} AND NOT {only_held})"
    return {
        "quantity": quantity,
        "events": "held.events + excluded.events",
        "unvalued": "held.unvalued + excluded.unvalued",
        "latest_event_ms": words.larger.format("held.latest_event_ms", "excluded.latest_event_ms"),
        "order_ms": f"CASE WHEN {takes_new} THEN excluded.order_ms ELSE held.order_ms END",
        "order_offset": f"CASE WHEN {takes_new} THEN excluded.order_offset ELSE held.order_offset END",
        "changed_offset": "excluded.changed_offset",
    }


def _upsert_totals(connection: Connection, usage: pl.DataFrame) -> None:
    additive = pl.col("combine").is_in([COMBINE_ADD, COMBINE_DISTINCT])
    totals = (
        usage.group_by("partition", "meter_id", maintain_order=True)
        .agg(
            pl.col("quantity").filter(additive).sum().fill_null(0).alias("quantity"),
            pl.col("events").sum(),
            pl.col("unvalued").sum(),
        )
        .with_columns(quantity_text(pl.col("quantity")).alias("quantity"))
    )
    upsert = Upsert(
        table="progress_totals",
        columns={
            "partition": "integer",
            "meter_id": "bigint",
            "quantity": "numeric",
            "events": "bigint",
            "unvalued": "bigint",
        },
        keys=("partition", "meter_id"),
        updates={
            "quantity": words_of(connection).quantity_add.format("held.quantity", "excluded.quantity"),
            "events": "held.events + excluded.events",
            "unvalued": "held.unvalued + excluded.unvalued",
        },
    )
    write_rows(connection, upsert, {name: totals[name] for name in upsert.columns})


_INSTANCE_COLUMNS = {
    "partition": "integer",
    "instance": "text",
    "rows_received": "bigint",
    "tick_ms": "bigint",
    "tick_acknowledged": "bigint",
    "tick_received": "bigint",
}

_INSTANCE_COUNTS = Upsert(
    "progress_instances",
    _INSTANCE_COLUMNS,
    ("partition", "instance"),
    {"rows_received": "held.rows_received + excluded.rows_received"},
)

_INSTANCE_TICKS = Upsert(
    "progress_instances",
    _INSTANCE_COLUMNS,
    ("partition", "instance"),
    {
        # In both databases every right-hand side sees the row as it was.
        "rows_received": "held.rows_received + excluded.rows_received",
        "tick_ms": "excluded.tick_ms",
        "tick_acknowledged": "excluded.tick_acknowledged",
        "tick_received": "held.rows_received + excluded.tick_received",
    },
)


def _upsert_instances(connection: Connection, folds: Sequence[PartitionFold]) -> None:
    counts: list[tuple[Any, ...]] = []
    ticks: list[tuple[Any, ...]] = []
    for part in folds:
        for instance, seen in sorted(part.instances.items()):
            if seen.tick is None:
                counts.append((part.partition, instance, seen.rows_received, 0, 0, 0))
            else:
                tick = seen.tick
                ticks.append(
                    (
                        part.partition,
                        instance,
                        seen.rows_received,
                        tick.wall_ms,
                        tick.rows_acknowledged,
                        tick.rows_received_before,
                    )
                )
    for upsert, rows in ((_INSTANCE_COUNTS, counts), (_INSTANCE_TICKS, ticks)):
        if rows:
            write_rows(connection, upsert, dict(zip(_INSTANCE_COLUMNS, zip(*rows, strict=True), strict=True)))


_SEEN_COLUMNS = {
    "partition": "integer",
    "day": "integer",
    "to_offset": "bigint",
    "ids": "bytea",
    "count": "integer",
}

_SEEN = Upsert("seen_ids", _SEEN_COLUMNS, ("partition", "day", "to_offset"), {})


def _insert_seen(connection: Connection, folds: Sequence[PartitionFold]) -> None:
    rows = [
        (part.partition, day, part.next_offset, np.ascontiguousarray(ids, dtype="<u8").tobytes(), len(ids))
        for part in folds
        for day, ids in sorted(part.seen_ids.items())
        if len(ids)
    ]
    if rows:
        write_rows(connection, _SEEN, dict(zip(_SEEN_COLUMNS, zip(*rows, strict=True), strict=True)))
