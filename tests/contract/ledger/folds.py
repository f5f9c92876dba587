"""Folds made by hand, and a ten-line ledger over dicts to compare with."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Context, Decimal
from typing import Any

import numpy as np
import polars as pl
from sqlalchemy import Engine, select

from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.tables import OWNERS
from tollgate.metering.metric import (
    COMBINE_ADD,
    COMBINE_DISTINCT,
    COMBINE_LATEST,
    COMBINE_MAX,
    COMBINE_MIN,
)
from tollgate.metering.outcome import Fold, InstanceFold, Outcomes, PartitionFold
from tollgate.metering.usage import DISTINCT_SCHEMA, NEVER, USAGE_KEY, USAGE_SCHEMA

Key = tuple[int, int, int, str, str]

add_exactly = Context(prec=60).add
"""The default context keeps 28 digits; a quantity has 38."""


@dataclass(frozen=True)
class Delta:
    """One usage row of a fold."""

    partition: int = 0
    meter_id: int = 1
    window_start_ms: int = 0
    account: str = "user:a"
    dimensions: str = ""
    combine: int = COMBINE_ADD
    quantity: Decimal = Decimal(1)
    events: int = 1
    unvalued: int = 0
    latest_event_ms: int = 10
    order_ms: int = NEVER
    order_offset: int = NEVER
    values: frozenset[int] = frozenset()
    """Hashes a unique metric met."""

    @property
    def key(self) -> Key:
        return (self.partition, self.meter_id, self.window_start_ms, self.account, self.dimensions)


def part(
    partition: int,
    from_offset: int,
    next_offset: int,
    *,
    counted: int = 0,
    duplicate: int = 0,
    weak_duplicate: int = 0,
    late: int = 0,
    dead: int = 0,
    unmatched: int = 0,
    instances: Mapping[str, InstanceFold] | None = None,
    seen: Mapping[int, Sequence[int]] | None = None,
    ingest_ms: int = 0,
) -> PartitionFold:
    """What a flush did to one partition."""
    received = counted + duplicate + late + dead + unmatched
    return PartitionFold(
        partition=partition,
        from_offset=from_offset,
        next_offset=next_offset,
        outcomes=Outcomes(received, counted, unmatched, duplicate, weak_duplicate, late, dead),
        instances=dict(instances if instances is not None else {"i": InstanceFold(received, None)}),
        seen_ids={day: np.array(sorted(ids), dtype=np.uint64) for day, ids in (seen or {}).items()},
        ingest_ms_max=ingest_ms,
        ingest_ms_min=ingest_ms or None,
        last_offset=next_offset - 1,
    )


def make_fold(parts: Sequence[PartitionFold], deltas: Sequence[Delta] = ()) -> Fold:
    """A fold as the evaluator yields it: one row per key, sorted."""
    usage = pl.DataFrame(
        [[getattr(delta, name) for name in USAGE_SCHEMA] for delta in deltas],
        schema=USAGE_SCHEMA,
        orient="row",
    ).sort(USAGE_KEY)
    distinct = pl.DataFrame(
        [[*delta.key, value] for delta in deltas for value in delta.values],
        schema=DISTINCT_SCHEMA,
        orient="row",
    ).sort(list(DISTINCT_SCHEMA))
    return Fold(partitions={each.partition: each for each in parts}, usage=usage, distinct=distinct, dead=[])


def prints(fold: Fold) -> dict[int, str]:
    """Fingerprints for every partition of a fold."""
    return {partition: f"f{each.next_offset}" for partition, each in fold.partitions.items()}


def dump(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the meter's tables, in comparable order."""
    with read_snapshot(engine) as connection:
        return {
            table.name: sorted(tuple(row) for row in connection.execute(select(table)))
            for table in OWNERS["meter"]
        }


@dataclass
class NaiveLedger:
    """What the usage rows must be: one event batch after the other, over dicts."""

    rows: dict[Key, dict[str, Any]] = field(default_factory=dict)
    values: dict[Key, set[int]] = field(default_factory=lambda: defaultdict(set))

    def add(self, delta: Delta, next_offset: int) -> None:
        row = self.rows.setdefault(
            delta.key,
            {
                "quantity": None,
                "events": 0,
                "unvalued": 0,
                "latest": delta.latest_event_ms,
                "order": (NEVER, NEVER),
            },
        )
        order = (delta.order_ms, delta.order_offset)
        if delta.combine == COMBINE_DISTINCT:
            self.values[delta.key] |= delta.values
            row["quantity"] = Decimal(len(self.values[delta.key]))
        elif delta.combine == COMBINE_ADD:
            row["quantity"] = add_exactly(row["quantity"] or Decimal(0), delta.quantity)
        elif delta.events:
            choices = [quantity for quantity in (row["quantity"], delta.quantity) if quantity is not None]
            if delta.combine == COMBINE_LATEST:
                row["quantity"] = delta.quantity if order > row["order"] else row["quantity"]
                row["order"] = max(order, row["order"])
            else:
                row["quantity"] = max(choices) if delta.combine == COMBINE_MAX else min(choices)
        row["events"] += delta.events
        row["unvalued"] += delta.unvalued
        row["latest"] = max(row["latest"], delta.latest_event_ms)
        row["changed"] = next_offset

    def table(self) -> dict[Key, tuple[Any, ...]]:
        return {
            key: (
                row["quantity"] or Decimal(0),
                row["events"],
                row["unvalued"],
                row["latest"],
                row["changed"],
            )
            for key, row in self.rows.items()
        }


_KINDS = {
    1: COMBINE_ADD,
    2: COMBINE_MAX,
    3: COMBINE_MIN,
    4: COMBINE_LATEST,
    5: COMBINE_DISTINCT,
    6: COMBINE_ADD,
}
"""Meter ids of random folds and their kinds."""


def random_deltas(rng: random.Random, partition: int, from_offset: int, count: int) -> list[Delta]:
    """Deltas of one flush of one partition, of every kind, valued and unvalued, on few keys so that they meet."""
    deltas: dict[Key, Delta] = {}
    for _ in range(count):
        meter_id = rng.choice(list(_KINDS))
        combine = _KINDS[meter_id]
        events = rng.choice([0, 1, 1, 3])
        valued = events > 0 and combine != COMBINE_DISTINCT
        latest = valued and combine == COMBINE_LATEST
        delta = Delta(
            partition=partition,
            meter_id=meter_id,
            window_start_ms=rng.choice([0, 3_600_000]),
            account=rng.choice(["user:a", 'user:"{é,\\}', "company: b", "user:NULL", "key:"]),
            dimensions=rng.choice(["", '{"model":"x,\\"y"}']),
            combine=combine,
            quantity=Decimal(rng.randrange(10**21)).scaleb(-rng.choice([0, 3, 9])) if valued else Decimal(0),
            events=events,
            unvalued=rng.choice([0, 2]) + (events == 0),
            latest_event_ms=rng.randrange(1_000),
            order_ms=rng.randrange(5) if latest else NEVER,
            order_offset=from_offset if latest else NEVER,
            values=frozenset(rng.sample([-(2**63), 2**63 - 1, 0, 1, 2, 3], rng.randrange(1, 4)))
            if events and combine == COMBINE_DISTINCT
            else frozenset(),
        )
        deltas[delta.key] = delta
    return list(deltas.values())
