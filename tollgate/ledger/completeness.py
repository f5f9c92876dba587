"""Completeness as the ledger shows it: the ticks counted so far, and what of a period's usage is not settled yet.

Owns reading both. It refuses to know the rule of the watermark (`tollgate.metering.completeness`) and invoices. It
writes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, and_, func, select

from tollgate.ledger.chunks import chunks
from tollgate.ledger.controls import read_controls
from tollgate.ledger.engine import read_snapshot
from tollgate.ledger.meter_terms import load_terms
from tollgate.ledger.plan_rows import HoldReason, MeterTerms
from tollgate.ledger.posting_rows import UNSETTLED, PostingState
from tollgate.ledger.tables import (
    attributions,
    holds,
    mappings,
    plan_cursors,
    postings,
    progress,
    progress_instances,
    usage,
)
from tollgate.metering.completeness import InstanceTick, Watermark, find_watermark
from tollgate.metering.finalization import Incomplete

_CATCHING_UP = ("journal_wait:", "scan:")
"""Controls that say planning has not looked at everything yet: after a restore, or after a meter was switched on."""

_URGENCY = {reason: place for place, reason in enumerate(Incomplete)}


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """One customer's usage of one Billing Meter over `[start_ms, end_ms)`."""

    customer_id: str
    event_name: str
    start_ms: int
    end_ms: int


def load_watermark(engine: Engine, now_ms: int, silence_ms: int) -> Watermark:
    """Up to when everything ingested has been counted. See `find_watermark` for `silence_ms`."""
    with read_snapshot(engine) as connection:
        return read_watermark(connection, now_ms, silence_ms)


def read_watermark(connection: Connection, now_ms: int, silence_ms: int) -> Watermark:
    """The same on a transaction of the caller."""
    partitions = connection.execute(select(progress.c.partition)).scalars().all()
    ticks = connection.execute(
        select(progress_instances.c.partition, progress_instances.c.instance, progress_instances.c.tick_ms)
    )
    return find_watermark(partitions, (InstanceTick(*row) for row in ticks), now_ms, silence_ms)


PlannedAhead = Mapping[str, Mapping[int, int]]
"""By customer and partition, the offset up to which its usage has been planned, ahead of the planning cursors."""


def load_unsettled(
    engine: Engine, spans: Collection[Span], ahead: PlannedAhead | None = None
) -> dict[Span, Incomplete]:
    """Those of `spans` whose counted usage is not all settled at Stripe, and what stands in the way."""
    with read_snapshot(engine) as connection:
        return read_unsettled(connection, spans, ahead)


def read_unsettled(
    connection: Connection, spans: Collection[Span], ahead: PlannedAhead | None = None
) -> dict[Span, Incomplete]:
    """The same on a transaction of the caller.

    1. Usage that planning has not read past. 2. Usage that waits for its chain's posting to settle. 3. Postings that
    are not over. What is held for any other reason waits for somebody's decision, not for time, and holds nothing up.
    """
    if not spans:
        return {}
    if any(name.startswith(_CATCHING_UP) for name in read_controls(connection)):
        return dict.fromkeys(spans, Incomplete.PLANNING)
    found = _Spans(spans, load_terms(connection))
    for customers in chunks(sorted({span.customer_id for span in spans})):
        _add_unplanned(connection, customers, found, ahead)
        _add_waiting(connection, customers, found)
        _add_postings(connection, customers, found)
    return found.reasons


class _Spans:
    """The spans asked about, by customer, and what was found of each."""

    def __init__(self, spans: Iterable[Span], terms: Mapping[int, MeterTerms]) -> None:
        self.terms = terms
        self.reasons: dict[Span, Incomplete] = {}
        self._by_customer: dict[str, list[Span]] = defaultdict(list)
        for span in spans:
            self._by_customer[span.customer_id].append(span)

    def add_window(self, customer_id: str, meter_id: int, window_start_ms: int, reason: Incomplete) -> None:
        """Something about one of a meter's windows."""
        meter = self.terms.get(meter_id)
        if meter is not None and meter.send != "off":
            end_ms = window_start_ms + meter.window_size_ms
            self._add(customer_id, meter, window_start_ms, end_ms, reason)

    def add_stamp(self, customer_id: str, meter_id: int, stamp_ms: int, reason: Incomplete) -> None:
        """Something about a posting stamped at one moment."""
        meter = self.terms.get(meter_id)
        if meter is not None:
            self._add(customer_id, meter, stamp_ms, stamp_ms + 1, reason)

    def _add(
        self, customer_id: str, meter: MeterTerms, start_ms: int, end_ms: int, reason: Incomplete
    ) -> None:
        for span in self._by_customer[customer_id]:
            touches = span.start_ms < end_ms and start_ms < span.end_ms
            if touches and span.event_name == meter.event_name:
                known = self.reasons.get(span, reason)
                self.reasons[span] = min(known, reason, key=_URGENCY.__getitem__)


def _add_unplanned(
    connection: Connection, customers: Sequence[str], found: _Spans, ahead: PlannedAhead | None
) -> None:
    for customer_id, row in unplanned_usage(connection, customers, ahead=ahead):
        found.add_window(customer_id, row.meter_id, row.window_start_ms, Incomplete.PLANNING)


@dataclass(frozen=True, slots=True)
class UnplannedUsage:
    """A slot whose usage changed after planning last looked at its partition."""

    meter_id: int
    window_start_ms: int
    account: str


def unplanned_usage(
    connection: Connection,
    customers: Sequence[str],
    limit: int | None = None,
    ahead: PlannedAhead | None = None,
) -> list[tuple[str, UnplannedUsage]]:
    """By customer, unplanned usage of the accounts that ever were mapped to one of `customers` (a few hundred).

    Read from each partition's planning cursor on: what changed since the last planning is little, a period's usage is
    much.
    """
    owners: dict[str, list[str]] = defaultdict(list)
    mapped = select(mappings.c.account, mappings.c.customer_id).where(mappings.c.customer_id.in_(customers))
    for account, customer_id in connection.execute(mapped):
        owners[account].append(customer_id)
    behind = connection.execute(
        select(progress.c.partition, plan_cursors.c.planned_offset)
        .join(plan_cursors, plan_cursors.c.partition == progress.c.partition, isouter=True)
        .where(
            (plan_cursors.c.planned_offset.is_(None))
            | (plan_cursors.c.planned_offset < progress.c.next_offset)
        )
    ).all()
    found: list[tuple[str, UnplannedUsage]] = []
    for partition, planned_offset in behind:
        for accounts in chunks(sorted(owners)):
            rows = connection.execute(
                select(
                    usage.c.meter_id,
                    usage.c.window_start_ms,
                    usage.c.account,
                    func.max(usage.c.changed_offset).label("changed_offset"),
                )
                .where(
                    and_(
                        usage.c.partition == partition,
                        usage.c.changed_offset > (planned_offset or 0),
                        usage.c.account.in_(accounts),
                    )
                )
                .group_by(usage.c.meter_id, usage.c.window_start_ms, usage.c.account)
                .limit(limit)
            )
            for row in rows:
                slot = UnplannedUsage(row.meter_id, row.window_start_ms, row.account)
                found += [
                    (customer_id, slot)
                    for customer_id in owners[row.account]
                    if row.changed_offset > (ahead or {}).get(customer_id, {}).get(partition, 0)
                ]
    return found


def _add_waiting(connection: Connection, customers: Sequence[str], found: _Spans) -> None:
    same_slot = and_(
        attributions.c.meter_id == holds.c.meter_id,
        attributions.c.window_start_ms == holds.c.window_start_ms,
        attributions.c.account == holds.c.account,
    )
    rows = connection.execute(
        select(attributions.c.customer_id, holds.c.meter_id, holds.c.window_start_ms)
        .join_from(holds, attributions, same_slot)
        .where(and_(holds.c.reason == HoldReason.IN_FLIGHT, attributions.c.customer_id.in_(customers)))
    )
    for row in rows:
        found.add_window(row.customer_id, row.meter_id, row.window_start_ms, Incomplete.PLANNING)


def _add_postings(connection: Connection, customers: Sequence[str], found: _Spans) -> None:
    rows = connection.execute(
        select(postings.c.customer_id, postings.c.meter_id, postings.c.timestamp_s, postings.c.state).where(
            and_(postings.c.customer_id.in_(customers), postings.c.state.in_(UNSETTLED))
        )
    )
    for row in rows:
        reason = Incomplete.PARKED if row.state == PostingState.PARKED else Incomplete.POSTING
        found.add_stamp(row.customer_id, row.meter_id, row.timestamp_s * 1000, reason)
