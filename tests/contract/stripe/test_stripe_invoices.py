"""Invoices: usage strictly by stamp in [start, end), the grace, and amounts by the price's formula."""

from datetime import UTC, datetime
from decimal import Decimal
from itertools import pairwise

import pytest
import stripe

from sandbox.stripe.process import StandInControl
from tests.contract.stripe.target import Target

GRACE_SECONDS = 3600


def _subscribe(target: Target, price: str, customer: str, **terms: object) -> stripe.Subscription:
    params: dict[str, object] = {"customer": customer, "items": [{"price": price}], **terms}
    return target.client.v1.subscriptions.create(params)  # type: ignore[arg-type]


def _period(subscription: stripe.Subscription) -> tuple[int, int]:
    item = subscription["items"].data[0]
    return item.current_period_start, item.current_period_end


def _cycle_invoices(target: Target, customer: str) -> list[stripe.Invoice]:
    """Invoices of finished periods, newest first."""
    listed = target.client.v1.invoices.list({"customer": customer}).data
    return [invoice for invoice in listed if invoice.billing_reason == "subscription_cycle"]


def test_period_bounds_are_on_items(target: Target) -> None:
    """Since basil the period is on the item, a month long, and not on the subscription."""
    subscription = _subscribe(target, target.price(target.meter()), target.customer())
    start, end = _period(subscription)
    assert 28 * 86_400 <= end - start <= 31 * 86_400
    assert "current_period_start" not in subscription


def test_usage_outside_start_and_end_is_on_no_invoice(target: Target, control: StandInControl) -> None:
    """A stamp before the start or at the end is not on this invoice; at the start and just before the end it is."""
    meter, customer = target.meter(), target.customer()
    subscription = _subscribe(target, target.price(meter), customer)
    start, end = _period(subscription)
    target.send(meter, customer, 1, start - 1)
    target.send(meter, customer, 10, start)
    control.set_clock(end - 10)
    target.send(meter, customer, 100, end - 1)
    target.send(meter, customer, 1000, end)
    control.set_clock(end + GRACE_SECONDS + 1)
    [invoice] = _cycle_invoices(target, customer)
    assert (invoice.status, invoice.total) == ("paid", 2 * 110)
    assert invoice.lines.data[0].quantity == 110
    assert (invoice.period_start, invoice.period_end) == (start, end)
    control.advance(32 * 86_400)
    assert [invoice.total for invoice in _cycle_invoices(target, customer)] == [2 * 1000, 2 * 110]


def test_usage_of_the_ended_period_joins_its_draft_in_the_grace(
    target: Target, control: StandInControl
) -> None:
    """In the hour after the period the draft grows; after finalization late usage is on no invoice at all."""
    meter, customer = target.meter(), target.customer()
    subscription = _subscribe(target, target.price(meter), customer)
    _, end = _period(subscription)
    control.set_clock(end + 60)
    [draft] = _cycle_invoices(target, customer)
    assert (draft.status, draft.total, draft.automatically_finalizes_at) == (
        "draft",
        0,
        end + GRACE_SECONDS,
    )
    target.send(meter, customer, 7, end - 5)
    target.send(meter, customer, 11, end + 5)
    assert target.client.v1.invoices.retrieve(draft.id).total == 14
    control.set_clock(end + GRACE_SECONDS)
    target.send(meter, customer, 500, end - 5)
    assert target.client.v1.invoices.retrieve(draft.id).total == 14
    control.advance(32 * 86_400)
    assert [invoice.total for invoice in _cycle_invoices(target, customer)] == [22, 14]


def test_finalization_can_be_put_off(target: Target, control: StandInControl) -> None:
    """``automatically_finalizes_at`` moves the deadline, and usage joins until then."""
    meter, customer = target.meter(), target.customer()
    _, end = _period(_subscribe(target, target.price(meter), customer))
    control.set_clock(end + 60)
    [draft] = _cycle_invoices(target, customer)
    target.client.v1.invoices.update(draft.id, {"automatically_finalizes_at": end + 7200})
    control.set_clock(end + 7000)
    target.send(meter, customer, 3, end - 1)
    control.set_clock(end + 7200)
    assert target.client.v1.invoices.retrieve(draft.id).total == 6


def test_auto_advance_off_waits_for_a_hand(target: Target, control: StandInControl) -> None:
    """Without auto_advance a draft stays one until it is finalized by call."""
    meter, customer = target.meter(), target.customer()
    _, end = _period(_subscribe(target, target.price(meter), customer))
    control.set_clock(end + 60)
    [draft] = _cycle_invoices(target, customer)
    held = target.client.v1.invoices.update(draft.id, {"auto_advance": False})
    assert held.automatically_finalizes_at is None
    control.advance(86_400)
    target.send(meter, customer, 3, end - 1)
    final = target.client.v1.invoices.finalize_invoice(draft.id)
    assert (final.status, final.total) == ("paid", 6)
    with pytest.raises(stripe.InvalidRequestError):
        target.client.v1.invoices.finalize_invoice(draft.id)


def test_decimal_usage_is_billed_exactly(target: Target, control: StandInControl) -> None:
    """``quantity`` cuts off, ``quantity_decimal`` and the amount do not."""
    meter, customer = target.meter(), target.customer()
    _, end = _period(_subscribe(target, target.price(meter), customer))
    target.send(meter, customer, "2.5")
    target.send(meter, customer, "0.25")
    control.set_clock(end + GRACE_SECONDS)
    [invoice] = _cycle_invoices(target, customer)
    [line] = invoice.lines.data
    assert (line.quantity, line.quantity_decimal, line.amount) == (2, Decimal("2.75"), 6)


def test_negative_cycle_total_is_billed_as_zero(target: Target, control: StandInControl) -> None:
    """Corrections can take usage below zero, but not the bill."""
    meter, customer = target.meter(), target.customer()
    _, end = _period(_subscribe(target, target.price(meter), customer))
    target.send(meter, customer, -5)
    control.set_clock(end + GRACE_SECONDS)
    assert [invoice.total for invoice in _cycle_invoices(target, customer)] == [0]


def test_anchor_config_puts_edges_on_utc_midnight(target: Target, control: StandInControl) -> None:
    """With hour, minute and second zero every edge is a UTC midnight of that day of the month."""
    customer = target.customer()
    subscription = _subscribe(
        target,
        target.price(target.meter()),
        customer,
        billing_cycle_anchor_config={"day_of_month": 1, "hour": 0, "minute": 0, "second": 0},
    )
    _, first_end = _period(subscription)
    control.set_clock(first_end + 1)
    start, second_end = _period(target.client.v1.subscriptions.retrieve(subscription.id))
    assert start == first_end
    for edge in (first_end, second_end):
        moment = datetime.fromtimestamp(edge, UTC)
        assert (moment.day, moment.hour, moment.minute, moment.second) == (1, 0, 0, 0)


def test_backdated_start_is_on_the_first_invoice(target: Target) -> None:
    """Usage posted before the subscription is picked up by a backdated start (flexible billing)."""
    meter, customer = target.meter(), target.customer()
    now = target.now_seconds()
    target.send(meter, customer, 8, now - 3600)
    subscription = _subscribe(target, target.price(meter), customer, backdate_start_date=now - 7200)
    assert isinstance(subscription.latest_invoice, str)

    def billed() -> bool:
        invoice = target.client.v1.invoices.retrieve(str(subscription.latest_invoice))
        return invoice.total == 16

    assert target.eventually(billed)


def test_cancelling_drops_unbilled_usage_unless_invoiced(target: Target, control: StandInControl) -> None:
    """``invoice_now`` bills what is known; without it nothing more is billed."""
    meter = target.meter()
    price = target.price(meter)
    billed = {}
    for invoice_now in (True, False):
        customer = target.customer()
        subscription = _subscribe(target, price, customer)
        control.advance(60)
        target.send(meter, customer, 5)
        control.advance(60)
        ended = target.client.v1.subscriptions.cancel(subscription.id, {"invoice_now": invoice_now})
        assert ended.status == "canceled"
        control.advance(40 * 86_400)
        invoices = target.client.v1.invoices.list({"customer": customer}).data
        billed[invoice_now] = sum(invoice.total for invoice in invoices)
    assert billed == {True: 10, False: 0}


def test_cancel_at_period_end_bills_the_last_period(target: Target, control: StandInControl) -> None:
    """The final invoice includes the last period's usage, grace included, and there is no next one."""
    meter, customer = target.meter(), target.customer()
    subscription = _subscribe(target, target.price(meter), customer)
    _, end = _period(subscription)
    target.client.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    target.send(meter, customer, 5)
    control.set_clock(end + 60)
    assert target.client.v1.subscriptions.retrieve(subscription.id).status == "canceled"
    target.send(meter, customer, 1, end - 1)
    control.advance(70 * 86_400)
    assert [invoice.total for invoice in _cycle_invoices(target, customer)] == [12]


@pytest.mark.parametrize(("mode", "total"), [("flexible", 10 * 2 + 4 * 5), ("classic", 4 * 5)])
def test_price_change_in_mid_period(target: Target, control: StandInControl, mode: str, total: int) -> None:
    """Flexible bills the usage so far at the old price; classic never bills it."""
    meter, customer = target.meter(), target.customer()
    old, new = target.price(meter), target.price(meter, unit_amount=5)
    subscription = _subscribe(target, old, customer, billing_mode={"type": mode})
    _, end = _period(subscription)
    control.advance(60)
    target.send(meter, customer, 10)
    control.advance(60)
    item = subscription["items"].data[0].id
    target.client.v1.subscriptions.update(subscription.id, {"items": [{"id": item, "price": new}]})
    control.advance(60)
    target.send(meter, customer, 4)
    control.set_clock(end + GRACE_SECONDS)
    assert [invoice.total for invoice in _cycle_invoices(target, customer)] == [total]


def test_licensed_price_is_billed_ahead(target: Target, control: StandInControl) -> None:
    """A flat fee is on the first invoice, and with the usage of the ended period on every next one."""
    meter, customer = target.meter(), target.customer()
    flat = target.client.v1.prices.create(
        {
            "currency": "usd",
            "unit_amount": 900,
            "product_data": {"name": "Base"},
            "recurring": {"interval": "month"},
        }
    )
    subscription = target.client.v1.subscriptions.create(
        {"customer": customer, "items": [{"price": flat.id}, {"price": target.price(meter)}]}
    )
    first = target.client.v1.invoices.retrieve(str(subscription.latest_invoice))
    assert (first.billing_reason, first.total) == ("subscription_create", 900)
    _, end = _period(subscription)
    target.send(meter, customer, 5)
    control.set_clock(end + GRACE_SECONDS)
    assert [invoice.total for invoice in _cycle_invoices(target, customer)] == [910]


def test_invoice_item_joins_the_next_invoice(target: Target, control: StandInControl) -> None:
    """A pending charge waits for the cycle's invoice."""
    customer = target.customer()
    _, end = _period(_subscribe(target, target.price(target.meter()), customer))
    entry = target.client.v1.invoice_items.create(
        {"customer": customer, "amount": 333, "currency": "usd", "description": "late usage"}
    )
    control.set_clock(end + GRACE_SECONDS)
    [invoice] = _cycle_invoices(target, customer)
    assert invoice.total == 333
    assert target.client.v1.invoice_items.retrieve(entry.id).invoice == invoice.id


def test_preview_shows_usage_so_far(target: Target) -> None:
    """The upcoming invoice counts the usage known now."""
    meter, customer = target.meter(), target.customer()
    subscription = _subscribe(target, target.price(meter), customer)
    target.send(meter, customer, 21)

    def previewed() -> bool:
        preview = target.client.v1.invoices.create_preview({"subscription": subscription.id})
        return preview.total == 42

    assert target.eventually(previewed)


def test_a_preview_shows_ten_lines_and_lists_the_others(target: Target) -> None:
    """Its id, which begins with `upcoming_in`, lists all of them, as an invoice's does."""
    meters, customer = [target.meter() for _ in range(11)], target.customer()
    subscription = target.client.v1.subscriptions.create(
        {"customer": customer, "items": [{"price": target.price(meter)} for meter in meters]}
    )
    target.send(meters[-1], customer, 21)

    def listed() -> bool:
        preview = target.client.v1.invoices.create_preview({"subscription": subscription.id})
        assert preview.id.startswith("upcoming_in_")
        assert (len(preview.lines.data), preview.lines.has_more) == (10, True)
        lines = target.client.v1.invoices.line_items.list(preview.id, {"limit": 100})
        billed = {line.parent.subscription_item_details.subscription_item for line in lines.data}  # type: ignore[union-attr]
        assert billed == {item.id for item in subscription["items"].data}
        return sum(line.amount for line in lines.data) == 42

    assert target.eventually(listed)


def test_months_skipped_at_once_are_billed_one_by_one(target: Target, control: StandInControl) -> None:
    """A jump over three periods leaves the three invoices waiting would have left."""
    customer = target.customer()
    subscription = _subscribe(target, target.price(target.meter()), customer)
    _, end = _period(subscription)
    control.set_clock(end + 65 * 86_400)
    invoices = _cycle_invoices(target, customer)
    assert len(invoices) == 3
    edges = [(invoice.period_start, invoice.period_end) for invoice in reversed(invoices)]
    assert edges[0][1] == end
    assert all(left[1] == right[0] for left, right in pairwise(edges))
    assert {invoice.status for invoice in invoices} == {"paid"}


def test_old_api_versions_see_old_shapes(target: Target) -> None:
    """Before basil the period is on the subscription and the invoice names its subscription."""
    subscription = _subscribe(target, target.price(target.meter()), target.customer())
    old = {"stripe_version": "2025-02-24.acacia"}
    seen = target.client.raw_request("get", f"/v1/subscriptions/{subscription.id}", **old).data
    assert (seen["current_period_start"], seen["current_period_end"]) == _period(subscription)
    path = f"/v1/invoices/{subscription.latest_invoice}"
    assert target.client.raw_request("get", path, **old).data["subscription"] == subscription.id
