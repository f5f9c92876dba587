"""Counted against postings, and postings against the invoice."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tests.unit.metering.links import HOUR, link, of
from tollgate.metering.comparison import (
    CLOCKS_APART_MS,
    carry_superseded,
    compare_invoice,
    compare_postings,
    expected_at_stripe,
)
from tollgate.metering.reconciliation import (
    VERDICTS,
    Cause,
    Effect,
    Finding,
    InvoiceLines,
    Missing,
    Remedy,
    Standing,
    Verdict,
    worst,
)

FINAL_MS = 5_000_000


def invoice(quantity: int, start_s: int = 0, end_s: int = 24 * HOUR) -> InvoiceLines:
    return InvoiceLines("in_1", start_s * 1000, end_s * 1000, Decimal(quantity), FINAL_MS)


def causes(findings: tuple[Finding, ...] | list[Finding]) -> dict[Cause, Decimal]:
    return {finding.cause: finding.quantity for finding in findings}


def test_every_cause_has_a_verdict() -> None:
    """Nothing that is found goes unjudged, and the worst decides."""
    assert VERDICTS.keys() == set(Cause)
    assert worst([]) is Verdict.AGREES
    found = [Finding(cause, Decimal(1)) for cause in (Cause.LAGGING, Cause.MISSING, Cause.HELD)]
    assert worst(found) is Verdict.DRIFT
    assert worst(found[::2]) is Verdict.EXPLAINED


def test_counted_is_every_part_and_each_part_has_its_cause() -> None:
    """What is counted is delivered, or under way, or stopped, or held; the parts add up to it."""
    links = [
        link(1, 10),
        link(2, 5, Standing.DOUBTFUL, state="unknown"),
        link(3, 4, Standing.WAITING, state="journalled"),
        link(4, 3, Standing.PARKED, state="parked"),
        link(5, 2, Standing.REHEARSED, state="dry_run"),
        link(6, 100, Standing.VOID, state="void"),
        link(7, -100, Standing.REVERSAL, state="reversal"),
    ]
    missing = [
        Missing("a", Decimal(7), "no_item", due=True),
        Missing("b", Decimal(1), "no_item", due=True),
        Missing("c", Decimal(20), None, due=False),
    ]
    posted = compare_postings(links, missing)
    assert of(posted.counted, posted.delivered) == (52, 10)
    assert causes(posted.findings) == {
        Cause.IN_FLIGHT: 5,
        Cause.WAITING: 4,
        Cause.PARKED: 3,
        Cause.REHEARSED: 2,
        Cause.HELD: 8,
        Cause.NOT_PLANNED: 20,
    }
    assert posted.counted == posted.delivered + sum(f.quantity for f in posted.findings)
    assert [f.remedy for f in posted.findings if f.remedy] == [Remedy.RESUME]


def test_usage_planned_past_and_covered_by_nothing_is_drift() -> None:
    """No hold, no posting: only a fault of ours leaves that."""
    posted = compare_postings([link(1, 10)], [Missing("k", Decimal(3), None, due=True)])
    assert worst(posted.findings) is Verdict.DRIFT
    assert causes(posted.findings) == {Cause.UNPOSTED: 3}


def test_what_an_invoice_item_bills_is_no_meter_usage() -> None:
    """It is counted, delivered by other means, and Stripe's meter is not expected to hold it."""
    elsewhere = link(1, 8, effect=Effect.ELSEWHERE)
    posted = compare_postings([elsewhere], [])
    assert of(posted.counted, posted.delivered) == (8, 0)
    assert causes(posted.findings) == {Cause.ELSEWHERE: 8}
    assert expected_at_stripe([elsewhere]) == 0


def test_each_mode_leaves_at_stripe_what_it_does_there() -> None:
    """Adding, replacing the hour, replacing the second: by the values sent, in their order."""
    added = [link(1, 10), link(2, 5)]
    assert expected_at_stripe(added) == 15
    hourly = [
        link(2, 5, sent=15, effect=Effect.REPLACES_HOUR),
        link(1, 10, sent=10, effect=Effect.REPLACES_HOUR),
        link(1, 7, key="next", at_s=HOUR, effect=Effect.REPLACES_HOUR),
    ]
    assert expected_at_stripe(hourly) == 22
    stamped = [
        link(1, 10, effect=Effect.REPLACES_STAMP),
        link(2, 2, sent=12, effect=Effect.REPLACES_STAMP),
        link(1, 1, key="next", at_s=1, effect=Effect.REPLACES_STAMP),
    ]
    assert expected_at_stripe(stamped) == 13


def test_a_superseded_total_comes_with_the_one_that_replaced_it() -> None:
    """Its quantity has the fate of its successor; without one it is owed."""
    superseded = link(1, 10, Standing.SUPERSEDED, sent=10, effect=Effect.REPLACES_HOUR, state="superseded")
    delivered = link(2, 5, sent=15, effect=Effect.REPLACES_HOUR)
    (carried,) = carry_superseded([superseded, delivered])
    assert of(carried.seq, carried.quantity, carried.sent) == (2, 15, 15)
    posted = compare_postings([carried], [])
    assert of(posted.counted, posted.delivered, posted.findings) == (15, 15, ())
    waiting = link(2, 5, Standing.WAITING, sent=15, effect=Effect.REPLACES_HOUR, state="planned")
    assert causes(compare_postings(carry_superseded([superseded, waiting]), []).findings) == {
        Cause.WAITING: 15
    }
    (alone,) = carry_superseded([superseded])
    assert alone.standing is Standing.VOID
    assert carry_superseded([delivered]) == [delivered]


def test_an_invoice_with_every_unit_agrees() -> None:
    """By stamp, start included and end not."""
    links = [link(1, 10, at_s=0), link(2, 5, at_s=24 * HOUR - 1), link(3, 100, at_s=24 * HOUR)]
    assert compare_invoice(links, invoice(15)) == []


def test_what_came_after_the_invoice_was_final_is_named() -> None:
    """The postings delivered last without which it is exactly right, whatever a minute between two clocks says."""
    links = [
        link(1, 10, sent_ms=FINAL_MS - 100_000),
        link(2, 5, sent_ms=FINAL_MS - CLOCKS_APART_MS // 2),
        link(3, 2, sent_ms=FINAL_MS + 10),
    ]
    (found,) = compare_invoice(links, invoice(10))
    assert of(found.cause, found.quantity, found.postings) == (Cause.AFTER_FINAL, 7, ("k:2", "k:3"))
    assert found.verdict is Verdict.EXPLAINED


@pytest.mark.parametrize(
    ("billed", "cause"), [(12, Cause.NOT_INVOICED), (16, Cause.OVER_INVOICED), (0, Cause.NOT_INVOICED)]
)
def test_an_invoice_that_nothing_explains_is_drift(billed: int, cause: Cause) -> None:
    """Units delivered in time and not billed, or billed and never delivered."""
    (found,) = compare_invoice([link(1, 10, sent_ms=1), link(2, 5, sent_ms=2)], invoice(billed))
    assert of(found.cause, found.quantity) == (cause, abs(billed - 15))
    assert found.verdict is Verdict.DRIFT


def test_an_invoice_shows_that_a_posting_arrived() -> None:
    """One whose answer was lost, and which the invoice bills to the unit."""
    links = [link(1, 10), link(2, 5, Standing.DOUBTFUL, state="unknown")]
    (found,) = compare_invoice(links, invoice(15))
    assert (found.cause, found.postings) == (Cause.ARRIVED, ("k:2",))


def test_a_finding_is_kept_as_it_was() -> None:
    """Through its document and back."""
    finding = Finding(Cause.MISSING, Decimal("0.5"), "words", ("k:1",), 7200, Remedy.VOID)
    assert Finding.from_document(finding.to_document()) == finding
    assert Finding.from_document(Finding(Cause.HELD, Decimal(1)).to_document()).remedy is None
