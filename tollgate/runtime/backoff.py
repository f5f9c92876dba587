"""Backoff: how long to wait before trying again.

Owns the arithmetic. It refuses to know what is being retried, and it never sleeps.
"""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays with jitter, so that many clients of one broken thing do not return in step.

    `jitter` is the share of a delay that is random: 0.2 spreads it evenly over 80 % to 120 %. The random source
    is injected, so a schedule can be repeated. Raises ValueError for a configuration that cannot work.
    """

    initial_seconds: float
    max_seconds: float
    multiplier: float = 2.0
    jitter: float = 0.2
    rng: random.Random | None = None

    def __post_init__(self) -> None:
        if self.initial_seconds <= 0 or self.max_seconds < self.initial_seconds:
            raise ValueError("backoff needs 0 < initial_seconds <= max_seconds")
        if self.multiplier < 1:
            raise ValueError("backoff needs multiplier >= 1")
        if not 0 <= self.jitter < 1:
            raise ValueError("backoff needs 0 <= jitter < 1")
        if self.jitter and self.rng is None:
            raise ValueError("backoff with jitter needs a random source")

    def delay_seconds(self, attempt: int) -> float:
        """The wait after failed attempt number `attempt`, counted from 0. Never above `max_seconds`."""
        if attempt < 0:
            raise ValueError(f"attempt {attempt} is below 0")
        try:
            delay_seconds = self.initial_seconds * self.multiplier**attempt
        except OverflowError:
            delay_seconds = self.max_seconds
        delay_seconds = min(delay_seconds, self.max_seconds)
        if self.rng is None:
            return delay_seconds
        # Spread before the cap, so that clients which have all reached the cap still differ downwards.
        return min(delay_seconds * self.rng.uniform(1 - self.jitter, 1 + self.jitter), self.max_seconds)
