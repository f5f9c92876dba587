"""Drafts: what a new invoice has in it, and the invoice items it collects.

Owns: a draft's fields and lines. Refuses to know: what becomes of it (invoices).
"""

from sandbox.stripe.errors import JsonObject, no_such_reference, refused
from sandbox.stripe.events import emit
from sandbox.stripe.invoice_lines import invoice_item_line
from sandbox.stripe.invoices import as_shown, total_up
from sandbox.stripe.state import new_id
from sandbox.stripe.turns import Turn


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
    total_up(invoice)
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
        put_on_draft(invoice, entry)
        turn.state.update(entry)
    total_up(invoice)
    invoice["auto_advance"] = finalizes_at is not None
    invoice["automatically_finalizes_at"] = finalizes_at
    turn.state.insert(
        "invoice",
        invoice,
        customer=customer["id"],
        parent=None if subscription is None else subscription["id"],
        due=finalizes_at,
    )
    emit(turn, "invoice.created", as_shown(invoice))
    return invoice


def pending_items(turn: Turn, customer_id: str, subscription_id: str | None) -> list[JsonObject]:
    """The invoice items that wait for this customer's next invoice, oldest first."""
    return [
        entry
        for entry in turn.state.scan("invoiceitem", customer=customer_id, newest_first=False)
        if entry["invoice"] is None and entry["_subscription"] in (None, subscription_id)
    ]


def put_on_draft(invoice: JsonObject, entry: JsonObject) -> None:
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
    put_on_draft(invoice, entry)
    total_up(invoice)
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
    total_up(invoice)
    turn.state.update(invoice)
