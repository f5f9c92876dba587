"""What a customer's coming invoices have on them: Stripe's preview and the ledger's usage, put together item by item.

Owns Stripe's spelling of a preview and of prices' terms. It refuses to know how a line compares and how it is printed.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol

from services.cli.gateway import Json
from tollgate.ledger.customers import CustomerBook
from tollgate.ledger.engine import Engine
from tollgate.ledger.meter_terms import load_meter_terms
from tollgate.ledger.reconciliation_views import load_view
from tollgate.metering.preview import Compared, LedgerLine, compare_line, sum_up_line
from tollgate.metering.pricing import AmountPart, ForeignPrice, Price, price_from_fields, price_quantity
from tollgate.metering.reconciliation import EXACT, Subject

EVENT_NAME_LABEL = "tollgate_event_name"
"""Metadata key of a metered price without a Billing Meter: which meter's usage it bills."""


class CustomerUnknown(Exception):
    """The ledger does not know the customer."""


class Conversation(Protocol):
    """What this file asks of the gateway."""

    def list_all(self, path: str, **params: Any) -> list[Json]: ...

    def retrieve(self, path: str, **params: Any) -> Json: ...

    def preview_invoice(self, subscription_id: str) -> Json: ...


@dataclass(frozen=True, slots=True)
class ItemPreview:
    """One metered item. Amounts are in the currency's minor unit."""

    item_id: str
    meter: str
    """The name of the meter here, or Stripe's event name where there is none."""
    event_name: str
    price_id: str
    model: str
    currency: str
    start_ms: int
    end_ms: int
    line: LedgerLine
    parts: tuple[AmountPart, ...]
    our_amount: int | None
    """What is coming, priced; None where the price's terms are none of ours."""
    stripe_quantity: Decimal | None
    stripe_amount: int | None
    compared: Compared
    problem: str = ""
    """Why the line could not be priced."""


@dataclass(frozen=True, slots=True)
class SubscriptionPreview:
    """One subscription's coming invoice."""

    subscription_id: str
    status: str
    currency: str
    period_start_ms: int
    period_end_ms: int
    items: tuple[ItemPreview, ...]
    others: tuple[tuple[str, int], ...]
    """Lines that bill no usage: licences, invoice items. Description and amount."""
    stripe_total: int

    @property
    def our_total(self) -> int:
        """What the invoice will come to."""
        amounts = (
            item.our_amount if item.our_amount is not None else item.stripe_amount for item in self.items
        )
        return sum(amount or 0 for amount in amounts) + sum(amount for _, amount in self.others)


def preview_customer(
    engine: Engine, stripe: Conversation, customer_id: str, now_ms: int, lag_ms: int
) -> list[SubscriptionPreview]:
    """The coming invoice of each of a customer's subscriptions. Raises CustomerUnknown, StripeUnreachable, LedgerError."""
    if not CustomerBook(engine, ()).knows_customer(customer_id):
        raise CustomerUnknown(
            f"the ledger knows no customer {customer_id}; `tollgate customers list` shows those it knows, "
            "`tollgate customers import` fetches the others"
        )
    book = _Book(engine, stripe, customer_id, now_ms, lag_ms)
    subscriptions = stripe.list_all("/v1/subscriptions", customer=customer_id)
    return [book.preview(subscription) for subscription in subscriptions]


def preview_subscription(
    engine: Engine, stripe: Conversation, subscription: Json, now_ms: int, lag_ms: int
) -> SubscriptionPreview:
    """The coming invoice of one subscription, given as Stripe has it. Raises StripeUnreachable, LedgerError."""
    return _Book(engine, stripe, subscription["customer"], now_ms, lag_ms).preview(subscription)


class _Book:
    """One customer's previews. Prices and meters are asked for once."""

    def __init__(
        self, engine: Engine, stripe: Conversation, customer_id: str, now_ms: int, lag_ms: int
    ) -> None:
        self._engine = engine
        self._stripe = stripe
        self._customer_id = customer_id
        self._now_ms = now_ms
        self._lag_ms = lag_ms
        self._names = {terms.event_name: terms.name for terms in load_meter_terms(engine).values()}
        self._event_names: dict[str, str] = {}

    def preview(self, subscription: Json) -> SubscriptionPreview:
        invoice = self._stripe.preview_invoice(subscription["id"])
        metered = {
            str(item["id"]): item
            for item in self._stripe.list_all("/v1/subscription_items", subscription=subscription["id"])
            if (item["price"].get("recurring") or {}).get("usage_type") == "metered"
        }
        usage, others = sort_lines(invoice["lines"]["data"], metered)
        free = subscription["status"] == "trialing"
        items = [self._item(item, usage.get(item_id), free=free) for item_id, item in metered.items()]
        return SubscriptionPreview(
            subscription_id=subscription["id"],
            status=subscription["status"],
            currency=invoice["currency"],
            period_start_ms=invoice["period_start"] * 1000,
            period_end_ms=invoice["period_end"] * 1000,
            items=tuple(items),
            others=tuple(others),
            stripe_total=int(invoice["total"]),
        )

    def _item(self, item: Json, line: UsageLine | None, *, free: bool) -> ItemPreview:
        start_s, end_s = item["current_period_start"], item["current_period_end"]
        if line is not None:
            # A price that changed within the period has its line begin there.
            start_s, end_s = line.start_s, line.end_s
        event_name = self._event_name(item["price"])
        subject = Subject(self._customer_id, event_name, start_s * 1000, end_s * 1000)
        view = load_view(self._engine, subject)
        ours = sum_up_line(view.in_period, view.missing, self._now_ms, self._lag_ms)
        price, problem = self._terms(item["price"]["id"])
        quantity = None if line is None else line.quantity
        amount = None if line is None else line.amount
        coming = None if price is None or free else price_quantity(price, ours.coming)
        by_formula = None if price is None or quantity is None else price_quantity(price, quantity).amount
        return ItemPreview(
            item_id=item["id"],
            meter=self._names.get(event_name, event_name),
            event_name=event_name,
            price_id=item["price"]["id"],
            model="unknown" if price is None else str(price.model),
            currency=item["price"]["currency"],
            start_ms=subject.period_start_ms,
            end_ms=subject.period_end_ms,
            line=ours,
            parts=() if coming is None else coming.parts,
            our_amount=0 if free else None if coming is None else coming.amount,
            stripe_quantity=quantity,
            stripe_amount=amount,
            compared=compare_line(ours, quantity, by_formula, amount, free=free),
            problem=problem,
        )

    def _event_name(self, price: Json) -> str:
        """Which meter's usage a price bills: its Billing Meter's, or, for usage records, what its label says."""
        meter_id = price["recurring"].get("meter")
        if not meter_id:
            return str((price.get("metadata") or {}).get(EVENT_NAME_LABEL) or "")
        if meter_id not in self._event_names:
            meter = self._stripe.retrieve(f"/v1/billing/meters/{meter_id}")
            self._event_names[meter_id] = str(meter["event_name"])
        return self._event_names[meter_id]

    def _terms(self, price_id: str) -> tuple[Price | None, str]:
        """A price's terms with its tiers, which are left out unless they are asked for; or why there are none."""
        try:
            return price_from_fields(self._stripe.retrieve(f"/v1/prices/{price_id}", expand=["tiers"])), ""
        except ForeignPrice as error:
            return None, f"{price_id} cannot be priced here: {error}"


@dataclass(frozen=True, slots=True)
class UsageLine:
    """What a coming invoice bills of one metered item's usage. `amount` is in the currency's minor unit."""

    start_s: int
    end_s: int
    quantity: Decimal
    amount: int


def sort_lines(
    lines: Iterable[Mapping[str, Any]], metered: Container[str]
) -> tuple[dict[str, UsageLine], list[tuple[str, int]]]:
    """An invoice's lines: what each metered item's open part comes to, and description and amount of all others.

    Lines of one item and one span are one: Stripe may write a line for each tier. An item's earlier span, whose price
    was another, is among the others.
    """
    usage: dict[tuple[str, int, int], UsageLine] = {}
    described: dict[tuple[str, int, int], str] = {}
    others = []
    for line in lines:
        item, name, amount = _item_of(line), str(line["description"] or "other"), int(line["amount"])
        if item is None or item not in metered:
            others.append((name, amount))
            continue
        span = int(line["period"]["start"]), int(line["period"]["end"])
        before = usage.get((item, *span), UsageLine(*span, Decimal(0), 0))
        quantity = EXACT.add(before.quantity, _quantity(line))
        usage[item, *span] = UsageLine(*span, quantity, before.amount + amount)
        described.setdefault((item, *span), name)
    latest = {item: found for (item, *_), found in sorted(usage.items())}
    for place, found in usage.items():
        if latest[place[0]] is not found:
            others.append((described[place], found.amount))
    return latest, others


def _item_of(line: Mapping[str, Any]) -> str | None:
    """The subscription item whose period a line bills, or None."""
    details = (line.get("parent") or {}).get("subscription_item_details") or {}
    item = details.get("subscription_item")
    return str(item) if item and not details.get("proration") else None


def _quantity(line: Mapping[str, Any]) -> Decimal:
    """What a line bills, exact: `quantity` cuts decimals off."""
    written = line.get("quantity_decimal")
    return Decimal(str(line.get("quantity") or 0) if written is None else str(written))
