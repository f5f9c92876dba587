"""Backoff: doubling up to a cap, spread by a repeatable random source."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tollgate.runtime.backoff import Backoff


def test_delays_double_up_to_the_cap() -> None:
    """Without jitter the delays are the textbook's."""
    backoff = Backoff(0.5, 10, jitter=0)
    assert [backoff.delay_seconds(attempt) for attempt in range(7)] == [0.5, 1, 2, 4, 8, 10, 10]
    assert backoff.delay_seconds(100_000) == 10


def test_jitter_spreads_within_its_share() -> None:
    """Every delay is within 20 % of the plain one, never above the cap, and they differ."""
    backoff = Backoff(1, 64, rng=random.Random(1))
    plain = Backoff(1, 64, jitter=0)
    for attempt in range(12):
        delays = [backoff.delay_seconds(attempt) for _ in range(200)]
        expected = plain.delay_seconds(attempt)
        assert min(delays) >= 0.8 * expected
        assert max(delays) <= min(1.2 * expected, 64)
        assert len(set(delays)) > 50


def test_one_seed_gives_one_schedule() -> None:
    """The same seed gives the same delays."""
    one, two = (Backoff(1, 9, rng=random.Random(7)) for _ in range(2))
    assert [one.delay_seconds(n) for n in range(9)] == [two.delay_seconds(n) for n in range(9)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"initial_seconds": 0, "max_seconds": 1},
        {"initial_seconds": 2, "max_seconds": 1},
        {"initial_seconds": 1, "max_seconds": 2, "multiplier": 0.5},
        {"initial_seconds": 1, "max_seconds": 2, "jitter": 1.0},
        {"initial_seconds": 1, "max_seconds": 2},
    ],
)
def test_impossible_configuration_is_refused(arguments: dict[str, Any]) -> None:
    """A backoff that cannot work is refused when it is made."""
    with pytest.raises(ValueError, match="backoff"):
        Backoff(**arguments)


def test_negative_attempt_is_refused() -> None:
    """Attempts count from 0."""
    with pytest.raises(ValueError, match="-1"):
        Backoff(1, 2, jitter=0).delay_seconds(-1)
