"""What can go wrong with a webhook event, and what to do about each.

WebhookError
  Transient   Stripe, Kafka or the ledger cannot now: try again later, the offset stays
  Permanent   this event cannot be projected, now or (after a few tries) ever: park it and report
"""

from __future__ import annotations

from enum import StrEnum


class TransientReason(StrEnum):
    """Why something cannot be done now. A label, so a closed list."""

    STRIPE_UNREACHABLE = "stripe_unreachable"
    STRIPE_FAILED = "stripe_failed"
    """Stripe answered with a 5xx, or 409."""
    RATE_LIMITED = "rate_limited"
    UNAUTHORIZED = "unauthorized"
    """The key is revoked, expired or lacks a scope: nothing is wrong with the event, everything with the key."""
    LEDGER_UNAVAILABLE = "ledger_unavailable"


class PermanentReason(StrEnum):
    """Why an event is parked. A label, so a closed list."""

    UNREADABLE = "unreadable"
    """Signed, but not the JSON of an event."""
    NOT_FOUND = "not_found"
    """Stripe does not know the object."""
    REFUSED = "refused"
    """Stripe refused to give the object for a reason that is ours."""
    UNEXPECTED_SHAPE = "unexpected_shape"
    """The object lacks what its API version promises."""
    LEDGER_REFUSED = "ledger_refused"
    INTERNAL = "internal"
    """A bug of ours: the log has its traceback."""


class WebhookError(Exception):
    """Base of what this service raises."""


class Transient(WebhookError):
    """Try again later; nothing was skipped."""

    def __init__(self, reason: TransientReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class Permanent(WebhookError):
    """Trying again does not help; park the event."""

    def __init__(self, reason: PermanentReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
