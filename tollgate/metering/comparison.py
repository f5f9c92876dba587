"""Comparisons that need no search: counted usage with its postings, and postings with the final invoice.

Owns what a chain's postings add up to, here and at Stripe. It refuses to know where any of the numbers were read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from decimal import Decimal

from tollgate.metering.reconciliation import (
    EXACT,
    NOTHING,
    PARKED_STATE,
    Cause,
    Effect,
    Finding,
    InvoiceLines,
    Link,
    Missing,
    Posted,
    Remedy,
    Standing,
    add_up,
)

CLOCKS_APART_MS = 60_000
"""When a posting was sent is by our clock, when an invoice became final by Stripe's: they may differ by this much."""


def carry_superseded(chain: Sequence[Link]) -> list[Link]:
    """A chain without its superseded links: what each was to bring comes with the link that replaced it.

    One that nothing has replaced yet stands as void: its quantity is owed.
    """
    found: list[Link] = []
    carried: list[Link] = []
    for link in chain:
        if link.standing is Standing.SUPERSEDED:
            carried.append(link)
            continue
        if carried and link.standing is not Standing.REVERSAL:
            brought = add_up([link.quantity, *(before.quantity for before in carried)])
            link, carried = replace(link, quantity=brought), []
        found.append(link)
    return found + [replace(link, standing=Standing.VOID) for link in carried]


def expected_at_stripe(links: Iterable[Link]) -> Decimal:
    """What Stripe's meter holds if it has exactly `links`: added up, or replaced in the order they were sent."""
    total = NOTHING
    replaced: dict[tuple[Effect, str, int], Link] = {}
    for link in links:
        if link.effect is Effect.ADDS:
            total = EXACT.add(total, link.sent)
        elif link.effect is not Effect.ELSEWHERE:
            hourly = link.effect is Effect.REPLACES_HOUR
            # Chains do not replace each other: two in one hour are two meters' versions, each with its own value.
            place = (link.effect, link.posting_key, link.hour_s if hourly else link.stamp_s)
            before = replaced.get(place)
            if before is None or before.seq < link.seq:
                replaced[place] = link
    for link in replaced.values():
        total = EXACT.add(total, link.sent)
    return total


def compare_postings(links: Sequence[Link], missing: Sequence[Missing]) -> Posted:
    """Counted against postings. `links`: stamped in the period; `missing`: of chains that end in it.

    Void links and their reversals cancel out over a chain, wherever they are stamped, and are left out.
    """
    counted = delivered = NOTHING
    by_cause: dict[tuple[Cause, Standing, str], list[Link]] = {}
    for link in links:
        if link.standing in (Standing.VOID, Standing.REVERSAL):
            continue
        counted = EXACT.add(counted, link.quantity)
        if link.standing is Standing.AT_STRIPE and link.effect is not Effect.ELSEWHERE:
            delivered = EXACT.add(delivered, link.quantity)
        else:
            by_cause.setdefault((_standing_cause(link), link.standing, link.state), []).append(link)
    findings = [
        Finding(
            cause,
            add_up(link.quantity for link in members),
            f"{len(members)} {state}"
            + (", tried before" if cause is Cause.PARKED and _tried(standing) else ""),
            tuple(link.ref for link in members),
            remedy=Remedy.RESUME if standing is Standing.PARKED else None,
        )
        for (cause, standing, state), members in sorted(by_cause.items())
    ]
    for part in missing:
        counted = EXACT.add(counted, part.quantity)
        if part.quantity == 0:
            continue
        if part.hold_reason is not None:
            findings.append(Finding(Cause.HELD, part.quantity, part.hold_reason))
        elif not part.due:
            findings.append(Finding(Cause.NOT_PLANNED, part.quantity))
        else:
            findings.append(
                Finding(Cause.UNPOSTED, part.quantity, f"chain {part.posting_key or '(none)'} is short of it")
            )
    return Posted(counted, delivered, tuple(_merged(findings)))


def _tried(standing: Standing) -> bool:
    return standing is Standing.DOUBTFUL


def _standing_cause(link: Link) -> Cause:
    if link.standing is Standing.AT_STRIPE:
        return Cause.ELSEWHERE
    if link.standing is Standing.DOUBTFUL and link.state == PARKED_STATE:
        return Cause.PARKED
    return {
        Standing.DOUBTFUL: Cause.IN_FLIGHT,
        Standing.WAITING: Cause.WAITING,
        Standing.PARKED: Cause.PARKED,
        Standing.REHEARSED: Cause.REHEARSED,
    }[link.standing]


def _merged(findings: Iterable[Finding]) -> list[Finding]:
    """Held and unplanned parts of many chains as one finding a reason."""
    merged: dict[tuple[Cause, str], Finding] = {}
    for finding in findings:
        key = (finding.cause, finding.detail)
        known = merged.get(key)
        if known is None or finding.postings:
            merged[key] = finding
        else:
            merged[key] = Finding(finding.cause, EXACT.add(known.quantity, finding.quantity), finding.detail)
    return list(merged.values())


def compare_invoice(links: Iterable[Link], lines: InvoiceLines) -> list[Finding]:
    """Postings against what the final invoice bills. `links`: any; those stamped within the lines' span count.

    Stripe bills what it holds when the invoice becomes final. What was delivered later is on no invoice, neither this
    nor the next.
    """
    inside = [
        link
        for link in links
        if lines.start_ms <= link.stamp_s * 1000 < lines.end_ms
        and link.standing in (Standing.AT_STRIPE, Standing.DOUBTFUL)
    ]
    at_stripe = [link for link in inside if link.standing is Standing.AT_STRIPE]
    difference = EXACT.subtract(lines.quantity, expected_at_stripe(at_stripe))
    if difference == 0:
        return []
    late = _after_final(at_stripe, lines)
    if late:
        detail = f"invoice {lines.invoice_id} was final before they were delivered"
        return [Finding(Cause.AFTER_FINAL, -difference, detail, tuple(link.ref for link in late))]
    doubtful = [link for link in inside if link.standing is Standing.DOUBTFUL]
    if doubtful and lines.quantity == expected_at_stripe(inside):
        detail = f"invoice {lines.invoice_id} bills them"
        return [Finding(Cause.ARRIVED, difference, detail, tuple(link.ref for link in doubtful))]
    cause = Cause.OVER_INVOICED if difference > 0 else Cause.NOT_INVOICED
    same = [link for link in inside if link.sent == abs(difference)]
    detail = f"invoice {lines.invoice_id} bills {lines.quantity:f}"
    return [Finding(cause, abs(difference), detail, tuple(link.ref for link in same))]


def _after_final(at_stripe: Sequence[Link], lines: InvoiceLines) -> list[Link]:
    """The postings delivered last without which the invoice's quantity is exactly right; none if there are no such."""
    in_order = sorted(at_stripe, key=lambda link: (link.last_sent_ms or 0, link.seq))
    for place, link in enumerate(in_order):
        late = (link.last_sent_ms or 0) >= lines.finalized_ms - CLOCKS_APART_MS
        if late and lines.quantity == expected_at_stripe(in_order[:place]):
            return in_order[place:]
    return []
