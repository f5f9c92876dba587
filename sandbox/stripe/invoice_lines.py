"""Invoice lines.

Owns: what a line looks like and how a usage line is counted again while its invoice is a draft.
Refuses to know: invoices' lives.
"""

from decimal import ROUND_HALF_UP, Decimal

from sandbox.stripe.catalog import plain
from sandbox.stripe.errors import JsonObject
from sandbox.stripe.pricing import line_amount
from sandbox.stripe.state import new_id
from sandbox.stripe.turns import Turn
from sandbox.stripe.usage import quantity
from sandbox.stripe.usage_records import recorded_quantity


def _line(
    price: JsonObject, description: str, start: int, end: int, units: Decimal, amount: int
) -> JsonObject:
    return {
        "id": new_id("il"),
        "object": "line_item",
        "amount": amount,
        "currency": price["currency"],
        "description": description,
        "discount_amounts": [],
        "discountable": True,
        "discounts": [],
        "invoice": None,
        "livemode": False,
        "metadata": {},
        "parent": None,
        "period": {"start": start, "end": end},
        "pretax_credit_amounts": [],
        "pricing": {
            "type": "price_details",
            "price_details": {"price": price["id"], "product": price["product"]},
            "unit_amount_decimal": price["unit_amount_decimal"],
        },
        # ``quantity`` is whole and cuts decimals off; the exact usage is in ``quantity_decimal``.
        "quantity": int(units),
        "quantity_decimal": plain(units),
        "subtotal": amount,
        "taxes": [],
    }


def _of_item(line: JsonObject, item: JsonObject) -> JsonObject:
    line["parent"] = {
        "type": "subscription_item_details",
        "invoice_item_details": None,
        "subscription_item_details": {
            "invoice_item": None,
            "proration": False,
            "proration_details": {"credited_items": None},
            "subscription": item["subscription"],
            "subscription_item": item["id"],
        },
    }
    return line


def item_quantity(
    turn: Turn, customer_id: str, item: JsonObject, price: JsonObject, start: int, end: int
) -> Decimal:
    """The usage an item bills for ``[start, end)``: its meter's, or its usage records'."""
    terms = price["recurring"]
    if terms["meter"] is None:
        return recorded_quantity(turn, item["id"], terms.get("aggregate_usage") or "sum", start, end)
    meter = turn.state.find("meter", terms["meter"])
    if meter is None:
        raise AssertionError("a price's meter is never deleted")
    return quantity(turn, meter, customer_id, start, end)


def usage_line(
    turn: Turn, customer_id: str, item: JsonObject, price: JsonObject, start: int, end: int
) -> JsonObject:
    """A metered item's usage of ``[start, end)``, to be counted again until its invoice is finalized."""
    units = item_quantity(turn, customer_id, item, price, start, end)
    line = _line(price, price["nickname"] or "Usage", start, end, units, line_amount(price, units))
    line["_counts"] = {"customer": customer_id, "item": item["id"]}
    return _of_item(line, item)


def empty_usage_line(item: JsonObject, price: JsonObject, at: int) -> JsonObject:
    """A metered item on a first invoice: there is no usage yet, and no flat fee either."""
    return _of_item(_line(price, price["nickname"] or "Usage", at, at, Decimal(0), 0), item)


def recount(turn: Turn, line: JsonObject) -> None:
    """Count a usage line again by what has arrived since; other lines stay as they are."""
    counts = line.get("_counts")
    if counts is None:
        return
    price = turn.state.find("price", line["pricing"]["price_details"]["price"])
    if price is None:
        raise AssertionError("a billed price is never deleted")
    span = line["period"]
    units = item_quantity(turn, counts["customer"], {"id": counts["item"]}, price, span["start"], span["end"])
    line["quantity"], line["quantity_decimal"] = int(units), plain(units)
    line["amount"] = line["subtotal"] = line_amount(price, units)


def licence_line(
    item: JsonObject, price: JsonObject, start: int, end: int, share: tuple[int, int] = (1, 1)
) -> JsonObject:
    """A licensed item's fee for a period, paid ahead; ``share`` is the part of a full period billed."""
    units = Decimal(item["quantity"])
    exact = Decimal(line_amount(price, units)) * share[0] / share[1]
    amount = int(exact.to_integral_value(rounding=ROUND_HALF_UP))
    return _of_item(_line(price, price["nickname"] or "Subscription", start, end, units, amount), item)


def invoice_item_line(entry: JsonObject) -> JsonObject:
    """A pending invoice item as a line."""
    return {
        "id": new_id("il"),
        "object": "line_item",
        "amount": entry["amount"],
        "currency": entry["currency"],
        "description": entry["description"],
        "discount_amounts": [],
        "discountable": entry["discountable"],
        "discounts": [],
        "invoice": None,
        "livemode": False,
        "metadata": entry["metadata"],
        "parent": {
            "type": "invoice_item_details",
            "subscription_item_details": None,
            "invoice_item_details": {
                "invoice_item": entry["id"],
                "proration": False,
                "proration_details": {"credited_items": None},
                "subscription": entry["_subscription"],
            },
        },
        "period": entry["period"],
        "pretax_credit_amounts": [],
        "pricing": entry["pricing"],
        "quantity": entry["quantity"],
        "quantity_decimal": entry["quantity_decimal"],
        "subtotal": entry["amount"],
        "taxes": [],
    }
