"""stripe_sync's fault points, in order. What reaching one does is `tollgate.runtime.faults`."""

from __future__ import annotations

from enum import StrEnum


class FaultPoint(StrEnum):
    """The numbered steps of the README, from the moment each is done."""

    AFTER_PLAN = "after_plan"
    AFTER_JOURNAL = "after_journal"
    """In the topic, not yet marked in the ledger."""
    AFTER_MARK_JOURNALLED = "after_mark_journalled"
    AFTER_MARK_SENDING = "after_mark_sending"
    """Marked, not yet sent."""
    AFTER_SEND = "after_send"
    """Answered by Stripe, not yet recorded."""
    AFTER_RECORD = "after_record"
