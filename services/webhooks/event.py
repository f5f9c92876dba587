"""A webhook event: its envelope, and which of Stripe's objects it makes us look at again.

Owns both envelopes (classic `event` and thin `v2.core.event`) and the table from types to what is done. It refuses to
know the objects: what an event carries of them is old by the time it is read, so it is fetched, never believed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from services.webhooks.errors import Permanent, PermanentReason
from tollgate.ledger.billing import Receipt


class Shape(StrEnum):
    """How an event is written; each shape is sent to us under secrets of its own."""

    CLASSIC = "classic"
    THIN = "thin"


class Subject(StrEnum):
    """What is done about an event. A label, so a closed list."""

    CUSTOMER = "customer"
    SUBSCRIPTION = "subscription"
    INVOICE = "invoice"
    METER_ERRORS = "meter_errors"
    METER_DEACTIVATED = "meter_deactivated"
    SEEN = "seen"
    """Ours to know of, but nothing in the ledger follows from it."""
    IGNORED = "ignored"
    """A type nobody asked for."""


_CUSTOMER_TYPES = frozenset({"customer.created", "customer.updated", "customer.deleted"})
_METER_ERROR_TYPES = frozenset({"billing.meter.error_report_triggered", "billing.meter.no_meter_found"})
THIN_TYPES = tuple(sorted(f"v1.{kind}" for kind in _METER_ERROR_TYPES))
"""Thin events without a classic twin: no other list of Stripe's has them."""

_SEEN_PREFIXES = ("customer.discount.", "customer.source.", "customer.tax_id.", "billing.meter.")
_WANTED_PREFIXES = ("customer.", "invoice.", "billing.meter.")


@dataclass(frozen=True, slots=True)
class StripeEvent:
    """One event's envelope. `object_id` and `customer_id` are '' where there is none."""

    event_id: str
    type: str
    """As Stripe named it; thin types begin with `v1.` or `v2.`."""
    shape: Shape
    created_s: int
    object_id: str
    customer_id: str
    payload: Mapping[str, Any] | None
    """The object as it was when the event was made: only for what cannot be fetched any more."""
    previous: Mapping[str, Any] = field(default_factory=dict)
    """What a change changed, as it was before: only for when it changed, which nothing else tells."""

    @property
    def kind(self) -> str:
        """The type without an API version in front: thin and classic twins are the same kind."""
        return self.type.removeprefix("v1.")

    @property
    def subject(self) -> Subject:
        """What is to be done about it."""
        return subject_of(self.kind, self.object_id)

    @property
    def key(self) -> str:
        """What orders it among others: its customer's id, else its own."""
        return self.customer_id or self.event_id

    def to_receipt(self) -> Receipt:
        """What the inbox remembers of it."""
        return Receipt(self.event_id, self.type, self.object_id, self.customer_id, self.created_s)


def subject_of(kind: str, object_id: str) -> Subject:
    """What is done about an event of this kind. `invoice.upcoming` has no invoice yet, hence no id to fetch."""
    if kind in _CUSTOMER_TYPES:
        return Subject.CUSTOMER
    if kind.startswith("customer.subscription."):
        return Subject.SUBSCRIPTION
    if kind.startswith("invoice."):
        return Subject.INVOICE if object_id and kind != "invoice.upcoming" else Subject.SEEN
    if kind in _METER_ERROR_TYPES:
        return Subject.METER_ERRORS
    if kind == "billing.meter.deactivated":
        return Subject.METER_DEACTIVATED
    return Subject.SEEN if kind.startswith(_SEEN_PREFIXES) else Subject.IGNORED


def is_wanted(event_type: str) -> bool:
    """Whether a poll should bring events of this type at all."""
    return event_type.removeprefix("v1.").startswith(_WANTED_PREFIXES)


def parse_event(body: bytes) -> StripeEvent:
    """Read an event's envelope, of either shape. Raises Permanent(UNREADABLE) on anything else."""
    try:
        # Stripe's numbers are small; a caller's are not parsed into anything by guess.
        document = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Permanent(PermanentReason.UNREADABLE, f"not JSON: {type(error).__name__}") from None
    if not isinstance(document, dict):
        raise Permanent(PermanentReason.UNREADABLE, "not a JSON object")
    return event_from(document)


def event_from(document: Mapping[str, Any]) -> StripeEvent:
    """The same from a decoded document."""
    shape = document.get("object")
    if shape == "event":
        return _classic(document)
    if shape == "v2.core.event":
        return _thin(document)
    raise Permanent(PermanentReason.UNREADABLE, "neither an event nor a v2.core.event")


def _classic(document: Mapping[str, Any]) -> StripeEvent:
    data = document.get("data")
    payload = data.get("object") if isinstance(data, dict) else None
    if not isinstance(payload, dict):
        raise Permanent(PermanentReason.UNREADABLE, "data.object is missing")
    created_s = document.get("created")
    if not isinstance(created_s, int) or isinstance(created_s, bool) or not 0 <= created_s < 2**53:
        raise Permanent(PermanentReason.UNREADABLE, "created is no time")
    object_id = _text(payload.get("id"))
    customer = payload.get("customer")
    if isinstance(customer, dict):
        customer = customer.get("id")
    return StripeEvent(
        event_id=_required_text(document, "id"),
        type=_required_text(document, "type"),
        shape=Shape.CLASSIC,
        created_s=created_s,
        object_id=object_id,
        customer_id=object_id if payload.get("object") == "customer" else _text(customer),
        payload=payload,
        previous=_map(data.get("previous_attributes") if isinstance(data, dict) else None),
    )


def _thin(document: Mapping[str, Any]) -> StripeEvent:
    related = document.get("related_object")
    if related is not None and not isinstance(related, dict):
        raise Permanent(PermanentReason.UNREADABLE, "related_object is no object")
    object_id = _text(related.get("id")) if related else ""
    try:
        created = datetime.fromisoformat(_required_text(document, "created"))
        created_s = int(created.timestamp()) if created.tzinfo is not None else -1
    except (ValueError, OverflowError):
        created_s = -1
    if created_s < 0:
        raise Permanent(PermanentReason.UNREADABLE, "created is no time")
    return StripeEvent(
        event_id=_required_text(document, "id"),
        type=_required_text(document, "type"),
        shape=Shape.THIN,
        created_s=created_s,
        object_id=object_id,
        customer_id=object_id if related and related.get("type") == "customer" else "",
        payload=None,
    )


def _required_text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    # A NUL cannot be stored by PostgreSQL, and an id or type that long is none of Stripe's.
    if not isinstance(value, str) or not value or "\x00" in value or len(value) > 255:
        raise Permanent(PermanentReason.UNREADABLE, f"{name} is missing or no text")
    return value


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) and "\x00" not in value and len(value) <= 255 else ""


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")
