"""Invoice items: single charges that wait for, or are put on, an invoice.

Owns: their fields and whether they are pending. Refuses to know: subscriptions' periods.
"""

from decimal import Decimal

from sandbox.stripe.catalog import plain
from sandbox.stripe.customers import find_customer
from sandbox.stripe.errors import JsonObject, invalid, missing_parameter, no_such, no_such_reference, refused
from sandbox.stripe.events import emit
from sandbox.stripe.invoice_drafts import add_to_draft, remove_from_draft
from sandbox.stripe.listing import list_objects
from sandbox.stripe.params import merge_metadata
from sandbox.stripe.pricing import line_amount
from sandbox.stripe.state import new_id
from sandbox.stripe.turns import Call, Turn
from sandbox.stripe.versions import render


def create_invoice_item(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/invoiceitems``: an ``amount``, or a one-time price times a quantity.

    Without ``invoice`` it waits for the customer's next invoice (of ``subscription``, if that is given).
    """
    params = call.params
    customer_id = params.required_text("customer")
    amount, currency = params.integer("amount"), params.text("currency", 3)
    pricing = params.child("pricing")
    price_id = (None if pricing is None else pricing.text("price")) or params.text("price")
    units = params.decimal("quantity_decimal", 12)
    whole = params.integer("quantity", 0)
    units = Decimal(1 if whole is None else whole) if units is None else units
    unit_amount = params.decimal("unit_amount_decimal", 12)
    period = params.child("period")
    start, end = (turn.now, turn.now) if period is None else (period.integer("start"), period.integer("end"))
    invoice_id, subscription_id = params.text("invoice"), params.text("subscription")
    description, discountable = params.text("description"), params.boolean("discountable")
    metadata: dict[str, object] = {"metadata": {}}
    merge_metadata(metadata, params)
    params.finish()
    if find_customer(turn, customer_id) is None:
        raise no_such_reference("customer", customer_id, "customer")
    price = None if price_id is None else turn.state.find("price", price_id)
    if price_id is not None:
        if price is None:
            raise no_such_reference("price", price_id, "price")
        if price["type"] != "one_time":
            raise refused("The price specified must be of type one_time.", "price")
        amount, currency = line_amount(price, units), price["currency"]
    elif unit_amount is not None:
        amount = int((unit_amount * units).to_integral_value(rounding="ROUND_HALF_UP"))
    if amount is None:
        raise missing_parameter("amount")
    if currency is None:
        raise missing_parameter("currency")
    if start is None or end is None:
        raise invalid("period needs start and end.", "period")
    entry = new_entry(turn, customer_id, amount, currency, description, (start, end), units, subscription_id)
    entry["metadata"] = metadata["metadata"]
    entry["discountable"] = discountable is not False
    if price is not None:
        entry["pricing"] = {
            "type": "price_details",
            "price_details": {"price": price["id"], "product": price["product"]},
            "unit_amount_decimal": price["unit_amount_decimal"],
        }
    if invoice_id is not None:
        add_to_draft(turn, invoice_id, entry)
    turn.state.insert("invoiceitem", entry, customer=customer_id)
    emit(turn, "invoiceitem.created", entry)
    return render(entry, call.version)


def new_entry(
    turn: Turn,
    customer_id: str,
    amount: int,
    currency: str,
    description: str | None,
    period: tuple[int, int],
    units: Decimal,
    subscription_id: str | None,
) -> JsonObject:
    """An invoice item's body, pending and not yet stored."""
    return {
        "id": new_id("ii"),
        "object": "invoiceitem",
        "amount": amount,
        "created": turn.now,
        "currency": currency.lower(),
        "customer": customer_id,
        "date": turn.now,
        "description": description,
        "discountable": True,
        "discounts": [],
        "invoice": None,
        "livemode": False,
        "metadata": {},
        "net_amount": amount,
        "parent": None
        if subscription_id is None
        else {
            "type": "subscription_details",
            "subscription_details": {"subscription": subscription_id, "subscription_item": None},
        },
        "period": {"start": period[0], "end": period[1]},
        "pricing": None,
        "proration": False,
        "quantity": int(units),
        "quantity_decimal": plain(units),
        "tax_rates": [],
        "test_clock": None,
        "_subscription": subscription_id,
    }


def _entry(turn: Turn, entry_id: str) -> JsonObject:
    entry = turn.state.find("invoiceitem", entry_id)
    if entry is None:
        raise no_such("invoiceitem", entry_id)
    return entry


def retrieve_invoice_item(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/invoiceitems/{id}``."""
    call.params.finish()
    return render(_entry(turn, call.ids[0]), call.version)


def delete_invoice_item(turn: Turn, call: Call) -> JsonObject:
    """``DELETE /v1/invoiceitems/{id}``: only while pending or on a draft."""
    call.params.finish()
    entry = _entry(turn, call.ids[0])
    if entry["invoice"] is not None:
        remove_from_draft(turn, entry["invoice"], entry["id"])
    turn.state.delete(entry["id"])
    emit(turn, "invoiceitem.deleted", entry)
    return {"id": entry["id"], "object": "invoiceitem", "deleted": True}


def list_invoice_items(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/invoiceitems`` by customer, invoice and whether pending."""
    customer, invoice = call.params.text("customer"), call.params.text("invoice")
    pending = call.params.boolean("pending")
    listed = list_objects(
        turn,
        call,
        "invoiceitem",
        customer=customer,
        keep=lambda entry: (
            (invoice is None or entry["invoice"] == invoice)
            and (pending is None or (entry["invoice"] is None) == pending)
        ),
    )
    listed["data"] = render(listed["data"], call.version)
    return listed
