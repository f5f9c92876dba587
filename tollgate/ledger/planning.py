"""The planning transaction: what changed in the counts becomes links of posting chains, or held usage, all at once.

Owns `plan_cursors`, `attributions`, `holds`, and the birth of postings. It refuses to know the rules (the caller's
`PlanRules` decide; `services/stripe_sync/plan.py` has them) and how anything is sent.

One transaction, fenced by the lease, reading one moment (`plan_postings`):

1. fence; stop if paused, or if an imported journal is ahead of the counts;
2. gather candidate slots: changed usage above each cursor, held usage worth another look, meters switched on;
3. resolve each slot's customer (pinned, else mapped) and place each (customer, meter, window) in an item period;
4. pin the slots to their chains, add up each chain's usage, decide its next link;
5. write postings, holds, cursors.

Cursors and postings move together: after a crash anywhere the next transaction sees both or neither. A slot that
cannot be planned yet is in `holds`, so a cursor that has passed it has not lost it.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Engine, and_, delete, exists, func, insert, select, tuple_

from tollgate.ledger.controls import PAUSED, SYNC_NOW, read_controls, write_controls
from tollgate.ledger.engine import ledger_transaction
from tollgate.ledger.insertion import put
from tollgate.ledger.leases import Lease, fence
from tollgate.ledger.posting_rows import (
    UNSETTLED,
    Chain,
    Hold,
    HoldReason,
    MappingRow,
    MeterTerms,
    NextLink,
    PeriodRow,
    Placement,
    PostingMode,
    PostingState,
    Slot,
    UsageRow,
    VoidLink,
)
from tollgate.ledger.tables import (
    attributions,
    directory_state,
    distinct_values,
    holds,
    item_periods,
    mappings,
    meters,
    plan_cursors,
    postings,
    progress,
    usage,
)
from tollgate.metering.meter import Meter, MetricKind

_T = TypeVar("_T")

CHUNK = 400
"""Keys in one IN list: three parameters each stay far below SQLite's limit of 32,766."""

WAIT = "journal_wait:"
"""Control, followed by a partition: planning waits until that partition's progress has reached the value."""

_SCAN = "scan:"
"""Control, followed by a meter id: where a walk over all its usage stands (it was switched on)."""

_SENDING = "send:"
"""Control, followed by a meter id: whether planning took its usage, `on` or `off`, when it last looked."""

_DIRECTORY = "directory_version"
_RETRY = "retry_holds"

_LOOK_AGAIN = (HoldReason.NO_MAPPING, HoldReason.NO_ITEM, HoldReason.CLOSED, HoldReason.AMBIGUOUS)
"""Reasons that a change of mappings or item periods can remove."""


class PlanRules(Protocol):
    """The decisions planning asks for. Pure: everything they depend on is in their arguments."""

    def resolve_customer(
        self, slot: Slot, pinned: str | None, candidates: Sequence[MappingRow]
    ) -> str | HoldReason:
        """Who pays for a slot."""
        ...

    def combine_slot(self, kind: MetricKind, rows: Sequence[UsageRow]) -> Decimal:
        """A slot's quantity over its dimensions and partitions."""
        ...

    def place(
        self,
        terms: MeterTerms,
        window_start_ms: int,
        latest_event_ms: int,
        periods: Sequence[PeriodRow],
        pinned_scope: int | None,
    ) -> Placement | HoldReason:
        """The chain's scope and the stamp for what a customer used in one window."""
        ...

    def chain_key(self, customer_id: str, meter_id: int, scope_start_ms: int) -> str:
        """The posting key of a chain."""
        ...

    def combine_chain(self, kind: MetricKind, slots: Sequence[Decimal]) -> Decimal:
        """A chain's quantity from its slots'."""
        ...

    def next_link(
        self, terms: MeterTerms, chain: Chain, total: Decimal, stamp_ms: int, now_ms: int
    ) -> NextLink | Hold | None:
        """The next link of a chain whose usage is now `total`; None when nothing is missing."""
        ...

    def compose(
        self, terms: MeterTerms, customer_id: str, key: str, seq: int, quantity_from: Decimal, link: NextLink
    ) -> Mapping[str, object]:
        """The columns of a posting that say what is sent: identifier, idempotency_key, timestamp_s, body."""
        ...


@dataclass(frozen=True, slots=True)
class PlanReport:
    """What one planning transaction did."""

    candidates: int = 0
    planned: int = 0
    reversals: int = 0
    held: Mapping[str, int] = field(default_factory=dict)
    more: bool = False
    """Work is left that this transaction's bound kept out: plan again at once."""
    paused: bool = False
    waiting_for: Mapping[int, int] = field(default_factory=dict)
    """Partitions whose progress must first reach an offset: the journal knows of postings the counts do not."""


@dataclass(slots=True)
class _Work:
    """What one transaction has gathered so far."""

    slots: set[Slot] = field(default_factory=set)
    cursors: dict[int, int] = field(default_factory=dict)
    controls: dict[str, str | None] = field(default_factory=dict)
    more: bool = False


@dataclass(slots=True)
class _ChainWork:
    """A chain that candidate slots belong to."""

    terms: MeterTerms
    customer_id: str
    scope_start_ms: int
    stamp_ms: int
    slots: set[Slot] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Pin:
    customer_id: str
    posting_key: str


def plan_postings(engine: Engine, lease: Lease, rules: PlanRules, now_ms: int, rows_max: int) -> PlanReport:
    """Plan what changed, at most about `rows_max` slots of each source; `more` tells that some is left.

    Raises LeaseLost, LedgerUnavailable and CommitUnknown: in each case planning again is safe.
    """
    with ledger_transaction(engine, isolation="snapshot") as connection:
        fence(connection, lease)
        controls = read_controls(connection)
        offsets = {
            row.partition: row.next_offset
            for row in connection.execute(select(progress.c.partition, progress.c.next_offset))
        }
        if PAUSED in controls:
            return PlanReport(paused=True)
        waiting, reached = _journal_gate(controls, offsets)
        if waiting:
            return PlanReport(waiting_for=waiting)
        terms = load_terms(connection)
        work = _Work()
        work.controls.update(dict.fromkeys(reached))
        if SYNC_NOW in controls:
            work.controls[SYNC_NOW] = None
        _gather_switched(connection, terms, controls, work, rows_max)
        _gather_changed(connection, terms, offsets, work, rows_max)
        switched_on = [meter_id for meter_id, meter in terms.items() if meter.send != "off"]
        _gather_held(connection, controls, switched_on, work, rows_max)
        # A meter that is off keeps what is held of it; the walk at its switching on looks at everything.
        slots = sorted(slot for slot in work.slots if slot.meter_id in switched_on)
        planner = _Planner(connection, rules, terms, now_ms, lease.version, offsets)
        planner.plan(slots)
        put(
            connection,
            plan_cursors,
            [{"partition": p, "planned_offset": offset} for p, offset in work.cursors.items()],
        )
        write_controls(connection, work.controls, now_ms)
        return PlanReport(
            candidates=len(slots),
            planned=planner.planned,
            reversals=planner.reversals,
            held=dict(planner.held),
            more=work.more,
        )


def load_terms(connection: Connection) -> dict[int, MeterTerms]:
    """Every version of every meter that has a Stripe target, by meter id."""
    found = {}
    for row in connection.execute(select(meters.c.meter_id, meters.c.definition)):
        meter = Meter.from_document(row.definition)
        if meter.stripe is not None:
            found[row.meter_id] = MeterTerms(
                meter_id=row.meter_id,
                name=meter.name,
                kind=meter.metric.kind,
                window_size_ms=meter.window.size_ms,
                event_name=meter.stripe.event_name,
                send=str(meter.stripe.send),
            )
    return found


def _journal_gate(
    controls: Mapping[str, str], offsets: Mapping[int, int]
) -> tuple[dict[int, int], list[str]]:
    """Partitions still behind what the journal was planned from, and the names of waits that are over."""
    waiting, reached = {}, []
    for name, value in controls.items():
        if name.startswith(WAIT):
            partition, offset = int(name.removeprefix(WAIT)), int(value)
            if offsets.get(partition, 0) < offset:
                waiting[partition] = offset
            else:
                reached.append(name)
    return waiting, reached


# ------------------------------------------------------------------------------------------- candidates


def _gather_changed(
    connection: Connection,
    terms: Mapping[int, MeterTerms],
    offsets: Mapping[int, int],
    work: _Work,
    rows_max: int,
) -> None:
    """Usage changed above each partition's cursor. The cursor stops below a change that did not fit whole."""
    planned = {
        row.partition: row.planned_offset
        for row in connection.execute(select(plan_cursors.c.partition, plan_cursors.c.planned_offset))
    }
    for partition, next_offset in sorted(offsets.items()):
        cursor = planned.get(partition, 0)
        if next_offset <= cursor:
            continue
        changed = (
            select(usage.c.meter_id, usage.c.window_start_ms, usage.c.account, usage.c.changed_offset)
            .where(and_(usage.c.partition == partition, usage.c.changed_offset > cursor))
            .order_by(usage.c.changed_offset)
        )
        rows = connection.execute(
            changed.where(usage.c.changed_offset <= next_offset).limit(rows_max + 1)
        ).all()
        reached = next_offset
        if len(rows) > rows_max:
            work.more = True
            reached = rows[-1].changed_offset - 1
            rows = [row for row in rows if row.changed_offset <= reached]
            if not rows:  # one flush alone is past the bound: take it whole
                reached += 1
                rows = connection.execute(changed.where(usage.c.changed_offset <= reached)).all()
        work.slots.update(Slot(r.meter_id, r.window_start_ms, r.account) for r in rows if r.meter_id in terms)
        work.cursors[partition] = reached


def _gather_held(
    connection: Connection,
    controls: Mapping[str, str],
    switched_on: Sequence[int],
    work: _Work,
    rows_max: int,
) -> None:
    """Held usage worth another look: its chain has settled, or the directory changed since it was held."""
    blocked = exists().where(
        and_(postings.c.posting_key == attributions.c.posting_key, postings.c.state.in_(UNSETTLED))
    )
    same_slot = and_(
        attributions.c.meter_id == holds.c.meter_id,
        attributions.c.window_start_ms == holds.c.window_start_ms,
        attributions.c.account == holds.c.account,
    )
    freed = connection.execute(
        select(holds.c.meter_id, holds.c.window_start_ms, holds.c.account)
        .join_from(holds, attributions, same_slot)
        .where(and_(holds.c.reason == HoldReason.IN_FLIGHT, holds.c.meter_id.in_(switched_on), ~blocked))
        .limit(rows_max)
    ).all()
    work.slots.update(Slot(*row) for row in freed)
    work.more |= len(freed) == rows_max

    version = connection.execute(select(func.max(directory_state.c.version))).scalar() or 0
    if _RETRY in controls:
        walk = json.loads(controls[_RETRY])
    elif str(version) != controls.get(_DIRECTORY, "0"):
        walk = {"version": version, "after": None}
    else:
        return
    again = (
        select(holds.c.meter_id, holds.c.window_start_ms, holds.c.account)
        .where(and_(holds.c.reason.in_(_LOOK_AGAIN), holds.c.meter_id.in_(switched_on)))
        .order_by(holds.c.meter_id, holds.c.window_start_ms, holds.c.account)
        .limit(rows_max)
    )
    if walk["after"] is not None:
        place = tuple_(holds.c.meter_id, holds.c.window_start_ms, holds.c.account)
        again = again.where(place > tuple_(*walk["after"]))
    rows = [Slot(*row) for row in connection.execute(again)]
    work.slots.update(rows)
    if len(rows) == rows_max:
        last = rows[-1]
        walk["after"] = [last.meter_id, last.window_start_ms, last.account]
        work.controls[_RETRY] = json.dumps(walk)
        work.more = True
    else:
        # A change during the walk left the version ahead of the walk's: the next pass starts another.
        work.controls[_RETRY] = None
        work.controls[_DIRECTORY] = str(walk["version"])


def _gather_switched(
    connection: Connection,
    terms: Mapping[int, MeterTerms],
    controls: Mapping[str, str],
    work: _Work,
    rows_max: int,
) -> None:
    """All usage of meters whose `send` was off until now, walked in bounded steps."""
    for meter_id, meter in sorted(terms.items()):
        name, scan = f"{_SENDING}{meter_id}", f"{_SCAN}{meter_id}"
        if meter.send == "off":
            if controls.get(name) != "off":
                work.controls.update({name: "off", scan: None})
            continue
        after = controls.get(scan)
        if controls.get(name) != "on":
            work.controls[name] = "on"
            after = "[]"
        if after is None:
            continue
        place = tuple_(usage.c.window_start_ms, usage.c.account)
        walk = (
            select(usage.c.window_start_ms, usage.c.account)
            .where(usage.c.meter_id == meter_id)
            .group_by(usage.c.window_start_ms, usage.c.account)
            .order_by(usage.c.window_start_ms, usage.c.account)
            .limit(rows_max)
        )
        passed = json.loads(after)
        if passed:
            walk = walk.where(place > tuple_(*passed))
        rows = connection.execute(walk).all()
        work.slots.update(Slot(meter_id, row.window_start_ms, row.account) for row in rows)
        if len(rows) == rows_max:
            work.controls[scan] = json.dumps([rows[-1].window_start_ms, rows[-1].account])
            work.more = True
        else:
            work.controls[scan] = None


def request_scan(connection: Connection, meter_id: int, now_ms: int) -> None:
    """Have the next planning look at all usage of a meter again."""
    write_controls(connection, {f"{_SCAN}{meter_id}": "[]"}, now_ms)


# ---------------------------------------------------------------------------------------------- deciding


class _Planner:
    """Steps 3 to 5 for one transaction's candidates."""

    def __init__(
        self,
        connection: Connection,
        rules: PlanRules,
        terms: Mapping[int, MeterTerms],
        now_ms: int,
        lease_version: int,
        offsets: Mapping[int, int],
    ) -> None:
        self._connection = connection
        self._rules = rules
        self._terms = terms
        self._now_ms = now_ms
        self._lease_version = lease_version
        self._offsets = offsets
        self._new_holds: dict[Slot, Hold] = {}
        self.planned = 0
        self.reversals = 0
        self.held: dict[str, int] = defaultdict(int)

    def plan(self, slots: Sequence[Slot]) -> None:
        usage_of = self._load_usage(slots)
        slots = [slot for slot in slots if slot in usage_of]
        pins = self._load_pins(slots)
        groups = self._resolve(slots, pins, usage_of)
        chains = self._place(groups, pins, usage_of)
        self._pin(chains, pins)
        self._decide(chains)
        self._write_holds(slots)

    def _hold(self, slot: Slot, reason: HoldReason, quantity: Decimal) -> None:
        self._new_holds[slot] = Hold(reason, quantity)

    def _load_usage(self, slots: Sequence[Slot]) -> dict[Slot, list[UsageRow]]:
        found: dict[Slot, list[UsageRow]] = defaultdict(list)
        place = tuple_(usage.c.account, usage.c.meter_id, usage.c.window_start_ms)
        for chunk in _chunks(slots):
            keys = [(s.account, s.meter_id, s.window_start_ms) for s in chunk]
            for row in self._connection.execute(select(usage).where(place.in_(keys))):
                slot = Slot(row.meter_id, row.window_start_ms, row.account)
                found[slot].append(_usage_row(row))
        return found

    def _load_pins(self, slots: Sequence[Slot]) -> dict[Slot, _Pin]:
        found = {}
        for chunk in _chunks(slots):
            for row in self._connection.execute(select(attributions).where(_is_slot(attributions, chunk))):
                slot = Slot(row.meter_id, row.window_start_ms, row.account)
                found[slot] = _Pin(row.customer_id, row.posting_key)
        return found

    def _resolve(
        self,
        slots: Sequence[Slot],
        pins: Mapping[Slot, _Pin],
        usage_of: Mapping[Slot, Sequence[UsageRow]],
    ) -> dict[tuple[str, int, int], list[Slot]]:
        """Slots by (customer, meter, window); those without exactly one customer are held."""
        accounts = sorted({slot.account for slot in slots if slot not in pins})
        mapped: dict[str, list[MappingRow]] = defaultdict(list)
        for chunk in _chunks(accounts):
            for row in self._connection.execute(select(mappings).where(mappings.c.account.in_(chunk))):
                mapped[row.account].append(MappingRow(row.customer_id, row.from_ms, row.to_ms))
        groups: dict[tuple[str, int, int], list[Slot]] = defaultdict(list)
        for slot in slots:
            pin = pins.get(slot)
            customer = self._rules.resolve_customer(
                slot, pin.customer_id if pin else None, mapped.get(slot.account, ())
            )
            if isinstance(customer, HoldReason):
                kind = self._terms[slot.meter_id].kind
                self._hold(slot, customer, self._rules.combine_slot(kind, usage_of[slot]))
            else:
                groups[customer, slot.meter_id, slot.window_start_ms].append(slot)
        return groups

    def _place(
        self,
        groups: Mapping[tuple[str, int, int], Sequence[Slot]],
        pins: Mapping[Slot, _Pin],
        usage_of: Mapping[Slot, Sequence[UsageRow]],
    ) -> dict[str, _ChainWork]:
        """Chains by posting key; groups without exactly one open item period are held."""
        periods: dict[tuple[str, str], list[PeriodRow]] = defaultdict(list)
        for chunk in _chunks(sorted({customer for customer, _, _ in groups})):
            for row in self._connection.execute(
                select(item_periods).where(item_periods.c.customer_id.in_(chunk))
            ):
                periods[row.customer_id, row.event_name].append(
                    PeriodRow(row.period_start_ms, row.period_end_ms, row.state)
                )
        chains: dict[str, _ChainWork] = {}
        for (customer, meter_id, window_start_ms), members in groups.items():
            terms = self._terms[meter_id]
            available = periods.get((customer, terms.event_name), [])
            pinned_keys = {pins[slot].posting_key for slot in members if slot in pins}
            scopes = [
                period.start_ms
                for period in available
                if self._rules.chain_key(customer, meter_id, period.start_ms) in pinned_keys
            ]
            latest_ms = max(row.latest_event_ms for slot in members for row in usage_of[slot])
            placed = self._rules.place(
                terms, window_start_ms, latest_ms, available, scopes[0] if scopes else None
            )
            if isinstance(placed, HoldReason):
                for slot in members:
                    self._hold(slot, placed, self._rules.combine_slot(terms.kind, usage_of[slot]))
                continue
            key = self._rules.chain_key(customer, meter_id, placed.scope_start_ms)
            chain = chains.setdefault(
                key, _ChainWork(terms, customer, placed.scope_start_ms, placed.stamp_ms)
            )
            chain.stamp_ms = max(chain.stamp_ms, placed.stamp_ms)
            chain.slots.update(members)
        return chains

    def _pin(self, chains: Mapping[str, _ChainWork], pins: Mapping[Slot, _Pin]) -> None:
        rows = [
            {
                "meter_id": slot.meter_id,
                "window_start_ms": slot.window_start_ms,
                "account": slot.account,
                "customer_id": chain.customer_id,
                "posting_key": key,
            }
            for key, chain in chains.items()
            for slot in sorted(chain.slots)
            if slot not in pins
        ]
        if rows:
            self._connection.execute(insert(attributions), rows)

    def _decide(self, chains: Mapping[str, _ChainWork]) -> None:
        states = load_chains(self._connection, sorted(chains))
        totals, planned_from = self._add_up(chains)
        rows = []
        for key, work in sorted(chains.items()):
            chain = states.get(key, Chain())
            decision = self._rules.next_link(work.terms, chain, totals[key], work.stamp_ms, self._now_ms)
            if decision is None:
                continue
            if isinstance(decision, Hold):
                for slot in work.slots:
                    self._hold(slot, decision.reason, decision.quantity)
                continue
            rows.append(self._posting_row(key, work, chain, decision, planned_from[key]))
            if decision.mode is PostingMode.REVERSAL:
                self.reversals += 1
            else:
                self.planned += 1
            left = totals[key] - decision.quantity_to
            if decision.more:
                for slot in work.slots:
                    self._hold(slot, HoldReason.IN_FLIGHT, left)
        if rows:
            self._connection.execute(insert(postings), rows)

    def _add_up(
        self, chains: Mapping[str, _ChainWork]
    ) -> tuple[dict[str, Decimal], dict[str, dict[int, int]]]:
        """Each chain's usage over all slots pinned to it, and the progress of the partitions it came from."""
        by_slot: dict[str, dict[Slot, list[UsageRow]]] = {key: defaultdict(list) for key in chains}
        partitions: dict[str, set[int]] = defaultdict(set)
        same_slot = and_(
            usage.c.account == attributions.c.account,
            usage.c.meter_id == attributions.c.meter_id,
            usage.c.window_start_ms == attributions.c.window_start_ms,
        )
        for chunk in _chunks(sorted(chains)):
            for row in self._connection.execute(
                select(usage, attributions.c.posting_key)
                .join_from(attributions, usage, same_slot)
                .where(attributions.c.posting_key.in_(chunk))
            ):
                slot = Slot(row.meter_id, row.window_start_ms, row.account)
                by_slot[row.posting_key][slot].append(_usage_row(row))
                partitions[row.posting_key].add(row.partition)
        distinct = self._count_distinct(
            [key for key, chain in chains.items() if chain.terms.kind is MetricKind.UNIQUE]
        )
        totals = {}
        for key, slots in by_slot.items():
            kind = chains[key].terms.kind
            if kind is MetricKind.UNIQUE:
                totals[key] = Decimal(distinct.get(key, 0))
            elif kind is MetricKind.LATEST:
                # The latest of all rows, whichever account and window it came from.
                totals[key] = self._rules.combine_slot(kind, [r for rows in slots.values() for r in rows])
            else:
                quantities = [
                    self._rules.combine_slot(kind, rows)
                    for _, rows in sorted(slots.items())
                    if any(row.events for row in rows)
                ]
                totals[key] = self._rules.combine_chain(kind, quantities)
        planned_from = {key: {p: self._offsets.get(p, 0) for p in sorted(partitions[key])} for key in chains}
        return totals, planned_from

    def _count_distinct(self, keys: Sequence[str]) -> dict[str, int]:
        same_slot = and_(
            distinct_values.c.account == attributions.c.account,
            distinct_values.c.meter_id == attributions.c.meter_id,
            distinct_values.c.window_start_ms == attributions.c.window_start_ms,
        )
        found = {}
        for chunk in _chunks(sorted(keys)):
            for row in self._connection.execute(
                select(
                    attributions.c.posting_key,
                    func.count(distinct_values.c.value_hash.distinct()).label("values"),
                )
                .join_from(attributions, distinct_values, same_slot)
                .where(attributions.c.posting_key.in_(chunk))
                .group_by(attributions.c.posting_key)
            ):
                found[row.posting_key] = row[1]
        return found

    def _posting_row(
        self, key: str, work: _ChainWork, chain: Chain, link: NextLink, planned_from: Mapping[int, int]
    ) -> dict[str, Any]:
        seq = chain.last_seq + 1
        parked = link.park_reason is not None
        return {
            "posting_key": key,
            "seq": seq,
            "customer_id": work.customer_id,
            "meter_id": work.terms.meter_id,
            "window_start_ms": work.scope_start_ms,
            "quantity_from": chain.last_to,
            "quantity_to": link.quantity_to,
            "mode": str(link.mode),
            **self._rules.compose(work.terms, work.customer_id, key, seq, chain.last_to, link),
            "state": str(PostingState.PARKED if parked else PostingState.PLANNED),
            "attempts": 0,
            "first_sent_ms": None,
            "last_sent_ms": None,
            "retry_ms": None,
            "settled_ms": None,
            "request_id": None,
            "error": link.park_reason,
            "planned_ms": self._now_ms,
            "planned_from": {str(p): offset for p, offset in planned_from.items()},
            "lease_version": self._lease_version,
        }

    def _write_holds(self, slots: Sequence[Slot]) -> None:
        """Replace what is held of the candidates; a hold that goes on for the same reason keeps its age."""
        since: dict[Slot, tuple[str, int]] = {}
        for chunk in _chunks(slots):
            where = _is_slot(holds, chunk)
            for row in self._connection.execute(select(holds).where(where)):
                since[Slot(row.meter_id, row.window_start_ms, row.account)] = row.reason, row.since_ms
            self._connection.execute(delete(holds).where(where))
        rows = []
        for slot, hold in sorted(self._new_holds.items()):
            reason, since_ms = since.get(slot, ("", 0))
            rows.append(
                {
                    "meter_id": slot.meter_id,
                    "window_start_ms": slot.window_start_ms,
                    "account": slot.account,
                    "reason": str(hold.reason),
                    "quantity": hold.quantity,
                    "since_ms": since_ms if reason == hold.reason else self._now_ms,
                }
            )
            self.held[str(hold.reason)] += 1
        if rows:
            self._connection.execute(insert(holds), rows)


def load_chains(connection: Connection, keys: Sequence[str]) -> dict[str, Chain]:
    """The chains of `keys` as they stand; a key without postings is absent."""
    links: dict[str, list[Any]] = defaultdict(list)
    newest = select(postings.c.posting_key, func.max(postings.c.seq).label("seq")).group_by(
        postings.c.posting_key
    )
    notable = (*UNSETTLED, PostingState.VOID, PostingState.REVERSAL, PostingState.DRY_RUN)
    for chunk in _chunks(keys):
        last = newest.where(postings.c.posting_key.in_(chunk)).subquery()
        for row in connection.execute(
            select(postings)
            .join(last, last.c.posting_key == postings.c.posting_key)
            .where(
                (postings.c.seq == last.c.seq) | postings.c.state.in_(notable),
            )
            .order_by(postings.c.posting_key, postings.c.seq)
        ):
            links[row.posting_key].append(row)
    return {key: _chain(rows) for key, rows in links.items()}


def _chain(rows: Sequence[Any]) -> Chain:
    """A chain from its notable links in order; the last of `rows` is its last link."""
    last = rows[-1]
    reversed_seqs = {
        seq for row in rows if row.mode == PostingMode.REVERSAL for seq in json.loads(row.body)["reverses"]
    }
    voids = tuple(
        VoidLink(row.seq, row.quantity_to - row.quantity_from)
        for row in rows
        if row.state == PostingState.VOID and row.seq not in reversed_seqs
    )
    rehearsed = [r.quantity_to - r.quantity_from for r in rows if r.state == PostingState.DRY_RUN]
    rejected = None
    if last.state == PostingState.REVERSAL:
        refused = json.loads(last.body)["reverses"]
        errors = [row.error or "" for row in rows if row.seq in refused]
        codes = [text.split(":")[1] for text in errors if text.startswith("rejected:")]
        rejected = codes[-1] if codes else None
    return Chain(
        last_seq=last.seq,
        last_to=last.quantity_to,
        unsettled=any(row.state in UNSETTLED for row in rows),
        voids=voids,
        dry_run_quantity=sum(rehearsed, Decimal(0)),
        has_dry_run=bool(rehearsed),
        rejected_code=rejected,
    )


def _usage_row(row: Any) -> UsageRow:
    return UsageRow(
        row.partition, row.quantity, row.latest_event_ms, row.order_ms, row.order_offset, row.events
    )


def _is_slot(table: Any, slots: Sequence[Slot]) -> Any:
    place = tuple_(table.c.meter_id, table.c.window_start_ms, table.c.account)
    return place.in_([(slot.meter_id, slot.window_start_ms, slot.account) for slot in slots])


def _chunks(values: Iterable[_T]) -> Iterable[list[_T]]:
    ordered = list(values)
    for start in range(0, len(ordered), CHUNK):
        yield ordered[start : start + CHUNK]
