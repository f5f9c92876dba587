"""A preview of a coming invoice line: what the ledger will have posted, beside what Stripe says by now.

Owns the comparison and what explains a difference. It refuses to know where either side was read, and prices
(`tollgate.metering.pricing`). Times are epoch milliseconds.

Stripe's preview counts what it has taken in. The line that comes is made of that and of what is still on its way; what
is held is on no invoice until somebody decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum

from tollgate.metering.comparison import compare_postings, expected_at_stripe
from tollgate.metering.reconciliation import EXACT, NOTHING, Cause, Effect, Finding, Link, Missing, Standing

_ON_ITS_WAY = frozenset({Cause.NOT_PLANNED, Cause.WAITING, Cause.IN_FLIGHT})
"""Will be at Stripe without anybody's doing."""

_HELD = frozenset({Cause.HELD, Cause.PARKED, Cause.REHEARSED})
"""Will not, until somebody decides."""


class Agreement(StrEnum):
    """How a line compares with Stripe's."""

    AGREES = "agrees"
    EXPLAINED = "explained"
    """It differs by what was delivered lately, or by postings whose answer was lost."""
    DIFFERS = "differs"


@dataclass(frozen=True, slots=True)
class LedgerLine:
    """What the ledger says of one item's usage in its period."""

    posted: Decimal
    """Delivered to Stripe."""
    pending: Decimal
    """Counted, and on its way."""
    held: Mapping[str, Decimal]
    """Counted, and not on its way, by reason."""
    lowest: Decimal
    """The least Stripe may say without anything being wrong, given what was sent lately or may have arrived."""
    highest: Decimal
    faults: tuple[str, ...] = ()
    """What of it nothing explains, in words."""

    @property
    def coming(self) -> Decimal:
        """What the invoice will bill as things are."""
        return EXACT.add(self.posted, self.pending)


@dataclass(frozen=True, slots=True)
class Compared:
    """A line's verdict, and the words that explain it."""

    agreement: Agreement
    why: tuple[str, ...]


def sum_up_line(links: Sequence[Link], missing: Sequence[Missing], now_ms: int, lag_ms: int) -> LedgerLine:
    """One item's line from its postings and from the usage none covers. `lag_ms`: how far Stripe's sums may be behind."""
    found = compare_postings(links, missing)
    pending = NOTHING
    held: dict[str, Decimal] = {}
    faults = []
    for finding in found.findings:
        if finding.cause in _ON_ITS_WAY:
            pending = EXACT.add(pending, finding.quantity)
        elif finding.cause in _HELD:
            reason = _reason(finding)
            held[reason] = EXACT.add(held.get(reason, NOTHING), finding.quantity)
        elif finding.cause is not Cause.ELSEWHERE:
            faults.append(f"{finding.quantity:f} {finding.cause} {finding.detail}".strip())
    delivered = [link for link in links if link.standing is Standing.AT_STRIPE]
    posted = expected_at_stripe(delivered)
    lowest = highest = posted
    for link in links:
        if link.effect is Effect.ELSEWHERE:
            continue
        lately = link.standing is Standing.AT_STRIPE and now_ms - (link.last_sent_ms or 0) < lag_ms
        if lately:
            lowest = min(lowest, EXACT.subtract(lowest, link.quantity))
            highest = max(highest, EXACT.subtract(highest, link.quantity))
        elif link.standing is Standing.DOUBTFUL:
            lowest = min(lowest, EXACT.add(lowest, link.quantity))
            highest = max(highest, EXACT.add(highest, link.quantity))
    return LedgerLine(posted, pending, held, lowest, highest, tuple(faults))


def compare_line(
    line: LedgerLine,
    stripe_quantity: Decimal | None,
    our_amount: int | None,
    stripe_amount: int | None,
    *,
    free: bool = False,
) -> Compared:
    """Compare with Stripe's line; None where Stripe has none. `our_amount`: Stripe's quantity by our formula.

    The amount is checked for the quantity Stripe names, so that a wrong formula shows apart from a missing unit.
    `free`: in a trial nothing is billed, whether or not there is a line that says so.
    """
    why = [f"{line.pending:f} on their way"] if line.pending else []
    why += [f"{quantity:f} held: {reason}" for reason, quantity in sorted(line.held.items())]
    if line.faults:
        return Compared(Agreement.DIFFERS, (*line.faults, *why))
    if free and not stripe_amount:
        return Compared(Agreement.AGREES, ("free: the subscription is in its trial", *why))
    if stripe_quantity is None:
        if line.posted == 0:
            return Compared(Agreement.AGREES, tuple(why))
        return Compared(Agreement.DIFFERS, (f"Stripe's preview has no line for {line.posted:f} posted", *why))
    if our_amount is not None and stripe_amount is not None and our_amount != stripe_amount:
        text = f"Stripe prices {stripe_quantity:f} at {stripe_amount}, the price says {our_amount}"
        return Compared(Agreement.DIFFERS, (text, *why))
    difference = EXACT.subtract(stripe_quantity, line.posted)
    if difference == 0:
        return Compared(Agreement.AGREES, tuple(why))
    if line.lowest <= stripe_quantity <= line.highest:
        what = "delivered lately" if difference < 0 else "of postings whose answer was lost"
        return Compared(Agreement.EXPLAINED, (f"{abs(difference):f} {what}", *why))
    more = "more" if difference > 0 else "less"
    return Compared(Agreement.DIFFERS, (f"Stripe has {abs(difference):f} {more} than was posted", *why))


def _reason(finding: Finding) -> str:
    if finding.cause is Cause.HELD:
        return finding.detail or str(finding.cause)
    return str(finding.cause)
