"""A customer leaving.

Owns: that deletion cancels the customer's subscriptions and leaves a tombstone. Refuses to know: anything of
customers that stay.
"""

from sandbox.stripe.customers import find_customer
from sandbox.stripe.errors import JsonObject, no_such
from sandbox.stripe.events import emit
from sandbox.stripe.subscriptions import cancel_all_of
from sandbox.stripe.turns import Call, Turn
from sandbox.stripe.versions import render


def delete_customer(turn: Turn, call: Call) -> JsonObject:
    """``DELETE /v1/customers/{id}``: cancels its subscriptions at once; their unbilled usage is dropped."""
    call.params.finish()
    body = find_customer(turn, call.ids[0])
    if body is None:
        raise no_such("customer", call.ids[0])
    cancel_all_of(turn, body["id"])
    emit(turn, "customer.deleted", body)
    tombstone: JsonObject = {"id": body["id"], "object": "customer", "deleted": True}
    turn.state.update(tombstone)
    return render(tombstone, call.version)
