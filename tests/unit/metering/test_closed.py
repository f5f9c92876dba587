"""What late usage would have added to a final invoice."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests.unit.metering.price_tables import FREE_THEN_PAID, ONE_TIER, STEPS
from tollgate.ledger.meter_changes import StoredMeter, plan_changes
from tollgate.metering.closed import ClosedPolicy, late_amount
from tollgate.metering.errors import InvalidMeter
from tollgate.metering.meter import Meter, parse_meters
from tollgate.metering.price import Interval, Package, Price, PriceModel, Tier


def _tiers(model: PriceModel, rows: tuple[tuple[int | None, str, str], ...]) -> Price:
    tiers = tuple(Tier(up_to, Decimal(unit), Decimal(flat)) for up_to, unit, flat in rows)
    return Price(model, "usd", Interval("month"), tiers=tiers)


STANDARD = Price(PriceModel.STANDARD, "usd", Interval("month"), unit_amount=Decimal("0.4"))
PACKAGE = Price(
    PriceModel.PACKAGE, "usd", Interval("month"), unit_amount=Decimal(25), package=Package(1000, "up")
)


@pytest.mark.parametrize(
    ("price", "billed", "late", "cents"),
    [
        (STANDARD, "1", "1", 1),  # 0.4 -> 0 and 0.8 -> 1
        (STANDARD, "2", "1", 0),  # 0.8 -> 1 and 1.2 -> 1
        (STANDARD, "100", "1000", 400),
        (PACKAGE, "1", "998", 0),  # in the package that is paid
        (PACKAGE, "1000", "1", 25),
        (PACKAGE, "0", "2001", 75),
        (_tiers(PriceModel.GRADUATED, ONE_TIER), "0", "1", 7),  # the flat fee was on the invoice of nothing
        (_tiers(PriceModel.GRADUATED, FREE_THEN_PAID), "60", "40", 0),
        (_tiers(PriceModel.GRADUATED, FREE_THEN_PAID), "60", "60", 10),
        (_tiers(PriceModel.GRADUATED, STEPS), "9", "2", 150),  # 100 for the tenth, 50 for the eleventh
        (_tiers(PriceModel.GRADUATED, STEPS), "20", "2", 28),  # 7 flat + 21
        (_tiers(PriceModel.VOLUME, STEPS), "10", "1", 550 - 1500),  # all units fall to 50: a credit
        (_tiers(PriceModel.VOLUME, FREE_THEN_PAID), "100", "1", 51),  # 50.5
    ],
)
def test_late_units_cost_the_difference_of_two_lines(
    price: Price, billed: str, late: str, cents: int
) -> None:
    """Each line rounded as an invoice rounds it; worked by hand."""
    assert late_amount(price, Decimal(billed), Decimal(late)) == cents


def test_parts_add_up_to_the_whole() -> None:
    """However late usage is split, its items cost together what one would."""
    price, billed = _tiers(PriceModel.GRADUATED, STEPS), Decimal(3)
    parts = [Decimal("0.5"), Decimal(11), Decimal("0.25"), Decimal(40)]
    total, whole = 0, sum(parts, Decimal(0))
    for part in parts:
        total += late_amount(price, billed, part)
        billed += part
    assert total == late_amount(price, Decimal(3), whole)


MINIMAL = """
meters:
  - name: calls
    metric: count
    stripe: { send: live%s }
"""


def test_a_meter_may_choose_its_policy_and_keeps_it() -> None:
    """Through meters.yaml and the ledger's document; nothing chosen is the installation's choice."""
    for policy in ClosedPolicy:
        (meter,) = parse_meters(MINIMAL % f", closed: {policy}", "meters.yaml")
        assert meter.stripe is not None
        assert meter.stripe.closed is policy
        assert Meter.from_document(meter.to_document()) == meter
    (silent,) = parse_meters(MINIMAL % "", "meters.yaml")
    assert silent.stripe is not None
    assert silent.stripe.closed is None


def test_a_document_from_before_the_choice_has_none() -> None:
    """Ledgers keep meters as they were applied."""
    (meter,) = parse_meters(MINIMAL % "", "meters.yaml")
    document = meter.to_document()
    del document["stripe"]["closed"]
    assert Meter.from_document(document) == meter


def test_another_policy_is_named_with_the_ones_there_are() -> None:
    """A misspelt one is refused, not guessed: it decides about money."""
    with pytest.raises(InvalidMeter, match="closed: 'restmap' is none of restamp, invoice_item, hold"):
        parse_meters(MINIMAL % ", closed: restmap", "meters.yaml")


def test_a_changed_policy_changes_nothing_that_is_counted() -> None:
    """The version stays; only what is done with late usage changes."""
    (before,) = parse_meters(MINIMAL % "", "meters.yaml")
    (after,) = parse_meters(MINIMAL % ", closed: hold", "meters.yaml")
    changes = plan_changes([StoredMeter(1, before, 0, None)], [after], 0)
    assert [change.meter for change in changes.retargeted] == [after]
    assert not changes.changed
