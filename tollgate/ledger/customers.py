"""The book of customers: each transaction that services/webhooks makes.

Owns `customers`, `subscriptions` and `invoices`, and the order in which a transaction touches them, invoices' lines
(`invoice_lines.py`), the periods (`periods.py`), the mappings (`directory.py`) and the inbox (`inbox.py`). It refuses to know Stripe, HTTP and Kafka.

The guard: a caller takes a number with `take_sequence` BEFORE it asks Stripe for an object, and the object is written
only if no higher number has been. Every change at Stripe sends an event, whose number is taken after the change, so
the highest number always belongs to a fetch that saw the last change, however slow or reordered the others were.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import Connection, Table, func, insert, select, update

from tollgate.ledger.billing import Customer, Invoice, Receipt, Rejection, Subscription
from tollgate.ledger.directory import (
    MappingRule,
    lock_directory,
    raise_directory_version,
    remap_customers,
    sync_mappings,
)
from tollgate.ledger.engine import Engine, ledger_transaction, read_snapshot
from tollgate.ledger.inbox import FAILED, done_events, next_sequence, record_event, record_rejections
from tollgate.ledger.invoice_lines import store_invoice_lines
from tollgate.ledger.periods import apply_invoice_lines, apply_items, remove_unfinished_periods
from tollgate.ledger.tables import customers, invoices, stripe_inbox, subscriptions

PROJECTED = "projected"
SUPERSEDED = "superseded"
"""A newer fetch of the same object was written first."""


class CustomerBook:
    """What webhooks may do to the ledger. Every method is one transaction, or none when it raises a LedgerError.

    Each method that takes a `receipt` puts it in the inbox in the same transaction; without one (an import) the
    inbox is left alone. They return the outcome: `projected` or `superseded`.
    """

    def __init__(self, engine: Engine, rules: Sequence[MappingRule]) -> None:
        self._engine = engine
        self._rules = tuple(rules)

    # ------------------------------------------------------------------------------------------ reading

    def done_events(self, event_ids: Collection[str], *, with_failed: bool = False) -> frozenset[str]:
        """Those of `event_ids` that need no work: already projected (or parked, if `with_failed`)."""
        if not event_ids:
            return frozenset()
        with read_snapshot(self._engine) as connection:
            return done_events(connection, event_ids, with_failed=with_failed)

    def newest_event_s(self) -> int | None:
        """When Stripe made the newest event of the inbox, in epoch seconds; None while it is empty."""
        with read_snapshot(self._engine) as connection:
            newest: int | None = connection.scalar(select(func.max(stripe_inbox.c.created_s)))
            return newest

    def knows_customer(self, customer_id: str) -> bool:
        """Whether the customer has a row, deleted or not."""
        with read_snapshot(self._engine) as connection:
            found = connection.scalar(
                select(customers.c.customer_id).where(customers.c.customer_id == customer_id)
            )
        return found is not None

    # ------------------------------------------------------------------------------------------ writing

    def take_sequence(self) -> int:
        """A number higher than every one before it. Take it before the fetch it is for."""
        with ledger_transaction(self._engine) as connection:
            return next_sequence(connection)

    def apply_customer(
        self,
        customer: Customer,
        *,
        sequence: int,
        now_ms: int,
        deleted_ms: int | None = None,
        receipt: Receipt | None = None,
    ) -> str:
        """Write a customer and bring its mappings in line.

        `deleted_ms` is when it was deleted, where an event says so. It is obeyed even if a newer fetch has been
        written: that one saw the customer gone, but not since when.
        """
        with ledger_transaction(self._engine) as connection:
            lock_directory(connection)
            written = _write(
                connection,
                customers,
                customer.customer_id,
                sequence,
                {
                    "email": customer.email,
                    "name": customer.name,
                    "deleted": customer.deleted,
                    "metadata": dict(customer.metadata),
                    "updated_ms": now_ms,
                },
            )
            if written or deleted_ms is not None:
                gone_ms = (now_ms if deleted_ms is None else deleted_ms) if customer.deleted else None
                changed = [
                    sync_mappings(connection, customer.customer_id, self._rules, now_ms, deleted_ms),
                    gone_ms is not None
                    and remove_unfinished_periods(connection, customer.customer_id, gone_ms, sequence),
                ]
                _raise_version_if(connection, changed)
            return _conclude(connection, receipt, written, now_ms)

    def apply_subscription(
        self, subscription: Subscription, *, sequence: int, now_ms: int, receipt: Receipt | None = None
    ) -> str:
        """Write a subscription, its items' periods and the mappings that follow from it."""
        with ledger_transaction(self._engine) as connection:
            lock_directory(connection)
            written = _write(
                connection,
                subscriptions,
                subscription.subscription_id,
                sequence,
                {
                    "customer_id": subscription.customer_id,
                    "status": subscription.status,
                    "start_ms": subscription.start_ms,
                    "ended_ms": subscription.ended_ms,
                    "metadata": dict(subscription.metadata),
                    "updated_ms": now_ms,
                },
            )
            if written:
                changed = [
                    apply_items(connection, subscription, sequence, now_ms),
                    sync_mappings(connection, subscription.customer_id, self._rules, now_ms),
                ]
                _raise_version_if(connection, changed)
            return _conclude(connection, receipt, written, now_ms)

    def apply_invoice(
        self, invoice: Invoice, *, sequence: int, now_ms: int, receipt: Receipt | None = None
    ) -> str:
        """Write an invoice with its metered lines; a finalized one closes the periods it bills."""
        with ledger_transaction(self._engine) as connection:
            lock_directory(connection)
            written = _write(
                connection,
                invoices,
                invoice.invoice_id,
                sequence,
                {
                    "customer_id": invoice.customer_id,
                    "subscription_id": invoice.subscription_id,
                    "status": invoice.status,
                    "billing_reason": invoice.billing_reason,
                    "period_start_ms": invoice.period_start_ms,
                    "period_end_ms": invoice.period_end_ms,
                    "created_ms": invoice.created_ms,
                    "finalizes_ms": invoice.finalizes_ms,
                    "finalized_ms": invoice.finalized_ms,
                },
            )
            if written:
                store_invoice_lines(connection, invoice)
                _raise_version_if(connection, [apply_invoice_lines(connection, invoice, sequence)])
            return _conclude(connection, receipt, written, now_ms)

    def apply_rejections(self, found: Sequence[Rejection], *, now_ms: int, receipt: Receipt) -> int:
        """Store what a meter error report says was refused; how many of them were news."""
        with ledger_transaction(self._engine) as connection:
            new = record_rejections(connection, receipt.event_id, found)
            record_event(connection, receipt, PROJECTED, now_ms)
            return new

    def record(self, receipt: Receipt, outcome: str, now_ms: int) -> None:
        """Put an event in the inbox that changes nothing: one merely seen, ignored, or gone."""
        with ledger_transaction(self._engine) as connection:
            record_event(connection, receipt, outcome, now_ms)

    def park(self, receipt: Receipt, reason: str, now_ms: int) -> None:
        """Put an event in the inbox that could not be projected, as `failed:<reason>`."""
        self.record(receipt, FAILED + reason, now_ms)

    def remap(self, now_ms: int) -> int:
        """Bring the mappings of every known customer in line with the rules, which may have been changed."""
        return remap_customers(self._engine, self._rules, now_ms)


def _write(connection: Connection, table: Table, key: str, sequence: int, values: dict[str, Any]) -> bool:
    """Insert or update the row `key` unless a higher number has been there; True if written.

    Two statements are enough: the caller holds the directory's lock.
    """
    (key_column,) = table.primary_key.columns
    stored = connection.scalar(select(table.c.sequence).where(key_column == key))
    if stored is None:
        connection.execute(insert(table).values({key_column.name: key, "sequence": sequence, **values}))
        return True
    if stored > sequence:
        return False
    connection.execute(update(table).where(key_column == key).values(sequence=sequence, **values))
    return True


def _raise_version_if(connection: Connection, changed: Iterable[bool]) -> None:
    if any(changed):
        raise_directory_version(connection)


def _conclude(connection: Connection, receipt: Receipt | None, written: bool, now_ms: int) -> str:
    outcome = PROJECTED if written else SUPERSEDED
    if receipt is not None:
        record_event(connection, receipt, outcome, now_ms)
    return outcome
