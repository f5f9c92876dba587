"""Subscription items: which price a subscription bills, over which period.

Owns: their fields, their storage, and what changing them in mid-period bills. Refuses to know: when periods end.
"""

from dataclasses import dataclass

from sandbox.stripe.errors import (
    JsonObject,
    invalid,
    missing_parameter,
    no_such,
    no_such_reference,
    refused,
)
from sandbox.stripe.invoice_items import new_entry
from sandbox.stripe.invoice_lines import item_quantity
from sandbox.stripe.params import Params, merge_metadata
from sandbox.stripe.pricing import line_amount
from sandbox.stripe.state import new_id
from sandbox.stripe.turns import Turn
from sandbox.stripe.versions import BASIL, since


@dataclass(frozen=True, slots=True)
class Change:
    """One entry of ``items``: a new item, a changed one, or a removed one."""

    item_id: str | None
    price_id: str | None
    quantity: int | None
    deleted: bool
    params: Params


def read_change(entry: Params, item_id: str | None = None) -> Change:
    """Read one ``items[n]`` (or the body of a subscription item call)."""
    entry.has("metadata", "clear_usage")
    return Change(
        item_id or entry.text("id"),
        entry.text("price"),
        entry.integer("quantity", 0),
        bool(entry.boolean("deleted")),
        entry,
    )


def metered(price: JsonObject) -> bool:
    """Whether the price bills usage."""
    return bool((price["recurring"] or {}).get("usage_type") == "metered")


def items_of(turn: Turn, subscription_id: str) -> list[JsonObject]:
    """The stored items of a subscription, oldest first; ``price`` is an id here."""
    return list(turn.state.scan("subscription_item", parent=subscription_id, newest_first=False))


def price_of(turn: Turn, item: JsonObject) -> JsonObject:
    """The price an item bills."""
    price = turn.state.find("price", item["price"])
    if price is None:
        raise AssertionError("a price in use is never deleted")
    return price


def shown(turn: Turn, item: JsonObject) -> JsonObject:
    """The item with its price embedded, as callers see it."""
    price = price_of(turn, item)
    body = {**item, "price": price, "plan": _plan(price)}
    if metered(price):
        del body["quantity"]
    return body


def _plan(price: JsonObject) -> JsonObject:
    """The older twin of a price, which Stripe still embeds."""
    terms = price["recurring"]
    return {
        "id": price["id"],
        "object": "plan",
        "active": price["active"],
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "billing_scheme": price["billing_scheme"],
        "created": price["created"],
        "currency": price["currency"],
        "interval": terms["interval"],
        "interval_count": terms["interval_count"],
        "livemode": False,
        "metadata": price["metadata"],
        "meter": terms["meter"],
        "nickname": price["nickname"],
        "product": price["product"],
        "tiers_mode": price["tiers_mode"],
        "transform_usage": None,
        "trial_period_days": None,
        "usage_type": terms["usage_type"],
    }


def check_price(turn: Turn, change: Change, version: str) -> JsonObject:
    """The price of a new or changed item; raises ``Refusal`` for one that cannot be subscribed to."""
    param = change.params.full_name("price")
    if change.price_id is None:
        raise missing_parameter(param)
    price = turn.state.find("price", change.price_id)
    if price is None:
        raise no_such_reference("price", change.price_id, param)
    if not price["active"]:
        raise refused("The price specified is inactive. This field only accepts active prices.", param)
    if price["recurring"] is None:
        raise refused(
            "The price specified is set to `type=one_time` but this field only accepts prices with "
            "`type=recurring`.",
            param,
        )
    if metered(price) and change.quantity is not None:
        raise invalid("You cannot set the quantity for metered plans.", change.params.full_name("quantity"))
    if metered(price) and price["recurring"]["meter"] is None and since(version, BASIL):
        raise refused("Metered prices without a meter cannot be attached in this API version.", param)
    return price


def check_one_cycle(prices: list[JsonObject]) -> None:
    """All items of a subscription share currency and interval, and no price appears twice."""
    terms = {(p["currency"], p["recurring"]["interval"], p["recurring"]["interval_count"]) for p in prices}
    if len(terms) > 1:
        raise refused(
            "All prices on a subscription must have the same currency and billing interval.", "items"
        )
    ids = [price["id"] for price in prices]
    if len(ids) != len(set(ids)):
        raise refused("The price specified is already used by another item of this subscription.", "items")


def add_item(
    turn: Turn, subscription: JsonObject, change: Change, price: JsonObject, period: tuple[int, int]
) -> JsonObject:
    """Store a new item whose usage bills from the period's start."""
    item: JsonObject = {
        "id": new_id("si"),
        "object": "subscription_item",
        "billing_thresholds": None,
        "created": turn.now,
        "current_period_end": period[1],
        "current_period_start": period[0],
        "discounts": [],
        "metadata": {},
        "price": price["id"],
        "quantity": None if metered(price) else (1 if change.quantity is None else change.quantity),
        "subscription": subscription["id"],
        "tax_rates": [],
        "_billed_from": period[0],
    }
    merge_metadata(item, change.params)
    turn.state.insert("subscription_item", item, parent=subscription["id"], customer=subscription["customer"])
    return item


def change_items(
    turn: Turn, subscription: JsonObject, changes: list[Change], version: str, *, bill_so_far: bool
) -> None:
    """Apply changes in mid-period.

    In flexible billing the usage so far of a replaced or removed price becomes an invoice item; in classic
    billing, and without ``bill_so_far``, it is dropped. Quantities of licensed prices change without proration.
    """
    items = {item["id"]: item for item in items_of(turn, subscription["id"])}
    end = max((item["current_period_end"] for item in items.values()), default=turn.now)
    for change in changes:
        if change.item_id is None:
            add_item(turn, subscription, change, check_price(turn, change, version), (turn.now, end))
            continue
        item = items.get(change.item_id)
        if item is None:
            raise no_such_reference("subscription item", change.item_id, change.params.full_name("id"))
        if change.deleted:
            if bill_so_far:
                _bill_so_far(turn, subscription, item)
            turn.state.delete(item["id"])
            continue
        if change.price_id is not None and change.price_id != item["price"]:
            price = check_price(turn, change, version)
            if bill_so_far:
                _bill_so_far(turn, subscription, item)
            item["price"], item["_billed_from"] = price["id"], turn.now
            item["quantity"] = None if metered(price) else (item["quantity"] or 1)
        if change.quantity is not None:
            if metered(price_of(turn, item)):
                raise invalid(
                    "You cannot set the quantity for metered plans.", change.params.full_name("quantity")
                )
            item["quantity"] = change.quantity
        merge_metadata(item, change.params)
        turn.state.update(item)
    left = items_of(turn, subscription["id"])
    if not left:
        raise refused("A subscription must have at least one active item.", "items")
    check_one_cycle([price_of(turn, item) for item in left])


def _bill_so_far(turn: Turn, subscription: JsonObject, item: JsonObject) -> None:
    price = price_of(turn, item)
    if not metered(price) or subscription["billing_mode"]["type"] == "classic":
        return
    if subscription["status"] == "trialing":
        return
    span = (item["_billed_from"], turn.now)
    units = item_quantity(turn, subscription["customer"], item, price, *span)
    if units == 0:
        return
    entry = new_entry(
        turn,
        subscription["customer"],
        line_amount(price, units),
        price["currency"],
        f"Usage until the change of {price['nickname'] or price['id']}",
        span,
        units,
        subscription["id"],
    )
    entry["pricing"] = {
        "type": "price_details",
        "price_details": {"price": price["id"], "product": price["product"]},
        "unit_amount_decimal": price["unit_amount_decimal"],
    }
    turn.state.insert("invoiceitem", entry, customer=subscription["customer"])


def find_item(turn: Turn, item_id: str) -> JsonObject:
    """An item by id; raises ``Refusal`` (404)."""
    item = turn.state.find("subscription_item", item_id)
    if item is None:
        raise no_such("subscription item", item_id)
    return item
