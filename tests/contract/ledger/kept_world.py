"""A ledger with a long past: periods that were billed and reconciled, counted by real flushes so that the law holds."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import select, update

from tests.contract.ledger.folds import Delta, make_fold, part, prints
from tests.contract.ledger.postings_world import HOUR_MS, T0, World
from tollgate.ledger.engine import ledger_transaction, read_snapshot
from tollgate.ledger.insertion import put
from tollgate.ledger.maintenance import MaintenanceReport, maintain
from tollgate.ledger.progress import commit_fold, load_progress
from tollgate.ledger.reconciliations import DAY_MS
from tollgate.ledger.retention import Retention
from tollgate.ledger.tables import (
    catalogue_state,
    item_periods,
    meters,
    reconciliations,
    usage,
)
from tollgate.metering.definition import Meter
from tollgate.metering.metric import COMBINE_DISTINCT, COMBINE_LATEST
from tollgate.metering.usage import NEVER

START, END = T0 - 100 * HOUR_MS, T0 + 600 * HOUR_MS
LATER = END + 401 * DAY_MS
MUCH_LATER = END + 900 * DAY_MS


@dataclass
class KeptWorld:
    """A world whose usage comes by the one transaction, and a shorthand for what happens to a period in its life."""

    world: World

    def count(self, *deltas: Delta, ingest_ms: int = 0) -> None:
        """A flush a partition that brings these."""
        for partition in sorted({delta.partition for delta in deltas}):
            at = load_progress(self.world.engine, [partition])[partition].next_offset
            mine = [delta for delta in deltas if delta.partition == partition]
            with read_snapshot(self.world.engine) as connection:
                version = connection.execute(select(catalogue_state.c.meters_version)).scalar_one()
            fold = make_fold([part(partition, at, at + 1, counted=len(mine), ingest_ms=ingest_ms)], mine)
            assert not commit_fold(self.world.engine, fold, prints(fold), version, 0)

    def use(self, meter_id: int, account: str, quantity: int = 1, window: int = 0, **other: Any) -> Delta:
        """Usage of one window, counted; returned for being counted again."""
        start_ms = T0 + window * HOUR_MS
        delta = Delta(
            meter_id=meter_id,
            window_start_ms=start_ms,
            account=account,
            quantity=Decimal(quantity),
            latest_event_ms=start_ms + 1_000,
            **other,
        )
        self.count(delta)
        return delta

    def bill(
        self, customer_id: str, event_name: str = "calls", start_ms: int = START, **changed: object
    ) -> None:
        """The period's invoice is final, its items are closed, and its reconciliation came to its end."""
        row: dict[str, object] = {
            "customer_id": customer_id,
            "event_name": event_name,
            "period_start_ms": start_ms,
            "period_end_ms": END,
            "counted": Decimal(0),
            "delivered": Decimal(0),
            "stripe": None,
            "invoiced": "0",
            "invoice_id": "in_1",
            "invoice_status": "paid",
            "verdict": "agrees",
            "drift": "0",
            "findings": [],
            "checked_ms": END + DAY_MS,
            "asked_ms": None,
            "due_ms": None,
        }
        with ledger_transaction(self.world.engine) as connection:
            put(connection, reconciliations, [row | changed])
            connection.execute(
                update(item_periods)
                .where(
                    item_periods.c.customer_id == customer_id,
                    item_periods.c.event_name == event_name,
                    item_periods.c.period_start_ms == start_ms,
                )
                .values(state="closed")
            )

    def maintain(self, now_ms: int = LATER, **options: Any) -> MaintenanceReport:
        retention = options.pop("retention", Retention())
        return maintain(self.world.engine, retention, now_ms, **options)

    def rows(self, table: Any = usage) -> list[tuple[Any, ...]]:
        with read_snapshot(self.world.engine) as connection:
            return sorted((tuple(row) for row in connection.execute(select(table))), key=repr)


def billed_history(world: World, customers: int = 3, windows: int = 4) -> KeptWorld:
    """Customers `cus_0`… of one or two accounts each, over all partitions, with usage of each meter: counted, delivered,
    billed, reconciled."""
    kept = KeptWorld(world)
    with read_snapshot(world.engine) as connection:
        found = connection.execute(select(meters.c.meter_id, meters.c.definition)).all()
    kinds = {row.meter_id: Meter.from_document(row.definition) for row in found}
    partitions = len(load_progress(world.engine))
    for number in range(customers):
        accounts = [f"user:{number}a", f"user:{number}b"][: 1 + number % 2]
        world.customer(f"cus_{number}", *accounts)
        for meter in kinds.values():
            world.period(f"cus_{number}", meter.name, START, END)
        kept.count(
            *(
                _delta(meter_id, meter.metric.kind.combine, (number + place) % partitions, account, window)
                for meter_id, meter in kinds.items()
                for place, account in enumerate(accounts)
                for window in range(windows)
            )
        )
    world.settle_all()
    for number in range(customers):
        for meter in kinds.values():
            kept.bill(f"cus_{number}", meter.name)
    return kept


def _delta(meter_id: int, combine: int, partition: int, account: str, window: int) -> Delta:
    start_ms = T0 + window * HOUR_MS
    distinct, latest = combine == COMBINE_DISTINCT, combine == COMBINE_LATEST
    return Delta(
        partition=partition,
        meter_id=meter_id,
        window_start_ms=start_ms,
        account=account,
        combine=combine,
        quantity=Decimal(0 if distinct else 3 + window),
        events=2,
        unvalued=window % 2,
        latest_event_ms=start_ms + 5_000,
        order_ms=start_ms if latest else NEVER,
        order_offset=window if latest else NEVER,
        values=frozenset({window, 77}) if distinct else frozenset(),
    )
