"""A token bucket: how soon the next call may be made.

Owns the arithmetic of one rate limit. It refuses to know a clock (it is told the time) and what is called.
"""

from __future__ import annotations


class TokenBucket:
    """`calls_per_second` on average, `burst` at once. Times are seconds of any monotonic clock."""

    def __init__(self, calls_per_second: float, burst: int, now_seconds: float) -> None:
        if calls_per_second <= 0 or burst < 1:
            raise ValueError("a bucket needs calls_per_second > 0 and burst >= 1")
        self._rate = calls_per_second
        self._burst = float(burst)
        self._tokens = float(burst)
        self._at_seconds = now_seconds
        self._closed_until = now_seconds

    def reserve(self, now_seconds: float) -> float:
        """Take one token, now or in advance; returns the seconds to wait before using it."""
        self._refill(now_seconds)
        self._tokens -= 1.0
        owed = max(0.0, -self._tokens / self._rate)
        return max(owed, self._closed_until - now_seconds)

    def close(self, now_seconds: float, seconds: float) -> None:
        """Stripe asked for less: no token is used before `seconds` from now, and none is saved up meanwhile."""
        self._refill(now_seconds)
        self._closed_until = max(self._closed_until, now_seconds + seconds)
        self._tokens = min(self._tokens, 0.0)

    def is_closed(self, now_seconds: float) -> bool:
        """Whether Stripe's wish for less still holds."""
        return now_seconds < self._closed_until

    def available(self, now_seconds: float) -> float:
        """Tokens at hand; below zero when calls already wait."""
        self._refill(now_seconds)
        return self._tokens

    def _refill(self, now_seconds: float) -> None:
        passed = max(0.0, now_seconds - self._at_seconds)
        self._tokens = min(self._burst, self._tokens + passed * self._rate)
        self._at_seconds = max(self._at_seconds, now_seconds)
