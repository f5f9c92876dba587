"""Invoice lines: what an invoice bills of metered usage, as last fetched.

Owns the rows of `invoice_lines`, written on a transaction of the caller who holds the directory's lock. It refuses to
know periods and what anybody compares the lines with.
"""

from __future__ import annotations

from sqlalchemy import Connection, delete, insert

from tollgate.ledger.billing import Invoice
from tollgate.ledger.tables import invoice_lines


def store_invoice_lines(connection: Connection, invoice: Invoice) -> None:
    """Replace an invoice's lines by those of its newest fetch: a draft's quantities grow until it is final."""
    connection.execute(delete(invoice_lines).where(invoice_lines.c.invoice_id == invoice.invoice_id))
    rows = [
        {
            "invoice_id": invoice.invoice_id,
            "position": position,
            "line_id": line.line_id,
            "customer_id": invoice.customer_id,
            "item_id": line.item_id,
            "price_id": line.price_id,
            "event_name": line.event_name,
            "period_start_ms": line.period_start_ms,
            "period_end_ms": line.period_end_ms,
            "quantity": line.quantity,
        }
        for position, line in enumerate(invoice.lines)
    ]
    if rows:
        connection.execute(insert(invoice_lines), rows)
