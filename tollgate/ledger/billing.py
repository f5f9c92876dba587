"""What Stripe says of a customer, a subscription and an invoice, in the ledger's words.

Owns the values the webhooks' transactions are given. It refuses to know Stripe's JSON (the caller converts) and how
any of it is stored. Times are integer epoch milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

ENDED_STATUSES = frozenset({"canceled", "incomplete_expired"})
"""The two subscription statuses Stripe never leaves again."""

FINALIZED_STATUSES = frozenset({"open", "paid", "uncollectible", "void"})
"""An invoice with one of these takes no more usage; a voided one has had its usage, too."""


class PeriodState(StrEnum):
    """Whether usage stamped inside an item's period can still reach an invoice."""

    OPEN = "open"
    CLOSED = "closed"
    """Its invoice is finalized: Stripe would put later usage on no invoice at all."""
    REMOVED = "removed"
    """The item or its subscription went away before the period ended."""


@dataclass(frozen=True, slots=True)
class Customer:
    """A Stripe customer. A deleted one keeps its id and nothing else."""

    customer_id: str
    email: str | None = None
    name: str | None = None
    deleted: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a subscription in its current period `[period_start_ms, period_end_ms)`."""

    item_id: str
    price_id: str
    event_name: str | None
    """Of the Billing Meter behind the price; None when the price is not metered, so no usage can reach it."""
    period_start_ms: int
    period_end_ms: int
    price_since_ms: int | None = None
    """Since when it has had this price, where an event says that it had another one before."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A Stripe subscription with its items."""

    subscription_id: str
    customer_id: str
    status: str
    start_ms: int
    ended_ms: int | None
    metadata: Mapping[str, Any]
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class InvoiceLine:
    """An invoice line for the metered usage of one item over `[period_start_ms, period_end_ms)`."""

    item_id: str
    price_id: str
    event_name: str
    period_start_ms: int
    period_end_ms: int
    quantity: str = "0"
    """Decimal text as Stripe writes it. While the invoice is a draft: so far."""
    line_id: str = ""


@dataclass(frozen=True, slots=True)
class Invoice:
    """A Stripe invoice with those of its lines that bill metered usage."""

    invoice_id: str
    customer_id: str
    subscription_id: str | None
    status: str
    """Stripe's own, or `deleted` for a draft that is no more."""
    billing_reason: str | None
    period_start_ms: int
    period_end_ms: int
    created_ms: int
    finalizes_ms: int | None
    finalized_ms: int | None
    lines: tuple[InvoiceLine, ...] = ()

    @property
    def finalized(self) -> bool:
        """Whether usage can no longer be added to it."""
        return self.status in FINALIZED_STATUSES


@dataclass(frozen=True, slots=True)
class Rejection:
    """A meter event Stripe took with a 2xx and refused afterwards."""

    identifier: str
    code: str
    message: str
    reported_ms: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """One webhook event, as the inbox remembers it. `object_id` and `customer_id` are '' where there is none."""

    event_id: str
    type: str
    object_id: str
    customer_id: str
    created_s: int
