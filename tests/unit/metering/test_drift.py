"""A difference between postings and Stripe's summaries is found in its hour, and in its posting."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal

import pytest

from tests.unit.metering.links import HOUR, link, of
from tollgate.metering.drift import (
    DOUBTFUL_MAX,
    Asked,
    agrees,
    explain_hours,
    explain_total,
    in_meter,
    summary_span_s,
    unexplained_total,
)
from tollgate.metering.reconciliation import Cause, Effect, Finding, Link, Remedy, Standing, Verdict, worst

NOW_MS = 100_000_000
LAG_MS = 600_000
OLD = NOW_MS - LAG_MS - 1
NEW = NOW_MS - 1


def by_hours(links: list[Link], hours: Mapping[int, float]) -> list[Finding]:
    return explain_hours(links, Asked(0, 24 * HOUR, sum(hours.values()), hours), NOW_MS, LAG_MS)


@pytest.mark.parametrize(
    ("start_ms", "end_ms", "span"),
    [
        (0, 7_200_000, (0, 7200)),
        (1_000, 7_200_001, (0, 10_800)),
        (3_599_999, 3_600_001, (0, 7200)),
    ],
)
def test_the_span_is_whole_hours_around_the_period(start_ms: int, end_ms: int, span: tuple[int, int]) -> None:
    """Stripe cuts nothing finer when it groups by hour."""
    assert summary_span_s(start_ms, end_ms) == span


def test_only_what_goes_through_the_meter_in_the_span_counts() -> None:
    """Usage records and invoice items are in no summary; the end is not part of the span."""
    inside = link(1, 1, at_s=HOUR)
    links = [
        inside,
        link(2, 1, at_s=2 * HOUR),
        link(3, 1, at_s=HOUR, effect=Effect.REPLACES_STAMP),
        link(4, 1, at_s=HOUR, effect=Effect.ELSEWHERE),
    ]
    assert in_meter(links, HOUR, 2 * HOUR) == [inside]


def test_equal_is_equal() -> None:
    """No finding, with decimals too."""
    links = [link(1, "0.1", sent_ms=OLD), link(2, "0.2", sent_ms=OLD)]
    assert agrees(links, 0.1 + 0.2)
    assert explain_total(links, 0.1 + 0.2, NOW_MS, LAG_MS) == []
    assert explain_total(links, 0.4, NOW_MS, LAG_MS) is None


def test_the_newest_may_lag_and_nothing_older() -> None:
    """Within the lag the newest deliveries may not be summed yet; past it their absence needs a look at the hours."""
    links = [link(1, 10, sent_ms=OLD), link(2, 5, sent_ms=NEW - 10), link(3, 3, sent_ms=NEW)]
    found = explain_total(links, 10.0, NOW_MS, LAG_MS)
    assert found is not None
    assert [of(f.cause, f.quantity, f.postings) for f in found] == [(Cause.LAGGING, 8, ("k:3", "k:2"))]
    assert worst(found) is Verdict.SETTLING
    assert explain_total(links, 8.0, NOW_MS, LAG_MS) is None
    assert explain_total(links, 13.0, NOW_MS + LAG_MS, LAG_MS) is None


def test_a_lost_answer_is_found_in_the_summary() -> None:
    """The unknown posting that makes it right arrived; the other did not."""
    links = [
        link(1, 10, sent_ms=OLD),
        link(1, 5, Standing.DOUBTFUL, key="lost", state="unknown"),
        link(1, 6, Standing.DOUBTFUL, key="never", state="parked", sent_ms=OLD),
    ]
    (arrived,) = explain_total(links, 15.0, NOW_MS, LAG_MS) or []
    assert (arrived.cause, arrived.postings, arrived.remedy) == (Cause.ARRIVED, ("lost:1",), None)
    (parked,) = explain_total(links, 16.0, NOW_MS, LAG_MS) or []
    assert (parked.postings, parked.remedy) == (("never:1",), Remedy.SETTLE_DELIVERED)
    (absent,) = explain_total(links, 10.0, NOW_MS, LAG_MS) or []
    assert (absent.cause, absent.postings) == (Cause.PARKED, ("never:1",))
    assert absent.remedy is Remedy.SETTLE_NOT_DELIVERED


def test_too_many_doubtful_postings_are_not_guessed_at() -> None:
    """Combinations of many fit anything."""
    links = [
        link(n, 1, Standing.DOUBTFUL, key=str(n), state="unknown", sent_ms=OLD)
        for n in range(DOUBTFUL_MAX + 1)
    ]
    assert explain_total(links, 3.0, NOW_MS, LAG_MS) is None
    assert explain_total(links[1:], 3.0, NOW_MS, LAG_MS) is not None


def test_drift_is_named_by_hour_and_posting() -> None:
    """A delivered posting that Stripe's hour lacks, alone of its size, is the one; other hours are left in peace."""
    links = [
        link(1, 10, at_s=0, sent_ms=OLD),
        link(2, 5, at_s=10, sent_ms=OLD),
        link(3, 7, at_s=20, sent_ms=OLD),
        link(1, 100, key="other", at_s=HOUR, sent_ms=OLD),
    ]
    (found,) = by_hours(links, {0: 17.0, HOUR: 100.0})
    assert of(found.cause, found.quantity, found.hour_s) == (Cause.MISSING, 5, 0)
    assert (found.postings, found.remedy) == (("k:2",), Remedy.VOID)
    assert found.verdict is Verdict.DRIFT


def test_two_missing_together_are_found_and_an_ambiguous_one_is_not_named() -> None:
    """One combination of few is named; when two would fit nobody is accused, and nothing can be repaired by it."""
    links = [link(1, 10, sent_ms=OLD), link(2, 5, sent_ms=OLD), link(3, 8, sent_ms=OLD)]
    (pair,) = by_hours(links, {0: 8.0})
    assert pair.postings == ("k:1", "k:2")
    twins = [*links, link(4, 10, sent_ms=OLD)]
    (unclear,) = by_hours(twins, {0: 23.0})
    assert of(unclear.cause, unclear.quantity, unclear.postings, unclear.remedy) == (
        Cause.MISSING,
        10,
        (),
        None,
    )


def test_an_hour_stripe_leaves_out_holds_nothing() -> None:
    """All of its postings are missing."""
    (found,) = by_hours([link(1, 10, sent_ms=OLD), link(2, 5, sent_ms=OLD)], {})
    assert of(found.quantity, found.postings) == (15, ("k:1", "k:2"))


def test_more_at_stripe_is_traced_to_what_was_given_up() -> None:
    """A posting that is void here and in Stripe's sum; one counted twice; or nothing of ours at all."""
    given_up = [link(1, 10, sent_ms=OLD), link(2, 5, Standing.VOID, state="void", sent_ms=OLD)]
    (found,) = by_hours(given_up, {0: 15.0})
    assert of(found.cause, found.quantity, found.postings) == (Cause.EXTRA, 5, ("k:2",))
    assert "void here" in found.detail
    (twice,) = by_hours([link(1, 10, sent_ms=OLD)], {0: 20.0})
    assert "counted twice" in twice.detail
    (foreign,) = by_hours([link(1, 10, sent_ms=OLD)], {0: 10.0, 5 * HOUR: 3.0})
    assert of(foreign.hour_s, foreign.postings, foreign.quantity) == (5 * HOUR, (), 3)


def test_a_busy_hour_settles_within_bounds_only() -> None:
    """Deliveries out of order within the lag: no more may be absent than was delivered lately."""
    links = [
        link(1, 10, sent_ms=OLD),
        link(2, 5, sent_ms=NEW - 2),
        link(3, 3, sent_ms=NEW - 1),
        link(4, 1, sent_ms=NEW),
    ]
    (found,) = by_hours(links, {0: 14.0})
    assert of(found.cause, found.quantity) == (Cause.LAGGING, 5)
    (drift,) = by_hours(links, {0: 9.0})
    assert drift.cause is Cause.MISSING
    (extra,) = by_hours(links, {0: 20.0})
    assert extra.cause is Cause.EXTRA


def test_hourly_totals_replace_each_other() -> None:
    """On a meter that keeps one value an hour, an older total in Stripe's sum is drift."""
    links = [
        link(1, 10, sent=10, effect=Effect.REPLACES_HOUR, sent_ms=OLD),
        link(2, 5, sent=15, effect=Effect.REPLACES_HOUR, sent_ms=OLD),
    ]
    assert by_hours(links, {0: 15.0}) == []
    (found,) = by_hours(links, {0: 10.0})
    assert of(found.cause, found.quantity, found.remedy) == (Cause.MISSING, 5, None)


def test_drift_without_the_hours_says_why() -> None:
    """The total is drift all the same; nothing can be repaired by it."""
    found = unexplained_total([link(1, 10, sent_ms=OLD)], 4.0, "the budget is used up")
    assert (found.cause, found.quantity, found.remedy) == (Cause.MISSING, Decimal(6), None)
    assert found.detail.endswith("the budget is used up")
