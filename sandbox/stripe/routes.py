"""The table of endpoints: which function answers which address, in which API versions.

Owns: addresses. Refuses to know: transport.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from sandbox.stripe import (
    catalog,
    customers,
    departures,
    events,
    invoice_calls,
    invoice_items,
    meter_events,
    meters,
    subscription_cycle,
    subscription_item_calls,
    subscription_start,
    subscriptions,
    usage,
    usage_records,
    webhooks,
)
from sandbox.stripe.errors import JsonObject
from sandbox.stripe.turns import Call, Turn
from sandbox.stripe.versions import BASIL, since

Handler = Callable[[Turn, Call], JsonObject]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint; ``path`` has ``{}`` where an id stands. ``until`` is the version date that removed it."""

    method: str
    path: str
    handler: Handler
    until: str | None = None
    locks_meter: bool = False
    pattern: re.Pattern[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", re.compile(f"^{self.path.replace('{}', '([^/]+)')}$"))


def account(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/account``: the account this state file is."""
    call.params.finish()
    return {
        "id": turn.state.setting("account_id"),
        "object": "account",
        "business_type": "company",
        "charges_enabled": True,
        "country": "US",
        "created": turn.state.setting("account_created"),
        "default_currency": "usd",
        "details_submitted": True,
        "email": "stand-in@example.com",
        "metadata": {},
        "payouts_enabled": True,
        "settings": {"dashboard": {"display_name": "Stand-in", "timezone": "Etc/UTC"}},
        "type": "standard",
    }


ROUTES = (
    Route("POST", "/v1/billing/meter_events", meter_events.create_meter_event, locks_meter=True),
    Route("POST", "/v2/billing/meter_events", meter_events.create_meter_event_v2, locks_meter=True),
    Route("POST", "/v1/billing/meter_event_adjustments", meter_events.create_adjustment),
    Route("POST", "/v1/billing/meters", meters.create_meter),
    Route("GET", "/v1/billing/meters", meters.list_meters),
    Route("GET", "/v1/billing/meters/{}", meters.retrieve_meter),
    Route("POST", "/v1/billing/meters/{}", meters.update_meter),
    Route("POST", "/v1/billing/meters/{}/deactivate", meters.deactivate_meter),
    Route("POST", "/v1/billing/meters/{}/reactivate", meters.reactivate_meter),
    Route("GET", "/v1/billing/meters/{}/event_summaries", usage.list_summaries),
    Route("GET", "/v1/account", account),
    Route("POST", "/v1/customers", customers.create_customer),
    Route("GET", "/v1/customers", customers.list_customers),
    Route("GET", "/v1/customers/{}", customers.retrieve_customer),
    Route("POST", "/v1/customers/{}", customers.update_customer),
    Route("DELETE", "/v1/customers/{}", departures.delete_customer),
    Route("POST", "/v1/products", catalog.create_product),
    Route("GET", "/v1/products", catalog.list_products),
    Route("GET", "/v1/products/{}", catalog.retrieve_product),
    Route("POST", "/v1/products/{}", catalog.update_product),
    Route("DELETE", "/v1/products/{}", catalog.delete_product),
    Route("POST", "/v1/prices", catalog.create_price),
    Route("GET", "/v1/prices", catalog.list_prices),
    Route("GET", "/v1/prices/{}", catalog.retrieve_price),
    Route("POST", "/v1/prices/{}", catalog.update_price),
    Route("POST", "/v1/subscriptions", subscription_start.create_subscription),
    Route("GET", "/v1/subscriptions", subscriptions.list_subscriptions),
    Route("GET", "/v1/subscriptions/{}", subscriptions.retrieve_subscription),
    Route("POST", "/v1/subscriptions/{}", subscriptions.update_subscription),
    Route("DELETE", "/v1/subscriptions/{}", subscriptions.cancel_subscription),
    Route("POST", "/v1/subscription_items", subscription_item_calls.create_item),
    Route("GET", "/v1/subscription_items", subscription_item_calls.list_items),
    Route("GET", "/v1/subscription_items/{}", subscription_item_calls.retrieve_item),
    Route("POST", "/v1/subscription_items/{}", subscription_item_calls.update_item),
    Route("DELETE", "/v1/subscription_items/{}", subscription_item_calls.delete_item),
    Route(
        "POST",
        "/v1/subscription_items/{}/usage_records",
        usage_records.create_usage_record,
        until=BASIL,
    ),
    Route(
        "GET",
        "/v1/subscription_items/{}/usage_record_summaries",
        usage_records.list_usage_record_summaries,
        until=BASIL,
    ),
    # Before the addresses with an id in the same place.
    Route("POST", "/v1/invoices/create_preview", subscription_cycle.preview_invoice),
    Route("POST", "/v1/invoices", invoice_calls.create_invoice),
    Route("GET", "/v1/invoices", invoice_calls.list_invoices),
    Route("GET", "/v1/invoices/{}", invoice_calls.retrieve_invoice),
    Route("POST", "/v1/invoices/{}", invoice_calls.update_invoice),
    Route("DELETE", "/v1/invoices/{}", invoice_calls.delete_invoice),
    Route("GET", "/v1/invoices/{}/lines", invoice_calls.list_lines),
    Route("POST", "/v1/invoices/{}/finalize", invoice_calls.finalize_invoice),
    Route("POST", "/v1/invoices/{}/pay", invoice_calls.pay_invoice),
    Route("POST", "/v1/invoices/{}/void", invoice_calls.void_invoice),
    Route("POST", "/v1/invoiceitems", invoice_items.create_invoice_item),
    Route("GET", "/v1/invoiceitems", invoice_items.list_invoice_items),
    Route("GET", "/v1/invoiceitems/{}", invoice_items.retrieve_invoice_item),
    Route("DELETE", "/v1/invoiceitems/{}", invoice_items.delete_invoice_item),
    Route("POST", "/v1/webhook_endpoints", webhooks.create_endpoint),
    Route("GET", "/v1/webhook_endpoints", webhooks.list_endpoints),
    Route("GET", "/v1/webhook_endpoints/{}", webhooks.retrieve_endpoint),
    Route("POST", "/v1/webhook_endpoints/{}", webhooks.update_endpoint),
    Route("DELETE", "/v1/webhook_endpoints/{}", webhooks.delete_endpoint),
    Route("GET", "/v1/events", events.list_events),
    Route("GET", "/v1/events/{}", events.retrieve_event),
    Route("GET", "/v2/core/events", events.list_thin_events),
    Route("GET", "/v2/core/events/{}", events.retrieve_thin_event),
    Route("POST", "/v2/core/event_destinations", webhooks.create_destination),
    Route("GET", "/v2/core/event_destinations", webhooks.list_destinations),
    Route("GET", "/v2/core/event_destinations/{}", webhooks.retrieve_destination),
    Route("POST", "/v2/core/event_destinations/{}", webhooks.update_destination),
    Route("POST", "/v2/core/event_destinations/{}/enable", webhooks.enable_destination),
    Route("POST", "/v2/core/event_destinations/{}/disable", webhooks.disable_destination),
    Route("DELETE", "/v2/core/event_destinations/{}", webhooks.delete_destination),
)


def find_route(method: str, path: str, version: str) -> tuple[Route, tuple[str, ...]] | None:
    """The endpoint of a request and the ids in its path, or None."""
    for route in ROUTES:
        if route.method != method:
            continue
        match = route.pattern.match(path)
        if match is not None and (route.until is None or not since(version, route.until)):
            return route, match.groups()
    return None
