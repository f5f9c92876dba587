"""Stripe's objects in the ledger's words.

Owns the one conversion from Stripe's JSON (API version 2026-10-28.endive: period bounds on the items, an invoice's
subscription under `parent`) to `tollgate.ledger.billing`. It refuses to know how the JSON was come by. Which Billing
Meter a price reports to is asked of the caller, who may have to look it up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from services.webhooks.errors import Permanent, PermanentReason
from tollgate.ledger.billing import Customer, Invoice, InvoiceLine, Item, Rejection, Subscription

Json = Mapping[str, Any]


def customer_to_domain(body: Json) -> Customer:
    """A customer; of a deleted one Stripe tells only the id."""
    with_shape = _Shape("customer", body)
    if body.get("deleted"):
        return Customer(with_shape.text("id"), deleted=True)
    return Customer(
        customer_id=with_shape.text("id"),
        email=(clean_text(body.get("email")) or "").strip() or None,
        name=clean_text(body.get("name")),
        metadata=clean_document(body.get("metadata") or {}),
    )


def subscription_to_domain(
    body: Json, items: Iterable[Json], event_names: Mapping[str, str | None]
) -> Subscription:
    """A subscription with all its `items`; `event_names` by price id."""
    shape = _Shape("subscription", body)
    ends_ms = _ms_or_none(body.get("cancel_at"))
    return Subscription(
        subscription_id=shape.text("id"),
        customer_id=_id_of(shape.value("customer")),
        status=shape.text("status"),
        start_ms=_ms(body.get("start_date") or body.get("created") or 0),
        ended_ms=_ms_or_none(body.get("ended_at")),
        metadata=clean_document(body.get("metadata") or {}),
        items=tuple(_item_to_domain(item, event_names, ends_ms) for item in items),
    )


def _item_to_domain(body: Json, event_names: Mapping[str, str | None], ends_ms: int | None) -> Item:
    """An item; its period ends where its subscription is set to end, if that is sooner."""
    shape = _Shape("subscription_item", body)
    price_id = _id_of(shape.value("price"))
    start_ms, end_ms = _ms(shape.value("current_period_start")), _ms(shape.value("current_period_end"))
    if ends_ms is not None and start_ms < ends_ms < end_ms:
        end_ms = ends_ms
    return Item(
        item_id=shape.text("id"),
        price_id=price_id,
        event_name=event_names.get(price_id),
        period_start_ms=start_ms,
        period_end_ms=end_ms,
    )


def previous_prices(previous: Json) -> dict[str, str]:
    """By item, the price it had before a change, from an event's `previous_attributes`; empty where it says nothing."""
    items = previous.get("items")
    data = items.get("data") if isinstance(items, Mapping) else None
    found = {}
    for item in data if isinstance(data, list) else ():
        item_id = item.get("id") if isinstance(item, Mapping) else None
        price = item.get("price") if isinstance(item, Mapping) else None
        price_id = price.get("id") if isinstance(price, Mapping) else price
        if isinstance(item_id, str) and isinstance(price_id, str):
            found[item_id] = price_id
    return found


def invoice_to_domain(
    body: Json, lines: Iterable[Json], event_names: Mapping[str, str | None], *, status: str | None = None
) -> Invoice:
    """An invoice; of its `lines` those that bill a metered item. `status` overrides Stripe's (for a deleted one)."""
    shape = _Shape("invoice", body)
    transitions = body.get("status_transitions") or {}
    return Invoice(
        invoice_id=shape.text("id"),
        customer_id=_id_of(shape.value("customer")),
        subscription_id=invoice_subscription_id(body),
        status=status or shape.text("status"),
        billing_reason=clean_text(body.get("billing_reason")),
        period_start_ms=_ms(shape.value("period_start")),
        period_end_ms=_ms(shape.value("period_end")),
        created_ms=_ms(shape.value("created")),
        finalizes_ms=_ms_or_none(body.get("automatically_finalizes_at")),
        finalized_ms=_ms_or_none(transitions.get("finalized_at")),
        lines=tuple(_metered_lines(lines, event_names)),
    )


def _metered_lines(lines: Iterable[Json], event_names: Mapping[str, str | None]) -> Iterable[InvoiceLine]:
    for line in lines:
        item_id, price_id = line_item_id(line), line_price_id(line)
        event_name = event_names.get(price_id) if price_id else None
        period = line.get("period") or {}
        if item_id is None or price_id is None or event_name is None:
            continue
        yield InvoiceLine(
            item_id=item_id,
            price_id=price_id,
            event_name=event_name,
            period_start_ms=_ms(period.get("start") or 0),
            period_end_ms=_ms(period.get("end") or 0),
            quantity=line_quantity(line),
            line_id=clean_text(line.get("id")) or "",
        )


def invoice_subscription_id(body: Json) -> str | None:
    """The subscription an invoice is for, or None."""
    details = (body.get("parent") or {}).get("subscription_details") or {}
    subscription = details.get("subscription")
    return _id_of(subscription) if subscription else None


def line_item_id(line: Json) -> str | None:
    """The subscription item a line bills, or None (a one-off item, a proration of a licence)."""
    details = (line.get("parent") or {}).get("subscription_item_details") or {}
    item = details.get("subscription_item")
    return _id_of(item) if item and not details.get("proration") else None


def line_quantity(line: Json) -> str:
    """The usage a line bills, exact: `quantity` is whole and cuts decimals off, `quantity_decimal` keeps them."""
    written = line.get("quantity_decimal")
    text = str(line.get("quantity") or 0) if written is None else str(written)
    try:
        quantity = Decimal(text)
    except InvalidOperation:
        raise Permanent(
            PermanentReason.UNEXPECTED_SHAPE, "an invoice line whose quantity is no number"
        ) from None
    if not quantity.is_finite():
        raise Permanent(PermanentReason.UNEXPECTED_SHAPE, "an invoice line whose quantity is no number")
    return f"{quantity:f}"


def line_price_id(line: Json) -> str | None:
    """The price of a line, or None."""
    price = ((line.get("pricing") or {}).get("price_details") or {}).get("price")
    return _id_of(price) if price else None


def price_meter_id(price: Json) -> str | None:
    """The Billing Meter behind a price, or None when it is not metered."""
    meter = (price.get("recurring") or {}).get("meter")
    return _id_of(meter) if meter else None


EVENT_NAME_LABEL = "tollgate_event_name"
"""Metadata key of a metered price without a Billing Meter: which meter's usage it bills, by usage records."""


def bills_usage_records(price: Json) -> bool:
    """Whether a price bills usage without a Billing Meter, as prices from before 2025-03-31 may."""
    terms = price.get("recurring") or {}
    return terms.get("usage_type") == "metered" and not terms.get("meter")


def labelled_event_name(price: Json) -> str | None:
    """What a price that bills usage records says it bills, or None."""
    return clean_text((price.get("metadata") or {}).get(EVENT_NAME_LABEL)) or None


def rejections_to_domain(data: Json, reported_ms: int) -> tuple[tuple[Rejection, ...], dict[str, int], int]:
    """A meter error report's refused events, the number of errors by code, and how many samples name none.

    Stripe lists samples only, so the numbers may be larger than the list. A sample that names no identifier (older
    reports gave the request's idempotency key instead) cannot be traced to a posting.
    """
    found: dict[str, Rejection] = {}
    counts: dict[str, int] = {}
    anonymous = 0
    for error_type in (data.get("reason") or {}).get("error_types") or ():
        code = clean_text(error_type.get("code")) or "unknown"
        counts[code] = counts.get(code, 0) + int(error_type.get("error_count") or 0)
        for sample in error_type.get("sample_errors") or ():
            identifier = clean_text((sample.get("request") or {}).get("identifier"))
            if not identifier:
                anonymous += 1
                continue
            message = clean_text(sample.get("error_message")) or ""
            found.setdefault(identifier, Rejection(identifier, code, message, reported_ms))
    return tuple(found.values()), counts, anonymous


def clean_text(value: object) -> str | None:
    """Text as PostgreSQL can hold it: without NUL, which a customer may put in a name. None for anything else."""
    return value.replace("\x00", "") if isinstance(value, str) else None


def clean_document(value: Json) -> dict[str, Any]:
    """Metadata (text to text), cleaned likewise."""
    return {
        str(name).replace("\x00", ""): clean_text(text) if isinstance(text, str) else str(text)
        for name, text in value.items()
    }


class _Shape:
    """Reads what a kind of object always has, or says that this one is not of that kind."""

    def __init__(self, kind: str, body: Json) -> None:
        self._kind = kind
        self._body = body

    def value(self, name: str) -> Any:
        value = self._body.get(name)
        if value is None:
            raise Permanent(PermanentReason.UNEXPECTED_SHAPE, f"{self._kind} without {name}")
        return value

    def text(self, name: str) -> str:
        value = clean_text(self.value(name))
        if not value:
            raise Permanent(PermanentReason.UNEXPECTED_SHAPE, f"{self._kind}.{name} is no text")
        return value


def _id_of(value: Any) -> str:
    """The id of a reference, whether expanded or not."""
    found = value.get("id") if isinstance(value, Mapping) else value
    if not isinstance(found, str) or not found:
        raise Permanent(PermanentReason.UNEXPECTED_SHAPE, "a reference that is no id")
    return found


def _ms(seconds: Any) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, int):
        raise Permanent(PermanentReason.UNEXPECTED_SHAPE, "a time that is no integer")
    return seconds * 1000


def _ms_or_none(seconds: Any) -> int | None:
    return None if seconds is None else _ms(seconds)
