"""The decisions planning asks for.

Owns the door between the planning transaction and its rules (`services/stripe_sync/plan.py` has them). It refuses to
know SQL and what any rule says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Protocol

from tollgate.ledger.plan_rows import (
    Chain,
    FirstLink,
    Hold,
    HoldReason,
    MappingRow,
    MeterTerms,
    NextLink,
    PeriodRow,
    Placement,
    Slot,
    UsageRow,
)
from tollgate.ledger.posting_rows import PostingMode
from tollgate.metering.closed import ClosedPolicy
from tollgate.metering.meter import MetricKind


class Shorthand(Protocol):
    """Writes the first links of one meter's plain windows, as all the rules together would."""

    mode: PostingMode

    def first_link(
        self,
        customer_id: str,
        window_start_ms: int,
        latest_event_ms: int,
        quantity: Decimal,
        period_start_ms: int,
        period_end_ms: int,
    ) -> FirstLink | None:
        """The first link of a window of which nothing was posted, and whose only period is open; None: ask the rules."""
        ...


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

    def scope_start(self, terms: MeterTerms, window_start_ms: int, period: PeriodRow) -> int:
        """Where the chain begins that takes a window's usage in a period (epoch ms)."""
        ...

    def place(
        self,
        terms: MeterTerms,
        window_start_ms: int,
        latest_event_ms: int,
        periods: Sequence[PeriodRow],
        pinned: Sequence[PeriodRow],
    ) -> Placement | HoldReason:
        """The chain's scope, the stamp and the period for what a customer used in one window.

        `pinned`: the periods that the chain may be of which the window's usage already belongs to; empty without one.
        """
        ...

    def chain_key(self, customer_id: str, meter_id: int, scope_start_ms: int) -> str:
        """The posting key of a chain."""
        ...

    def combine_chain(self, kind: MetricKind, slots: Sequence[Decimal]) -> Decimal:
        """A chain's quantity from its slots'."""
        ...

    def next_link(
        self, terms: MeterTerms, chain: Chain, total: Decimal, placement: Placement, now_ms: int
    ) -> NextLink | Hold | None:
        """The next link of a chain whose usage is now `total`; None when nothing is missing."""
        ...

    def shorthand(self, terms: MeterTerms, now_ms: int) -> Shorthand | None:
        """What writes the first links of a meter's plain windows; None for a meter that has none."""
        ...

    def closed_policy(self, terms: MeterTerms) -> ClosedPolicy:
        """What becomes of a meter's usage for a final invoice."""
        ...

    def needs_bill(self, terms: MeterTerms, chain: Chain, placement: Placement, now_ms: int) -> bool:
        """Whether `next_link` wants `Placement.bill`."""
        ...

    def suspects(self, terms: MeterTerms, link: NextLink) -> int | None:
        """How far back (ms) a link must be compared with what was used before; None when it need not."""
        ...

    def judge_anomaly(
        self, link: NextLink, window_start_ms: int, trailing: Mapping[int, Decimal]
    ) -> str | None:
        """Why a link must wait for an operator, given quantities by window start; None when it need not."""
        ...

    def compose(
        self,
        terms: MeterTerms,
        customer_id: str,
        key: str,
        seq: int,
        quantity_from: Decimal,
        link: NextLink,
        item_id: str,
    ) -> Mapping[str, object]:
        """The columns of a posting that say what is sent: identifier, idempotency_key, timestamp_s, body."""
        ...
