"""The planning transaction: what changed in the counts becomes links of posting chains, or held usage, all at once.

Owns the order of its steps and the birth of postings. It refuses to know the rules (the caller's `PlanRules` decide),
which slots are looked at (`candidates.py`), which of them are plain (`plain_windows.py`), whose they are
(`attribution.py`), what they add up to (`chain_totals.py`), and how anything is sent.

One transaction, fenced by the lease, reading one moment (`plan_postings`):

1. fence; stop if paused, or if an imported journal is ahead of the counts;
2. gather candidate slots: changed usage above each cursor, the urgent customers' first, held usage worth another
   look, meters switched on;
3. post the plain windows; of all other slots:
4. resolve each slot's customer (pinned, else mapped) and place each (customer, meter, window) in an item period;
5. pin the slots to their chains, add up each chain's usage, decide its next link;
6. write postings, holds, cursors.

Cursors and postings move together: after a crash anywhere the next transaction sees both or neither. A slot that
cannot be planned yet is in `holds`, so a cursor that has passed it has not lost it.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, Engine, select

from tollgate.ledger.amendments import load_taken_back
from tollgate.ledger.anomalies import Decided, park_anomalies
from tollgate.ledger.attribution import Claim, attribute_slots, unpin
from tollgate.ledger.candidates import (
    Candidates,
    gather_changed,
    gather_held,
    gather_switched,
    journal_gate,
)
from tollgate.ledger.chain_totals import ChainTotal, load_chain_totals
from tollgate.ledger.chains import load_chains
from tollgate.ledger.closed_bills import ClosedBills, revise_policies
from tollgate.ledger.controls import PAUSED, SYNC_NOW, read_controls, write_controls
from tollgate.ledger.engine import ledger_transaction
from tollgate.ledger.holding import write_holds
from tollgate.ledger.insertion import insert_new, put
from tollgate.ledger.leases import Lease, fence
from tollgate.ledger.meter_terms import load_terms
from tollgate.ledger.plain_windows import post_plain_windows
from tollgate.ledger.plan_rows import (
    Chain,
    Hold,
    HoldReason,
    MeterTerms,
    NextLink,
    Slot,
)
from tollgate.ledger.plan_rules import PlanRules
from tollgate.ledger.posting_rows import PostingMode, PostingState
from tollgate.ledger.prices import PRICE_WANTED
from tollgate.ledger.tables import (
    plan_cursors,
    postings,
    progress,
)
from tollgate.ledger.urgency import gather_urgent

_THINKING_MS = 60_000
"""Between two statements a plan may be thought about for so long: one flush alone can touch a hundred thousand rows."""


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
    anomalies: tuple[str, ...] = ()
    """Postings (key:seq) that were parked for being far above what was used before."""
    urgent_offsets: Mapping[int, int] = field(default_factory=dict)
    """By partition, up to where all usage of the urgent customers has been planned; empty where some is left."""


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's cycle collector, in the whole process: it would take a third of a large plan's time.

    Each of its walks over the thousands of values a plan has alive finds nothing, since none of them is in a cycle. Of
    two plans at once the one that found it running has it run again. Around a whole function: what is alive when it
    runs again is walked once more.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


@_uncollected()
def plan_postings(
    engine: Engine,
    lease: Lease,
    rules: PlanRules,
    now_ms: int,
    rows_max: int,
    urgent: Sequence[str] = (),
    *,
    urgent_only: bool = False,
) -> PlanReport:
    """Plan what changed, at most about `rows_max` slots of each source; `more` tells that some is left.

    What changed for the customers in `urgent` is in it, however much of others' is to be planned before it; with
    `urgent_only` nothing else is, and the cursors stay where they are.

    Raises LeaseLost, LedgerUnavailable and CommitUnknown: in each case planning again is safe.
    """
    with ledger_transaction(engine, isolation="snapshot") as connection:
        fence(connection, lease, idle_ms=_THINKING_MS)
        controls = read_controls(connection)
        offsets = {
            row.partition: row.next_offset
            for row in connection.execute(select(progress.c.partition, progress.c.next_offset))
        }
        if PAUSED in controls:
            return PlanReport(paused=True)
        waiting, reached = journal_gate(controls, offsets)
        if waiting:
            return PlanReport(waiting_for=waiting)
        terms = load_terms(connection)
        found = Candidates()
        found.controls.update(dict.fromkeys(reached))
        switched_on = [meter_id for meter_id, meter in terms.items() if meter.send != "off"]
        all_urgent = gather_urgent(connection, switched_on, urgent, found, rows_max)
        if not urgent_only:
            revised = revise_policies(controls, {m: rules.closed_policy(t) for m, t in terms.items()})
            controls |= revised
            found.controls.update(revised)
            if SYNC_NOW in controls:
                found.controls[SYNC_NOW] = None
            gather_switched(connection, terms, controls, found, rows_max)
            gather_changed(connection, terms, offsets, found, rows_max)
            gather_held(connection, controls, switched_on, found, rows_max)
        # A meter that is off keeps what is held of it; the walk at its switching on looks at everything.
        slots = sorted(slot for slot in found.slots if slot.meter_id in switched_on)
        planner = _Planner(connection, rules, terms, now_ms, lease.version, offsets)
        planner.plan(slots)
        put(
            connection,
            plan_cursors,
            [{"partition": p, "planned_offset": offset} for p, offset in found.cursors.items()],
        )
        found.controls.update({f"{PRICE_WANTED}{price_id}": "" for price_id in planner.bills.wanted})
        write_controls(connection, found.controls, now_ms)
        return PlanReport(
            candidates=len(slots),
            planned=planner.planned,
            reversals=planner.reversals,
            held=planner.held,
            more=found.more,
            anomalies=tuple(planner.anomalies),
            urgent_offsets=offsets if urgent and all_urgent else {},
        )


class _Planner:
    """Steps 3 to 6 for one transaction's candidates."""

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
        self.planned = 0
        self.reversals = 0
        self.held: Mapping[str, int] = {}
        self.bills = ClosedBills(connection, terms)
        self.anomalies: list[str] = []

    def plan(self, slots: Sequence[Slot]) -> None:
        plain = self._post_plain(slots)
        self.planned = len(plain)
        others = [slot for slot in slots if slot not in plain]
        attribution = attribute_slots(self._connection, self._rules, self._terms, others)
        decided = self._decide(attribution.claims)
        self.held = write_holds(self._connection, slots, {**attribution.holds, **decided}, self._now_ms)

    def _post_plain(self, slots: Sequence[Slot]) -> frozenset[Slot]:
        """Plan the candidates that nothing is special about; returns which."""
        shorthands = {
            meter_id: shorthand
            for meter_id in {slot.meter_id for slot in slots}
            if (shorthand := self._rules.shorthand(self._terms[meter_id], self._now_ms)) is not None
        }
        shared = {"seq": 1, "quantity_from": Decimal(0), **self._unsent()}
        return post_plain_windows(self._connection, self._terms, shorthands, slots, self._offsets, shared)

    def _decide(self, claims: Mapping[str, Claim]) -> dict[Slot, Hold]:
        """Write the next link of each chain; returns what is held of them instead, or as well."""
        chains = load_chains(self._connection, sorted(claims))
        totals = load_chain_totals(self._connection, self._rules, claims)
        chains = self._with_amendments(chains, totals)
        decided: list[Decided] = []
        held, unpinned = {}, set[Slot]()
        for key, claim in sorted(claims.items()):
            chain, total = chains.get(key, Chain()), totals[key]
            placement = claim.placement
            if self._rules.needs_bill(claim.terms, chain, placement, self._now_ms):
                placement = self.bills.fill(claim.terms, claim.customer_id, placement)
            decision = self._rules.next_link(claim.terms, chain, total.quantity, placement, self._now_ms)
            if decision is None:
                continue
            if isinstance(decision, Hold):
                held.update(dict.fromkeys(claim.slots, decision))
                if chain.last_seq == 0:
                    unpinned.update(claim.fresh)
                continue
            decided.append(Decided(key, claim, decision))
            if decision.item is not None:
                added = decision.quantity_to - chain.last_to
                self.bills.add(claim.terms, claim.customer_id, placement.period, added)
            if decision.mode is PostingMode.REVERSAL:
                self.reversals += 1
            else:
                self.planned += 1
            if decision.more:
                left = Hold(HoldReason.IN_FLIGHT, total.quantity - decision.quantity_to)
                held.update(dict.fromkeys(claim.slots, left))
        parked = park_anomalies(self._connection, self._rules, self._terms, decided)
        rows = []
        for entry in decided:
            chain = chains.get(entry.key, Chain())
            link = parked.get(entry.key, entry.link)
            rows.append(self._posting_row(entry.key, entry.claim, chain, link, totals[entry.key].partitions))
            if entry.key in parked:
                self.anomalies.append(f"{entry.key}:{chain.last_seq + 1}")
        insert_new(self._connection, postings, rows)
        unpin(self._connection, unpinned)
        return held

    def _with_amendments(
        self, chains: dict[str, Chain], totals: Mapping[str, ChainTotal]
    ) -> dict[str, Chain]:
        """The chains, those that fall with what operators have taken back of them."""
        falling = {key: chain for key, chain in chains.items() if totals[key].quantity < chain.last_to}
        if not falling:
            return chains
        slots = {slot: key for key in falling for slot in totals[key].slots}
        taken_back = load_taken_back(self._connection, slots)
        amended = dict(chains)
        for slot, quantity in sorted(taken_back.items()):
            chain = amended[slots[slot]]
            amended[slots[slot]] = replace(chain, taken_back=chain.taken_back + quantity)
        return amended

    def _posting_row(
        self, key: str, claim: Claim, chain: Chain, link: NextLink, partitions: Iterable[int]
    ) -> dict[str, Any]:
        seq = chain.last_seq + 1
        parked = link.park_reason is not None
        return {
            "posting_key": key,
            "seq": seq,
            "customer_id": claim.customer_id,
            "meter_id": claim.terms.meter_id,
            "window_start_ms": claim.placement.scope_start_ms,
            "quantity_from": chain.last_to,
            "quantity_to": link.quantity_to,
            "mode": str(link.mode),
            **self._rules.compose(
                claim.terms,
                claim.customer_id,
                key,
                seq,
                chain.last_to,
                link,
                claim.placement.period.item_id,
            ),
            "planned_from": {str(p): self._offsets.get(p, 0) for p in sorted(partitions)},
            **self._unsent(),
            "state": str(PostingState.PARKED if parked else PostingState.PLANNED),
            "error": link.park_reason,
            "for_period_ms": link.for_period_ms,
        }

    def _unsent(self) -> dict[str, Any]:
        """The columns in which this transaction's postings are alike: written down, and nothing come of them yet."""
        return {
            "state": str(PostingState.PLANNED),
            "attempts": 0,
            "planned_ms": self._now_ms,
            "lease_version": self._lease_version,
        }
