"""One attempt's conclusion: the state a posting gets from what Stripe answered, and when it is tried again.

Owns the step from a row of the failure table to the posting's next state. It refuses to know how the call was made
and how the outcome is written.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.stripe_sync.outcomes import Action, Failure, Row, Situation
from tollgate.ledger.posting_rows import Outcome, Posting, PostingMode, PostingState
from tollgate.runtime.backoff import Backoff

HORIZON_MS = 20 * 60 * 60 * 1000
"""Stripe remembers identifiers and idempotency keys for 24 hours. Four are kept back for clocks, pauses and calls
under way: past this age a posting that Stripe may have is never sent again, it is settled against the summaries."""

NEW_KEY_AFTER = 3
"""Tries under one idempotency key that end in 5xx before another is used: Stripe replays a stored 500 for a day."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to wait before a posting is tried again."""

    backoff: Backoff

    def retry_ms(self, attempts: int, now_ms: int) -> int:
        return now_ms + int(self.backoff.delay_seconds(attempts) * 1000)


def may_be_at_stripe(posting: Posting) -> bool:
    """Whether an earlier attempt may have arrived. A posting found in `sending` was left there by a death."""
    return posting.first_sent_ms is not None


def is_past_horizon(posting: Posting, now_ms: int) -> bool:
    """Whether sending again could count twice, because Stripe may have forgotten the first time."""
    return posting.first_sent_ms is not None and now_ms - posting.first_sent_ms >= HORIZON_MS


def must_be_settled(posting: Posting, now_ms: int) -> bool:
    """Whether the posting is not sent, but asked about: sending it again could count twice, or is refused for good.

    A total that replaces may be set again for as long as Stripe takes it. On a meter it is asked about as well, since
    a 2xx is not yet a count: before it is sent past the horizon, and after. An invoice item whose key only replays a
    stored 500 gets no other key, since no identifier protects it: Stripe's list of items says whether it is there.
    """
    if posting.mode is PostingMode.USAGE_RECORD:
        return may_be_at_stripe(posting) and (posting.error or "").startswith(f"{Situation.PERIOD_OVER}:")
    if posting.mode is PostingMode.INVOICE_ITEM and posting.attempts >= NEW_KEY_AFTER:
        stuck = may_be_at_stripe(posting) and (posting.error or "").startswith(f"{Situation.SERVER_ERROR}:")
        return stuck or is_past_horizon(posting, now_ms)
    return is_past_horizon(posting, now_ms)


def was_sent_past_horizon(posting: Posting) -> bool:
    """Whether its last attempt came after the horizon of the first one."""
    return (
        posting.first_sent_ms is not None
        and posting.last_sent_ms is not None
        and posting.last_sent_ms - posting.first_sent_ms >= HORIZON_MS
    )


def deadline_ms(posting: Posting, period_end_ms: int | None) -> int:
    """What is sent first: the nearest of Stripe's horizon and the period's end (epoch ms)."""
    day_ms = 24 * 60 * 60 * 1000
    candidates = [posting.timestamp_s * 1000 + 35 * day_ms]
    if posting.first_sent_ms is not None:
        candidates.append(posting.first_sent_ms + HORIZON_MS)
    if period_end_ms is not None:
        candidates.append(period_end_ms)
    return min(candidates)


def conclude_delivered(posting: Posting, request_id: str | None, duplicate: bool) -> Outcome:
    """Stripe has it."""
    return Outcome(
        posting.posting_key,
        posting.seq,
        PostingState.DELIVERED,
        request_id=request_id,
        error="duplicate identifier" if duplicate else None,
    )


def conclude_not_tried(posting: Posting, why: str) -> Outcome:
    """No call was made after all: the posting is as it was before it was marked."""
    doubtful = may_be_at_stripe(posting)
    return Outcome(
        posting.posting_key,
        posting.seq,
        PostingState.UNKNOWN if doubtful else PostingState.JOURNALLED,
        attempted=False,
        certain=not doubtful,
        error=why,
    )


def conclude_customer_gone(posting: Posting) -> Outcome:
    """The customer was deleted: nothing can be sent for it any more, an operator decides."""
    return Outcome(
        posting.posting_key,
        posting.seq,
        PostingState.PARKED,
        attempted=False,
        certain=not may_be_at_stripe(posting),
        error=f"{Situation.CUSTOMER_GONE}: the customer was deleted",
    )


def conclude_failed(posting: Posting, row: Row, failure: Failure, pace: Pace, now_ms: int) -> Outcome:
    """The posting after a failed attempt. `posting` is as it was before the attempt was marked.

    Only when this attempt certainly failed and none before it was doubtful does the posting count as never sent.
    """
    untouched = row.certain and not may_be_at_stripe(posting)
    waiting = PostingState.JOURNALLED if untouched else PostingState.UNKNOWN
    detail = f"{row.situation}: {failure.message}"[:500]
    state, attempted, new_key = waiting, True, None
    retry_ms: int | None = pace.retry_ms(posting.attempts, now_ms)
    if row.action is Action.PARK:
        state, retry_ms = PostingState.PARKED, None
    elif row.action is Action.TAKE_BACK:
        retry_ms = None
        if untouched:
            state, detail = PostingState.VOID, f"rejected:{detail}"
    elif row.action in (Action.STOP_ALL, Action.HALT_METER):
        attempted, retry_ms = False, None
    elif row.action is Action.ASK_UNDER_NEW_KEY and posting.mode is not PostingMode.INVOICE_ITEM:
        tries = posting.attempts + 1
        if failure.replayed or tries % NEW_KEY_AFTER == 0:
            new_key = f"{posting.identifier}:{tries}"
    return Outcome(
        posting.posting_key,
        posting.seq,
        state,
        attempted=attempted,
        certain=untouched,
        retry_ms=retry_ms,
        idempotency_key=new_key,
        request_id=failure.request_id,
        error=detail,
    )
