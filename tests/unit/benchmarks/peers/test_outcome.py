"""What is lost and what is doubled: totals beside the independent count."""

from __future__ import annotations

import pytest

from benchmarks.peers.outcome import Miscount, compare_usage, usage_of_rows

EXPECTED = {("calls", "a", 0): 10, ("calls", "b", 0): 20, ("writes", "a", 0): 3}


def test_equal_totals_are_exact() -> None:
    """Nothing lost, nothing doubled, no row off."""
    miscount = compare_usage(dict(EXPECTED), EXPECTED)
    assert miscount == Miscount(0, 0, 0)
    assert miscount.exact
    assert str(miscount) == "exact"


def test_too_few_is_lost_and_too_many_is_doubled() -> None:
    """Accounts are not set off against each other: four too few here, five too many there."""
    found = EXPECTED | {("calls", "a", 0): 6, ("calls", "b", 0): 25}
    miscount = compare_usage(found, EXPECTED)
    assert miscount == Miscount(lost=4, doubled=5, rows_off=2)
    assert str(miscount) == "lost 4, doubled 5"


def test_an_account_that_is_missing_or_made_up_counts_whole() -> None:
    """A row that is not there is lost, one that should not be there is doubled."""
    found = {("calls", "b", 0): 20, ("calls", "c", 0): 7, ("writes", "a", 0): 3}
    assert compare_usage(found, EXPECTED) == Miscount(lost=10, doubled=7, rows_off=2)


def test_another_meter_off_is_seen_though_no_event_is() -> None:
    """Events are told in calls; a sum that is off makes the totals inexact all the same."""
    miscount = compare_usage(EXPECTED | {("writes", "a", 0): 4}, EXPECTED)
    assert miscount == Miscount(0, 0, 1)
    assert not miscount.exact
    assert str(miscount) == "1 rows off"


@pytest.mark.parametrize(("until_ms", "windows"), [(7_200_000, {0, 3_600_000}), (3_600_000, {0})])
def test_rows_become_usage_up_to_the_last_window_compared(until_ms: int, windows: set[int]) -> None:
    """Users are counted, zeros left out, and windows from `until_ms` on too."""
    row = {"calls": 2, "failures": 0, "active_users": ["u", "v", "w"]}
    usage = usage_of_rows({("a", 0): row, ("a", 3_600_000): row}, until_ms)
    assert usage == {
        key: quantity
        for window in windows
        for key, quantity in ((("calls", "a", window), 2), (("active_users", "a", window), 3))
    }
