"""What planning reads and decides, as plain values: slots, usage, mappings, periods, chains, links, holds.

Owns the words that the planning rules and the planning transaction exchange. It refuses to know SQL and every rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

from tollgate.ledger.posting_rows import PostingMode
from tollgate.metering.closed import ClosedPolicy
from tollgate.metering.meter import MetricKind
from tollgate.metering.price import Price


class HoldReason(StrEnum):
    """Why usage is not posted."""

    NO_MAPPING = "no_mapping"
    """No customer is known for the account at the window's start."""
    NO_ITEM = "no_item"
    """The customer has no subscription item for the meter around that time."""
    CLOSED = "closed"
    """The invoice of the item period it belongs to is final."""
    NO_PRICE = "no_price"
    """As closed, and an invoice item is to charge it, but the price of its period is not known (yet)."""
    AMBIGUOUS = "ambiguous"
    """Two customers, or two open items of one customer, could be meant."""
    NEGATIVE = "negative"
    """It went down where that cannot be posted: a count, a closed period, or below nothing. A credit is due."""
    PERIOD_OVER = "period_over"
    """Its item period has ended, and usage records are taken only while one is current."""
    INEXACT = "inexact"
    """The mode cannot carry it exactly: a fraction of a unit, or more digits than Stripe takes at once."""
    TOO_OLD = "too_old"
    """Older than Stripe takes."""
    DRY_RUN = "dry_run"
    """The meter went live after a dry run: an operator decides what becomes of the dry part."""
    IN_FLIGHT = "in_flight"
    """Not a problem: an earlier posting of the same chain is not settled yet; planned right after it is."""


class Slot(NamedTuple):
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


def usage_from_row(row: Any) -> UsageRow:
    """A row of `usage` as a value."""
    return UsageRow(
        row.partition, row.quantity, row.latest_event_ms, row.order_ms, row.order_offset, row.events
    )


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
    mode: PostingMode = PostingMode.DELTA
    """What its postings do at Stripe: one of the modes that are sent."""
    closed: ClosedPolicy | None = None
    """What becomes of usage for a final invoice; None: as the installation has it."""


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
    item_id: str = ""
    price_id: str = ""


@dataclass(frozen=True, slots=True)
class ClosedBill:
    """What an invoice item for a closed period is priced from."""

    price: Price | None
    """The period's own; None when it is not known, or nothing here can express it."""
    billed: Decimal
    """What has been billed of the meter for the period, other items for it included."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a window's quantity goes: its chain's scope (epoch ms), the time it is stamped with (epoch ms), the period.

    The period is open, or closed: then only a decision of its own can charge what is missing.
    """

    scope_start_ms: int
    stamp_ms: int
    period: PeriodRow
    later: tuple[PeriodRow, ...] = ()
    """Of a closed period: the customer's open ones after it."""
    bill: ClosedBill | None = None
    """Loaded where the rules ask for it (`PlanRules.needs_bill`)."""


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
    """A link of it is not over: Stripe may have it, or it waits."""
    blocked: bool = False
    """One of those may be at Stripe, or waits for an operator: nothing can take its place."""
    voids: tuple[VoidLink, ...] = ()
    dry_run_quantity: Decimal = Decimal(0)
    """Sum of its links that were only rehearsed."""
    has_dry_run: bool = False
    taken_back: Decimal = Decimal(0)
    """What operators' amendments have taken back of its usage: never above zero, and how far it may fall for that."""
    rejected_code: str | None = None
    """Set when the last link is the reversal of one that Stripe refused for good: the refusal's code."""


@dataclass(frozen=True, slots=True)
class LateCharge:
    """Usage of a period that takes no more, billed by an invoice item: `amount` in minor units of `currency`."""

    amount: int
    currency: str
    period_end_ms: int


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
    for_period_ms: int | None = None
    """Start of the period it makes up for, when it is billed elsewhere: stamped into another, or by an item."""
    item: LateCharge | None = None
    """Set when an invoice item carries it."""


class FirstLink(NamedTuple):
    """A chain's first link, from nothing, as it is sent."""

    posting_key: str
    identifier: str
    idempotency_key: str
    timestamp_s: int
    body: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Not posted, and why. `quantity` is what is missing at Stripe."""

    reason: HoldReason
    quantity: Decimal
