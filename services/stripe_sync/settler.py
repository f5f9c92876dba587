"""The settler: what became of a posting that cannot just be sent again, by what Stripe says it has.

Owns asking, waiting for the summaries' lag, and the state that follows from the verdict, in each mode. It refuses to
know how a summary is compared (`settlement.py`) and sends nothing.
"""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import structlog

from services.stripe_sync.attempt import Pace, was_sent_past_horizon
from services.stripe_sync.book import SendingBook
from services.stripe_sync.call_gate import CallGate
from services.stripe_sync.gateway import BillingMeter, CallFailed, Gateway
from services.stripe_sync.meter_watch import MeterWatch
from services.stripe_sync.outcomes import Action, Situation
from services.stripe_sync.settlement import Verdict, compare_summary
from tollgate.ledger.posting_rows import (
    METERLESS_MODES,
    DuePosting,
    Outcome,
    Posting,
    PostingMode,
    PostingState,
)
from tollgate.runtime.clock import Clock

_log = structlog.get_logger(__name__)

_CLOCKS_APART_S = 3600
"""How far Stripe's clock may be behind ours when it says when an invoice item was made."""


class Settler:
    """Settles under one lease. `summary_lag_seconds`: how long after the last call Stripe's sums are believed."""

    def __init__(
        self,
        *,
        book: SendingBook,
        gateway: Gateway,
        watch: MeterWatch,
        gate: CallGate,
        pace: Pace,
        clock: Clock,
        summary_lag_seconds: float,
    ) -> None:
        self._book = book
        self._gateway = gateway
        self._watch = watch
        self._gate = gate
        self._pace = pace
        self._clock = clock
        self._summary_lag_ms = int(summary_lag_seconds * 1000)

    async def settle(self, entry: DuePosting) -> Outcome | None:
        """What Stripe says it has of the posting: its state, still unknown while it cannot be asked, None: send it."""
        posting = entry.posting
        try:
            if posting.mode is PostingMode.USAGE_RECORD:
                return await self._settle_recorded(entry)
            if posting.mode is PostingMode.INVOICE_ITEM:
                return await self._settle_item(posting)
            meter = self._watch.stripe_meter(entry.event_name)
            if meter is None:
                return self._later(posting, "the meter is halted")
            if posting.mode is PostingMode.WINDOW_TOTAL:
                return await self._settle_total(posting, meter)
            return await self._settle_delta(entry, meter)
        except CallFailed as error:
            if error.row.action is Action.STOP_ALL:
                self._gate.stop(str(error))
            return self._later(posting, str(error))

    async def _settle_delta(self, entry: DuePosting, meter: BillingMeter) -> Outcome:
        posting = entry.posting
        view = await self._book.settlement(posting, entry.event_name)
        if (waiting := self._waiting(posting, view.newest_ms)) is not None:
            return waiting
        summary = await self._ask_hour(posting, meter)
        others = [other.quantity for other in view.unsure if other.ref != posting.ref]
        verdict = compare_summary(summary, view.delivered, posting.quantity, others)
        return _settled(posting, verdict, f"Stripe's hour holds {summary}, delivered before {view.delivered}")

    async def _settle_total(self, posting: Posting, meter: BillingMeter) -> Outcome | None:
        """There, or not: the hour holds one value. Not there is sent again, and asked about once more after that.

        If it is not there then either, it is void: the latest total is posted under a new identifier.
        """
        again = was_sent_past_horizon(posting)
        if again and (waiting := self._waiting(posting, 0)) is not None:
            return waiting
        summary = await self._ask_hour(posting, meter)
        verdict = compare_summary(summary, Decimal(0), posting.quantity_to)
        if verdict is Verdict.UNDECIDED:  # a total of nothing, and nothing there
            verdict = Verdict.DELIVERED if summary == posting.quantity_to else Verdict.NOT_DELIVERED
        if verdict is Verdict.NOT_DELIVERED and not again:
            return None
        return _settled(
            posting, verdict, f"Stripe's hour holds {summary}, the total was {posting.quantity_to}"
        )

    async def _settle_recorded(self, entry: DuePosting) -> Outcome:
        """By the sum of the item's period, which takes no more records."""
        posting = entry.posting
        await self._gate.take_token()
        item_id = str(json.loads(posting.body)["subscription_item"])
        recorded = await self._gateway.recorded_usage(item_id, posting.timestamp_s)
        if recorded is None:
            return _settled(
                posting, Verdict.UNDECIDED, f"Stripe lists no period of {item_id} around its stamp"
            )
        view = await self._book.period_settlement(posting, entry.event_name, recorded.start_s, recorded.end_s)
        if (waiting := self._waiting(posting, view.newest_ms)) is not None:
            return waiting
        before = view.delivered_by_chain
        others = [
            other.quantity_to - before.get(other.posting_key, Decimal(0))
            for other in view.unsure
            if other.ref != posting.ref
        ]
        added = posting.quantity_to - before.get(posting.posting_key, Decimal(0))
        verdict = compare_summary(recorded.quantity, view.delivered, added, others)
        said = f"{item_id} has {recorded.quantity} recorded, delivered before {view.delivered}"
        return _settled(posting, verdict, said, f"rejected:{Situation.PERIOD_OVER}:")

    async def _settle_item(self, posting: Posting) -> Outcome:
        """By whether Stripe lists an invoice item that names it."""
        if (waiting := self._waiting(posting, 0)) is not None:
            return waiting
        await self._gate.take_token()
        since_s = posting.planned_ms // 1000 - _CLOCKS_APART_S
        item_id = await self._gateway.find_charge(posting.customer_id, posting.identifier, since_s)
        if item_id is None:
            return _settled(posting, Verdict.NOT_DELIVERED, "Stripe lists no invoice item that names it")
        return _settled(posting, Verdict.DELIVERED, f"it is Stripe's invoice item {item_id}")

    def to_be_verified(self, posting: Posting, request_id: str | None) -> Outcome:
        """Stripe took a total again that it may have had once: its summary says, after its lag, whether it counts."""
        believed_ms = self._clock.now_ms() + self._summary_lag_ms
        outcome = _still_unknown(posting, believed_ms, "posted again, to be verified by Stripe's summaries")
        return replace(outcome, attempted=True, request_id=request_id)

    async def _ask_hour(self, posting: Posting, meter: BillingMeter) -> Decimal:
        await self._gate.take_token()
        hour_s = posting.timestamp_s - posting.timestamp_s % 3600
        return await self._gateway.hour_sum(meter.stripe_meter_id, posting.customer_id, hour_s)

    def _waiting(self, posting: Posting, newest_ms: int) -> Outcome | None:
        """Still unknown, until summaries can be believed."""
        believed_ms = max(newest_ms, posting.last_sent_ms or 0) + self._summary_lag_ms
        if self._clock.now_ms() >= believed_ms:
            return None
        return _still_unknown(posting, believed_ms, "waiting for Stripe's summaries")

    def _later(self, posting: Posting, why: str) -> Outcome:
        retry_ms = self._pace.retry_ms(posting.attempts, self._clock.now_ms())
        return _still_unknown(posting, retry_ms, why)


def _settled(posting: Posting, verdict: Verdict, said: str, void_prefix: str = "") -> Outcome:
    said = f"{verdict}: {said}, this posting {posting.quantity}"
    state = {
        Verdict.DELIVERED: PostingState.SETTLED,
        Verdict.NOT_DELIVERED: PostingState.VOID,
        Verdict.UNDECIDED: PostingState.PARKED,
    }[verdict]
    log = _log.bind(posting_key=posting.posting_key, seq=posting.seq, verdict=str(verdict), said=said)
    (log.error if verdict is Verdict.UNDECIDED else log.warning)("posting.settled")
    error = (void_prefix if state is PostingState.VOID else "") + said
    return Outcome(posting.posting_key, posting.seq, state, attempted=False, error=error)


def _still_unknown(posting: Posting, retry_ms: int, why: str) -> Outcome:
    # Usage records and items are told by the error that they are to be asked about: it must outlive the waiting.
    error = posting.error if posting.mode in METERLESS_MODES else why[:500]
    return Outcome(
        posting.posting_key,
        posting.seq,
        PostingState.UNKNOWN,
        attempted=False,
        retry_ms=retry_ms,
        error=error,
    )
