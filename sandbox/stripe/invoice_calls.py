"""The endpoints of invoices.

Owns: their parameters and refusals. Refuses to know: what finalization does (invoices) and what a draft collects
(invoice_drafts).
"""

from sandbox.stripe.errors import JsonObject, invalid, no_such, no_such_reference, refused
from sandbox.stripe.events import emit
from sandbox.stripe.invoice_drafts import draft_body, pending_items, put_on_draft
from sandbox.stripe.invoices import as_shown, finalize, recounted, settle, total_up, void
from sandbox.stripe.listing import list_objects
from sandbox.stripe.params import merge_metadata
from sandbox.stripe.settings import load
from sandbox.stripe.subscription_cycle import preview_lines
from sandbox.stripe.turns import Call, Turn, page
from sandbox.stripe.versions import render

_LATEST_FINALIZATION_SECONDS = 5 * 365 * 86_400


def _invoice(turn: Turn, invoice_id: str) -> JsonObject:
    invoice = turn.state.find("invoice", invoice_id)
    if invoice is None:
        raise no_such("invoice", invoice_id)
    return invoice


def _draft_only(invoice: JsonObject, doing: str) -> None:
    if invoice["status"] != "draft":
        raise refused(f"You can only {doing} draft invoices; this one is {invoice['status']}.")


def create_invoice(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/invoices``: a manual draft that collects the customer's pending invoice items."""
    params = call.params
    customer_id = params.required_text("customer")
    auto_advance = bool(params.boolean("auto_advance"))
    collection = params.choice("collection_method", ("charge_automatically", "send_invoice"))
    days, currency = params.integer("days_until_due", 0), params.text("currency", 3)
    behaviour = params.choice("pending_invoice_items_behavior", ("include", "exclude")) or "exclude"
    changes: JsonObject = {"description": params.text("description"), "metadata": {}}
    merge_metadata(changes, params)
    params.finish()
    customer = turn.state.find("customer", customer_id)
    if customer is None or customer.get("deleted"):
        raise no_such_reference("customer", customer_id, "customer")
    invoice = draft_body(turn, customer, None, "manual", (turn.now, turn.now), [])
    invoice |= {**changes, "collection_method": collection or "charge_automatically"}
    if currency is not None:
        invoice["currency"] = currency.lower()
    if days is not None:
        invoice["due_date"] = turn.now + days * 86_400
    if behaviour == "include":
        for entry in pending_items(turn, customer_id, None):
            put_on_draft(invoice, entry)
            turn.state.update(entry)
        total_up(invoice)
    finalizes_at = turn.now + load(turn.state).invoices.grace_seconds if auto_advance else None
    invoice["auto_advance"], invoice["automatically_finalizes_at"] = auto_advance, finalizes_at
    turn.state.insert("invoice", invoice, customer=customer_id, due=finalizes_at)
    emit(turn, "invoice.created", as_shown(invoice))
    return render(as_shown(invoice), call.version)


def retrieve_invoice(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/invoices/{id}``; a draft shows the usage known now."""
    call.params.finish()
    return render(as_shown(recounted(turn, _invoice(turn, call.ids[0]))), call.version)


def list_invoices(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/invoices`` by customer, subscription, status and collection method."""
    params = call.params
    customer, subscription = params.text("customer"), params.text("subscription")
    status = params.choice("status", ("draft", "open", "paid", "uncollectible", "void"))
    collection = params.text("collection_method")
    listed = list_objects(
        turn,
        call,
        "invoice",
        customer=customer,
        parent=subscription,
        keep=lambda body: (
            (status is None or body["status"] == status)
            and (collection is None or body["collection_method"] == collection)
        ),
    )
    listed["data"] = [render(as_shown(recounted(turn, body)), call.version) for body in listed["data"]]
    return listed


def list_lines(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/invoices/{id}/lines``, of a preview as well."""
    limit, after = call.params.integer("limit", 1, 100) or 10, call.params.text("starting_after")
    call.params.finish()
    lines = preview_lines(turn, call.ids[0])
    if lines is None:
        lines = recounted(turn, _invoice(turn, call.ids[0]))["_lines"]
    ids = [line["id"] for line in lines]
    if after is not None and after not in ids:
        # A preview's lines have other ids at each look.
        raise refused(f"Invoice {call.ids[0]} does not have a line item {after}", param="starting_after")
    rest = lines if after is None else lines[ids.index(after) + 1 :]
    return page(call, render(rest[:limit], call.version), len(rest) > limit)


def update_invoice(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/invoices/{id}``: when a draft closes (``auto_advance``, ``automatically_finalizes_at``), and notes."""
    invoice, params = recounted(turn, _invoice(turn, call.ids[0])), call.params
    before = {key: invoice[key] for key in ("auto_advance", "automatically_finalizes_at", "description")}
    auto_advance = params.boolean("auto_advance")
    finalizes_at = params.integer("automatically_finalizes_at", 0)
    for name in ("description", "footer"):
        if params.has(name):
            invoice[name] = params.text(name)
    merge_metadata(invoice, params)
    params.finish()
    if auto_advance is not None or finalizes_at is not None:
        _draft_only(invoice, "change the finalization of")
    if auto_advance is not None:
        invoice["auto_advance"] = auto_advance
        grace = load(turn.state).invoices.grace_seconds
        invoice["automatically_finalizes_at"] = (
            (invoice["automatically_finalizes_at"] or turn.now + grace) if auto_advance else None
        )
    if finalizes_at is not None:
        if not invoice["auto_advance"]:
            raise refused("automatically_finalizes_at needs auto_advance=true.", "automatically_finalizes_at")
        if not turn.now < finalizes_at <= turn.now + _LATEST_FINALIZATION_SECONDS:
            raise invalid(
                "automatically_finalizes_at must be in the future, by at most five years.",
                "automatically_finalizes_at",
            )
        invoice["automatically_finalizes_at"] = finalizes_at
    if invoice["status"] == "draft":
        turn.state.set_due(invoice["id"], invoice["automatically_finalizes_at"])
    turn.state.update(invoice)
    emit(
        turn,
        "invoice.updated",
        as_shown(invoice),
        {key: before[key] for key in before if before[key] != invoice[key]},
    )
    return render(as_shown(invoice), call.version)


def finalize_invoice(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/invoices/{id}/finalize``: close a draft now."""
    invoice = _invoice(turn, call.ids[0])
    auto_advance = call.params.boolean("auto_advance")
    call.params.finish()
    _draft_only(invoice, "finalize")
    if auto_advance is not None:
        invoice["auto_advance"] = auto_advance
    finalize(turn, invoice)
    return render(as_shown(invoice), call.version)


def pay_invoice(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/invoices/{id}/pay``."""
    invoice = _invoice(turn, call.ids[0])
    call.params.boolean("paid_out_of_band")
    call.params.finish()
    if invoice["status"] != "open":
        raise refused(f"Only open invoices can be paid; this one is {invoice['status']}.")
    settle(turn, invoice)
    turn.state.update(invoice)
    return render(as_shown(invoice), call.version)


def void_invoice(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/invoices/{id}/void``: takes an open invoice back; its usage is billed nowhere."""
    invoice = _invoice(turn, call.ids[0])
    call.params.finish()
    if invoice["status"] != "open":
        raise refused(f"You can only void open invoices; this one is {invoice['status']}.")
    void(turn, invoice)
    return render(as_shown(invoice), call.version)


def delete_invoice(turn: Turn, call: Call) -> JsonObject:
    """``DELETE /v1/invoices/{id}``: manual drafts only."""
    call.params.finish()
    invoice = _invoice(turn, call.ids[0])
    _draft_only(invoice, "delete")
    if invoice["parent"] is not None:
        raise refused("You can't delete an invoice created by a subscription.")
    for entry in turn.state.scan("invoiceitem", customer=invoice["customer"]):
        if entry["invoice"] == invoice["id"]:
            turn.state.update({**entry, "invoice": None})
    turn.state.delete(invoice["id"])
    emit(turn, "invoice.deleted", as_shown(invoice))
    return {"id": invoice["id"], "object": "invoice", "deleted": True}
