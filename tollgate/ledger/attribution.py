"""Whose usage it is: each slot's customer, and the chain of the item period that takes it.

Owns `attributions`: a slot once posted stays with its customer and chain. It refuses to know quantities' sums and
links.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, and_, delete, select

from tollgate.ledger.chunks import among, is_slot, key_chunks, load_present
from tollgate.ledger.insertion import insert_new
from tollgate.ledger.plan_rows import (
    Hold,
    HoldReason,
    MappingRow,
    MeterTerms,
    PeriodRow,
    Placement,
    Slot,
    UsageRow,
    usage_from_row,
)
from tollgate.ledger.plan_rules import PlanRules
from tollgate.ledger.tables import (
    attributions,
    item_periods,
    mappings,
    reconciliations,
    usage,
)

RETIRED = "retired"
"""State, to the rules, of a period whose usage and postings may be removed: nothing is placed in it."""

USAGE_COLUMNS = (
    usage.c.meter_id,
    usage.c.window_start_ms,
    usage.c.account,
    usage.c.partition,
    usage.c.quantity,
    usage.c.latest_event_ms,
    usage.c.order_ms,
    usage.c.order_offset,
    usage.c.events,
)
"""What planning needs of a usage row."""


@dataclass(slots=True)
class Claim:
    """A chain that candidate slots belong to, and where its usage goes: stamped as late as any of its windows says."""

    terms: MeterTerms
    customer_id: str
    placement: Placement
    slots: set[Slot] = field(default_factory=set)
    fresh: set[Slot] = field(default_factory=set)
    """Those of them that no chain had before."""
    usage: Mapping[Slot, Sequence[UsageRow]] | None = None
    """All usage of a chain that had no slots before; None: there may be more than that of `slots`."""


@dataclass(frozen=True, slots=True)
class _Pin:
    customer_id: str
    posting_key: str


@dataclass(frozen=True, slots=True)
class Attribution:
    """What became of a transaction's candidates."""

    claims: Mapping[str, Claim]
    """Chains by posting key."""
    holds: Mapping[Slot, Hold]
    """Slots that have no customer or no period."""


def attribute_slots(
    connection: Connection, rules: PlanRules, terms: Mapping[int, MeterTerms], slots: Sequence[Slot]
) -> Attribution:
    """Each slot's chain, else its hold; the slots of a chain are pinned to it from here on.

    1. Their usage and pins. 2. Their customers: pinned, else mapped. 3. The item period of each (customer, meter,
    window). 4. Pin those that were not.
    """
    return _Attributor(connection, rules, terms, slots).attribute()


class _Attributor:
    """One transaction's candidates on their way to customers and periods."""

    def __init__(
        self,
        connection: Connection,
        rules: PlanRules,
        terms: Mapping[int, MeterTerms],
        slots: Sequence[Slot],
    ) -> None:
        self._connection = connection
        self._rules = rules
        self._terms = terms
        self._usage = self._load_usage(slots)
        self._slots = [slot for slot in slots if slot in self._usage]
        self._pins = self._load_pins()
        self._holds: dict[Slot, Hold] = {}

    def attribute(self) -> Attribution:
        claims = self._place(self._resolve())
        self._find_new(claims)
        self._pin(claims)
        return Attribution(claims, self._holds)

    def _find_new(self, claims: Mapping[str, Claim]) -> None:
        """Give the chains that nothing was pinned to before the usage that has just been read."""
        pinned = load_present(self._connection, attributions.c.posting_key, sorted(claims))
        for key, claim in claims.items():
            if key not in pinned:
                claim.usage = {slot: self._usage[slot] for slot in claim.slots}

    def _hold(self, slot: Slot, reason: HoldReason) -> None:
        kind = self._terms[slot.meter_id].kind
        self._holds[slot] = Hold(reason, self._rules.combine_slot(kind, self._usage[slot]))

    def _load_usage(self, slots: Sequence[Slot]) -> dict[Slot, list[UsageRow]]:
        found: dict[Slot, list[UsageRow]] = defaultdict(list)
        for chunk in key_chunks(self._connection, slots):
            for row in self._connection.execute(
                select(*USAGE_COLUMNS).where(is_slot(self._connection, usage, chunk))
            ):
                slot = Slot(row.meter_id, row.window_start_ms, row.account)
                found[slot].append(usage_from_row(row))
        return found

    def _load_pins(self) -> dict[Slot, _Pin]:
        found = {}
        for chunk in key_chunks(self._connection, self._slots):
            for row in self._connection.execute(
                select(attributions).where(is_slot(self._connection, attributions, chunk))
            ):
                slot = Slot(row.meter_id, row.window_start_ms, row.account)
                found[slot] = _Pin(row.customer_id, row.posting_key)
        return found

    def _resolve(self) -> dict[tuple[str, int, int], list[Slot]]:
        """Slots by (customer, meter, window); those without exactly one customer are held."""
        accounts = sorted({slot.account for slot in self._slots if slot not in self._pins})
        mapped: dict[str, list[MappingRow]] = defaultdict(list)
        for chunk in key_chunks(self._connection, accounts):
            for row in self._connection.execute(
                select(mappings).where(among(self._connection, [mappings.c.account], [(a,) for a in chunk]))
            ):
                mapped[row.account].append(MappingRow(row.customer_id, row.from_ms, row.to_ms))
        groups: dict[tuple[str, int, int], list[Slot]] = defaultdict(list)
        for slot in self._slots:
            pin = self._pins.get(slot)
            customer = self._rules.resolve_customer(
                slot, pin.customer_id if pin else None, mapped.get(slot.account, ())
            )
            if isinstance(customer, HoldReason):
                self._hold(slot, customer)
            else:
                groups[customer, slot.meter_id, slot.window_start_ms].append(slot)
        return groups

    def _load_periods(self, customers: Iterable[str]) -> dict[tuple[str, str], list[PeriodRow]]:
        periods: dict[tuple[str, str], list[PeriodRow]] = defaultdict(list)
        for chunk in key_chunks(self._connection, sorted(customers)):
            of_them = among(self._connection, [item_periods.c.customer_id], [(c,) for c in chunk])
            same_period = and_(
                reconciliations.c.customer_id == item_periods.c.customer_id,
                reconciliations.c.event_name == item_periods.c.event_name,
                reconciliations.c.period_start_ms == item_periods.c.period_start_ms,
            )
            for row in self._connection.execute(
                select(item_periods, reconciliations.c.retired_ms)
                .outerjoin(reconciliations, same_period)
                .where(of_them)
            ):
                # What was counted in a retired period may be gone: its chains take nothing more.
                state = row.state if row.retired_ms is None else RETIRED
                periods[row.customer_id, row.event_name].append(
                    PeriodRow(row.period_start_ms, row.period_end_ms, state, row.item_id, row.price_id)
                )
        return periods

    def _place(self, groups: Mapping[tuple[str, int, int], Sequence[Slot]]) -> dict[str, Claim]:
        """Chains by posting key; groups without exactly one item period, open or else closed, are held."""
        periods = self._load_periods({customer for customer, _, _ in groups})
        claims: dict[str, Claim] = {}
        for (customer, meter_id, window_start_ms), members in groups.items():
            terms = self._terms[meter_id]
            available = periods.get((customer, terms.event_name), [])
            pinned_keys = {self._pins[slot].posting_key for slot in members if slot in self._pins}
            pinned = [
                period
                for period in (available if pinned_keys else ())
                if self._key(terms, customer, window_start_ms, period) in pinned_keys
            ]
            latest_ms = max(row.latest_event_ms for slot in members for row in self._usage[slot])
            placed = self._rules.place(terms, window_start_ms, latest_ms, available, pinned)
            if isinstance(placed, HoldReason):
                for slot in members:
                    self._hold(slot, placed)
                continue
            key = self._rules.chain_key(customer, meter_id, placed.scope_start_ms)
            claim = claims.setdefault(key, Claim(terms, customer, placed))
            if placed.stamp_ms > claim.placement.stamp_ms:
                claim.placement = placed
            claim.slots.update(members)
            claim.fresh.update(slot for slot in members if slot not in self._pins)
        return claims

    def _key(self, terms: MeterTerms, customer: str, window_start_ms: int, period: PeriodRow) -> str:
        scope_start_ms = self._rules.scope_start(terms, window_start_ms, period)
        return self._rules.chain_key(customer, terms.meter_id, scope_start_ms)

    def _pin(self, claims: Mapping[str, Claim]) -> None:
        rows = [
            {
                "meter_id": slot.meter_id,
                "window_start_ms": slot.window_start_ms,
                "account": slot.account,
                "customer_id": claim.customer_id,
                "posting_key": key,
            }
            for key, claim in claims.items()
            for slot in sorted(claim.fresh)
        ]
        insert_new(self._connection, attributions, rows)


def unpin(connection: Connection, slots: Iterable[Slot]) -> None:
    """These slots belong to no chain after all: nothing of it was posted, and until then mappings may still change."""
    for chunk in key_chunks(connection, sorted(slots)):
        connection.execute(delete(attributions).where(is_slot(connection, attributions, chunk)))
