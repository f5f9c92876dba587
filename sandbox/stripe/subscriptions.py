"""Subscriptions: who buys what, in which cycle.

Owns: their life, their periods, and which invoice each moment makes. Refuses to know: how a line is computed
(invoice_lines) and how an invoice closes (invoices).
"""

from sandbox.stripe.customers import find_customer
from sandbox.stripe.errors import (
    JsonObject,
    invalid,
    missing_parameter,
    no_such,
    no_such_reference,
    refused,
)
from sandbox.stripe.events import emit
from sandbox.stripe.invoice_lines import empty_usage_line, invoice_item_line, licence_line, usage_line
from sandbox.stripe.invoices import draft, draft_body, finalize, pending_items, preview_seen
from sandbox.stripe.listing import list_objects
from sandbox.stripe.params import Params, merge_metadata
from sandbox.stripe.periods import anchor_from_config, edge, next_edge
from sandbox.stripe.settings import load
from sandbox.stripe.state import new_id
from sandbox.stripe.subscription_items import (
    Change,
    add_item,
    change_items,
    check_one_cycle,
    check_price,
    find_item,
    items_of,
    metered,
    price_of,
    read_change,
    shown,
)
from sandbox.stripe.turns import Call, Turn, page
from sandbox.stripe.versions import CLOVER, render, since

_ENDED = ("canceled", "incomplete_expired")
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


def create_subscription(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/subscriptions``.

    1. Read and check the customer, the prices and the cycle.
    2. Store the subscription and its items, the first period running to the next edge of the cycle.
    3. Make the first invoice (licences ahead; usage only of a backdated start) and close it at once.
    """
    params = call.params
    customer_id = params.required_text("customer")
    changes = [read_change(entry) for entry in params.children("items")]
    start, anchor, anchor_config = _cycle(turn, params)
    backdate = params.integer("backdate_start_date", 0)
    body = _new_body(turn, call, customer_id)
    proration = params.choice("proration_behavior", ("create_prorations", "none", "always_invoice"))
    for echoed in ("payment_behavior", "payment_settings", "off_session", "automatic_tax", "currency"):
        params.has(echoed)
    params.finish()

    customer = find_customer(turn, customer_id)
    if customer is None:
        raise no_such_reference("customer", customer_id, "customer")
    if not changes:
        raise missing_parameter("items")
    prices = [check_price(turn, change, call.version) for change in changes]
    check_one_cycle(prices)
    if backdate is not None and backdate > turn.now:
        raise invalid("backdate_start_date must be in the past.", "backdate_start_date")
    terms = prices[0]["recurring"]
    end = next_edge(anchor, terms["interval"], terms["interval_count"], start)
    if anchor > edge(start, terms["interval"], terms["interval_count"], 1):
        raise invalid("billing_cycle_anchor cannot be later than the next natural billing date.")

    body |= {
        "currency": prices[0]["currency"],
        "start_date": start if backdate is None else backdate,
        "billing_cycle_anchor": anchor,
        "billing_cycle_anchor_config": anchor_config,
    }
    turn.state.insert("subscription", body, customer=customer_id, due=_next_moment(body, end))
    classic_backdate = backdate is not None and body["billing_mode"]["type"] == "classic"
    for change, price in zip(changes, prices, strict=True):
        item = add_item(turn, body, change, price, (start, end))
        if classic_backdate and metered(price):
            # Classic billing picks a backdated start's usage up with the first full period's invoice.
            item["_billed_from"] = backdate
            turn.state.update(item)
    lines = _first_lines(turn, body, None if classic_backdate else backdate, proration != "none")
    invoice = draft(turn, customer, body, "subscription_create", (start, start), lines, None)
    finalize(turn, invoice)
    body["latest_invoice"] = invoice["id"]
    turn.state.update(body)
    seen = assembled(turn, body)
    emit(turn, "customer.subscription.created", seen)
    return render(seen, call.version)


def _cycle(turn: Turn, params: Params) -> tuple[int, int, JsonObject | None]:
    """Start, anchor and anchor config of a new subscription, in seconds."""
    anchor = params.integer("billing_cycle_anchor", 0)
    config = params.child("billing_cycle_anchor_config")
    if config is None:
        if anchor is not None and anchor < turn.now:
            raise invalid("billing_cycle_anchor must be in the future.", "billing_cycle_anchor")
        return turn.now, turn.now if anchor is None else anchor, None
    if anchor is not None:
        raise invalid("Set billing_cycle_anchor or billing_cycle_anchor_config, not both.")
    day = config.integer("day_of_month", 1, 31)
    if day is None:
        raise missing_parameter("billing_cycle_anchor_config[day_of_month]")
    hour, minute, second = (
        config.integer("hour", 0, 23),
        config.integer("minute", 0, 59),
        config.integer("second", 0, 59),
    )
    kept: JsonObject = {
        "day_of_month": day,
        "hour": hour,
        "minute": minute,
        "month": None,
        "second": second,
    }
    return turn.now, anchor_from_config(turn.now, day, hour, minute, second), kept


def _new_body(turn: Turn, call: Call, customer_id: str) -> JsonObject:
    """A subscription's fields as the parameters set them; the cycle is filled in by the caller."""
    params = call.params
    mode = params.child("billing_mode")
    mode_type = None if mode is None else mode.choice("type", ("classic", "flexible"))
    if mode is not None:
        mode.has("flexible")
    mode_type = mode_type or ("flexible" if since(call.version, CLOVER) else "classic")
    collection = params.choice("collection_method", ("charge_automatically", "send_invoice"))
    body: JsonObject = {
        "id": new_id("sub"),
        "object": "subscription",
        "application": None,
        "application_fee_percent": None,
        "automatic_tax": {"disabled_reason": None, "enabled": False, "liability": None},
        "billing_cycle_anchor": turn.now,
        "billing_cycle_anchor_config": None,
        "billing_mode": {"flexible": None, "type": mode_type},
        "billing_thresholds": None,
        "cancel_at": params.integer("cancel_at", turn.now + 1),
        "cancel_at_period_end": bool(params.boolean("cancel_at_period_end")),
        "canceled_at": None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": collection or "charge_automatically",
        "created": turn.now,
        "currency": "usd",
        "customer": customer_id,
        "days_until_due": params.integer("days_until_due", 0),
        "default_payment_method": params.text("default_payment_method"),
        "default_source": None,
        "default_tax_rates": [],
        "description": params.text("description", 500),
        "discounts": [],
        "ended_at": None,
        "invoice_settings": {"account_tax_ids": None, "issuer": {"type": "self"}},
        "latest_invoice": None,
        "livemode": False,
        "metadata": {},
        "next_pending_invoice_item_invoice": None,
        "on_behalf_of": None,
        "pause_collection": None,
        "payment_settings": {
            "payment_method_options": None,
            "payment_method_types": None,
            "save_default_payment_method": "off",
        },
        "pending_invoice_item_interval": None,
        "pending_setup_intent": None,
        "pending_update": None,
        "schedule": None,
        "start_date": turn.now,
        "status": "active",
        "test_clock": None,
        "transfer_data": None,
        "trial_end": None,
        "trial_settings": {"end_behavior": {"missing_payment_method": "create_invoice"}},
        "trial_start": None,
    }
    merge_metadata(body, params)
    return body


def _next_moment(subscription: JsonObject, period_end: int) -> int:
    """When the schedule must look at a subscription next."""
    cancel_at = subscription["cancel_at"]
    return period_end if cancel_at is None else min(period_end, cancel_at)


def _first_lines(
    turn: Turn, subscription: JsonObject, usage_since: int | None, prorated: bool
) -> list[JsonObject]:
    """Lines of the first invoice: licences for the first period, and a backdated start's usage until now."""
    lines = []
    for item in items_of(turn, subscription["id"]):
        price = price_of(turn, item)
        start, end = item["current_period_start"], item["current_period_end"]
        if metered(price):
            lines.append(
                empty_usage_line(item, price, start)
                if usage_since is None
                else usage_line(turn, subscription["customer"], item, price, usage_since, start)
            )
            continue
        terms = price["recurring"]
        full = end - edge(end, terms["interval"], terms["interval_count"], -1)
        if end - start >= full:
            lines.append(licence_line(item, price, start, end))
        elif prorated:
            lines.append(licence_line(item, price, start, end, (end - start, full)))
    return lines


def _usage_lines(turn: Turn, subscription: JsonObject, until: int) -> list[JsonObject]:
    """The metered items' usage from where each was last billed until a moment."""
    lines = []
    for item in items_of(turn, subscription["id"]):
        price = price_of(turn, item)
        if metered(price):
            lines.append(usage_line(turn, subscription["customer"], item, price, item["_billed_from"], until))
    return lines


def roll(turn: Turn, subscription_id: str) -> None:
    """A subscription's moment has come, at ``turn``'s instant: its period ends, or it does.

    The invoice of the ended period stays a draft for the grace; usage stamped inside the period joins it till then.
    """
    subscription = find_subscription(turn, subscription_id)
    items = items_of(turn, subscription_id)
    period = (items[0]["current_period_start"], turn.now)
    cancel_at = subscription["cancel_at"]
    ends = subscription["cancel_at_period_end"] or (cancel_at is not None and cancel_at <= turn.now)
    lines = _usage_lines(turn, subscription, turn.now)
    before = [shown(turn, item) for item in items]
    if not ends:
        lines += _begin_period(turn, subscription, items)
    customer = turn.state.find("customer", subscription["customer"])
    if customer is None:
        raise AssertionError("a customer leaves a tombstone, never nothing")
    finalizes_at = turn.now + load(turn.state).invoices.grace_seconds
    invoice = draft(turn, customer, subscription, "subscription_cycle", period, lines, finalizes_at)
    previous = {"items": {"data": render(before, "9999")}, "latest_invoice": subscription["latest_invoice"]}
    subscription["latest_invoice"] = invoice["id"]
    if ends:
        _end(turn, subscription)
        return
    turn.state.update(subscription)
    emit(turn, "customer.subscription.updated", assembled(turn, subscription), previous)


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
    turn.state.set_due(subscription["id"], _next_moment(subscription, end))
    return lines


def _end(turn: Turn, subscription: JsonObject) -> None:
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
    if subscription["status"] in _ENDED:
        raise no_such("subscription", call.ids[0])
    subscription["cancellation_details"]["reason"] = "cancellation_requested"
    if invoice_now:
        customer = find_customer(turn, subscription["customer"])
        if customer is None:
            raise AssertionError("deleting a customer cancels its subscriptions")
        start = items_of(turn, subscription["id"])[0]["current_period_start"]
        lines = _usage_lines(turn, subscription, turn.now)
        # Outside the cycle there is no grace: what is known now is what is billed.
        invoice = draft(turn, customer, subscription, "subscription_update", (start, turn.now), lines, None)
        finalize(turn, invoice)
        subscription["latest_invoice"] = invoice["id"]
    _end(turn, subscription)
    return render(assembled(turn, subscription), call.version)


def cancel_all_of(turn: Turn, customer_id: str) -> None:
    """End every running subscription of a customer, billing nothing."""
    for subscription in list(turn.state.scan("subscription", customer=customer_id, newest_first=False)):
        if subscription["status"] not in _ENDED:
            _end(turn, subscription)


def retrieve_subscription(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/subscriptions/{id}``; ended ones too."""
    call.params.finish()
    return render(assembled(turn, find_subscription(turn, call.ids[0])), call.version)


def update_subscription(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/subscriptions/{id}``."""
    subscription, params = find_subscription(turn, call.ids[0]), call.params
    if subscription["status"] in _ENDED:
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
    params.choice("billing_cycle_anchor", ("unchanged",))
    params.choice("proration_behavior", ("create_prorations", "none", "always_invoice"))
    for ignored in ("payment_behavior", "off_session"):
        params.has(ignored)
    merge_metadata(subscription, params)
    params.finish()
    return _store_change(turn, call, subscription, before, changes)


def _store_change(
    turn: Turn, call: Call, subscription: JsonObject, before: JsonObject, changes: list[Change]
) -> JsonObject:
    """Apply item changes, store, and say what changed."""
    if changes:
        change_items(turn, subscription, changes, call.version)
    turn.state.update(subscription)
    after = assembled(turn, subscription)
    end = max(item["current_period_end"] for item in after["items"]["data"])
    turn.state.set_due(subscription["id"], _next_moment(subscription, end))
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
        ended = body["status"] in _ENDED
        by_status = {None: not ended, "all": True, "ended": ended}.get(status, body["status"] == status)
        return (
            by_status
            and (collection is None or body["collection_method"] == collection)
            and (price is None or any(item["price"] == price for item in items_of(turn, body["id"])))
        )

    listed = list_objects(turn, call, "subscription", customer=customer, keep=keep)
    listed["data"] = [render(assembled(turn, body), call.version) for body in listed["data"]]
    return listed


def list_items(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/subscription_items``, of one subscription, oldest first."""
    params = call.params
    subscription_id = params.required_text("subscription")
    limit, after = params.integer("limit", 1, 100) or 10, params.text("starting_after")
    params.finish()
    find_subscription(turn, subscription_id)
    items = items_of(turn, subscription_id)
    ids = [item["id"] for item in items]
    rest = items[ids.index(after) + 1 :] if after in ids else items
    data = [render(shown(turn, item), call.version) for item in rest[:limit]]
    return page(call, data, len(rest) > limit)


def retrieve_item(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/subscription_items/{id}``."""
    call.params.finish()
    return render(shown(turn, find_item(turn, call.ids[0])), call.version)


def create_item(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/subscription_items``: one more price on a running subscription."""
    subscription = find_subscription(turn, call.params.required_text("subscription"))
    return _item_call(turn, call, subscription, None)


def update_item(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/subscription_items/{id}``."""
    item = find_item(turn, call.ids[0])
    return _item_call(turn, call, find_subscription(turn, item["subscription"]), item["id"])


def _item_call(turn: Turn, call: Call, subscription: JsonObject, item_id: str | None) -> JsonObject:
    change = read_change(call.params, item_id)
    for ignored in ("payment_behavior", "proration_behavior", "off_session"):
        call.params.has(ignored)
    call.params.finish()
    before = assembled(turn, subscription)
    known = {item["id"] for item in before["items"]["data"]}
    _store_change(turn, call, subscription, before, [change])
    changed = item_id or next(
        item["id"] for item in items_of(turn, subscription["id"]) if item["id"] not in known
    )
    return render(shown(turn, find_item(turn, changed)), call.version)


def delete_item(turn: Turn, call: Call) -> JsonObject:
    """``DELETE /v1/subscription_items/{id}``; in classic billing its unbilled usage is dropped."""
    for ignored in ("clear_usage", "proration_behavior", "payment_behavior"):
        call.params.has(ignored)
    call.params.finish()
    item = find_item(turn, call.ids[0])
    subscription = find_subscription(turn, item["subscription"])
    before = assembled(turn, subscription)
    _store_change(turn, call, subscription, before, [Change(item["id"], None, None, True, Params({}))])
    return {"id": item["id"], "object": "subscription_item", "deleted": True}


def preview_invoice(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/invoices/create_preview``: the next invoice of a subscription by the usage known now."""
    params = call.params
    customer_id, subscription_id = params.text("customer"), params.text("subscription")
    params.finish()
    if subscription_id is None:
        if customer_id is None:
            raise missing_parameter("customer")
        running = turn.state.scan("subscription", customer=customer_id)
        subscription = next((body for body in running if body["status"] not in _ENDED), None)
    else:
        subscription = find_subscription(turn, subscription_id)
    if subscription is None or subscription["status"] in _ENDED:
        raise refused("No upcoming invoices for customer", code="invoice_upcoming_none")
    customer = find_customer(turn, subscription["customer"])
    if customer is None:
        raise AssertionError("deleting a customer cancels its subscriptions")
    items = items_of(turn, subscription["id"])
    start, end = items[0]["current_period_start"], items[0]["current_period_end"]
    lines = _usage_lines(turn, subscription, end)
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
    return preview_seen(
        draft_body(turn, customer, subscription, "upcoming", (start, end), lines), call.version
    )
