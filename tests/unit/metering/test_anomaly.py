"""The anomaly cap's rule."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tollgate.metering.anomaly import AnomalyCap

HOUR = 3_600_000
WEEK = 7 * 24 * HOUR
NOW = 100 * WEEK
CAP = AnomalyCap(Decimal("2.5"), Decimal(10), 4)


@pytest.mark.parametrize(
    ("quantity", "trailing", "highest"),
    [
        ("25", {NOW - WEEK: 10}, None),
        ("25.000000001", {NOW - WEEK: 10}, 10),
        ("26", {NOW - WEEK: 10, NOW - HOUR: 11}, None),  # the highest counts, not the last
        ("9.9", {NOW - WEEK: 0}, None),  # below the least that matters
        ("10", {NOW - WEEK: 0}, 0),
        ("99", {}, None),
        ("99", {NOW - WEEK + 1: 1}, None),  # less than a week to compare with
        ("99", {NOW - 4 * WEEK: 1}, 1),
        ("99", {NOW - 4 * WEEK - 1: 1}, None),  # too long ago
        ("99", {NOW - 4 * WEEK - 1: 1000, NOW - WEEK: 1}, 1),
        ("99", {NOW - WEEK: 1, NOW: 1000}, 1),  # itself and later windows are no measure
    ],
)
def test_a_window_is_measured_by_the_highest_of_the_weeks_before(
    quantity: str, trailing: dict[int, int], highest: int | None
) -> None:
    """Above the factor times the highest, and above the minimum; only with a week of history."""
    measured = {start: Decimal(used) for start, used in trailing.items()}
    assert CAP.judge(Decimal(quantity), NOW, measured) == highest
