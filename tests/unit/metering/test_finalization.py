"""When drafts are put off, released and given up, worked by hand."""

from __future__ import annotations

import pytest

from tollgate.metering.finalization import (
    Decision,
    Draft,
    FinalizationTerms,
    Incomplete,
    Step,
    decide_finalization,
    is_counted,
    whole_second_ms,
)

MINUTE = 60_000
HOUR = 60 * MINUTE
CREATED = 1_000 * HOUR
TERMS = FinalizationTerms(
    events_delay_ms=5 * MINUTE, lead_ms=15 * MINUTE, step_ms=HOUR, delay_max_ms=72 * HOUR
)
UNTOUCHED = Draft(CREATED, CREATED + HOUR)
PUT_OFF = Draft(CREATED, CREATED + 2 * HOUR, planned_ms=CREATED + HOUR)


@pytest.mark.parametrize(
    ("watermark_ms", "counted"), [(CREATED + 5 * MINUTE - 1, False), (CREATED + 5 * MINUTE, True)]
)
def test_a_period_is_counted_five_minutes_after_its_end(watermark_ms: int, counted: bool) -> None:
    """Gateways may keep an event back for the delay that is allowed them."""
    assert is_counted(CREATED, watermark_ms, TERMS) is counted


@pytest.mark.parametrize("reason", list(Incomplete))
def test_an_incomplete_draft_is_left_until_its_moment_is_near(reason: Incomplete) -> None:
    """Sixteen minutes before nothing is done yet; fifteen before it is put off by an hour."""
    assert decide_finalization(UNTOUCHED, reason, CREATED + 44 * MINUTE, TERMS) == Decision(Step.LEAVE)
    assert decide_finalization(UNTOUCHED, reason, CREATED + 45 * MINUTE, TERMS) == Decision(
        Step.DELAY, CREATED + 2 * HOUR
    )


def test_a_complete_draft_is_left_alone() -> None:
    """Stripe finalizes it by itself."""
    assert decide_finalization(UNTOUCHED, None, CREATED + 59 * MINUTE, TERMS) == Decision(Step.LEAVE)


def test_a_moment_that_has_passed_is_put_off_from_now() -> None:
    """Stripe may be late in finalizing: a moment in the past would be refused."""
    assert decide_finalization(UNTOUCHED, Incomplete.POSTING, CREATED + 3 * HOUR, TERMS) == Decision(
        Step.DELAY, CREATED + 4 * HOUR
    )


def test_the_delay_is_bounded() -> None:
    """The last step ends 72 hours after the creation, and then it is given up."""
    near = Draft(CREATED, CREATED + 71 * HOUR + 30 * MINUTE, planned_ms=CREATED + HOUR)
    at_ms = CREATED + 71 * HOUR + 20 * MINUTE
    assert decide_finalization(near, Incomplete.PARKED, at_ms, TERMS) == Decision(
        Step.DELAY, CREATED + 72 * HOUR
    )
    last = Draft(CREATED, CREATED + 72 * HOUR, planned_ms=CREATED + HOUR)
    assert decide_finalization(last, Incomplete.PARKED, at_ms + 30 * MINUTE, TERMS) == Decision(Step.GIVE_UP)


def test_a_long_grace_of_stripes_own_is_never_shortened() -> None:
    """A dashboard rule of 80 hours stands, complete or not."""
    long = Draft(CREATED, CREATED + 80 * HOUR)
    assert decide_finalization(long, Incomplete.COUNTING, CREATED + 79 * HOUR + 59 * MINUTE, TERMS) == (
        Decision(Step.GIVE_UP)
    )
    assert decide_finalization(long, None, CREATED + 3 * HOUR, TERMS) == Decision(Step.LEAVE)


def test_a_draft_completed_before_its_first_moment_gets_that_back() -> None:
    """Put off at 45 minutes, complete at 50: final at 60, as Stripe had planned."""
    assert decide_finalization(PUT_OFF, None, CREATED + 50 * MINUTE, TERMS) == Decision(
        Step.RELEASE, CREATED + HOUR
    )


def test_a_draft_completed_later_becomes_final_a_minute_on() -> None:
    """Complete at 80 minutes: final at 81, not at 120."""
    assert decide_finalization(PUT_OFF, None, CREATED + 80 * MINUTE, TERMS) == Decision(
        Step.RELEASE, CREATED + 81 * MINUTE
    )


@pytest.mark.parametrize("to_go_ms", [MINUTE // 2, MINUTE])
def test_a_draft_about_to_become_final_needs_no_release(to_go_ms: int) -> None:
    """With half a minute to go, a minute ahead would be a delay; with a minute, it is what it is."""
    at_ms = CREATED + 2 * HOUR - to_go_ms
    assert decide_finalization(PUT_OFF, None, at_ms, TERMS) == Decision(Step.LEAVE)


@pytest.mark.parametrize(
    ("time_ms", "expected"), [(0, 0), (1, 1000), (999, 1000), (1000, 1000), (1001, 2000)]
)
def test_moments_are_whole_seconds(time_ms: int, expected: int) -> None:
    """Rounded up: a moment cut down could lie in the past."""
    assert whole_second_ms(time_ms) == expected
