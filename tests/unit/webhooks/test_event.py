"""Envelopes of both shapes, and what each type leads to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.webhooks.errors import Permanent, PermanentReason
from services.webhooks.event import Shape, Subject, is_wanted, parse_event, subject_of


def classic(**changes: Any) -> dict[str, Any]:
    body = {
        "id": "evt_1",
        "object": "event",
        "type": "customer.subscription.updated",
        "created": 1_800_000_000,
        "data": {"object": {"id": "sub_1", "object": "subscription", "customer": "cus_1"}},
    }
    return body | changes


def thin(**changes: Any) -> dict[str, Any]:
    body = {
        "id": "evt_2",
        "object": "v2.core.event",
        "type": "v1.billing.meter.error_report_triggered",
        "created": "2027-01-15T08:00:00.000Z",
        "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"},
    }
    return body | changes


def parse(body: object) -> Any:
    return parse_event(json.dumps(body).encode())


def test_a_classic_event_is_read() -> None:
    """Its object, its customer, its time."""
    event = parse(classic())
    assert (event.event_id, event.object_id, event.customer_id) == ("evt_1", "sub_1", "cus_1")
    assert (event.shape, event.created_s, event.key) == (Shape.CLASSIC, 1_800_000_000, "cus_1")
    assert event.subject is Subject.SUBSCRIPTION


def test_a_thin_event_is_read() -> None:
    """Its time is text there; a meter has no customer, so the event orders itself."""
    event = parse(thin())
    assert (event.object_id, event.customer_id, event.key) == ("mtr_1", "", "evt_2")
    assert (event.shape, event.created_s) == (Shape.THIN, 1_800_000_000)
    assert event.subject is Subject.METER_ERRORS


def test_a_customers_own_event_is_ordered_by_it() -> None:
    """The customer is the object itself, in both shapes; an expanded reference is one, too."""
    own = parse(classic(type="customer.updated", data={"object": {"id": "cus_7", "object": "customer"}}))
    twin = parse(thin(type="v1.customer.updated", related_object={"id": "cus_7", "type": "customer"}))
    expanded = parse(classic(data={"object": {"id": "in_1", "customer": {"id": "cus_7"}}}))
    assert own.key == twin.key == expanded.key == "cus_7"
    assert own.subject is twin.subject is Subject.CUSTOMER


@pytest.mark.parametrize(
    ("kind", "subject"),
    [
        ("customer.created", Subject.CUSTOMER),
        ("customer.updated", Subject.CUSTOMER),
        ("customer.deleted", Subject.CUSTOMER),
        ("customer.subscription.created", Subject.SUBSCRIPTION),
        ("customer.subscription.updated", Subject.SUBSCRIPTION),
        ("customer.subscription.deleted", Subject.SUBSCRIPTION),
        ("customer.subscription.paused", Subject.SUBSCRIPTION),
        ("customer.subscription.resumed", Subject.SUBSCRIPTION),
        ("customer.subscription.pending_update_applied", Subject.SUBSCRIPTION),
        ("customer.subscription.pending_update_expired", Subject.SUBSCRIPTION),
        ("customer.subscription.trial_will_end", Subject.SUBSCRIPTION),
        ("customer.discount.created", Subject.SEEN),
        ("customer.discount.deleted", Subject.SEEN),
        ("customer.source.expiring", Subject.SEEN),
        ("customer.tax_id.updated", Subject.SEEN),
        ("invoice.created", Subject.INVOICE),
        ("invoice.finalized", Subject.INVOICE),
        ("invoice.deleted", Subject.INVOICE),
        ("invoice.upcoming", Subject.SEEN),
        ("billing.meter.deactivated", Subject.METER_DEACTIVATED),
        ("billing.meter.created", Subject.SEEN),
        ("billing.meter.error_report_triggered", Subject.METER_ERRORS),
        ("billing.meter.no_meter_found", Subject.METER_ERRORS),
        ("customer.cash_balance.funds_available", Subject.IGNORED),
        ("charge.succeeded", Subject.IGNORED),
        ("customers.created", Subject.IGNORED),
    ],
)
def test_each_type_has_its_subject(kind: str, subject: Subject) -> None:
    """The table of what is done about what."""
    assert subject_of(kind, "x_1") is subject


def test_an_invoice_without_an_id_cannot_be_fetched() -> None:
    """A preview has none."""
    assert subject_of("invoice.created", "") is Subject.SEEN


@pytest.mark.parametrize(
    ("event_type", "wanted"),
    [("customer.created", True), ("v1.billing.meter.no_meter_found", True), ("invoice.paid", True),
     ("charge.failed", False), ("invoiceitem.created", False), ("", False)],
)  # fmt: skip
def test_a_poll_brings_what_concerns_us(event_type: str, wanted: bool) -> None:
    """Nothing else is put into the log."""
    assert is_wanted(event_type) is wanted


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b'"text"',
        b'{"object":"event"}',
        b'{"created": NaN}',
        b"[" * 100_000,
        json.dumps(classic(id=None)).encode(),
        json.dumps(classic(id="evt\x00")).encode(),
        json.dumps(classic(id="e" * 256)).encode(),
        json.dumps(classic(type=5)).encode(),
        json.dumps(classic(created="yesterday")).encode(),
        json.dumps(classic(created=True)).encode(),
        json.dumps(classic(created=-1)).encode(),
        json.dumps(classic(created=10**30)).encode(),
        json.dumps(classic(data=[])).encode(),
        json.dumps(classic(object="charge")).encode(),
        json.dumps(thin(created="not a time")).encode(),
        json.dumps(thin(created="2027-01-15T08:00:00")).encode(),
        json.dumps(thin(related_object="mtr_1")).encode(),
    ],
)
def test_anything_else_is_unreadable(body: bytes) -> None:
    """Never another exception, whatever the bytes."""
    with pytest.raises(Permanent) as raised:
        parse_event(body)
    assert raised.value.reason is PermanentReason.UNREADABLE


def test_hostile_references_are_dropped() -> None:
    """An id that is no text is none."""
    event = parse(classic(data={"object": {"id": 5, "customer": ["cus_1"]}}))
    assert (event.object_id, event.customer_id, event.key) == ("", "", "evt_1")
