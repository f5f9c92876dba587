"""Invoices: from draft through the grace to final.

Owns: their life and numbers, and how they are shown. Usage is billed strictly by stamp in ``[start, end)``: while an
invoice is a draft its usage lines are counted again at every look, and what arrives after finalization is on no
invoice. Refuses to know: what a new draft has in it (invoice_drafts), its endpoints (invoice_calls), and when a
subscription's period ends (subscription_cycle, schedule).
"""

from sandbox.stripe.errors import JsonObject
from sandbox.stripe.events import emit
from sandbox.stripe.invoice_lines import recount
from sandbox.stripe.turns import Turn
from sandbox.stripe.versions import render

_LINES_EMBEDDED_MAX = 10


def total_up(invoice: JsonObject) -> None:
    """Totals from lines. A total below zero is due as zero."""
    total = sum(line["amount"] for line in invoice["_lines"])
    invoice["subtotal"] = invoice["subtotal_excluding_tax"] = total
    invoice["total"] = invoice["total_excluding_tax"] = total
    invoice["amount_due"] = max(total, 0)
    invoice["amount_remaining"] = invoice["amount_due"] - invoice["amount_paid"]


def recounted(turn: Turn, invoice: JsonObject) -> JsonObject:
    """A draft counted again by the usage known now; other invoices as they are."""
    if invoice["status"] == "draft":
        for line in invoice["_lines"]:
            recount(turn, line)
        total_up(invoice)
    return invoice


def as_shown(invoice: JsonObject) -> JsonObject:
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
    return as_shown(recounted(turn, invoice))


def finalize(turn: Turn, invoice: JsonObject) -> None:
    """Count a last time and close: from here no usage changes it. Nothing due, or charged by itself, is paid."""
    recounted(turn, invoice)
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
    emit(turn, "invoice.finalized", as_shown(invoice))
    if invoice.pop("_uncollectible", False):
        invoice["status"], invoice["auto_advance"] = "uncollectible", False
        invoice["status_transitions"]["marked_uncollectible_at"] = turn.now
        emit(turn, "invoice.marked_uncollectible", as_shown(invoice))
        turn.state.update(invoice)
        return
    if invoice["amount_due"] == 0 or invoice["collection_method"] == "charge_automatically":
        settle(turn, invoice)
    turn.state.update(invoice)


def void(turn: Turn, invoice: JsonObject) -> None:
    """Take an invoice back; its usage is billed nowhere. A draft is counted a last time first."""
    recounted(turn, invoice)
    for line in invoice["_lines"]:
        line.pop("_counts", None)
    invoice["status"], invoice["auto_advance"] = "void", False
    invoice["automatically_finalizes_at"] = None
    invoice["status_transitions"]["voided_at"] = turn.now
    turn.state.set_due(invoice["id"], None)
    turn.state.update(invoice)
    emit(turn, "invoice.voided", as_shown(invoice))


def settle(turn: Turn, invoice: JsonObject) -> None:
    """Mark as paid: the stand-in's customers always have a working payment method."""
    invoice["status"] = "paid"
    invoice["amount_paid"] = invoice["amount_due"]
    invoice["amount_remaining"] = 0
    invoice["attempted"] = True
    invoice["attempt_count"] = 1 if invoice["amount_due"] else 0
    invoice["auto_advance"] = False
    invoice["status_transitions"]["paid_at"] = turn.now
    emit(turn, "invoice.paid", as_shown(invoice))
    emit(turn, "invoice.payment_succeeded", as_shown(invoice))


def preview_seen(invoice: JsonObject, version: str) -> JsonObject:
    """A draft that is shown and not stored."""
    return dict(render(as_shown(invoice), version))
