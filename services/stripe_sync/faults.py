"""Fault points: named places where a test can have the process die as if by power cut.

Owns the names. Without the setting that names one they do nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import StrEnum

CRASH_EXIT_CODE = 137
"""What a supervisor sees of SIGKILL."""


class FaultPoint(StrEnum):
    """The numbered steps of the README, from the moment each is done."""

    AFTER_PLAN = "after_plan"
    AFTER_JOURNAL = "after_journal"
    """In the topic, not yet marked in the ledger."""
    AFTER_MARK_JOURNALLED = "after_mark_journalled"
    AFTER_MARK_SENDING = "after_mark_sending"
    """Marked, not yet sent."""
    AFTER_SEND = "after_send"
    """Answered by Stripe, not yet recorded."""
    AFTER_RECORD = "after_record"


Reach = Callable[[FaultPoint], None]


def pass_by(_point: FaultPoint) -> None:
    """What production does at a fault point."""


def crash_at(point: FaultPoint, times: int, end: Callable[[int], None] = os._exit) -> Reach:
    """Die at the `times`-th passing of `point`: no clean-up, no flush."""
    passed = 0

    def reach(reached: FaultPoint) -> None:
        nonlocal passed
        if reached is point:
            passed += 1
            if passed >= times:
                end(CRASH_EXIT_CODE)

    return reach
