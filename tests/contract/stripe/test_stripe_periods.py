"""What a subscription may go through inside a period: trials, pauses, price changes, moved finalization."""

from __future__ import annotations

from decimal import Decimal

import pytest
import stripe

from sandbox.stripe.process import StandInControl
from tests.contract.stripe.target import Target

GRACE_SECONDS = 3600
DAY = 86_400


def _subscribe(target: Target, price: str, customer: str, **terms: object) -> stripe.Subscription:
    params: dict[str, object] = {"customer": customer, "items": [{"price": price}], **terms}
    return target.client.v1.subscriptions.create(params)  # type: ignore[arg-type]


def _end(subscription: stripe.Subscription) -> int:
    return int(subscription["items"].data[0].current_period_end)


def _cycle_invoices(target: Target, customer: str) -> list[stripe.Invoice]:
    """Invoices of finished periods, newest first."""
    listed = target.client.v1.invoices.list({"customer": customer}).data
    return [invoice for invoice in listed if invoice.billing_reason == "subscription_cycle"]


def test_a_trial_is_free_and_the_cycle_begins_at_its_end(target: Target, control: StandInControl) -> None:
    """Usage within the trial is on no bill; the first period runs from the trial's end."""
    meter, customer = target.meter(), target.customer()
    subscription = _subscribe(target, target.price(meter), customer, trial_period_days=14)
    start = control.now_seconds()
    assert (subscription.status, subscription.trial_end) == ("trialing", _end(subscription))
    assert abs(_end(subscription) - start - 14 * DAY) <= 2
    [first] = target.client.v1.invoices.list({"customer": customer}).data
    assert (first.total, first.status) == (0, "paid")
    target.send(meter, customer, 50)
    trial_end = _end(subscription)
    control.set_clock(trial_end)
    active = target.client.v1.subscriptions.retrieve(subscription.id)
    assert (active.status, active.billing_cycle_anchor) == ("active", trial_end)
    target.send(meter, customer, 7, trial_end)
    control.set_clock(_end(active) + GRACE_SECONDS)
    assert [invoice.total for invoice in _cycle_invoices(target, customer)] == [2 * 7, 0]


def test_a_trial_is_given_once(target: Target) -> None:
    """Days or an end, not both; an end that is over is refused."""
    price, customer = target.price(target.meter()), target.customer()
    with pytest.raises(stripe.InvalidRequestError):
        _subscribe(target, price, customer, trial_period_days=3, trial_end=target.now_seconds() + DAY)
    with pytest.raises(stripe.InvalidRequestError):
        _subscribe(target, price, customer, trial_end=target.now_seconds() - DAY)


@pytest.mark.parametrize(
    ("behavior", "at_once", "after_grace"),
    [
        ("keep_as_draft", "draft", "draft"),
        ("void", "void", "void"),
        ("mark_uncollectible", "draft", "uncollectible"),
    ],
)
def test_paused_collection_decides_what_becomes_of_invoices(
    target: Target, control: StandInControl, behavior: str, at_once: str, after_grace: str
) -> None:
    """The subscription stays active; unset, the next invoice is an ordinary one."""
    meter, customer = target.meter(), target.customer()
    subscription = _subscribe(target, target.price(meter), customer)
    paused = target.client.v1.subscriptions.update(
        subscription.id,
        {"pause_collection": {"behavior": behavior}},
    )
    assert paused.status == "active"
    target.send(meter, customer, 3)
    end = _end(subscription)
    control.set_clock(end + 1)
    [draft] = _cycle_invoices(target, customer)
    assert draft.status == at_once
    control.set_clock(end + GRACE_SECONDS)
    [invoice] = _cycle_invoices(target, customer)
    assert (invoice.status, invoice.total) == (after_grace, 6)
    resumed = target.client.v1.subscriptions.update(subscription.id, {"pause_collection": ""})
    assert resumed.pause_collection is None
    control.set_clock(_end(resumed) + GRACE_SECONDS)
    assert _cycle_invoices(target, customer)[0].status == "paid"


def test_a_pause_ends_where_it_is_set_to(target: Target, control: StandInControl) -> None:
    """After `resumes_at` invoices are collected again."""
    customer = target.customer()
    subscription = _subscribe(target, target.price(target.meter()), customer)
    end = _end(subscription)
    target.client.v1.subscriptions.update(
        subscription.id, {"pause_collection": {"behavior": "void", "resumes_at": end - 10}}
    )
    control.set_clock(end + GRACE_SECONDS)
    assert [invoice.status for invoice in _cycle_invoices(target, customer)] == ["paid"]
    assert target.client.v1.subscriptions.retrieve(subscription.id).pause_collection is None


@pytest.mark.parametrize(("proration", "lines"), [("create_prorations", 2), ("none", 1)])
def test_a_price_change_bills_the_usage_so_far_unless_told_not_to(
    target: Target, control: StandInControl, proration: str, lines: int
) -> None:
    """Flexible billing: an invoice item at the old price, none with `proration_behavior: none`."""
    meter, customer = target.meter(), target.customer()
    subscription = _subscribe(target, target.price(meter), customer)
    target.send(meter, customer, 5)
    # Usage and change in one second would be on the far side of it.
    control.advance(1)
    item = subscription["items"].data[0].id
    target.client.v1.subscription_items.update(
        item,
        {"price": target.price(meter), "proration_behavior": proration},
    )
    target.send(meter, customer, 11)
    control.set_clock(_end(subscription) + GRACE_SECONDS)
    [invoice] = _cycle_invoices(target, customer)
    expected = [Decimal(11), Decimal(5)][:lines]
    assert [line.quantity_decimal for line in invoice.lines.data] == expected
    assert invoice.total == 2 * sum(expected)


def test_finalization_can_be_put_off_for_years(target: Target, control: StandInControl) -> None:
    """Up to five years ahead, and never into the past."""
    customer = target.customer()
    end = _end(_subscribe(target, target.price(target.meter()), customer))
    control.set_clock(end + 60)
    [draft] = _cycle_invoices(target, customer)
    late = end + 4 * 365 * DAY
    moved = target.client.v1.invoices.update(draft.id, {"automatically_finalizes_at": late})
    assert moved.automatically_finalizes_at == late
    for refused in (end, end + 6 * 365 * DAY):
        with pytest.raises(stripe.InvalidRequestError):
            target.client.v1.invoices.update(draft.id, {"automatically_finalizes_at": refused})
