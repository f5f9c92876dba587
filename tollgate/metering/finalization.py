"""Finalization: whether a draft invoice may become final, must wait for its usage, or has waited long enough.

Owns the decision. It refuses to know where drafts, postings and ticks are stored, and how Stripe is told. Times are
epoch milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Incomplete(StrEnum):
    """Why a period is not complete yet. In order: the first that holds is what has to happen next."""

    COUNTING = "counting"
    """Ticks of some partition have not passed the period's end: events of it may not be counted yet."""
    PLANNING = "planning"
    """Counted usage of it has not been planned."""
    POSTING = "posting"
    """A posting of it is under way, or its outcome is not known."""
    PARKED = "parked"
    """A posting of it waits for an operator."""


@dataclass(frozen=True, slots=True)
class FinalizationTerms:
    """How long invoices wait for their usage, all in milliseconds."""

    events_delay_ms: int
    """How long after its time an event may still be ingested: a period is counted when ticks are this far past it."""
    lead_ms: int
    """How long before it would become final an incomplete invoice is put off."""
    step_ms: int
    """By how much at a time. Should Tollgate be gone, it becomes final after at most so long."""
    delay_max_ms: int
    """The longest an invoice stays a draft, from its creation."""
    release_ms: int = 60_000
    """How soon an invoice that was put off becomes final once it is complete: Stripe takes only moments to come."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A draft invoice that Stripe will finalize by itself."""

    created_ms: int
    finalizes_ms: int
    """When it becomes final as things are."""
    planned_ms: int | None = None
    """When it would have become final, had it not been put off; None if it was not."""


class Step(StrEnum):
    """What is done about a draft now."""

    LEAVE = "leave"
    DELAY = "delay"
    RELEASE = "release"
    GIVE_UP = "give_up"
    """It is not complete and has waited as long as it may."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A step, and the new moment of finalization for those that have one."""

    step: Step
    finalizes_ms: int | None = None


def is_counted(period_end_ms: int, watermark_ms: int, terms: FinalizationTerms) -> bool:
    """Whether every event of a period has been counted, given the watermark of the ticks."""
    return watermark_ms >= period_end_ms + terms.events_delay_ms


def decide_finalization(
    draft: Draft, incomplete: Incomplete | None, now_ms: int, terms: FinalizationTerms
) -> Decision:
    """What to do about a draft.

    Incomplete, it is put off when its moment is near, step by step, never beyond `delay_max_ms` after its creation.
    Complete, one that was put off gets back the moment it had, or, that being over, a moment shortly ahead.
    """
    if incomplete is None:
        if draft.planned_ms is None:
            return Decision(Step.LEAVE)
        moment_ms = whole_second_ms(max(draft.planned_ms, now_ms + terms.release_ms))
        return Decision(Step.RELEASE, moment_ms) if moment_ms < draft.finalizes_ms else Decision(Step.LEAVE)
    if draft.finalizes_ms - now_ms > terms.lead_ms:
        return Decision(Step.LEAVE)
    wished_ms = max(draft.finalizes_ms, now_ms) + terms.step_ms
    moment_ms = whole_second_ms(min(wished_ms, draft.created_ms + terms.delay_max_ms))
    if moment_ms <= max(draft.finalizes_ms, now_ms):
        return Decision(Step.GIVE_UP)
    return Decision(Step.DELAY, moment_ms)


def whole_second_ms(time_ms: int) -> int:
    """The whole second at or after a moment: Stripe knows no shorter time."""
    return -(-time_ms // 1000) * 1000
