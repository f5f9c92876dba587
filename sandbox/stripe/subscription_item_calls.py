"""The endpoints of subscription items.

Owns: reading, adding, changing and removing one item by its own address. Refuses to know: what a change of items
means (subscription_items) and how a subscription stores it (subscriptions).
"""

from sandbox.stripe.errors import (
    JsonObject,
)
from sandbox.stripe.params import Params
from sandbox.stripe.subscription_items import (
    Change,
    find_item,
    items_of,
    read_change,
    shown,
)
from sandbox.stripe.subscriptions import PRORATIONS, assembled, find_subscription, store_change
from sandbox.stripe.turns import Call, Turn, page
from sandbox.stripe.versions import render


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
    bill_so_far = call.params.choice("proration_behavior", PRORATIONS) != "none"
    for ignored in ("payment_behavior", "off_session"):
        call.params.has(ignored)
    call.params.finish()
    before = assembled(turn, subscription)
    known = {item["id"] for item in before["items"]["data"]}
    store_change(turn, call, subscription, before, [change], bill_so_far=bill_so_far)
    changed = item_id or next(
        item["id"] for item in items_of(turn, subscription["id"]) if item["id"] not in known
    )
    return render(shown(turn, find_item(turn, changed)), call.version)


def delete_item(turn: Turn, call: Call) -> JsonObject:
    """``DELETE /v1/subscription_items/{id}``; in classic billing its unbilled usage is dropped."""
    bill_so_far = call.params.choice("proration_behavior", PRORATIONS) != "none"
    for ignored in ("clear_usage", "payment_behavior"):
        call.params.has(ignored)
    call.params.finish()
    item = find_item(turn, call.ids[0])
    subscription = find_subscription(turn, item["subscription"])
    before = assembled(turn, subscription)
    gone = Change(item["id"], None, None, True, Params({}))
    store_change(turn, call, subscription, before, [gone], bill_so_far=bill_so_far)
    return {"id": item["id"], "object": "subscription_item", "deleted": True}
