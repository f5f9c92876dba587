"""What a posting is, as plain values: its states, its modes, the reasons usage is held for.

Owns the words and rows that the planning rules and the ledger's transactions exchange. It refuses to know SQL and
every rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from tollgate.metering.meter import MetricKind


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


UNSETTLED = (
    PostingState.PLANNED,
    PostingState.JOURNALLED,
    PostingState.SENDING,
    PostingState.UNKNOWN,
    PostingState.PARKED,
)
"""A chain whose last link is one of these gets no new link."""

AT_STRIPE = (PostingState.DELIVERED, PostingState.SETTLED)
"""What counts as delivered."""


IN_CHAIN = (*AT_STRIPE, PostingState.VOID, PostingState.REVERSAL)
"""Links that are over, for checks of a chain: void ones and their reversals cancel out, so that the sum of all these
links is what Stripe has."""


class PostingMode(StrEnum):
    """What a posting does to Stripe's count."""

    DELTA = "delta"
    """Adds `to - from` to a summing Billing Meter."""
    DRY_RUN = "dry_run"
    """As delta, but closed without a call."""
    REVERSAL = "reversal"
    """Takes void links back inside the chain, without a call."""


class HoldReason(StrEnum):
    """Why usage is not posted."""

    NO_MAPPING = "no_mapping"
    """No customer is known for the account at the window's start."""
    NO_ITEM = "no_item"
    """The customer has no subscription item for the meter around that time."""
    CLOSED = "closed"
    """The invoice of the item period it belongs to is final."""
    AMBIGUOUS = "ambiguous"
    """Two customers, or two open items of one customer, could be meant."""
    NEGATIVE = "negative"
    """The count went down, which only a fault or a correction upstream can do."""
    TOO_OLD = "too_old"
    """Older than Stripe takes."""
    DRY_RUN = "dry_run"
    """The meter went live after a dry run: an operator decides what becomes of the dry part."""
    IN_FLIGHT = "in_flight"
    """Not a problem: an earlier posting of the same chain is not settled yet; planned right after it is."""


@dataclass(frozen=True, slots=True, order=True)
class Slot:
    """What one account used in one window of one meter: the unit that is attributed to a customer or held."""

    meter_id: int
    window_start_ms: int
    account: str


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One usage row of a slot: one per source partition and set of dimensions."""

    partition: int
    quantity: Decimal
    latest_event_ms: int
    order_ms: int
    order_offset: int
    events: int = 1
    """Events that gave it a value; with none, its quantity is nobody's maximum, minimum or latest."""


@dataclass(frozen=True, slots=True)
class MeterTerms:
    """What planning needs of a meter. `window_size_ms` in milliseconds."""

    meter_id: int
    name: str
    kind: MetricKind
    window_size_ms: int
    event_name: str
    send: str
    """off, dry_run or live."""


@dataclass(frozen=True, slots=True)
class MappingRow:
    """Who pays for an account at event times in [from_ms, to_ms)."""

    customer_id: str
    from_ms: int
    to_ms: int | None


@dataclass(frozen=True, slots=True)
class PeriodRow:
    """One billing period of a subscription item, [start_ms, end_ms), and its state: open, closed or removed."""

    start_ms: int
    end_ms: int
    state: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a window's quantity goes: its chain's scope (epoch ms) and the time it is stamped with (epoch ms)."""

    scope_start_ms: int
    stamp_ms: int


@dataclass(frozen=True, slots=True)
class VoidLink:
    """A void link of a chain that no reversal has taken back yet."""

    seq: int
    quantity: Decimal


@dataclass(frozen=True, slots=True)
class Chain:
    """A posting chain as it stands: what a decision on its next link needs."""

    last_seq: int = 0
    last_to: Decimal = Decimal(0)
    unsettled: bool = False
    voids: tuple[VoidLink, ...] = ()
    dry_run_quantity: Decimal = Decimal(0)
    """Sum of its links that were only rehearsed."""
    has_dry_run: bool = False
    rejected_code: str | None = None
    """Set when the last link is the reversal of one that Stripe refused after its 2xx: the refusal's code."""


@dataclass(frozen=True, slots=True)
class NextLink:
    """The next link of a chain. `park_reason` set: written down, but an operator must let it go."""

    quantity_to: Decimal
    mode: PostingMode
    stamp_ms: int
    park_reason: str | None = None
    reverses: tuple[int, ...] = ()
    more: bool = False
    """Some of the quantity is left for the link after this one."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Not posted, and why. `quantity` is what is missing at Stripe."""

    reason: HoldReason
    quantity: Decimal


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

    @property
    def quantity(self) -> Decimal:
        """What it adds at Stripe."""
        return self.quantity_to - self.quantity_from

    @property
    def ref(self) -> tuple[str, int]:
        """Its primary key."""
        return self.posting_key, self.seq


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


@dataclass(frozen=True, slots=True)
class Refusal:
    """A posting that Stripe refused after its 2xx."""

    posting_key: str
    seq: int
    event_name: str
    code: str
