"""Event summaries: alignment, grouping, formulae, event time windows, lag."""

import pytest
import stripe

from sandbox.stripe.process import StandInControl
from tests.contract.stripe.target import Target

HOUR_SECONDS = 3600


@pytest.mark.parametrize(
    ("start", "end", "grouping"),
    [(30, 3600, None), (0, 3601, None), (60, 7200, "hour"), (3600, 86_400, "day")],
)
def test_unaligned_bounds_are_refused(target: Target, start: int, end: int, grouping: str | None) -> None:
    """Bounds lie on minutes, with grouping on hours or UTC midnights."""
    day = target.now_seconds() // 86_400 * 86_400
    with pytest.raises(stripe.InvalidRequestError):
        target.summed(target.meter(), target.customer(), day + start, day + end, grouping)


def test_bounds_are_half_open(target: Target) -> None:
    """The start counts, the end does not."""
    meter, customer = target.meter(), target.customer()
    hour = target.now_seconds() // HOUR_SECONDS * HOUR_SECONDS - 3 * HOUR_SECONDS
    for offset, value in ((-1, 1), (0, 10), (HOUR_SECONDS - 1, 100), (HOUR_SECONDS, 1000)):
        target.send(meter, customer, value, hour + offset)
    assert target.eventually(
        lambda: target.summed(meter, customer, hour, hour + HOUR_SECONDS) == [(hour, 110.0)]
    )


def test_hours_are_grouped(target: Target) -> None:
    """One summary an hour, each with its own events."""
    meter, customer = target.meter(), target.customer()
    hour = target.now_seconds() // HOUR_SECONDS * HOUR_SECONDS - 3 * HOUR_SECONDS
    for offset, value in ((5, 1), (HOUR_SECONDS + 5, 10), (HOUR_SECONDS + 6, 20)):
        target.send(meter, customer, value, hour + offset)
    expected = [(hour, 1.0), (hour + HOUR_SECONDS, 30.0)]
    assert target.eventually(
        lambda: target.summed(meter, customer, hour, hour + 2 * HOUR_SECONDS, "hour") == expected
    )


@pytest.mark.parametrize(("formula", "expected"), [("sum", 60.0), ("count", 3.0), ("last", 30.0)])
def test_formulae(target: Target, formula: str, expected: float) -> None:
    """Sum adds values, count counts events, last takes the latest by timestamp."""
    meter, customer = target.meter(formula), target.customer()
    minute = target.now_seconds() // 60 * 60 - 600
    for offset, value in ((1, 10), (3, 30), (2, 20)):
        target.send(meter, customer, value, minute + offset)
    assert target.eventually(
        lambda: target.summed(meter, customer, minute, minute + 60) == [(minute, expected)]
    )


def test_event_time_window_keeps_the_event_received_last(target: Target) -> None:
    """On an hourly meter a later call replaces an earlier one in its hour; hours add up."""
    meter, customer = target.meter(window="hour"), target.customer()
    hour = target.now_seconds() // HOUR_SECONDS * HOUR_SECONDS - 3 * HOUR_SECONDS
    for offset, value in ((50, 5), (10, 7), (HOUR_SECONDS + 1, 100)):
        target.send(meter, customer, value, hour + offset)
    assert target.eventually(
        lambda: target.summed(meter, customer, hour, hour + 2 * HOUR_SECONDS) == [(hour, 107.0)]
    )


def test_summaries_lag_as_told(target: Target, control: StandInControl) -> None:
    """An event shows only once the lag has passed."""
    control.config(meters={"summary_lag_seconds": 300})
    meter, customer = target.meter(), target.customer()
    start = target.now_seconds() // 60 * 60 - 600
    target.send(meter, customer, 9, start)
    assert target.summed(meter, customer, start, start + 60) == []
    control.advance(301)
    assert target.summed(meter, customer, start, start + 60) == [(start, 9.0)]


def test_decimal_values_add_up(target: Target) -> None:
    """Values may have decimals."""
    meter, customer = target.meter(), target.customer()
    minute = target.now_seconds() // 60 * 60 - 600
    target.send(meter, customer, "0.25", minute)
    target.send(meter, customer, "1.5", minute + 1)
    assert target.eventually(lambda: target.summed(meter, customer, minute, minute + 60) == [(minute, 1.75)])
