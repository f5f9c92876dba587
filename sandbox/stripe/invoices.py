"""Invoices: from draft through the grace to final.

Owns: their life, totals and numbers. Usage is billed strictly by stamp in ``[start, end)``: while an invoice is a
draft its usage lines are counted again at every look, and what arrives after finalization is on no invoice.
Refuses to know: when a subscription's period ends (subscriptions, schedule).
"""

from sandbox.stripe.errors import JsonObject, invalid, no_such, no_such_reference, refused
from sandbox.stripe.events import emit
from sandbox.stripe.invoice_lines import invoice_item_line, recount
from sandbox.stripe.listing import list_objects
from sandbox.stripe.params import merge_metadata
from sandbox.stripe.settings import load
from sandbox.stripe.state import new_id
from sandbox.stripe.turns import Call, Turn, page
from sandbox.stripe.versions import render

_LINES_EMBEDDED_MAX = 10
_LATEST_FINALIZATION_SECONDS = 72 * 3600


def draft_body(
    turn: Turn,
    customer: JsonObject,
    subscription: JsonObject | None,
    reason: str,
    period: tuple[int, int],
    lines: list[JsonObject],
) -> JsonObject:
    """A draft invoice, totalled but not stored; pending invoice items are not on it yet."""
    invoice: JsonObject = {
        "id": new_id("in"),
        "object": "invoice",
        "account_country": "US",
        "account_name": "Stand-in",
        "amount_due": 0,
        "amount_overpaid": 0,
        "amount_paid": 0,
        "amount_remaining": 0,
        "amount_shipping": 0,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": True,
        "automatic_tax": {
            "enabled": False,
            "disabled_reason": None,
            "liability": None,
            "provider": None,
            "status": None,
        },
        "automatically_finalizes_at": None,
        "billing_reason": reason,
        "collection_method": "charge_automatically"
        if subscription is None
        else subscription["collection_method"],
        "created": turn.now,
        "currency": "usd" if subscription is None else subscription["currency"],
        "custom_fields": None,
        "customer": customer["id"],
        "customer_email": customer.get("email"),
        "customer_name": customer.get("name"),
        "default_tax_rates": [],
        "description": None,
        "discounts": [],
        "due_date": None,
        "effective_at": None,
        "ending_balance": None,
        "footer": None,
        "hosted_invoice_url": None,
        "invoice_pdf": None,
        "issuer": {"type": "self"},
        "last_finalization_error": None,
        "livemode": False,
        "metadata": {},
        "next_payment_attempt": None,
        "number": None,
        "on_behalf_of": None,
        "parent": None
        if subscription is None
        else {
            "type": "subscription_details",
            "quote_details": None,
            "subscription_details": {
                "metadata": subscription["metadata"],
                "subscription": subscription["id"],
            },
        },
        "payment_settings": {
            "default_mandate": None,
            "payment_method_options": None,
            "payment_method_types": None,
        },
        "period_end": period[1],
        "period_start": period[0],
        "post_payment_credit_notes_amount": 0,
        "pre_payment_credit_notes_amount": 0,
        "receipt_number": None,
        "starting_balance": 0,
        "status": "draft",
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "subtotal": 0,
        "subtotal_excluding_tax": 0,
        "test_clock": None,
        "total": 0,
        "total_discount_amounts": [],
        "total_excluding_tax": 0,
        "total_taxes": [],
        "webhooks_delivered_at": None,
        "_lines": lines,
        "_prefix": customer.get("invoice_prefix", "DELETED"),
    }
    for line in lines:
        line["invoice"] = invoice["id"]
    _total(invoice)
    return invoice


def draft(
    turn: Turn,
    customer: JsonObject,
    subscription: JsonObject | None,
    reason: str,
    period: tuple[int, int],
    lines: list[JsonObject],
    finalizes_at: int | None,
) -> JsonObject:
    """Store a draft, with the pending invoice items it collects, to be finalized at the given second (or by hand)."""
    invoice = draft_body(turn, customer, subscription, reason, period, lines)
    for entry in pending_items(turn, customer["id"], None if subscription is None else subscription["id"]):
        _put_on(invoice, entry)
        turn.state.update(entry)
    _total(invoice)
    invoice["auto_advance"] = finalizes_at is not None
    invoice["automatically_finalizes_at"] = finalizes_at
    turn.state.insert(
        "invoice",
        invoice,
        customer=customer["id"],
        parent=None if subscription is None else subscription["id"],
        due=finalizes_at,
    )
    emit(turn, "invoice.created", _seen(invoice))
    return invoice


def pending_items(turn: Turn, customer_id: str, subscription_id: str | None) -> list[JsonObject]:
    """The invoice items that wait for this customer's next invoice, oldest first."""
    return [
        entry
        for entry in turn.state.scan("invoiceitem", customer=customer_id, newest_first=False)
        if entry["invoice"] is None and entry["_subscription"] in (None, subscription_id)
    ]


def _put_on(invoice: JsonObject, entry: JsonObject) -> None:
    entry["invoice"] = invoice["id"]
    line = invoice_item_line(entry)
    line["invoice"] = invoice["id"]
    invoice["_lines"].append(line)
    if len(invoice["_lines"]) == 1:
        invoice["currency"] = entry["currency"]


def add_to_draft(turn: Turn, invoice_id: str, entry: JsonObject) -> None:
    """Put an invoice item on a draft; raises ``Refusal`` (400) where there is none."""
    invoice = turn.state.find("invoice", invoice_id)
    if invoice is None:
        raise no_such_reference("invoice", invoice_id, "invoice")
    if invoice["status"] != "draft":
        raise refused("Invoice items can only be added to draft invoices.", "invoice")
    if invoice["customer"] != entry["customer"]:
        raise refused("The invoice belongs to another customer.", "invoice")
    _put_on(invoice, entry)
    _total(invoice)
    turn.state.update(invoice)


def remove_from_draft(turn: Turn, invoice_id: str, entry_id: str) -> None:
    """Take an invoice item off its draft; raises ``Refusal`` (400) once that is final."""
    invoice = turn.state.find("invoice", invoice_id)
    if invoice is None or invoice["status"] != "draft":
        raise refused("This invoice item is on an invoice that is no longer a draft.")
    invoice["_lines"] = [
        line
        for line in invoice["_lines"]
        if ((line["parent"] or {}).get("invoice_item_details") or {}).get("invoice_item") != entry_id
    ]
    _total(invoice)
    turn.state.update(invoice)


def _total(invoice: JsonObject) -> None:
    """Totals from lines. A total below zero is due as zero."""
    total = sum(line["amount"] for line in invoice["_lines"])
    invoice["subtotal"] = invoice["subtotal_excluding_tax"] = total
    invoice["total"] = invoice["total_excluding_tax"] = total
    invoice["amount_due"] = max(total, 0)
    invoice["amount_remaining"] = invoice["amount_due"] - invoice["amount_paid"]


def _current(turn: Turn, invoice: JsonObject) -> JsonObject:
    """A draft counted again by the usage known now; other invoices as they are."""
    if invoice["status"] == "draft":
        for line in invoice["_lines"]:
            recount(turn, line)
        _total(invoice)
    return invoice


def _seen(invoice: JsonObject) -> JsonObject:
    """The invoice with its first lines embedded, as Stripe shows it."""
    lines = invoice["_lines"]
    return {
        **invoice,
        "lines": {
            "object": "list",
            "data": lines[:_LINES_EMBEDDED_MAX],
            "has_more": len(lines) > _LINES_EMBEDDED_MAX,
            "total_count": len(lines),
            "url": f"/v1/invoices/{invoice['id']}/lines",
        },
    }


def shown_invoice(turn: Turn, invoice: JsonObject) -> JsonObject:
    """A stored invoice as callers see it."""
    return _seen(_current(turn, invoice))


def finalize(turn: Turn, invoice: JsonObject) -> None:
    """Count a last time and close: from here no usage changes it. Nothing due, or charged by itself, is paid."""
    _current(turn, invoice)
    for line in invoice["_lines"]:
        line.pop("_counts", None)
    invoice["status"] = "open"
    number = turn.state.next_number(f"invoice_number:{invoice['customer']}")
    invoice["number"] = f"{invoice['_prefix']}-{number:04d}"
    invoice["effective_at"] = turn.now
    invoice["status_transitions"]["finalized_at"] = turn.now
    # Stripe keeps the planned moment only for drafts.
    invoice["automatically_finalizes_at"] = None
    turn.state.set_due(invoice["id"], None)
    emit(turn, "invoice.finalized", _seen(invoice))
    if invoice["amount_due"] == 0 or invoice["collection_method"] == "charge_automatically":
        _settle(turn, invoice)
    turn.state.update(invoice)


def _settle(turn: Turn, invoice: JsonObject) -> None:
    """Mark as paid: the stand-in's customers always have a working payment method."""
    invoice["status"] = "paid"
    invoice["amount_paid"] = invoice["amount_due"]
    invoice["amount_remaining"] = 0
    invoice["attempted"] = True
    invoice["attempt_count"] = 1 if invoice["amount_due"] else 0
    invoice["auto_advance"] = False
    invoice["status_transitions"]["paid_at"] = turn.now
    emit(turn, "invoice.paid", _seen(invoice))
    emit(turn, "invoice.payment_succeeded", _seen(invoice))


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
            _put_on(invoice, entry)
            turn.state.update(entry)
        _total(invoice)
    finalizes_at = turn.now + load(turn.state).invoices.grace_seconds if auto_advance else None
    invoice["auto_advance"], invoice["automatically_finalizes_at"] = auto_advance, finalizes_at
    turn.state.insert("invoice", invoice, customer=customer_id, due=finalizes_at)
    emit(turn, "invoice.created", _seen(invoice))
    return render(_seen(invoice), call.version)


def retrieve_invoice(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/invoices/{id}``; a draft shows the usage known now."""
    call.params.finish()
    return render(_seen(_current(turn, _invoice(turn, call.ids[0]))), call.version)


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
    listed["data"] = [render(_seen(_current(turn, body)), call.version) for body in listed["data"]]
    return listed


def list_lines(turn: Turn, call: Call) -> JsonObject:
    """``GET /v1/invoices/{id}/lines``."""
    limit, after = call.params.integer("limit", 1, 100) or 10, call.params.text("starting_after")
    call.params.finish()
    lines = _current(turn, _invoice(turn, call.ids[0]))["_lines"]
    ids = [line["id"] for line in lines]
    rest = lines[ids.index(after) + 1 :] if after in ids else lines
    return page(call, render(rest[:limit], call.version), len(rest) > limit)


def update_invoice(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/invoices/{id}``: when a draft closes (``auto_advance``, ``automatically_finalizes_at``), and notes."""
    invoice, params = _current(turn, _invoice(turn, call.ids[0])), call.params
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
        if not turn.now < finalizes_at <= invoice["created"] + _LATEST_FINALIZATION_SECONDS:
            raise invalid(
                "automatically_finalizes_at must be in the future and within 72 hours of the invoice's creation.",
                "automatically_finalizes_at",
            )
        invoice["automatically_finalizes_at"] = finalizes_at
    if invoice["status"] == "draft":
        turn.state.set_due(invoice["id"], invoice["automatically_finalizes_at"])
    turn.state.update(invoice)
    emit(
        turn,
        "invoice.updated",
        _seen(invoice),
        {key: before[key] for key in before if before[key] != invoice[key]},
    )
    return render(_seen(invoice), call.version)


def finalize_invoice(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/invoices/{id}/finalize``: close a draft now."""
    invoice = _invoice(turn, call.ids[0])
    auto_advance = call.params.boolean("auto_advance")
    call.params.finish()
    _draft_only(invoice, "finalize")
    if auto_advance is not None:
        invoice["auto_advance"] = auto_advance
    finalize(turn, invoice)
    return render(_seen(invoice), call.version)


def pay_invoice(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/invoices/{id}/pay``."""
    invoice = _invoice(turn, call.ids[0])
    call.params.boolean("paid_out_of_band")
    call.params.finish()
    if invoice["status"] != "open":
        raise refused(f"Only open invoices can be paid; this one is {invoice['status']}.")
    _settle(turn, invoice)
    turn.state.update(invoice)
    return render(_seen(invoice), call.version)


def void_invoice(turn: Turn, call: Call) -> JsonObject:
    """``POST /v1/invoices/{id}/void``: takes an open invoice back; its usage is billed nowhere."""
    invoice = _invoice(turn, call.ids[0])
    call.params.finish()
    if invoice["status"] != "open":
        raise refused(f"You can only void open invoices; this one is {invoice['status']}.")
    invoice["status"], invoice["auto_advance"] = "void", False
    invoice["status_transitions"]["voided_at"] = turn.now
    turn.state.update(invoice)
    emit(turn, "invoice.voided", _seen(invoice))
    return render(_seen(invoice), call.version)


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
    emit(turn, "invoice.deleted", _seen(invoice))
    return {"id": invoice["id"], "object": "invoice", "deleted": True}


def preview_seen(invoice: JsonObject, version: str) -> JsonObject:
    """A draft that is shown and not stored."""
    return dict(render(_seen({**invoice, "id": f"upcoming_{invoice['id']}"}), version))
