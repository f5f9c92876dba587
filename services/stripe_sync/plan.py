"""The rules of planning: whose usage it is, which period takes it, what the next link of a chain is.

Owns the decisions; `tollgate.ledger.planning` gathers what they are made from and writes them down, in one
transaction. It refuses to know SQL, Kafka, Stripe's client and the clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context, Decimal

from services.stripe_sync.outcomes import parks_successor
from tollgate.ledger.posting_rows import (
    Chain,
    Hold,
    HoldReason,
    MappingRow,
    MeterTerms,
    NextLink,
    PeriodRow,
    Placement,
    PostingMode,
    Slot,
    UsageRow,
)
from tollgate.ledger.types import format_quantity
from tollgate.metering.meter import MetricKind
from tollgate.metering.posting import combine_accounts, posting_identifier, posting_key

STRIPE_DIGITS_MAX = 15
"""Significant digits Stripe takes in one value. A longer quantity goes in two postings."""

STRIPE_AGE_MAX_MS = 34 * 24 * 60 * 60 * 1000
"""Stripe takes 35 calendar days; one is kept back for outages and for what a calendar day means."""

_EXACT = Context(prec=60)
"""Enough for every sum of Decimal(38, 9): the default of 28 digits rounds in silence."""

ADDITIVE = frozenset({MetricKind.COUNT, MetricKind.SUM})
"""Kinds whose windows add up, so that each window is a chain of its own. The others have one chain a period."""

MAY_FALL = frozenset({MetricKind.MIN, MetricKind.LATEST})
"""Kinds whose quantity goes down in the ordinary course of things. Stripe takes negative values."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The planning rules of one ledger. `ledger_id` keeps the keys of two ledgers apart at Stripe."""

    ledger_id: str

    def resolve_customer(
        self, slot: Slot, pinned: str | None, candidates: Sequence[MappingRow]
    ) -> str | HoldReason:
        """The pinned customer, else the one whose mapping holds at the window's start."""
        if pinned is not None:
            return pinned
        at_ms = slot.window_start_ms
        holding = {
            row.customer_id
            for row in candidates
            if row.from_ms <= at_ms and (row.to_ms is None or at_ms < row.to_ms)
        }
        if not holding:
            return HoldReason.NO_MAPPING
        return holding.pop() if len(holding) == 1 else HoldReason.AMBIGUOUS

    def combine_slot(self, kind: MetricKind, rows: Sequence[UsageRow]) -> Decimal:
        """A slot's quantity over its dimensions. `unique` over several is an upper bound, shown and never posted."""
        if kind not in ADDITIVE:
            rows = [row for row in rows if row.events]
            if not rows:
                return Decimal(0)
        if kind is MetricKind.LATEST:
            return max(rows, key=lambda row: (row.order_ms, row.partition, row.order_offset)).quantity
        if kind is MetricKind.MAX:
            return max(row.quantity for row in rows)
        if kind is MetricKind.MIN:
            return min(row.quantity for row in rows)
        return combine_accounts(kind, [row.quantity for row in rows])

    def place(
        self,
        terms: MeterTerms,
        window_start_ms: int,
        latest_event_ms: int,
        periods: Sequence[PeriodRow],
        pinned_scope: int | None,
    ) -> Placement | HoldReason:
        """The one open period that holds the latest event, and that time clipped to window and period.

        A window that straddles a period's edge goes where its latest event lies. Usage just outside every period (a
        subscription that began or ended within the window) goes to the nearest one that the window touches.
        A period's own chain (`pinned_scope`: kinds that do not add up) keeps its period.
        """
        window_end_ms = window_start_ms + terms.window_size_ms
        touching = [p for p in periods if p.start_ms < window_end_ms and p.end_ms > window_start_ms]
        if pinned_scope is not None and terms.kind not in ADDITIVE:
            touching = [p for p in touching if p.start_ms == pinned_scope]
            holding = touching
        else:
            holding = [p for p in touching if p.start_ms <= latest_event_ms < p.end_ms]
        if not any(p.state in ("open", "closed") for p in holding):
            holding = _nearest(touching, latest_event_ms)
        open_periods = [p for p in holding if p.state == "open"]
        if len(open_periods) > 1:
            return HoldReason.AMBIGUOUS
        if not open_periods:
            closed = any(p.state == "closed" for p in holding)
            return HoldReason.CLOSED if closed else HoldReason.NO_ITEM
        period = open_periods[0]
        earliest_ms = max(window_start_ms, period.start_ms)
        last_ms = min(window_end_ms, period.end_ms) - 1
        return Placement(
            scope_start_ms=window_start_ms if terms.kind in ADDITIVE else period.start_ms,
            stamp_ms=min(max(latest_event_ms, earliest_ms), last_ms),
        )

    def chain_key(self, customer_id: str, meter_id: int, scope_start_ms: int) -> str:
        """The posting key of a chain."""
        return posting_key(self.ledger_id, customer_id, meter_id, scope_start_ms)

    def combine_chain(self, kind: MetricKind, slots: Sequence[Decimal]) -> Decimal:
        """A chain's quantity from its slots'."""
        return combine_accounts(kind, slots)

    def next_link(
        self, terms: MeterTerms, chain: Chain, total: Decimal, stamp_ms: int, now_ms: int
    ) -> NextLink | Hold | None:
        """What brings the chain to `total`.

        First what is unsettled settles; then void links are taken back; then the difference is posted.
        """
        missing = _EXACT.subtract(total, chain.last_to)
        if chain.unsettled:
            return Hold(HoldReason.IN_FLIGHT, missing)
        if chain.voids:
            taken_back = sum((link.quantity for link in chain.voids), Decimal(0))
            return NextLink(
                quantity_to=chain.last_to - taken_back,
                mode=PostingMode.REVERSAL,
                stamp_ms=stamp_ms,
                reverses=tuple(link.seq for link in chain.voids),
                more=True,
            )
        live = terms.send == "live"
        if live and chain.has_dry_run:
            return Hold(HoldReason.DRY_RUN, missing + chain.dry_run_quantity)
        if missing == 0:
            return None
        if missing < 0 and terms.kind not in MAY_FALL:
            return Hold(HoldReason.NEGATIVE, missing)
        if now_ms - stamp_ms > STRIPE_AGE_MAX_MS:
            return Hold(HoldReason.TOO_OLD, missing)
        step = _within_digits(missing)
        park_reason = None
        if live and chain.rejected_code is not None and parks_successor(chain.rejected_code):
            park_reason = f"Stripe refused the posting before it: {chain.rejected_code}"
        return NextLink(
            quantity_to=_EXACT.add(chain.last_to, step),
            mode=PostingMode.DELTA if live else PostingMode.DRY_RUN,
            stamp_ms=stamp_ms,
            park_reason=park_reason,
            more=step != missing,
        )

    def compose(
        self, terms: MeterTerms, customer_id: str, key: str, seq: int, quantity_from: Decimal, link: NextLink
    ) -> Mapping[str, object]:
        """Identifier, idempotency key, stamp and the exact body: all a retry sends, fixed once for ever."""
        identifier = posting_identifier(key, seq, quantity_from, link.quantity_to, self.ledger_id)
        timestamp_s = link.stamp_ms // 1000
        if link.mode is PostingMode.REVERSAL:
            body: dict[str, object] = {"reverses": list(link.reverses)}
        else:
            body = {
                "event_name": terms.event_name,
                "identifier": identifier,
                "payload": {
                    "stripe_customer_id": customer_id,
                    "value": format_quantity(link.quantity_to - quantity_from),
                },
                "timestamp": timestamp_s,
            }
        return {
            "identifier": identifier,
            "idempotency_key": f"{identifier}:0",
            "timestamp_s": timestamp_s,
            "body": json.dumps(body, separators=(",", ":"), sort_keys=True),
        }


def _nearest(touching: Sequence[PeriodRow], at_ms: int) -> list[PeriodRow]:
    """The periods that ended last before `at_ms`, else those that begin first after it; removed ones aside."""
    usable = [p for p in touching if p.state in ("open", "closed")]
    ended = [p for p in usable if p.end_ms <= at_ms]
    if ended:
        last_ms = max(p.end_ms for p in ended)
        return [p for p in ended if p.end_ms == last_ms]
    first_ms = min((p.start_ms for p in usable), default=0)
    return [p for p in usable if p.start_ms == first_ms]


def _within_digits(quantity: Decimal) -> Decimal:
    """The part of a quantity Stripe takes in one value; the rest is for the next link."""
    return Context(prec=STRIPE_DIGITS_MAX, rounding=ROUND_DOWN).create_decimal(quantity)


def stretch_cadence(cadence_seconds: float, planned: int, calls_per_second: float) -> float:
    """Seconds until the next planning: the cadence, or as long as sending what was planned takes, with a fifth spare.

    Planning sooner would only find chains in flight.
    """
    return max(cadence_seconds, 1.25 * planned / calls_per_second)
