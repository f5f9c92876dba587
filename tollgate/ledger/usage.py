"""Usage, read: the rows as they are, and totals over accounts and windows combined as each metric demands.

Owns the combination of usage rows in SQL. It refuses to write anything, and to know customers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, get_args

from sqlalchemy import Connection, Engine, Label, Select, case, func, select
from sqlalchemy.sql.elements import ColumnElement

from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.tables import distinct_values, meters, usage
from tollgate.ledger.types import Quantity
from tollgate.ledger.verify import verify_ledger
from tollgate.metering.definition import Meter
from tollgate.metering.metric import MetricKind

__all__ = ["Grouping", "UsageRow", "UsageTotal", "usage_rows", "usage_totals", "verify_ledger"]

Grouping = Literal["account", "window", "dimensions"]
"""What totals are kept apart by, beside the meter: quantities of different meters never add."""

_BY_ACCOUNT: tuple[Grouping, ...] = ("account",)

_COLUMNS: dict[Grouping, str] = {
    "account": "account",
    "window": "window_start_ms",
    "dimensions": "dimensions",
}


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One row of the ledger: the running quantity of one (meter version, account, window, dimensions)."""

    meter: str
    meter_id: int
    partition: int
    window_start_ms: int
    account: str
    dimensions: str
    quantity: Decimal
    events: int
    unvalued: int
    latest_event_ms: int
    changed_offset: int


@dataclass(frozen=True, slots=True)
class UsageTotal:
    """Usage combined over what it is not grouped by; those fields are None."""

    meter: str
    kind: MetricKind
    account: str | None
    window_start_ms: int | None
    dimensions: str | None
    quantity: Decimal
    events: int
    unvalued: int
    latest_event_ms: int


@dataclass(frozen=True, slots=True)
class _Filter:
    meter: str | None
    accounts: Collection[str] | None
    from_ms: int | None
    to_ms: int | None


def usage_rows(
    engine: Engine,
    *,
    meter: str | None = None,
    account: str | None = None,
    from_ms: int | None = None,
    to_ms: int | None = None,
) -> list[UsageRow]:
    """Usage rows by meter, window, account, dimensions; `meter` is a name (all its versions), windows start in
    `[from_ms, to_ms)`. Raises LedgerUnavailable.
    """
    chosen = _Filter(meter, None if account is None else (account,), from_ms, to_ms)
    statement = (
        select(meters.c.name, usage)
        .join(meters, meters.c.meter_id == usage.c.meter_id)
        .where(*_conditions(usage.c, chosen))
        .order_by(
            meters.c.name,
            usage.c.window_start_ms,
            usage.c.account,
            usage.c.dimensions,
            usage.c.meter_id,
            usage.c.partition,
        )
    )
    if meter is not None:
        statement = statement.where(meters.c.name == meter)
    with read_snapshot(engine) as connection:
        return [
            UsageRow(
                meter=row.name,
                meter_id=row.meter_id,
                partition=row.partition,
                window_start_ms=row.window_start_ms,
                account=row.account,
                dimensions=row.dimensions,
                quantity=row.quantity,
                events=row.events,
                unvalued=row.unvalued,
                latest_event_ms=row.latest_event_ms,
                changed_offset=row.changed_offset,
            )
            for row in connection.execute(statement)
        ]


def usage_totals(
    engine: Engine,
    *,
    by: Collection[Grouping] = _BY_ACCOUNT,
    meter: str | None = None,
    accounts: Collection[str] | None = None,
    from_ms: int | None = None,
    to_ms: int | None = None,
) -> list[UsageTotal]:
    """Usage per meter and kind, kept apart by `by`, the rest combined by what the metric is; of all accounts, or
    those of `accounts` alone.

    Counts and sums add; max and min take the largest and smallest; latest takes the value last by (time, partition,
    offset); unique counts the distinct values over all windows and accounts combined. Versions of one meter that
    count by the same kind combine; a version whose kind differs is a row of its own. Rows without a valued event
    have no part in max, min and latest. Ordered by meter, window, account, dimensions. Raises ValueError for an
    unknown grouping, LedgerUnavailable.
    """
    unknown = set(by) - set(get_args(Grouping))
    if unknown:
        raise ValueError(
            f"usage is grouped by {', '.join(get_args(Grouping))}; not by {', '.join(sorted(unknown))}"
        )
    chosen = _Filter(meter, accounts, from_ms, to_ms)
    grouping = [name for name in get_args(Grouping) if name in by]
    totals: list[UsageTotal] = []
    with read_snapshot(engine) as connection:
        for (name, kind), meter_ids in _meter_ids(connection, meter).items():
            totals += _totals_of(connection, name, kind, meter_ids, grouping, chosen)
    return sorted(
        totals,
        key=lambda total: (
            total.meter,
            total.window_start_ms or 0,
            total.account or "",
            total.dimensions or "",
        ),
    )


def _meter_ids(connection: Connection, name: str | None) -> dict[tuple[str, MetricKind], list[int]]:
    statement = select(meters.c.meter_id, meters.c.definition).order_by(meters.c.name, meters.c.meter_id)
    if name is not None:
        statement = statement.where(meters.c.name == name)
    found: dict[tuple[str, MetricKind], list[int]] = {}
    for row in connection.execute(statement):
        meter = Meter.from_document(row.definition)
        found.setdefault((meter.name, meter.metric.kind), []).append(row.meter_id)
    return found


def _totals_of(
    connection: Connection,
    name: str,
    kind: MetricKind,
    meter_ids: Sequence[int],
    grouping: Sequence[Grouping],
    chosen: _Filter,
) -> Iterable[UsageTotal]:
    keys = [usage.c[_COLUMNS[group]] for group in grouping]
    conditions = [usage.c.meter_id.in_(meter_ids), *_conditions(usage.c, chosen)]
    statement = select(
        *keys,
        func.sum(usage.c.events).label("events"),
        func.sum(usage.c.unvalued).label("unvalued"),
        func.max(usage.c.latest_event_ms).label("latest_event_ms"),
        _aggregate(connection, kind),
    ).where(*conditions)
    rows = connection.execute(statement.group_by(*keys) if keys else statement.having(func.count() > 0))
    picked: dict[tuple[Any, ...], Decimal] | None = None
    if kind is MetricKind.LATEST:
        picked = _picked(connection, _latest(meter_ids, grouping, chosen))
    elif kind is MetricKind.UNIQUE:
        picked = _picked(connection, _unique(meter_ids, grouping, chosen))
    for row in rows:
        key = tuple(row[: len(keys)])
        values: dict[str, Any] = dict(zip(grouping, key, strict=True))
        # Nothing valued: the quantity of a max, min or latest is 0, as in the row it comes from.
        quantity = (row.quantity if picked is None else picked.get(key)) or Decimal(0)
        yield UsageTotal(
            meter=name,
            kind=kind,
            account=values.get("account"),
            window_start_ms=values.get("window"),
            dimensions=values.get("dimensions"),
            quantity=quantity,
            events=int(row.events),
            unvalued=int(row.unvalued),
            latest_event_ms=row.latest_event_ms,
        )


def _aggregate(connection: Connection, kind: MetricKind) -> Label[Decimal]:
    """The SQL aggregate of an additive, max or min quantity; for the other kinds its value is not used."""
    names = {MetricKind.MAX: ("max", "quantity_largest"), MetricKind.MIN: ("min", "quantity_smallest")}
    on_postgresql, on_sqlite = names.get(kind, ("sum", "quantity_sum"))
    function = getattr(func, on_postgresql if connection.dialect.name == "postgresql" else on_sqlite)
    column: ColumnElement[Any] = usage.c.quantity
    if kind in names:
        # NULL where the row has no valued event: aggregates pass it over.
        column = case((usage.c.events > 0, column), else_=None)
    label: Label[Decimal] = function(column, type_=Quantity()).label("quantity")
    return label


def _picked(connection: Connection, statement: Select[Any]) -> dict[tuple[Any, ...], Decimal]:
    """Quantity, the statement's last column, by the columns before it."""
    return {tuple(row[:-1]): Decimal(row[-1]) for row in connection.execute(statement)}


def _latest(meter_ids: Sequence[int], grouping: Sequence[Grouping], chosen: _Filter) -> Select[Any]:
    keys = [usage.c[_COLUMNS[group]] for group in grouping]
    rank = func.row_number().over(
        partition_by=keys or None,
        order_by=[usage.c.order_ms.desc(), usage.c.partition.desc(), usage.c.order_offset.desc()],
    )
    ranked = (
        select(*keys, usage.c.quantity, rank.label("rank"))
        .where(usage.c.meter_id.in_(meter_ids), usage.c.events > 0, *_conditions(usage.c, chosen))
        .subquery()
    )
    return select(*[ranked.c[key.name] for key in keys], ranked.c.quantity).where(ranked.c.rank == 1)


def _unique(meter_ids: Sequence[int], grouping: Sequence[Grouping], chosen: _Filter) -> Select[Any]:
    keys = [distinct_values.c[_COLUMNS[group]] for group in grouping]
    return (
        select(*keys, func.count(distinct_values.c.value_hash.distinct()))
        .where(distinct_values.c.meter_id.in_(meter_ids), *_conditions(distinct_values.c, chosen))
        .group_by(*keys)
    )


def _conditions(columns: Any, chosen: _Filter) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if chosen.accounts is not None:
        conditions.append(columns.account.in_(chosen.accounts))
    if chosen.from_ms is not None:
        conditions.append(columns.window_start_ms >= chosen.from_ms)
    if chosen.to_ms is not None:
        conditions.append(columns.window_start_ms < chosen.to_ms)
    return conditions
