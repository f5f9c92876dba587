"""The rules for usage whose period takes no more."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import pytest

from services.stripe_sync.closed import current_period
from services.stripe_sync.plan import Rules
from tollgate.ledger.plan_rows import (
    Chain,
    ClosedBill,
    Hold,
    HoldReason,
    LateCharge,
    MeterTerms,
    NextLink,
    PeriodRow,
    Placement,
)
from tollgate.ledger.posting_rows import PostingMode
from tollgate.metering.closed import ClosedPolicy
from tollgate.metering.meter import MetricKind
from tollgate.metering.price import Interval, Price, PriceModel

HOUR = 3_600_000
W = 500_000 * HOUR
NOW = W + 30 * HOUR
CLOSED = PeriodRow(W - 24 * HOUR, W + 24 * HOUR, "closed", "si_1", "price_1")
CURRENT = PeriodRow(CLOSED.end_ms, CLOSED.end_ms + 48 * HOUR, "open", "si_1", "price_2")
TERMS = MeterTerms(7, "calls", MetricKind.COUNT, HOUR, "calls", "live")
TWO_CENTS = Price(PriceModel.STANDARD, "eur", Interval("day"), unit_amount=Decimal(2))
RESTAMP, ITEM = ClosedPolicy.RESTAMP, ClosedPolicy.INVOICE_ITEM


def _next(
    policy: ClosedPolicy,
    total: str = "9",
    chain: Chain | None = None,
    placement: Placement | None = None,
    terms: MeterTerms = TERMS,
) -> NextLink | Hold | None:
    placement = placement or Placement(W, W + 5, CLOSED, (CURRENT,), ClosedBill(TWO_CENTS, Decimal(100)))
    rules = Rules("ledger_1", policy)
    return rules.next_link(terms, chain or Chain(1, Decimal(4)), Decimal(total), placement, NOW)


def test_each_policy_makes_its_link() -> None:
    """The same difference: stamped now, charged as an item stamped where it belongs, or held."""
    start = CLOSED.start_ms
    assert _next(RESTAMP) == NextLink(Decimal(9), PostingMode.DELTA, NOW, for_period_ms=start)
    charge = LateCharge(10, "eur", CLOSED.end_ms)
    assert _next(ITEM) == NextLink(
        Decimal(9), PostingMode.INVOICE_ITEM, W + 5, for_period_ms=start, item=charge
    )
    assert _next(ClosedPolicy.HOLD) == Hold(HoldReason.CLOSED, Decimal(5))


def test_what_may_still_be_sent_comes_first() -> None:
    """Also for totals that replace, whose next one would not wait in an open period."""
    for terms in (TERMS, replace(TERMS, mode=PostingMode.WINDOW_TOTAL)):
        chain = Chain(1, Decimal(4), unsettled=True)
        assert _next(ITEM, chain=chain, terms=terms) == Hold(HoldReason.IN_FLIGHT, Decimal(5))


def test_a_stamp_that_was_too_old_is_no_reason_to_park_what_is_stamped_now() -> None:
    """Any other refusal that would repeat is."""
    old = _next(RESTAMP, chain=Chain(2, Decimal(4), rejected_code="timestamp_too_far_in_past"))
    gone = _next(RESTAMP, chain=Chain(2, Decimal(4), rejected_code="meter_event_customer_not_found"))
    assert isinstance(old, NextLink)
    assert isinstance(gone, NextLink)
    assert (old.park_reason is None, gone.park_reason is None) == (True, False)


def test_a_restamp_of_too_many_digits_goes_in_steps_and_an_item_at_once() -> None:
    """Stripe's bound is on a meter event's value."""
    total = "98765432109876.123456789"
    step, item = _next(RESTAMP, total, Chain()), _next(ITEM, total, Chain())
    assert isinstance(step, NextLink)
    assert isinstance(item, NextLink)
    assert (step.quantity_to, step.more) == (Decimal("98765432109876.1"), True)
    assert (item.quantity_to, item.more) == (Decimal(total), False)


@pytest.mark.parametrize(
    ("later", "found"),
    [
        ([], None),
        ([CURRENT], CURRENT),
        ([replace(CURRENT, state="removed")], None),
        ([replace(CURRENT, start_ms=NOW)], replace(CURRENT, start_ms=NOW)),
        ([replace(CURRENT, start_ms=NOW + 1)], None),
        ([replace(CURRENT, end_ms=NOW)], None),
        ([CURRENT, replace(CURRENT, item_id="si_2")], CURRENT),
        ([replace(CURRENT, item_id="si_2")], replace(CURRENT, item_id="si_2")),
        ([replace(CURRENT, item_id="si_2"), replace(CURRENT, item_id="si_3")], None),
    ],
)
def test_the_current_period_is_the_one_that_runs(later: list[PeriodRow], found: PeriodRow | None) -> None:
    """Of the same item first; of two others none can be chosen."""
    assert current_period(CLOSED, later, NOW) == found


def test_an_items_body_names_the_posting_and_the_period() -> None:
    """The metadata is how it is found again; the amount is the link's."""
    link = _next(ITEM)
    assert isinstance(link, NextLink)
    composed = Rules("ledger_1", ITEM).compose(TERMS, "cus_1", "k", 2, Decimal(4), link, "si_1")
    body = json.loads(str(composed["body"]))
    assert (body["amount"], body["currency"], body["customer"]) == (10, "eur", "cus_1")
    assert body["metadata"]["tollgate_identifier"] == composed["identifier"]
    assert body["metadata"]["tollgate_quantity"] == "5"
    assert body["period"] == {"start": CLOSED.start_ms // 1000, "end": CLOSED.end_ms // 1000}
    assert composed["timestamp_s"] == (W + 5) // 1000
