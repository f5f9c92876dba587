"""One attempt's conclusion: the state a posting gets from what Stripe answered, and when it is tried again.

Owns the step from a row of the failure table to the posting's next state. It refuses to know how the call was made
and how the outcome is written.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.stripe_sync.outcomes import Action, Failure, Row
from tollgate.ledger.posting_rows import Outcome, Posting, PostingState
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
    elif row.action in (Action.STOP_ALL, Action.HALT_METER):
        attempted, retry_ms = False, None
    elif row.action is Action.ASK_UNDER_NEW_KEY:
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
