"""Settling what is too old to be sent again: Stripe's summary of an hour against what the ledger knows of it.

Owns the comparison. It refuses to know how the summary was fetched. Stripe has no way to ask for one meter event;
the sum of a customer's hour is all it tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from enum import StrEnum

UNSURE_MAX = 12
"""Postings of one hour whose whereabouts are tried in every combination: 4,096 sums. More are for an operator."""

_DIGITS = Decimal("1e-6")
"""Summaries are doubles: equal means equal to six places."""


class Verdict(StrEnum):
    """What the summary says about one posting."""

    DELIVERED = "delivered"
    NOT_DELIVERED = "not_delivered"
    UNDECIDED = "undecided"


def compare_summary(
    summary: Decimal, delivered: Decimal, quantity: Decimal, others: Sequence[Decimal] = ()
) -> Verdict:
    """Whether a posting of `quantity` is in `summary`, given what certainly is and `others` that may be.

    Decided only when every combination of the others that explains the summary says the same.
    """
    if len(others) > UNSURE_MAX:
        return Verdict.UNDECIDED
    sums = {Decimal(0)}
    for other in others:
        sums |= {known + other for known in sums}
    rest = summary - delivered
    without = any(abs(rest - known) < _DIGITS for known in sums)
    including = any(abs(rest - quantity - known) < _DIGITS for known in sums)
    if without == including:
        return Verdict.UNDECIDED
    return Verdict.DELIVERED if including else Verdict.NOT_DELIVERED
