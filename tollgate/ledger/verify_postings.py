"""Law 3 from the ledger's tables: every posting chain is whole, and usage no posting covers is held or not yet due.

Owns which rows a chain answers for. It refuses to know the equations (`tollgate.metering.conservation`) and Stripe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import groupby
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, case, func, select

from tollgate.ledger.posting_rows import AT_STRIPE, REPLACING_MODES, PostingMode, PostingState
from tollgate.ledger.tables import (
    attributions,
    controls,
    distinct_values,
    holds,
    plan_cursors,
    postings,
    usage,
)
from tollgate.ledger.types import EXACT
from tollgate.metering.conservation import (
    ChainLink,
    LinkEffect,
    Unposted,
    Violation,
    check_chain,
    check_unposted,
)
from tollgate.metering.metric import COMBINE_ADD, MetricKind

_ROWS_A_FETCH = 1_000

_EFFECTS: Mapping[PostingState, LinkEffect] = {
    **dict.fromkeys(PostingState, LinkEffect.OPEN),
    **dict.fromkeys(AT_STRIPE, LinkEffect.DELIVERED),
    PostingState.DRY_RUN: LinkEffect.REHEARSED,
    PostingState.VOID: LinkEffect.VOID,
    PostingState.REVERSAL: LinkEffect.REVERSAL,
    PostingState.SUPERSEDED: LinkEffect.SUPERSEDED,
}


@dataclass(frozen=True, slots=True)
class PostedMeter:
    """A version of a meter whose usage goes to Stripe."""

    name: str
    kind: MetricKind


@dataclass(slots=True)
class _Posted:
    """Where a chain stands."""

    reached: Decimal = Decimal(0)
    """The last link's `to`."""
    void: Decimal = Decimal(0)
    """Part of it that Stripe never took and no reversal has taken back yet."""


@dataclass(slots=True)
class _Used:
    """What a chain's slots used, read row by row."""

    quantity: Decimal | None = None
    order: tuple[int, int, int] = field(default=(-(2**63), 0, 0))
    due: bool = True
    hold_reason: str | None = None

    def take(self, kind: MetricKind, row: Row[Any]) -> None:
        if row.reason is not None:
            self.hold_reason = row.reason
        if row.changed_offset > (row.planned_offset or 0):
            self.due = False
        if kind.combine == COMBINE_ADD:
            self.quantity = EXACT.add(self.quantity or Decimal(0), row.quantity)
        elif kind is MetricKind.MAX:
            self.quantity = max(row.quantity, self.quantity or Decimal(0))
        elif row.events == 0:
            return
        elif kind is MetricKind.MIN:
            self.quantity = row.quantity if self.quantity is None else min(row.quantity, self.quantity)
        elif kind is MetricKind.LATEST and (row.order_ms, row.partition, row.order_offset) >= self.order:
            self.order = (row.order_ms, row.partition, row.order_offset)
            self.quantity = row.quantity


def verify_postings(connection: Connection, meters: Mapping[int, PostedMeter]) -> list[Violation]:
    """Every violation of law 3. `meters`: by id, those whose usage planning has taken up whole."""
    found: list[Violation] = []
    posted: dict[str, _Posted] = {}
    for key, links in _chains(connection):
        found += check_chain(links)
        chain = posted.setdefault(key, _Posted())
        for link in links:
            chain.reached = link.quantity_to
            if link.effect is LinkEffect.VOID or link.effect is LinkEffect.REVERSAL:
                chain.void = EXACT.add(chain.void, link.quantity)
    found += check_unposted(_unposted(connection, meters, posted))
    return found


def _chains(connection: Connection) -> Iterator[tuple[str, list[ChainLink]]]:
    """Every chain's links; read in order, a few rows in memory at a time."""
    rows = connection.execute(
        select(
            postings.c.posting_key,
            postings.c.seq,
            postings.c.quantity_from,
            postings.c.quantity_to,
            postings.c.state,
            postings.c.mode,
            case((postings.c.mode == PostingMode.REVERSAL, postings.c.body)).label("reversal"),
        )
        .order_by(postings.c.posting_key, postings.c.seq)
        .execution_options(yield_per=_ROWS_A_FETCH)
    )
    for key, members in groupby(rows, key=lambda row: row.posting_key):
        yield (
            key,
            [
                ChainLink(
                    key,
                    row.seq,
                    row.quantity_from,
                    row.quantity_to,
                    _EFFECTS[PostingState(row.state)],
                    row.mode in REPLACING_MODES,
                    None if row.reversal is None else tuple(json.loads(row.reversal)["reverses"]),
                )
                for row in members
            ],
        )


def _unposted(
    connection: Connection,
    meters: Mapping[int, PostedMeter],
    posted: Mapping[str, _Posted],
) -> Iterator[Unposted]:
    """Per chain, and per slot without one: what no posting covers."""
    distinct = _chain_distinct(connection, list(meters))
    rows = connection.execute(_slots(list(meters)).execution_options(yield_per=_ROWS_A_FETCH))

    # Rows of a chain follow each other; a slot that is pinned to none is a chain of its own.
    def chain_of(row: Row[Any]) -> tuple[Any, ...]:
        if row.posting_key is not None:
            return (row.posting_key, row.meter_id)
        return (None, row.meter_id, row.window_start_ms, row.account)

    for chain, members in groupby(rows, key=chain_of):
        key, meter_id = chain[0], chain[1]
        meter = meters[meter_id]
        used = _Used()
        for row in members:
            used.take(meter.kind, row)
        quantity = used.quantity or Decimal(0)
        if key is None:
            if meter.kind is MetricKind.UNIQUE:
                # Not pinned: any value counts, how many does not matter.
                quantity = Decimal(1) if used.hold_reason is None else Decimal(0)
            subject = f"usage of {meter.name}, account {chain[3]}, window {chain[2]}"
            yield Unposted(subject, quantity, used.hold_reason, used.due)
            continue
        if meter.kind is MetricKind.UNIQUE:
            quantity = Decimal(distinct.get(key, 0))
        standing = posted.get(key, _Posted())
        missing = EXACT.add(EXACT.subtract(quantity, standing.reached), standing.void)
        yield Unposted(f"posting {key} of {meter.name}", missing, used.hold_reason, used.due)
    if connection.execute(select(controls.c.name).where(controls.c.name.startswith("journal_wait:"))).first():
        # After a restore: postings came back from the journal, the counts they were planned from not yet.
        return
    pinned = set(connection.execute(select(attributions.c.posting_key)).scalars())
    for key in sorted(posted.keys() - pinned):
        # A chain nobody's usage is pinned to was posted for nothing.
        yield Unposted(f"posting {key}", -posted[key].reached, None, due=True)


def _slots(meter_ids: list[int]) -> Select[Any]:
    def same_slot(table: Any) -> Any:
        return and_(
            table.c.meter_id == usage.c.meter_id,
            table.c.window_start_ms == usage.c.window_start_ms,
            table.c.account == usage.c.account,
        )

    return (
        select(
            attributions.c.posting_key,
            usage.c.meter_id,
            usage.c.window_start_ms,
            usage.c.account,
            usage.c.partition,
            usage.c.quantity,
            usage.c.events,
            usage.c.order_ms,
            usage.c.order_offset,
            usage.c.changed_offset,
            plan_cursors.c.planned_offset,
            holds.c.reason,
        )
        .select_from(usage)
        .outerjoin(attributions, same_slot(attributions))
        .outerjoin(holds, same_slot(holds))
        .outerjoin(plan_cursors, plan_cursors.c.partition == usage.c.partition)
        .where(usage.c.meter_id.in_(meter_ids))
        .order_by(
            attributions.c.posting_key,
            usage.c.meter_id,
            usage.c.window_start_ms,
            usage.c.account,
            usage.c.partition,
        )
    )


def _chain_distinct(connection: Connection, meter_ids: list[int]) -> dict[str, int]:
    same_slot = and_(
        distinct_values.c.meter_id == attributions.c.meter_id,
        distinct_values.c.window_start_ms == attributions.c.window_start_ms,
        distinct_values.c.account == attributions.c.account,
    )
    statement = (
        select(attributions.c.posting_key, func.count(distinct_values.c.value_hash.distinct()))
        .join_from(attributions, distinct_values, same_slot)
        .where(attributions.c.meter_id.in_(meter_ids))
        .group_by(attributions.c.posting_key)
    )
    return {key: int(count) for key, count in connection.execute(statement)}
