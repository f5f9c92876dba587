"""Previews: what is coming, and what explains a difference from Stripe's, worked by hand."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tollgate.metering.preview import Agreement, LedgerLine, compare_line, sum_up_line
from tollgate.metering.reconciliation import Effect, Link, Missing, Standing

NOW = 10_000_000
LAG = 3_600_000
D = Decimal


def link(
    quantity: int,
    standing: Standing = Standing.AT_STRIPE,
    *,
    seq: int = 1,
    age_ms: int = 2 * LAG,
    effect: Effect = Effect.ADDS,
) -> Link:
    """A posting of its own chain, sent so long ago."""
    return Link(
        posting_key=f"k{seq}{quantity}{standing}",
        seq=seq,
        stamp_s=1000,
        quantity=D(quantity),
        sent=D(quantity),
        effect=effect,
        standing=standing,
        state=str(standing),
        last_sent_ms=NOW - age_ms,
    )


def line(*links: Link, missing: tuple[Missing, ...] = ()) -> LedgerLine:
    return sum_up_line(links, missing, NOW, LAG)


def test_posted_pending_and_held_are_apart() -> None:
    """10 delivered, 3 waiting, 2 without an answer and 1 not planned are coming; 4 parked and 5 held are not."""
    missing = (
        Missing("a", D(1), None, due=False),
        Missing("b", D(5), "ambiguous", due=True),
    )
    found = line(
        link(10),
        link(3, Standing.WAITING),
        link(2, Standing.DOUBTFUL),
        link(4, Standing.PARKED),
        missing=missing,
    )
    assert (found.posted, found.pending, found.coming) == (D(10), D(6), D(16))
    assert found.held == {"ambiguous": D(5), "parked": D(4)}
    assert found.faults == ()


def test_void_links_and_invoice_items_are_not_on_the_line() -> None:
    """What was taken back, and what is billed by other means, is no usage of the meter."""
    found = line(link(10), link(7, Standing.VOID), link(3, effect=Effect.ELSEWHERE))
    assert (found.posted, found.pending, found.lowest, found.highest) == (D(10), D(0), D(10), D(10))


def test_usage_that_nothing_covers_differs_whatever_stripe_says() -> None:
    """Planned past and never posted is a fault of ours."""
    found = line(link(10), missing=(Missing("a", D(2), None, due=True),))
    compared = compare_line(found, D(10), 30, 30)
    assert compared.agreement is Agreement.DIFFERS
    assert compared.why[0].startswith("2 unposted")


@pytest.mark.parametrize(
    ("stripe", "agreement"),
    [
        (17, Agreement.AGREES),
        (16, Agreement.EXPLAINED),
        (10, Agreement.EXPLAINED),
        (9, Agreement.DIFFERS),
        (18, Agreement.EXPLAINED),
        (22, Agreement.EXPLAINED),
        (23, Agreement.DIFFERS),
    ],
)
def test_what_was_sent_lately_or_may_have_arrived_explains(stripe: int, agreement: Agreement) -> None:
    """10 long delivered, 7 just now and 5 without an answer: Stripe may have anything from 10 to 22."""
    found = line(link(10), link(7, age_ms=1000), link(5, Standing.DOUBTFUL))
    assert compare_line(found, D(stripe), None, None).agreement is agreement


def test_falls_widen_the_range_the_other_way() -> None:
    """A change of -4 that Stripe may not show yet lets it have 4 more."""
    found = line(link(10), link(-4, age_ms=1000))
    assert (found.posted, found.lowest, found.highest) == (D(6), D(6), D(10))


def test_an_amount_that_another_formula_gives_differs() -> None:
    """The same quantity at another amount is a price that is not understood."""
    compared = compare_line(line(link(10)), D(10), 30, 31)
    assert compared.agreement is Agreement.DIFFERS
    assert compared.why == ("Stripe prices 10 at 31, the price says 30",)


def test_a_line_stripe_has_not_agrees_only_with_nothing_posted() -> None:
    """In a trial nothing is billed; anything posted without a line is a difference."""
    assert compare_line(line(), None, None, None).agreement is Agreement.AGREES
    compared = compare_line(line(link(10)), None, None, None)
    assert (compared.agreement, compared.why) == (
        Agreement.DIFFERS,
        ("Stripe's preview has no line for 10 posted",),
    )


@pytest.mark.parametrize(("quantity", "amount"), [(None, None), (D(10), 0), (D(0), 0)])
def test_a_trial_is_free(quantity: Decimal | None, amount: int | None) -> None:
    """With a line of nothing or without one; a line with an amount is a difference all the same."""
    found = line(link(10))
    assert compare_line(found, quantity, 30, amount, free=True).agreement is Agreement.AGREES
    assert compare_line(found, D(10), 30, 31, free=True).agreement is Agreement.DIFFERS


def test_agreement_still_says_what_is_on_its_way_and_held() -> None:
    """The reader wants to know why the coming line is higher than Stripe's."""
    found = line(link(10), link(3, Standing.WAITING), missing=(Missing("b", D(5), "no_item", due=True),))
    compared = compare_line(found, D(10), 30, 30)
    assert (compared.agreement, compared.why) == (Agreement.AGREES, ("3 on their way", "5 held: no_item"))
