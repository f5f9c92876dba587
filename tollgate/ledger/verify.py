"""Does the law hold? Reads one moment of the ledger and hands its numbers to `tollgate.metering.conservation`.

Owns which rows each part of the law is about. It refuses to know the equations, the log (a recount of it is
`tollgate verify --refold`) and Stripe.

What tables alone cannot show: a maximum, minimum or latest value changed by hand, and progress moved forward by hand
over offsets nobody folded; the first needs a recount, the second the log's record before `next_offset`, whose
fingerprint progress keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, Select, case, func, select

from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.retired import read_retired
from tollgate.ledger.tables import (
    controls,
    distinct_values,
    meters,
    plan_cursors,
    progress,
    progress_epochs,
    progress_instances,
    progress_totals,
    seen_ids,
    usage,
)
from tollgate.ledger.types import EXACT, Quantity
from tollgate.ledger.verify_postings import PostedMeter, verify_postings
from tollgate.metering.conservation import (
    InstanceCounts,
    Law,
    MeterTotals,
    PartitionCounts,
    Violation,
    check_instances,
    check_partition,
    check_totals,
)
from tollgate.metering.definition import Meter
from tollgate.metering.metric import COMBINE_ADD, COMBINE_DISTINCT, MetricKind

__all__ = ["verify_ledger"]

_ADDED = (COMBINE_ADD, COMBINE_DISTINCT)

_NOTHING = MeterTotals(Decimal(0), 0, 0)

SENDING, SCAN = "send:", "scan:"
"""Controls of planning, followed by a meter id: whether it takes the meter's usage, and a walk that is not over."""


def verify_ledger(engine: Engine) -> list[Violation]:
    """Every violation of laws 1 to 3 that the ledger's own tables show, of one moment; empty when the law holds.

    Raises LedgerUnavailable.
    """
    with read_snapshot(engine) as connection:
        known = _load_meters(connection)
        return [
            *_verify_partitions(connection),
            *_verify_instances(connection),
            *_verify_totals(connection, known),
            *verify_postings(connection, _posted(connection, known)),
        ]


def _load_meters(connection: Connection) -> dict[int, Meter]:
    rows = connection.execute(select(meters.c.meter_id, meters.c.definition))
    return {row.meter_id: Meter.from_document(row.definition) for row in rows}


def _posted(connection: Connection, known: Mapping[int, Meter]) -> dict[int, PostedMeter]:
    """The meters whose usage goes to Stripe and has been looked at whole.

    Planning walks over all usage of a meter whose sending was just switched on; until the walk is over it is not due.
    """
    switches = {row.name: row.value for row in connection.execute(select(controls))}
    return {
        meter_id: PostedMeter(meter.name, meter.metric.kind)
        for meter_id, meter in known.items()
        if meter.stripe is not None
        and meter.stripe.send != "off"
        and switches.get(f"{SENDING}{meter_id}") == "on"
        and f"{SCAN}{meter_id}" not in switches
    }


# -------------------------------------------------------------------------------------------------- law 1


def _verify_partitions(connection: Connection) -> list[Violation]:
    received = dict(
        _pairs(
            connection,
            select(progress_instances.c.partition, func.sum(progress_instances.c.rows_received)).group_by(
                progress_instances.c.partition
            ),
        )
    )
    offsets: dict[int, int] = {}
    found: list[Violation] = []
    for row in connection.execute(select(progress).order_by(progress.c.partition)):
        offsets[row.partition] = row.next_offset
        counts = PartitionCounts(
            partition=row.partition,
            next_offset=row.next_offset,
            received=row.received,
            counted=row.counted,
            unmatched=row.unmatched,
            duplicate=row.duplicate,
            weak_duplicate=row.weak_duplicate,
            late=row.late,
            dead=row.dead,
        )
        found += check_partition(counts, int(received.get(row.partition, 0)))
    # Nothing can have been written by a flush that progress has not reached.
    for what, partition, offset in (
        ("usage changed at", usage.c.partition, usage.c.changed_offset),
        ("ids seen below", seen_ids.c.partition, seen_ids.c.to_offset),
        ("a meter set in force from", progress_epochs.c.partition, progress_epochs.c.from_offset),
        ("usage planned below", plan_cursors.c.partition, plan_cursors.c.planned_offset),
    ):
        for where, highest in _pairs(connection, select(partition, func.max(offset)).group_by(partition)):
            if highest > offsets.get(where, 0):
                detail = f"{what} offset {highest}, but progress is at {offsets.get(where, 'no row')}"
                found.append(Violation(Law.PARTITION, f"partition {where}", detail))
    return found


def _verify_instances(connection: Connection) -> list[Violation]:
    rows = connection.execute(
        select(progress_instances).order_by(progress_instances.c.partition, progress_instances.c.instance)
    )
    return check_instances(
        InstanceCounts(
            row.partition, row.instance, row.rows_received, row.tick_acknowledged, row.tick_received
        )
        for row in rows
    )


# -------------------------------------------------------------------------------------------------- law 2


def _verify_totals(connection: Connection, known: Mapping[int, Meter]) -> list[Violation]:
    kept = {
        (row.partition, row.meter_id): MeterTotals(row.quantity, row.events, row.unvalued)
        for row in connection.execute(select(progress_totals))
    }
    adding = [meter_id for meter_id, meter in known.items() if meter.metric.kind.combine in _ADDED]
    quantity = case((usage.c.meter_id.in_(adding), usage.c.quantity), else_=None)
    rows = connection.execute(
        select(
            usage.c.partition,
            usage.c.meter_id,
            _sum(connection, quantity).label("quantity"),
            func.sum(usage.c.events).label("events"),
            func.sum(usage.c.unvalued).label("unvalued"),
        ).group_by(usage.c.partition, usage.c.meter_id)
    ).all()
    summed = {
        (row.partition, row.meter_id): MeterTotals(
            row.quantity or Decimal(0), int(row.events), int(row.unvalued)
        )
        for row in rows
    }
    for key, gone in read_retired(connection).items():
        there = summed.get(key, _NOTHING)
        summed[key] = MeterTotals(
            EXACT.add(there.quantity, gone.quantity),
            there.events + gone.events,
            there.unvalued + gone.unvalued,
        )
    return [*check_totals(kept, summed), *_verify_distinct(connection, known)]


def _verify_distinct(connection: Connection, known: Mapping[int, Meter]) -> list[Violation]:
    """A unique metric's quantities are the number of its values."""
    unique = [meter_id for meter_id, meter in known.items() if meter.metric.kind is MetricKind.UNIQUE]
    keys = (usage.c.partition, usage.c.meter_id)
    counted = {
        (row.partition, row.meter_id): MeterTotals(row.quantity, 0, 0)
        for row in connection.execute(
            select(*keys, _sum(connection, usage.c.quantity).label("quantity"))
            .where(usage.c.meter_id.in_(unique))
            .group_by(*keys)
        )
    }
    values = distinct_values.c
    held = {
        (row.partition, row.meter_id): MeterTotals(Decimal(row.held), 0, 0)
        for row in connection.execute(
            select(values.partition, values.meter_id, func.count().label("held")).group_by(
                values.partition, values.meter_id
            )
        )
    }
    return [
        Violation(
            Law.TOTALS,
            f"partition {key[0]}, meter {key[1]}",
            f"usage rows count {counted[key].quantity if key in counted else 0} different values, "
            f"{held[key].quantity if key in held else 0} are kept",
        )
        for key in sorted(counted.keys() | held.keys())
        if counted.get(key, _NOTHING) != held.get(key, _NOTHING)
    ]


def _pairs(connection: Connection, statement: Select[Any]) -> list[tuple[Any, Any]]:
    return [(first, second) for first, second in connection.execute(statement)]


def _sum(connection: Connection, column: Any) -> Any:
    function = func.sum if connection.dialect.name == "postgresql" else func.quantity_sum
    return function(column, type_=Quantity())
