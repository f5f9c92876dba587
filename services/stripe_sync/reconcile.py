"""One reconciliation, from what was read to what is kept: every comparison, the verdict, and when to look again.

Owns putting the comparisons together. It refuses to know how anything was read, and the clock.
"""

from __future__ import annotations

from dataclasses import dataclass

from tollgate.ledger.reconciliation_views import SubjectView
from tollgate.ledger.reconciliations import DAY_MS, Reconciliation
from tollgate.metering.comparison import compare_invoice, compare_postings
from tollgate.metering.drift import IN_METER, Asked, explain_hours, explain_total, in_meter, unexplained_total
from tollgate.metering.reconciliation import NOTHING, Cause, Finding, Verdict, add_up, worst

AGAIN_MS = 3600 * 1000
"""Until Stripe is asked again after it could not be."""

FOLLOWED_DAYS = 35
"""How long after its end a period is followed: Stripe takes usage that old, and the next bill has long been written."""

BUDGET_SPENT = "today's reads are used up"


@dataclass(frozen=True, slots=True)
class Terms:
    """How reconciliation is done here, in milliseconds. `lag_ms`: how far Stripe's summaries may be behind."""

    lag_ms: int
    interval_ms: int


def is_worth_asking(view: SubjectView, previous: Reconciliation | None) -> bool:
    """Whether a read is spent on it: something goes through the meter, and Stripe's last word on it is not in yet.

    With the invoice final the comparison with it says more than a summary could, and costs nothing.
    """
    if not view.live or not any(link.effect in IN_METER for link in view.links):
        return False
    return view.invoice is None or previous is None or previous.asked_ms is None


def explain(view: SubjectView, asked: Asked, now_ms: int, lag_ms: int) -> list[Finding] | None:
    """Postings against Stripe's summary; None when the hours must be asked for first."""
    links = in_meter(view.links, asked.start_s, asked.end_s)
    findings = explain_total(links, asked.total, now_ms, lag_ms)
    if findings is None and asked.hours is not None:
        findings = explain_hours(links, asked, now_ms, lag_ms)
        if not findings:
            # Each hour is what it should be and the whole is not: asked moments apart, while Stripe summed up.
            findings = [Finding(Cause.LAGGING, NOTHING, "the hours agree; the total was asked before them")]
    return findings


def explain_without_hours(view: SubjectView, asked: Asked, why: str) -> list[Finding]:
    """The same when the hours could not be asked, and why not."""
    return [unexplained_total(in_meter(view.links, asked.start_s, asked.end_s), asked.total, why)]


def conclude(
    view: SubjectView,
    previous: Reconciliation | None,
    asked: Asked | None,
    stripe_findings: list[Finding],
    now_ms: int,
    terms: Terms,
) -> Reconciliation:
    """What is kept. `stripe_findings`: of the comparison with Stripe, or why there was none."""
    posted = compare_postings(view.in_period, view.missing)
    findings = [*posted.findings, *stripe_findings]
    if view.invoice is not None:
        findings += compare_invoice(view.links, view.invoice)
    verdict = worst(findings)
    known = previous.stripe if previous is not None else None
    known_ms = previous.asked_ms if previous is not None else None
    return Reconciliation(
        subject=view.subject,
        counted=posted.counted,
        delivered=posted.delivered,
        stripe=known if asked is None else repr(asked.total),
        invoiced=None if view.invoice is None else f"{view.invoice.quantity:f}",
        invoice_id=view.invoice_id,
        invoice_status=view.invoice_status,
        verdict=verdict,
        drift=add_up(abs(finding.quantity) for finding in findings if finding.verdict is Verdict.DRIFT),
        findings=tuple(findings),
        checked_ms=now_ms,
        asked_ms=known_ms if asked is None else now_ms,
        due_ms=_due_ms(view, verdict, findings, now_ms, terms),
    )


def _due_ms(
    view: SubjectView, verdict: Verdict, findings: list[Finding], now_ms: int, terms: Terms
) -> int | None:
    """When to look again: soon while summaries lag, tomorrow otherwise, never once all is said and done."""
    if now_ms > view.subject.period_end_ms + FOLLOWED_DAYS * DAY_MS:
        return None
    if view.invoice is not None and verdict in (Verdict.AGREES, Verdict.EXPLAINED):
        return None
    causes = {finding.cause for finding in findings}
    if causes & {Cause.LAGGING, Cause.ARRIVED}:
        return now_ms + max(terms.lag_ms, 1000)
    if any(f.cause is Cause.NOT_ASKED and f.detail == BUDGET_SPENT for f in findings):
        return (now_ms // DAY_MS + 1) * DAY_MS
    if Cause.NOT_ASKED in causes:
        return now_ms + min(AGAIN_MS, terms.interval_ms)
    return now_ms + terms.interval_ms
