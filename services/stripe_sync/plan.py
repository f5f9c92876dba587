"""The rules of planning: whose usage it is, which period takes it, what the next link of a chain is.

Owns the decisions; `tollgate.ledger.planning` gathers what they are made from and writes them down, in one
transaction. It refuses to know SQL, Kafka, Stripe's client and the clock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_DOWN, Context, Decimal

from services.stripe_sync.closed import charge_closed, effective_policy, item_body
from services.stripe_sync.outcomes import AfterRefusal, after_refusal, parks_successor
from services.stripe_sync.shorthand import Limits, Shorthand
from tollgate.ledger.plan_rows import (
    Chain,
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
from tollgate.ledger.posting_rows import REPLACING_MODES, PostingMode
from tollgate.ledger.types import format_quantity
from tollgate.metering.anomaly import AnomalyCap
from tollgate.metering.closed import ClosedPolicy
from tollgate.metering.meter import MetricKind
from tollgate.metering.posting import combine_accounts, posting_identifier, posting_key

STRIPE_DIGITS_MAX = 15
"""Significant digits Stripe takes in one value. A longer quantity goes in two postings."""

STRIPE_AGE_MAX_MS = 34 * 24 * 60 * 60 * 1000
"""Stripe takes 35 calendar days; one is kept back for outages and for what a calendar day means."""

_EXACT = Context(prec=60)
"""Enough for every sum of Decimal(38, 9): the default of 28 digits rounds in silence."""

_ONE_VALUE = Context(prec=STRIPE_DIGITS_MAX, rounding=ROUND_DOWN)
"""Leaves of a quantity what fits in one value."""

ADDITIVE = frozenset({MetricKind.COUNT, MetricKind.SUM})
"""Kinds whose windows add up, so that each window is a chain of its own. The others have one chain a period."""

MAY_FALL = frozenset({MetricKind.MIN, MetricKind.LATEST})
"""Kinds whose quantity goes down in the ordinary course of things. Stripe takes negative values."""


REPLACING_STAMP_MS = 1000
"""A total that replaces is stamped this far into its window's part of the period, every revision alike, so that each
window owns one second. Not on the period's very edge, which Stripe's words on usage records exclude."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The planning rules of one ledger. `ledger_id` keeps the keys of two ledgers apart at Stripe."""

    ledger_id: str
    closed: ClosedPolicy = ClosedPolicy.RESTAMP
    """What becomes of usage for a final invoice, where the meter does not say."""
    anomaly: AnomalyCap | None = None

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

    def scope_start(self, terms: MeterTerms, window_start_ms: int, period: PeriodRow) -> int:
        """A window is a chain of its own where windows add up, else the period is.

        A total that replaces must go where the one before it went: its chain says so by the period's part of the
        window, which no other period has.
        """
        if terms.kind not in ADDITIVE:
            return period.start_ms
        if terms.mode in REPLACING_MODES:
            return max(window_start_ms, period.start_ms)
        return window_start_ms

    def place(
        self,
        terms: MeterTerms,
        window_start_ms: int,
        latest_event_ms: int,
        periods: Sequence[PeriodRow],
        pinned: Sequence[PeriodRow],
    ) -> Placement | HoldReason:
        """The one open period that holds the latest event, else the one closed one, and the stamp.

        A window that straddles a period's edge goes where its latest event lies. Usage just outside every period (a
        subscription that began or ended within the window) goes to the nearest one that the window touches.
        A chain that belongs to its period (`pinned`: kinds that do not add up, totals that replace) keeps it.
        """
        window_end_ms = window_start_ms + terms.window_size_ms
        touching = [p for p in periods if p.start_ms < window_end_ms and p.end_ms > window_start_ms]
        if pinned and (terms.kind not in ADDITIVE or terms.mode in REPLACING_MODES):
            touching = [p for p in touching if p in pinned]
            holding = touching
        else:
            holding = [p for p in touching if p.start_ms <= latest_event_ms < p.end_ms]
        if not any(p.state in ("open", "closed") for p in holding):
            holding = _nearest(touching, latest_event_ms)
        usable = [p for p in holding if p.state == "open"] or [p for p in holding if p.state == "closed"]
        if len(usable) > 1:
            return HoldReason.AMBIGUOUS
        if not usable:
            return HoldReason.NO_ITEM
        period = usable[0]
        scope_start_ms = self.scope_start(terms, window_start_ms, period)
        stamp_ms = latest_event_ms
        if terms.mode in REPLACING_MODES:
            stamp_ms = scope_start_ms + REPLACING_STAMP_MS
            if terms.kind not in ADDITIVE:
                window_start_ms, window_end_ms = period.start_ms, period.end_ms
        earliest_ms = max(window_start_ms, period.start_ms)
        last_ms = min(window_end_ms, period.end_ms) - 1
        later = tuple(p for p in periods if p.state == "open" and p.start_ms >= period.end_ms)
        return Placement(
            scope_start_ms,
            min(max(stamp_ms, earliest_ms), last_ms),
            period,
            later if period.state == "closed" else (),
        )

    def chain_key(self, customer_id: str, meter_id: int, scope_start_ms: int) -> str:
        """The posting key of a chain."""
        return posting_key(self.ledger_id, customer_id, meter_id, scope_start_ms)

    def combine_chain(self, kind: MetricKind, slots: Sequence[Decimal]) -> Decimal:
        """A chain's quantity from its slots'."""
        return combine_accounts(kind, slots)

    def next_link(
        self, terms: MeterTerms, chain: Chain, total: Decimal, placement: Placement, now_ms: int
    ) -> NextLink | Hold | None:
        """What brings the chain to `total`.

        1. What is unsettled settles first; but a total that replaces need not wait for one that was never sent.
        2. Void links are taken back. 3. What cannot be posted is held, with its reason. 4. The difference is posted.
        """
        missing = _EXACT.subtract(total, chain.last_to)
        stamp_ms = placement.stamp_ms
        replacing = terms.mode in REPLACING_MODES
        if chain.unsettled and (not replacing or chain.blocked or chain.voids):
            return Hold(HoldReason.IN_FLIGHT, missing)
        if chain.voids:
            taken_back = sum((link.quantity for link in chain.voids), Decimal(0))
            return NextLink(
                quantity_to=_EXACT.subtract(chain.last_to, taken_back),
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
        closed = _closed_for(terms, chain, placement, now_ms)
        if closed is not None:
            return self.charge_closed(terms, chain, total, placement, closed, now_ms)
        if missing < 0 and not replacing and terms.kind not in MAY_FALL and not _amended_down(chain, total):
            return Hold(HoldReason.NEGATIVE, missing)
        if terms.mode is not PostingMode.USAGE_RECORD and now_ms - stamp_ms > STRIPE_AGE_MAX_MS:
            return Hold(HoldReason.TOO_OLD, missing)
        quantity_to = _carried(terms.mode, chain.last_to, total)
        if quantity_to == chain.last_to:
            return Hold(HoldReason.NEGATIVE if total < 0 else HoldReason.INEXACT, missing)
        return NextLink(
            quantity_to=quantity_to,
            mode=terms.mode if live else PostingMode.DRY_RUN,
            stamp_ms=stamp_ms,
            park_reason=_repeats(chain, live),
            more=quantity_to != total,
        )

    def shorthand(self, terms: MeterTerms, now_ms: int) -> Shorthand | None:
        """What writes the first links of a meter's plain windows; None for a meter that has none."""
        if terms.kind not in ADDITIVE or terms.mode is not PostingMode.DELTA or terms.send == "off":
            return None
        cap = self.anomaly if terms.send == "live" else None
        limits = Limits(now_ms - STRIPE_AGE_MAX_MS, _ONE_VALUE, cap.quantity_min if cap else None)
        return Shorthand(self.ledger_id, terms, limits)

    def closed_policy(self, terms: MeterTerms) -> ClosedPolicy:
        """What becomes of a meter's usage for a final invoice."""
        return effective_policy(terms, self.closed)

    def needs_bill(self, terms: MeterTerms, chain: Chain, placement: Placement, now_ms: int) -> bool:
        """Whether the next link may be an invoice item, for which `Placement.bill` must be known."""
        itemised = self.closed_policy(terms) is ClosedPolicy.INVOICE_ITEM
        return itemised and _closed_for(terms, chain, placement, now_ms) is not None

    def charge_closed(
        self,
        terms: MeterTerms,
        chain: Chain,
        total: Decimal,
        placement: Placement,
        reason: HoldReason,
        now_ms: int,
    ) -> NextLink | Hold:
        """What becomes of a difference whose item period Stripe takes nothing for any more.

        A total that may still go must first end one way or the other.
        """
        missing = _EXACT.subtract(total, chain.last_to)
        if chain.unsettled:
            return Hold(HoldReason.IN_FLIGHT, missing)
        live = terms.send == "live"
        itemised = self.closed_policy(terms) is ClosedPolicy.INVOICE_ITEM
        quantity_to = total if itemised else _carried(terms.mode, chain.last_to, total)
        carried = NextLink(
            quantity_to=quantity_to,
            mode=terms.mode if live else PostingMode.DRY_RUN,
            stamp_ms=placement.stamp_ms,
            # A stamp that was too old is not what this link will have.
            park_reason=_repeats(chain, live, apart_from="timestamp_too_far_in_past"),
            more=quantity_to != total,
        )
        return charge_closed(terms, self.closed, missing, carried, placement, reason, now_ms)

    def suspects(self, terms: MeterTerms, link: NextLink) -> int | None:
        """How far back (ms) a link must be compared with what was used before: only large ones that add up."""
        cap = self.anomaly
        if cap is None or terms.kind not in ADDITIVE or terms.send != "live":
            return None
        if link.mode is PostingMode.REVERSAL or link.park_reason is not None:
            return None
        return cap.history_ms if link.quantity_to >= cap.quantity_min else None

    def judge_anomaly(
        self, link: NextLink, window_start_ms: int, trailing: Mapping[int, Decimal]
    ) -> str | None:
        """Why a link must wait for an operator: its window is far above all windows of the weeks before."""
        if self.anomaly is None:
            return None
        highest = self.anomaly.judge(link.quantity_to, window_start_ms, trailing)
        if highest is None:
            return None
        return (
            f"{format_quantity(link.quantity_to)} in one window, {format_quantity(highest)} was the most in the "
            f"{self.anomaly.weeks} weeks before"
        )

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
        """Identifier, idempotency key, stamp and the exact body: all a retry sends, fixed once for ever."""
        identifier = posting_identifier(key, seq, quantity_from, link.quantity_to, self.ledger_id)
        timestamp_s = link.stamp_ms // 1000
        if link.mode is PostingMode.REVERSAL:
            body: dict[str, object] = {"reverses": list(link.reverses)}
        elif link.item is not None:
            assert link.for_period_ms is not None, "an item says which period it is for"
            added = _EXACT.subtract(link.quantity_to, quantity_from)
            body = item_body(terms, customer_id, identifier, added, link.for_period_ms, link.item)
        elif terms.mode is PostingMode.USAGE_RECORD:
            body = {
                "action": "set",
                "quantity": int(link.quantity_to),
                "subscription_item": item_id,
                "timestamp": timestamp_s,
            }
        else:
            replacing = terms.mode in REPLACING_MODES
            value = link.quantity_to if replacing else _EXACT.subtract(link.quantity_to, quantity_from)
            body = {
                "event_name": terms.event_name,
                "identifier": identifier,
                "payload": {"stripe_customer_id": customer_id, "value": format_quantity(value)},
                "timestamp": timestamp_s,
            }
        return {
            "identifier": identifier,
            "idempotency_key": f"{identifier}:0",
            "timestamp_s": timestamp_s,
            "body": json.dumps(body, separators=(",", ":"), sort_keys=True),
        }


def _closed_for(terms: MeterTerms, chain: Chain, placement: Placement, now_ms: int) -> HoldReason | None:
    """Why Stripe takes nothing more for the placement's period, or None.

    Meter events join the draft of a period that has ended; usage records are refused from its last second on.
    """
    if placement.period.state == "closed":
        return HoldReason.CLOSED
    if terms.mode is not PostingMode.USAGE_RECORD:
        return None
    refused = chain.rejected_code is not None and after_refusal(chain.rejected_code) is AfterRefusal.HOLD
    return HoldReason.PERIOD_OVER if refused or now_ms >= placement.period.end_ms else None


def _amended_down(chain: Chain, total: Decimal) -> bool:
    """Whether operators have taken back as much as the chain falls by, and left no less than nothing.

    Counts and sums fall by nothing else: any other fall is somebody's mistake, and not a credit.
    """
    return total >= 0 and _EXACT.subtract(total, chain.last_to) >= chain.taken_back


def _repeats(chain: Chain, live: bool, apart_from: str = "") -> str | None:
    """Why the next link would be refused as the one before it was, or None."""
    code = chain.rejected_code
    if not live or code is None or code == apart_from or not parks_successor(code):
        return None
    return f"Stripe refused the posting before it: {code}"


def _carried(mode: PostingMode, last_to: Decimal, total: Decimal) -> Decimal:
    """How far one posting can bring a chain that stands at `last_to` towards `total`."""
    if mode is PostingMode.USAGE_RECORD:
        return max(Decimal(0), total.quantize(Decimal(1), ROUND_DOWN, _EXACT))
    if mode is PostingMode.WINDOW_TOTAL:
        return _within_digits(total)
    return _EXACT.add(last_to, _within_digits(_EXACT.subtract(total, last_to)))


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
    return _ONE_VALUE.create_decimal(quantity)


def stretch_cadence(cadence_seconds: float, planned: int, calls_per_second: float) -> float:
    """Seconds until the next planning: the cadence, or as long as sending what was planned takes, with a fifth spare.

    Planning sooner would only find chains in flight.
    """
    return max(cadence_seconds, 1.25 * planned / calls_per_second)
