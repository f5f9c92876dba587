"""Recovery: when everything is fresh for good, and not for a moment."""

from __future__ import annotations

import pytest

from tests.storm.freshness import NEVER, Limits, Look, recovery_seconds

LIMITS = Limits(requests=2.0, ledger=3.0, stripe=8.0)
FRESH = (0.1, 0.5, 4.0)


def looks(*ages: tuple[float, float, float]) -> list[Look]:
    """One look a second from second 10 on."""
    return [Look(10.0 + number, *age) for number, age in enumerate(ages)]


@pytest.mark.parametrize(
    ("ages", "seconds"),
    [
        pytest.param([FRESH, FRESH, FRESH], 0.0, id="fresh all the time"),
        pytest.param([(5.0, 0.5, 4.0), FRESH, FRESH], 0.0, id="a request waits as the fault ends"),
        pytest.param([FRESH, (0.1, 3.1, 4.0), FRESH], 1.0, id="stale later, as after a session timeout"),
        pytest.param([(0.1, NEVER, 4.0), (0.1, 0.5, 9.0), FRESH], 1.0, id="one stage after the other"),
        pytest.param([FRESH, FRESH, (2.1, 0.5, 4.0)], None, id="stale when the next fault comes"),
        pytest.param([], None, id="nobody looked"),
    ],
)
def test_recovery_is_to_the_last_stale_look(
    ages: list[tuple[float, float, float]], seconds: float | None
) -> None:
    """Each stage has its own limit; all of them count."""
    assert recovery_seconds(looks(*ages), 10.0, 20.0, LIMITS) == seconds


def test_what_follows_the_next_fault_is_not_judged() -> None:
    """From second 12 on it would be another fault's recovery; before second 10 it is the fault itself."""
    ages = [(9.0, 9.0, 9.0), FRESH, (9.0, 9.0, 9.0)]
    assert recovery_seconds(looks(*ages), 10.5, 12.0, LIMITS) == 0.0
