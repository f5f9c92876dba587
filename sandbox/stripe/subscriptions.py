"""Subscriptions: who buys what, until it ends.

Owns: their life once they exist: changes, cancellation, lists. Refuses to know: how one begins (subscription_start),
what the end of a period makes (subscription_cycle), how a line is computed (invoice_lines).
"""

from sandbox.stripe.customers import find_customer
from sandbox.stripe.errors import (
    JsonObject,
    missing_parameter,
    no_such,
    refused,
)
from sandbox.stripe.events import emit
from sandbox.stripe.invoice_drafts import draft
from sandbox.stripe.invoice_lines import usage_line
from sandbox.stripe.invoices import finalize
from sandbox.stripe.listing import list_objects
from sandbox.stripe.params import Params, merge_metadata
from sandbox.stripe.subscription_items import (
    Change,
    change_items,
    items_of,
    metered,
    price_of,
    read_change,
    shown,
)
from sandbox.stripe.turns import Call, Turn
from sandbox.stripe.versions import render

ENDED = ("canceled", "incomplete_expired")
PRORATIONS = ("create_prorations", "none", "always_invoice")

_STATUSES = (
    "active",
    "past_due",
    "unpaid",
    "canceled",
    "incomplete",
    "incomplete_expired",
    "trialing",
    "paused",
    "all",
    "ended",
)


def assembled(turn: Turn, subscription: JsonObject) -> JsonObject:
    """The subscription with its items embedded."""
    data = [shown(turn, item) for item in items_of(turn, subscription["id"])]
    items: JsonObject = {
        "object": "list",
        "data": data,
        "has_more": False,
        "total_count": len(data),
        "url": f"/v1/subscription_items?subscription={subscription['id']}",
    }
    return {**subscription, "items": items}


def find_subscription(turn: Turn, subscription_id: str) -> JsonObject:
    """A subscription by id; raises ``Refusal`` (404)."""
    body = turn.state.find("subscription", subscription_id)
    if body is None:
        raise no_such("subscription", subscription_id)
    return body


def next_moment(subscription: JsonObject, period_end: int) -> int:
    """When the schedule must look at a subscription next."""
    cancel_at = subscription["cancel_at"]
    return period_end if cancel_at is None else min(period_end, cancel_at)


def unbilled_usage_lines(turn: Turn, subscription: JsonObject, until: int) -> list[JsonObject]:
    """The metered items' usage from where each was last billed until a moment. A trial's usage is free."""
    if subscription["status"] == "trialing":
        return []
    lines = []
    for item in items_of(turn, subscription["id"]):
        price = price_of(turn, item)
        if metered(price):
            lines.append(usage_line(turn, subscription["customer"], item, price, item["_billed_from"], until))
    return lines


def end_subscription(turn: Turn, subscription: JsonObject) -> None:
    """Mark as cancelled now."""
    subscription["status"] = "canceled"
    subscription["ended_at"] = turn.now
    subscription["canceled_at"] = subscription["canceled_at"] or turn.now
    turn.state.update(subscription)
    turn.state.set_due(subscription["id"], None)
    emit(turn, "customer.subscription.deleted", assembled(turn, subscription))


def cancel_subscription(turn: Turn, call: Call) -> JsonObject:
    """``DELETE /v1/subscriptions/{id}``: ends now. Unbilled usage is dropped unless ``invoice_now`` is true."""
    params = call.params
    invoice_now = bool(params.boolean("invoice_now"))
    params.boolean("prorate")
    details = params.child("cancellation_details")
    subscription = find_subscription(turn, call.ids[0])
    if details is not None:
        subscription["cancellation_details"] |= {
            "comment": details.text("comment"),
            "feedback": details.text("feedback"),
        }
    params.finish()
    if subscription["status"] in ENDED:
        raise no_such("subscription", call.ids[0])
    subscription["cancellation_details"]["reason"] = "cancellation_requested"
    if invoice_now:
        customer = find_customer(turn, subscription["customer"])
        if customer is None:
            raise AssertionError("deleting a customer cancels its subscriptions")
        start = items_of(turn, subscription["id"])[0]["current_period_start"]
        lines = unbilled_usage_lines(turn, subscription, turn.now)
        # Outside the cycle there is no grace: what is known now is what is billed.
        invoice = draft(turn, customer, subscription, "subscription_update", (start, turn.now), lines, None)
        finalize(turn, invoice)
        subscription["latest_invoice"] = invoice["id"]
    end_subscription(turn, subscription)
    return render(assembled(turn, subscription), call.version)


def cancel_all_of(turn: Turn, customer_id: str) -> None:
    """End every running subscription of a customer, billing nothing."""
    for subscription in list(turn.state.scan("subscription", customer=customer_id, newest_first=False)):
        if subscription["status"] not in ENDED:
            end_subscription(turn, subscription)


def retrieve_subscription(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/subscriptions/{id}``; ended ones too."""
    call.params.finish()
    return render(assembled(turn, find_subscription(turn, call.ids[0])), call.version)


def update_subscription(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/subscriptions/{id}``."""
    subscription, params = find_subscription(turn, call.ids[0]), call.params
    if subscription["status"] in ENDED:
        raise refused("A canceled subscription can only update its cancellation_details and metadata.")
    before = assembled(turn, subscription)
    changes = [read_change(entry) for entry in params.children("items")]
    if params.has("cancel_at_period_end"):
        subscription["cancel_at_period_end"] = bool(params.boolean("cancel_at_period_end"))
        subscription["canceled_at"] = turn.now if subscription["cancel_at_period_end"] else None
    if params.has("cancel_at"):
        subscription["cancel_at"] = params.integer("cancel_at", turn.now + 1)
    if params.has("description"):
        subscription["description"] = params.text("description", 500)
    if params.has("default_payment_method"):
        subscription["default_payment_method"] = params.text("default_payment_method")
    if params.has("days_until_due"):
        subscription["days_until_due"] = params.integer("days_until_due", 0)
    collection = params.choice("collection_method", ("charge_automatically", "send_invoice"))
    subscription["collection_method"] = collection or subscription["collection_method"]
    if params.has("pause_collection"):
        subscription["pause_collection"] = _read_pause(turn, params)
    params.choice("billing_cycle_anchor", ("unchanged",))
    bill_so_far = params.choice("proration_behavior", PRORATIONS) != "none"
    for ignored in ("payment_behavior", "off_session"):
        params.has(ignored)
    merge_metadata(subscription, params)
    params.finish()
    return store_change(turn, call, subscription, before, changes, bill_so_far=bill_so_far)


def _read_pause(turn: Turn, params: Params) -> JsonObject | None:
    """``pause_collection``: what becomes of invoices until it is unset, or until ``resumes_at``."""
    sent = params.child("pause_collection")
    if sent is None:
        return None
    behavior = sent.choice("behavior", ("keep_as_draft", "mark_uncollectible", "void"))
    if behavior is None:
        raise missing_parameter("pause_collection[behavior]")
    return {"behavior": behavior, "resumes_at": sent.integer("resumes_at", turn.now + 1)}


def store_change(
    turn: Turn,
    call: Call,
    subscription: JsonObject,
    before: JsonObject,
    changes: list[Change],
    *,
    bill_so_far: bool = True,
) -> JsonObject:
    """Apply item changes, store, and say what changed. ``bill_so_far``: with an invoice item for usage so far."""
    if changes:
        change_items(turn, subscription, changes, call.version, bill_so_far=bill_so_far)
    turn.state.update(subscription)
    after = assembled(turn, subscription)
    end = max(item["current_period_end"] for item in after["items"]["data"])
    turn.state.set_due(subscription["id"], next_moment(subscription, end))
    previous = {key: before[key] for key in before if key != "items" and before[key] != after[key]}
    if before["items"] != after["items"]:
        previous["items"] = {"data": render(before["items"]["data"], call.version)}
    if previous:
        emit(turn, "customer.subscription.updated", after, previous)
    return render(after, call.version)


def list_subscriptions(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/subscriptions``: not the cancelled ones, unless ``status`` asks for them."""
    params = call.params
    customer, status, price = (
        params.text("customer"),
        params.choice("status", _STATUSES),
        params.text("price"),
    )
    collection = params.text("collection_method")

    def keep(body: JsonObject) -> bool:
        ended = body["status"] in ENDED
        by_status = {None: not ended, "all": True, "ended": ended}.get(status, body["status"] == status)
        return (
            by_status
            and (collection is None or body["collection_method"] == collection)
            and (price is None or any(item["price"] == price for item in items_of(turn, body["id"])))
        )

    listed = list_objects(turn, call, "subscription", customer=customer, keep=keep)
    listed["data"] = [render(assembled(turn, body), call.version) for body in listed["data"]]
    return listed
