"""What a posting is, as plain values: its states, its modes, what becomes of it.

Owns the words and rows that sending, its outcomes and the ledger's transactions exchange. It refuses to know SQL
and every rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import Any


class PostingState(StrEnum):
    """Where a posting stands. README of `services/stripe_sync` draws the transitions."""

    PLANNED = "planned"
    """In the ledger, not yet in the journal."""
    JOURNALLED = "journalled"
    """In the journal, and Stripe has certainly not taken it."""
    SENDING = "sending"
    """A call is under way, or its process died: Stripe may have it."""
    UNKNOWN = "unknown"
    """A call's outcome is not known: Stripe may have it."""
    PARKED = "parked"
    """Stopped until an operator decides."""
    DELIVERED = "delivered"
    """Stripe has it: it said so."""
    SETTLED = "settled"
    """Stripe has it: its summaries, or an operator, said so."""
    DRY_RUN = "dry_run"
    """Written down and journalled, on purpose never sent."""
    VOID = "void"
    """Stripe has not got it and never will; a later link of the chain takes its quantity back."""
    REVERSAL = "reversal"
    """A link that takes void ones back. It is bookkeeping of the chain and never a call."""
    SUPERSEDED = "superseded"
    """Never sent: a later link of its chain carries the total that replaces it."""


UNSETTLED = (
    PostingState.PLANNED,
    PostingState.JOURNALLED,
    PostingState.SENDING,
    PostingState.UNKNOWN,
    PostingState.PARKED,
)
"""A chain whose last link is one of these gets no new link."""

SENDABLE = (PostingState.JOURNALLED, PostingState.SENDING, PostingState.UNKNOWN)
"""States a call may be made from. A posting found in `sending` was left there by a process that died."""

UNSENT = (PostingState.PLANNED, PostingState.JOURNALLED)
"""States of a posting that no operator stopped and no call is known of."""

AT_STRIPE = (PostingState.DELIVERED, PostingState.SETTLED)
"""What counts as delivered."""

IN_CHAIN = (*AT_STRIPE, PostingState.VOID, PostingState.REVERSAL, PostingState.SUPERSEDED)
"""Links that are over, for checks of a chain: void ones and their reversals cancel out, and what a superseded one was
to bring came with a later one, so that the sum of all these links is what Stripe has."""


class PostingMode(StrEnum):
    """What a posting does to Stripe's count."""

    DELTA = "delta"
    """Adds `to - from` to a summing Billing Meter."""
    WINDOW_TOTAL = "window_total"
    """Replaces with `to` what a Billing Meter with an event time window held for the customer's hour."""
    USAGE_RECORD = "usage_record"
    """Replaces with `to` what a subscription item held under the window's second."""
    INVOICE_ITEM = "invoice_item"
    """Charges `to - from` by an invoice item: usage of a period that takes no more."""
    DRY_RUN = "dry_run"
    """As the one it rehearses, but closed without a call."""
    REVERSAL = "reversal"
    """Takes void links back inside the chain, without a call."""


SENT_MODES = (
    PostingMode.DELTA,
    PostingMode.WINDOW_TOTAL,
    PostingMode.USAGE_RECORD,
    PostingMode.INVOICE_ITEM,
)
"""Modes that are calls to Stripe."""

METERLESS_MODES = (PostingMode.USAGE_RECORD, PostingMode.INVOICE_ITEM)
"""Modes that need no Billing Meter: usage records go to subscription items, invoice items to invoices."""

REPLACING_MODES = (PostingMode.WINDOW_TOTAL, PostingMode.USAGE_RECORD)
"""Modes whose postings carry a total that replaces the one before: a newer one makes an unsent older one needless."""


@dataclass(frozen=True, slots=True)
class Posting:
    """One row of the chain."""

    posting_key: str
    seq: int
    customer_id: str
    meter_id: int
    window_start_ms: int
    quantity_from: Decimal
    quantity_to: Decimal
    mode: PostingMode
    identifier: str
    idempotency_key: str
    timestamp_s: int
    body: str
    state: PostingState
    attempts: int
    first_sent_ms: int | None
    last_sent_ms: int | None
    retry_ms: int | None
    settled_ms: int | None
    request_id: str | None
    error: str | None
    planned_ms: int
    planned_from: Mapping[int, int]
    lease_version: int
    for_period_ms: int | None = None
    """Start of the finalized period it makes up for; None when its own period bills it."""

    @property
    def quantity(self) -> Decimal:
        """What it adds at Stripe."""
        return self.quantity_to - self.quantity_from

    @property
    def ref(self) -> tuple[str, int]:
        """Its primary key."""
        return self.posting_key, self.seq


def posting_from_row(row: Any) -> Posting:
    """A row of `postings` as a value."""
    return Posting(
        posting_key=row.posting_key,
        seq=row.seq,
        customer_id=row.customer_id,
        meter_id=row.meter_id,
        window_start_ms=row.window_start_ms,
        quantity_from=row.quantity_from,
        quantity_to=row.quantity_to,
        mode=PostingMode(row.mode),
        identifier=row.identifier,
        idempotency_key=row.idempotency_key,
        timestamp_s=row.timestamp_s,
        body=row.body,
        state=PostingState(row.state),
        attempts=row.attempts,
        first_sent_ms=row.first_sent_ms,
        last_sent_ms=row.last_sent_ms,
        retry_ms=row.retry_ms,
        settled_ms=row.settled_ms,
        request_id=row.request_id,
        error=row.error,
        planned_ms=row.planned_ms,
        planned_from={int(p): offset for p, offset in row.planned_from.items()},
        lease_version=row.lease_version,
        for_period_ms=row.for_period_ms,
    )


@dataclass(frozen=True, slots=True)
class DuePosting:
    """A posting that may be sent now."""

    posting: Posting
    event_name: str
    customer_deleted: bool
    period_end_ms: int | None
    """End of the open item period its stamp lies in: its invoice is what it must not miss."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one call, or of settling one posting. Columns left None keep their value."""

    posting_key: str
    seq: int
    state: PostingState
    attempted: bool = True
    """False when nothing was tried: the attempt is not counted."""
    certain: bool = False
    """Stripe certainly has nothing of it from any attempt so far: its first attempt may begin anew."""
    retry_ms: int | None = None
    idempotency_key: str | None = None
    request_id: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class SettlementView:
    """What the ledger knows of one (customer, event name, UTC hour), to be compared with Stripe's summary."""

    delivered: Decimal
    """Sum of what Stripe has said it took, in that hour."""
    unsure: tuple[Posting, ...]
    """Postings of that hour that Stripe may or may not have."""
    newest_ms: int = 0
    """When the last of them all was sent (epoch ms): a summary may lag behind it."""
    delivered_by_chain: Mapping[str, Decimal] = field(default_factory=dict)
    """Of totals that replace: each chain's last one that Stripe said it took, by posting key."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A posting that Stripe refused after its 2xx."""

    posting_key: str
    seq: int
    event_name: str
    code: str
