"""The anomaly cap: whether a window's quantity is far above what the customer used in the weeks before.

Owns the rule. It refuses to know postings and where the quantities come from. Pure: nothing of it depends on when it is
asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Context, Decimal

_WEEK_MS = 7 * 24 * 60 * 60 * 1000

_EXACT = Context(prec=100)


@dataclass(frozen=True, slots=True)
class AnomalyCap:
    """How far a window may rise above the highest of the weeks before it."""

    factor: Decimal
    """A window of more than so many times the highest is an anomaly."""
    quantity_min: Decimal
    """Windows below it never are: a customer that begins small may grow."""
    weeks: int
    """How far back is looked."""

    @property
    def history_ms(self) -> int:
        """How far back is looked, in milliseconds."""
        return self.weeks * _WEEK_MS

    def judge(
        self, quantity: Decimal, window_start_ms: int, trailing: Mapping[int, Decimal]
    ) -> Decimal | None:
        """The highest window of `trailing` (quantity by start, epoch ms) if `quantity` is far above it, else None.

        With less than a week to compare with, nothing is an anomaly.
        """
        if quantity < self.quantity_min:
            return None
        before = {
            start_ms: used
            for start_ms, used in trailing.items()
            if window_start_ms - self.history_ms <= start_ms < window_start_ms
        }
        if not before or window_start_ms - min(before) < _WEEK_MS:
            return None
        highest = max(before.values())
        return highest if quantity > _EXACT.multiply(self.factor, highest) else None
