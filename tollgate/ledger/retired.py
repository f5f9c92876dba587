"""What was removed for its age, as the law still counts it.

Owns reading `usage_retired` and adding to it, the account of every usage row that is gone. It refuses to know which
rows go (`retiring.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, case, func, select
from sqlalchemy.engine import Row

from tollgate.ledger.arrays import Upsert, words_of, write_rows
from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.tables import meters, usage, usage_retired
from tollgate.ledger.types import Quantity, format_quantity
from tollgate.metering.definition import Meter
from tollgate.metering.metric import COMBINE_ADD, COMBINE_DISTINCT, MetricKind

_ADDED = (COMBINE_ADD, COMBINE_DISTINCT)


@dataclass(frozen=True, slots=True)
class RetiredUsage:
    """The usage rows of one partition and meter that were removed, added up."""

    quantity: Decimal
    """0 where quantities do not add up."""
    events: int
    unvalued: int
    usage_rows: int
    before_ms: int
    """Every window that lost a row begins before this (epoch ms)."""


def load_retired(engine: Engine) -> dict[tuple[int, int], RetiredUsage]:
    """By partition and meter id, all that was ever removed. Raises LedgerUnavailable."""
    with read_snapshot(engine) as connection:
        return read_retired(connection)


def read_retired(connection: Connection) -> dict[tuple[int, int], RetiredUsage]:
    """The same on a transaction of the caller."""
    return {
        (row.partition, row.meter_id): RetiredUsage(
            row.quantity, row.events, row.unvalued, row.usage_rows, row.before_ms
        )
        for row in connection.execute(select(usage_retired))
    }


def read_kinds(connection: Connection) -> dict[int, MetricKind]:
    """The kind of every meter version there ever was, by meter id."""
    rows = connection.execute(select(meters.c.meter_id, meters.c.definition))
    return {row.meter_id: Meter.from_document(row.definition).metric.kind for row in rows}


def sum_usage(connection: Connection, kinds: dict[int, MetricKind], where: Any) -> Sequence[Row[Any]]:
    """The usage rows that `where` picks, added up by partition and meter as the law adds them."""
    adding = [meter_id for meter_id, kind in kinds.items() if kind.combine in _ADDED]
    quantity = case((usage.c.meter_id.in_(adding), usage.c.quantity), else_=None)
    total = func.sum if connection.dialect.name == "postgresql" else func.quantity_sum
    return connection.execute(
        select(
            usage.c.partition,
            usage.c.meter_id,
            total(quantity, type_=Quantity()).label("quantity"),
            func.sum(usage.c.events).label("events"),
            func.sum(usage.c.unvalued).label("unvalued"),
            func.count().label("usage_rows"),
            func.max(usage.c.window_start_ms).label("last_window_ms"),
        )
        .where(where)
        .group_by(usage.c.partition, usage.c.meter_id)
        .order_by(usage.c.partition, usage.c.meter_id)
    ).all()


def book_retired(connection: Connection, sums: Sequence[Row[Any]]) -> None:
    """Add rows of `sum_usage` to the account, in the transaction that removes them."""
    add = words_of(connection).quantity_add
    counters = ("events", "unvalued", "usage_rows")
    upsert = Upsert(
        table="usage_retired",
        columns={
            "partition": "integer",
            "meter_id": "bigint",
            "quantity": "numeric",
            **dict.fromkeys(counters, "bigint"),
            "before_ms": "bigint",
        },
        keys=("partition", "meter_id"),
        updates={
            "quantity": add.format("held.quantity", "excluded.quantity"),
            **{name: f"held.{name} + excluded.{name}" for name in counters},
            "before_ms": words_of(connection).larger.format("held.before_ms", "excluded.before_ms"),
        },
    )
    write_rows(
        connection,
        upsert,
        {
            "partition": [row.partition for row in sums],
            "meter_id": [row.meter_id for row in sums],
            "quantity": [format_quantity(row.quantity or Decimal(0)) for row in sums],
            **{name: [int(getattr(row, name)) for row in sums] for name in counters},
            "before_ms": [row.last_window_ms + 1 for row in sums],
        },
    )
