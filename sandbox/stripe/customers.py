"""Customers.

Owns: their fields. Refuses to know: usage, money, and what leaving takes along (departures).
"""

from sandbox.stripe.errors import JsonObject, no_such
from sandbox.stripe.events import emit
from sandbox.stripe.listing import list_objects
from sandbox.stripe.params import Params, merge_metadata
from sandbox.stripe.state import new_id
from sandbox.stripe.turns import Call, Turn
from sandbox.stripe.versions import render

_TEXTS = {"email": 512, "name": 256, "phone": 20, "description": 5000}
_ECHOED = ("address", "shipping", "preferred_locales", "business_name", "individual_name")


def _apply(body: JsonObject, params: Params) -> JsonObject:
    """Apply the parameters create and update share; answers the previous values of what changed."""
    before = dict(body)
    for name, length_max in _TEXTS.items():
        if params.has(name):
            body[name] = params.text(name, length_max)
    for name in _ECHOED:
        if params.has(name):
            body[name] = params.verbatim(name) or None
    if params.has("tax_exempt"):
        body["tax_exempt"] = params.choice("tax_exempt", ("none", "exempt", "reverse")) or "none"
    merge_metadata(body, params)
    params.finish()
    return {name: before.get(name) for name, value in body.items() if before.get(name) != value}


def create_customer(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/customers``."""
    body: JsonObject = {
        "id": new_id("cus"),
        "object": "customer",
        "address": None,
        "balance": 0,
        "created": turn.now,
        "currency": None,
        "default_source": None,
        "delinquent": False,
        "description": None,
        "discount": None,
        "email": None,
        "invoice_prefix": new_id("x")[2:10].upper(),
        "invoice_settings": {
            "custom_fields": None,
            "default_payment_method": None,
            "footer": None,
            "rendering_options": None,
        },
        "livemode": False,
        "metadata": {},
        "name": None,
        "next_invoice_sequence": 1,
        "phone": None,
        "preferred_locales": [],
        "shipping": None,
        "tax_exempt": "none",
        "test_clock": None,
    }
    _apply(body, call.params)
    turn.state.insert("customer", body)
    emit(turn, "customer.created", body)
    return render(body, call.version)


def find_customer(turn: Turn, customer_id: str) -> JsonObject | None:
    """A customer that exists and is not deleted, or None."""
    body = turn.state.find("customer", customer_id)
    return None if body is None or body.get("deleted") else body


def retrieve_customer(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/customers/{id}``; a deleted one answers with ``deleted: true`` and little else."""
    call.params.finish()
    body = turn.state.find("customer", call.ids[0])
    if body is None:
        raise no_such("customer", call.ids[0])
    return render(body, call.version)


def update_customer(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/customers/{id}``."""
    body = find_customer(turn, call.ids[0])
    if body is None:
        raise no_such("customer", call.ids[0])
    previous = _apply(body, call.params)
    turn.state.update(body)
    if previous:
        emit(turn, "customer.updated", body, previous)
    return render(body, call.version)


def list_customers(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/customers``, optionally by exact ``email``; deleted ones are not listed."""
    email = call.params.text("email", 512)
    listed = list_objects(
        turn,
        call,
        "customer",
        keep=lambda body: not body.get("deleted") and (email is None or body["email"] == email),
    )
    listed["data"] = render(listed["data"], call.version)
    return listed
