"""Billing periods over a calendar of unequal months."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.stripe.periods import anchor_from_config, edge, next_edge


def _seconds(*parts: int) -> int:
    return int(datetime(*parts, tzinfo=UTC).timestamp())  # type: ignore[misc,arg-type]


def test_the_31st_returns_after_short_months() -> None:
    """February shortens one edge, not all that follow."""
    anchor = _seconds(2026, 1, 31, 12)
    edges = [edge(anchor, "month", 1, steps) for steps in range(4)]
    assert edges == [_seconds(2026, month, day, 12) for month, day in ((1, 31), (2, 28), (3, 31), (4, 30))]


@pytest.mark.parametrize(
    ("interval", "count", "expected"),
    [
        ("day", 1, (2026, 1, 2)),
        ("week", 2, (2026, 1, 15)),
        ("month", 3, (2026, 4, 1)),
        ("year", 1, (2027, 1, 1)),
    ],
)
def test_intervals(interval: str, count: int, expected: tuple[int, int, int]) -> None:
    """Days, weeks, months and years, any number at a time."""
    assert edge(_seconds(2026, 1, 1), interval, count, 1) == _seconds(*expected)


@given(
    st.integers(0, 2_000_000_000),
    st.integers(0, 2_000_000_000),
    st.sampled_from(["day", "week", "month", "year"]),
    st.integers(1, 3),
)
def test_next_edge_is_the_first_after(anchor: int, after: int, interval: str, count: int) -> None:
    """It lies after the moment, and the edge before it does not."""
    found = next_edge(anchor, interval, count, after)
    length_longest = {"day": 1, "week": 7, "month": 31, "year": 366}[interval] * count * 86_400
    # A month counted from the 31st may be cut short, so the edge after ``after`` is at most one period away.
    assert after < found <= after + length_longest
    days = round((found - anchor) / 86_400)
    unit = {"day": 1, "week": 7, "month": 30.436875, "year": 365.2425}[interval] * count
    guess = round(days / unit)
    assert found in {edge(anchor, interval, count, guess + shift) for shift in (-1, 0, 1)}


def test_anchor_config_takes_the_next_match() -> None:
    """Today's moment if it is still to come, else next month's."""
    now = _seconds(2026, 5, 10, 8, 30)
    assert anchor_from_config(now, 10, 9, 0, 0) == _seconds(2026, 5, 10, 9)
    assert anchor_from_config(now, 10, 8, 0, 0) == _seconds(2026, 6, 10, 8)
    assert anchor_from_config(_seconds(2026, 2, 1), 31, 0, 0, 0) == _seconds(2026, 2, 28)
