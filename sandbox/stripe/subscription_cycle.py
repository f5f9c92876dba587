"""What a subscription's periods make: the invoice at each end, the next period, and the preview of the coming invoice.

Owns: which usage and licences each moment bills. Refuses to know: how a line is computed (invoice_lines) and how an
invoice closes (invoices).
"""

from sandbox.stripe.customers import find_customer
from sandbox.stripe.errors import (
    JsonObject,
    missing_parameter,
    refused,
)
from sandbox.stripe.events import emit
from sandbox.stripe.invoice_drafts import draft, draft_body, pending_items
from sandbox.stripe.invoice_lines import invoice_item_line, licence_line
from sandbox.stripe.invoices import preview_seen, void
from sandbox.stripe.periods import next_edge
from sandbox.stripe.settings import load
from sandbox.stripe.subscription_items import (
    items_of,
    metered,
    price_of,
    shown,
)
from sandbox.stripe.subscriptions import (
    ENDED,
    assembled,
    end_subscription,
    find_subscription,
    next_moment,
    unbilled_usage_lines,
)
from sandbox.stripe.turns import Call, Turn
from sandbox.stripe.versions import render

PREVIEW_PREFIX = "upcoming_in_"
"""What the id of a preview begins with, in the place of `in_`."""


def roll(turn: Turn, subscription_id: str) -> None:
    """A subscription's moment has come, at ``turn``'s instant: its period ends, or it does.

    The invoice of the ended period stays a draft for the grace; usage stamped inside the period joins it till then.
    """
    subscription = find_subscription(turn, subscription_id)
    items = items_of(turn, subscription_id)
    period = (items[0]["current_period_start"], turn.now)
    cancel_at = subscription["cancel_at"]
    ends = subscription["cancel_at_period_end"] or (cancel_at is not None and cancel_at <= turn.now)
    lines = unbilled_usage_lines(turn, subscription, turn.now)
    before = [shown(turn, item) for item in items]
    previous: JsonObject = {"latest_invoice": subscription["latest_invoice"]}
    if subscription["status"] == "trialing":
        previous["status"], subscription["status"] = "trialing", "active"
    pause = _pause_in_force(turn, subscription, previous)
    if not ends:
        lines += _begin_period(turn, subscription, items)
    customer = turn.state.find("customer", subscription["customer"])
    if customer is None:
        raise AssertionError("a customer leaves a tombstone, never nothing")
    finalizes_at = None
    if pause in (None, "mark_uncollectible"):
        finalizes_at = turn.now + load(turn.state).invoices.grace_seconds
    invoice = draft(turn, customer, subscription, "subscription_cycle", period, lines, finalizes_at)
    if pause == "void":
        void(turn, invoice)
    elif pause == "mark_uncollectible":
        invoice["_uncollectible"] = True
        turn.state.update(invoice)
    previous["items"] = {"data": render(before, "9999")}
    subscription["latest_invoice"] = invoice["id"]
    if ends:
        end_subscription(turn, subscription)
        return
    turn.state.update(subscription)
    emit(turn, "customer.subscription.updated", assembled(turn, subscription), previous)


def _pause_in_force(turn: Turn, subscription: JsonObject, previous: JsonObject) -> str | None:
    """What ``pause_collection`` makes of an invoice created now; a pause whose ``resumes_at`` has come is over."""
    pause = subscription["pause_collection"]
    if pause is None:
        return None
    if pause["resumes_at"] is not None and pause["resumes_at"] <= turn.now:
        previous["pause_collection"], subscription["pause_collection"] = pause, None
        return None
    return str(pause["behavior"])


def _begin_period(turn: Turn, subscription: JsonObject, items: list[JsonObject]) -> list[JsonObject]:
    """Move every item to the period that starts now; answers the licences due ahead for it."""
    terms = price_of(turn, items[0])["recurring"]
    end = next_edge(
        subscription["billing_cycle_anchor"], terms["interval"], terms["interval_count"], turn.now
    )
    lines = []
    for item in items:
        item["current_period_start"], item["current_period_end"] = turn.now, end
        item["_billed_from"] = turn.now
        turn.state.update(item)
        price = price_of(turn, item)
        if not metered(price):
            lines.append(licence_line(item, price, turn.now, end))
    turn.state.set_due(subscription["id"], next_moment(subscription, end))
    return lines


def preview_invoice(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/invoices/create_preview``: the next invoice of a subscription by the usage known now."""
    params = call.params
    customer_id, subscription_id = params.text("customer"), params.text("subscription")
    params.finish()
    if subscription_id is None:
        if customer_id is None:
            raise missing_parameter("customer")
        running = turn.state.scan("subscription", customer=customer_id)
        subscription = next((body for body in running if body["status"] not in ENDED), None)
    else:
        subscription = find_subscription(turn, subscription_id)
    if subscription is None or subscription["status"] in ENDED:
        raise refused("No upcoming invoices for customer", code="invoice_upcoming_none")
    return preview_seen(_coming(turn, subscription), call.version)


def preview_lines(turn: Turn, invoice_id: str) -> list[JsonObject] | None:
    """All lines of a preview by its id, by the usage known now; None for an id that is no running preview's."""
    suffix = invoice_id.removeprefix(PREVIEW_PREFIX)
    if suffix == invoice_id:
        return None
    subscription = turn.state.find("subscription", f"sub_{suffix}")
    if subscription is None or subscription["status"] in ENDED:
        return None
    lines: list[JsonObject] = _coming(turn, subscription)["_lines"]
    return lines


def _coming(turn: Turn, subscription: JsonObject) -> JsonObject:
    """A running subscription's next invoice, not stored. It is named after the subscription: there is one at a time."""
    customer = find_customer(turn, subscription["customer"])
    if customer is None:
        raise AssertionError("deleting a customer cancels its subscriptions")
    items = items_of(turn, subscription["id"])
    start, end = items[0]["current_period_start"], items[0]["current_period_end"]
    lines = unbilled_usage_lines(turn, subscription, end)
    if not subscription["cancel_at_period_end"]:
        for item in items:
            price = price_of(turn, item)
            if not metered(price):
                terms = price["recurring"]
                following = next_edge(
                    subscription["billing_cycle_anchor"], terms["interval"], terms["interval_count"], end
                )
                lines.append(licence_line(item, price, end, following))
    lines += [invoice_item_line(entry) for entry in pending_items(turn, customer["id"], subscription["id"])]
    invoice = draft_body(turn, customer, subscription, "upcoming", (start, end), lines)
    return {**invoice, "id": PREVIEW_PREFIX + subscription["id"].removeprefix("sub_")}
