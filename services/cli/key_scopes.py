"""What a key may do: the reads each service needs, tried out one by one.

Owns the table of scopes and the harmless read that proves each. It refuses to try a write: what only a write would
show is listed as not proven.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Scope:
    """One permission of a restricted key."""

    name: str
    """As Stripe's dashboard lists it."""
    services: tuple[str, ...]
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)


_NOWHERE = "tollgate_probe"
"""An id no object has: a key that may read is told so (404), one that may not is turned away before (403)."""

READS = (
    Scope("Customers: read", ("webhooks",), "/v1/customers", {"limit": 1}),
    Scope("Subscriptions: read", ("webhooks",), "/v1/subscriptions", {"limit": 1}),
    Scope("Invoices: read", ("webhooks", "stripe_sync"), "/v1/invoices", {"limit": 1}),
    Scope("Prices: read", ("webhooks", "meters apply"), "/v1/prices", {"limit": 1}),
    Scope("Products: read", ("meters apply",), "/v1/products", {"limit": 1}),
    Scope(
        "Billing meters: read",
        ("webhooks", "stripe_sync", "meters apply"),
        "/v1/billing/meters",
        {"limit": 1},
    ),
    Scope(
        "Billing meter event summaries: read",
        ("stripe_sync",),
        f"/v1/billing/meters/{_NOWHERE}/event_summaries",
        {"customer": _NOWHERE, "start_time": 0, "end_time": 3600},
    ),
    Scope("Events: read", ("webhooks",), "/v1/events", {"limit": 1}),
    Scope("Thin events: read", ("webhooks",), f"/v2/core/events/{_NOWHERE}"),
    Scope("Webhook endpoints: read", ("stripe connect",), "/v1/webhook_endpoints", {"limit": 1}),
    Scope("Event destinations: read", ("stripe connect",), "/v2/core/event_destinations", {"limit": 1}),
)

WRITES = (
    ("Billing meter events: write", "stripe_sync"),
    ("Invoices and invoice items: write", "stripe_sync"),
    ("Billing meters, products and prices: write", "meters apply"),
    ("Subscriptions: write", "customers cancel"),
    ("Webhook endpoints and event destinations: write", "stripe connect"),
)
"""Needed too, but no read shows them."""


class Reader(Protocol):
    """What this file asks of the gateway."""

    def may_read(self, path: str, **params: Any) -> bool: ...


def missing_scopes(stripe: Reader) -> tuple[Scope, ...]:
    """The reads the key may not do. Raises StripeUnreachable."""
    return tuple(scope for scope in READS if not stripe.may_read(scope.path, **scope.params))
