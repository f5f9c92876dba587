"""What chains amount to: all usage pinned to each, combined by its metric.

Owns the sums over slots. It refuses to know what was posted of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, and_, func, select

from tollgate.ledger.attribution import USAGE_COLUMNS, Claim
from tollgate.ledger.chunks import among, key_chunks
from tollgate.ledger.plan_rows import (
    Slot,
    UsageRow,
    usage_from_row,
)
from tollgate.ledger.plan_rules import PlanRules
from tollgate.ledger.tables import (
    attributions,
    distinct_values,
    usage,
)
from tollgate.metering.meter import MetricKind


@dataclass(frozen=True, slots=True)
class ChainTotal:
    """What a chain's usage amounts to, the source partitions it was counted from, and the slots it is of."""

    quantity: Decimal
    partitions: frozenset[int]
    slots: frozenset[Slot]


def load_chain_totals(
    connection: Connection, rules: PlanRules, claims: Mapping[str, Claim]
) -> dict[str, ChainTotal]:
    """By posting key, all usage of the slots pinned to each chain of `claims`."""
    kinds = {key: claim.terms.kind for key, claim in claims.items()}
    by_slot: dict[str, dict[Slot, list[UsageRow]]] = {}
    partitions: dict[str, set[int]] = {}
    for key, claim in claims.items():
        known = claim.usage or {}
        by_slot[key] = defaultdict(list, {slot: list(rows) for slot, rows in known.items()})
        partitions[key] = {row.partition for rows in known.values() for row in rows}
    unknown = sorted(key for key, claim in claims.items() if claim.usage is None)
    for chunk in key_chunks(connection, unknown):
        for row in connection.execute(
            select(*USAGE_COLUMNS, attributions.c.posting_key)
            .join_from(attributions, usage, _same_slot(usage))
            .where(among(connection, [attributions.c.posting_key], [(key,) for key in chunk]))
        ):
            slot = Slot(row.meter_id, row.window_start_ms, row.account)
            by_slot[row.posting_key][slot].append(usage_from_row(row))
            partitions[row.posting_key].add(row.partition)
    distinct = _count_distinct(connection, [key for key, kind in kinds.items() if kind is MetricKind.UNIQUE])
    totals = {}
    for key, slots in by_slot.items():
        unique = kinds[key] is MetricKind.UNIQUE
        quantity = Decimal(distinct.get(key, 0)) if unique else _combine(rules, kinds[key], slots)
        totals[key] = ChainTotal(quantity, frozenset(partitions[key]), frozenset(slots))
    return totals


def _combine(rules: PlanRules, kind: MetricKind, slots: Mapping[Slot, Sequence[UsageRow]]) -> Decimal:
    if kind is MetricKind.LATEST:
        # The latest of all rows, whichever account and window it came from.
        return rules.combine_slot(kind, [row for rows in slots.values() for row in rows])
    quantities = [
        rules.combine_slot(kind, rows) for _, rows in sorted(slots.items()) if any(row.events for row in rows)
    ]
    return rules.combine_chain(kind, quantities)


def _count_distinct(connection: Connection, keys: Sequence[str]) -> dict[str, int]:
    found = {}
    for chunk in key_chunks(connection, sorted(keys)):
        for row in connection.execute(
            select(
                attributions.c.posting_key,
                func.count(distinct_values.c.value_hash.distinct()).label("values"),
            )
            .join_from(attributions, distinct_values, _same_slot(distinct_values))
            .where(among(connection, [attributions.c.posting_key], [(key,) for key in chunk]))
            .group_by(attributions.c.posting_key)
        ):
            found[row.posting_key] = row[1]
    return found


def _same_slot(table: Any) -> Any:
    return and_(
        table.c.account == attributions.c.account,
        table.c.meter_id == attributions.c.meter_id,
        table.c.window_start_ms == attributions.c.window_start_ms,
    )
