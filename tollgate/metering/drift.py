"""Drift: where a difference between postings and Stripe's summaries comes from, down to the hour and the posting.

Owns the search. It refuses to know how summaries were read. Stripe tells no single meter event, only sums of a
customer's hours; the sums, and when each posting was sent, are all there is to go by.

Summaries lag: a difference that postings delivered within the last `lag_ms` explain is `lagging`, no drift. Whether a
double of Stripe's means an exact sum is decided by `tollgate.metering.doubles`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from tollgate.metering.comparison import expected_at_stripe
from tollgate.metering.doubles import says, to_quantity
from tollgate.metering.reconciliation import (
    EXACT,
    HOUR_S,
    PARKED_STATE,
    Cause,
    Effect,
    Finding,
    Link,
    Remedy,
    Standing,
    add_up,
)

DOUBTFUL_MAX = 8
"""Postings of unknown whereabouts that are tried in every combination: 256 of them, times those that may lag."""

TOGETHER_MAX = 3
"""Postings that are looked for together when no single one makes a difference up."""

CHOICE_MAX = 40
"""Postings among which combinations are looked for: ten thousand triples, and hardly one that fits by chance."""

IN_METER = (Effect.ADDS, Effect.REPLACES_HOUR)
"""What goes through a Billing Meter, and so into its summaries."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What Stripe's summary said: the whole span `[start_s, end_s)`, and each hour once that was asked, too.

    Hours that Stripe left out hold nothing.
    """

    start_s: int
    end_s: int
    total: float
    hours: Mapping[int, float] | None = None


def summary_span_s(period_start_ms: int, period_end_ms: int) -> tuple[int, int]:
    """The span to ask for: whole hours around the period, since that is how Stripe cuts them (epoch seconds).

    Postings are compared over this same span, so a period that begins within an hour loses no exactness by it.
    """
    start_s, end_s = period_start_ms // 1000, -(-period_end_ms // 1000)
    return start_s - start_s % HOUR_S, -(-end_s // HOUR_S) * HOUR_S


def in_meter(links: Sequence[Link], start_s: int, end_s: int) -> list[Link]:
    """The links that a summary of `[start_s, end_s)` is about."""
    return [link for link in links if link.effect in IN_METER and start_s <= link.stamp_s < end_s]


def agrees(links: Sequence[Link], said: float) -> bool:
    """Whether Stripe's sum is exactly what was delivered."""
    return says(said, expected_at_stripe(_at_stripe(links)))


def explain_total(links: Sequence[Link], said: float, now_ms: int, lag_ms: int) -> list[Finding] | None:
    """The findings of a whole span when postings under way or just delivered make the difference up exactly.

    Empty when there is no difference; None when it takes a look at the hours.
    """
    if agrees(links, said):
        return _parked_and_absent(links, now_ms, lag_ms, None)
    return _explain_under_way(links, said, now_ms, lag_ms, None)


def explain_hours(links: Sequence[Link], asked: Asked, now_ms: int, lag_ms: int) -> list[Finding]:
    """Every hour's difference, each with its cause. `asked.hours` must be there."""
    assert asked.hours is not None
    by_hour: dict[int, list[Link]] = {}
    for link in in_meter(links, asked.start_s, asked.end_s):
        by_hour.setdefault(link.hour_s, []).append(link)
    findings: list[Finding] = []
    for hour_s in sorted({*by_hour, *asked.hours}):
        members, said = by_hour.get(hour_s, []), asked.hours.get(hour_s, 0.0)
        if agrees(members, said):
            findings += _parked_and_absent(members, now_ms, lag_ms, hour_s)
            continue
        under_way = _explain_under_way(members, said, now_ms, lag_ms, hour_s)
        if under_way is None:
            under_way = _bounded(members, said, now_ms, lag_ms, hour_s)
        findings += [_drift(members, said, hour_s)] if under_way is None else under_way
    return findings


def unexplained_total(links: Sequence[Link], said: float, why: str) -> Finding:
    """The drift of a whole span whose hours could not be asked, and why not."""
    finding = _drift(links, said, None)
    return Finding(finding.cause, finding.quantity, f"{finding.detail}; {why}", finding.postings)


# ------------------------------------------------------------------------------------------ under way


def _at_stripe(links: Sequence[Link]) -> list[Link]:
    return [link for link in links if link.standing is Standing.AT_STRIPE]


def _lately(links: Sequence[Link], now_ms: int, lag_ms: int) -> list[Link]:
    """Delivered within the lag, the newest first."""
    since_ms = now_ms - lag_ms
    recent = [link for link in _at_stripe(links) if (link.last_sent_ms or link.settled_ms or 0) > since_ms]
    return sorted(
        recent, key=lambda link: (link.last_sent_ms or link.settled_ms or 0, link.seq), reverse=True
    )


def _explain_under_way(
    links: Sequence[Link], said: float, now_ms: int, lag_ms: int, hour_s: int | None
) -> list[Finding] | None:
    """Some doubtful postings that arrived, and the newest of the lately delivered that are not counted yet.

    Stripe counts in the order it received, near enough: what lags is the newest, not one in the middle.
    """
    doubtful = [link for link in links if link.standing is Standing.DOUBTFUL]
    if len(doubtful) > DOUBTFUL_MAX:
        return None
    certain = _at_stripe(links)
    lately = _lately(links, now_ms, lag_ms)
    for arrived in _combinations(doubtful, len(doubtful)):
        for count in range(len(lately) + 1):
            absent = {link.ref for link in lately[:count]}
            present = [link for link in certain if link.ref not in absent]
            if says(said, expected_at_stripe([*present, *arrived])):
                return _under_way_findings(arrived, lately[:count], hour_s)
    return None


def _under_way_findings(arrived: Sequence[Link], absent: Sequence[Link], hour_s: int | None) -> list[Finding]:
    findings = []
    if arrived:
        parked = all(link.state == PARKED_STATE for link in arrived)
        findings.append(
            Finding(
                Cause.ARRIVED,
                add_up(link.sent for link in arrived),
                "Stripe's summary holds what was not known to have arrived",
                tuple(link.ref for link in arrived),
                hour_s,
                Remedy.SETTLE_DELIVERED if parked else None,
            )
        )
    if absent:
        findings.append(
            Finding(
                Cause.LAGGING,
                add_up(link.sent for link in absent),
                "delivered lately; summaries lag",
                tuple(link.ref for link in absent),
                hour_s,
            )
        )
    return findings


def _parked_and_absent(links: Sequence[Link], now_ms: int, lag_ms: int, hour_s: int | None) -> list[Finding]:
    """Parked after it was tried, long enough ago to show, while the summary holds exactly the others."""
    absent = [
        link
        for link in links
        if link.standing is Standing.DOUBTFUL
        and link.state == PARKED_STATE
        and (link.last_sent_ms or 0) <= now_ms - lag_ms
    ]
    if not absent:
        return []
    refs = tuple(link.ref for link in absent)
    detail = "Stripe's summary does not hold it"
    total = add_up(link.sent for link in absent)
    return [Finding(Cause.PARKED, total, detail, refs, hour_s, Remedy.SETTLE_NOT_DELIVERED)]


def _bounded(
    links: Sequence[Link], said: float, now_ms: int, lag_ms: int, hour_s: int
) -> list[Finding] | None:
    """An hour with postings delivered lately, whose difference is no larger than they could make it."""
    lately = [link for link in _lately(links, now_ms, lag_ms) if link.effect is Effect.ADDS]
    if not lately:
        return None
    expected, holds = expected_at_stripe(_at_stripe(links)), to_quantity(said)
    least = EXACT.subtract(expected, add_up(link.sent for link in lately if link.sent > 0))
    doubtful = add_up(link.sent for link in links if link.standing is Standing.DOUBTFUL and link.sent > 0)
    if not least <= holds <= EXACT.add(expected, doubtful):
        return None
    detail = "within what was delivered lately; summaries lag"
    refs = tuple(link.ref for link in lately)
    return [Finding(Cause.LAGGING, abs(EXACT.subtract(holds, expected)), detail, refs, hour_s)]


# ---------------------------------------------------------------------------------------------- drift


def _drift(links: Sequence[Link], said: float, hour_s: int | None) -> Finding:
    """The difference nothing under way explains, and the postings that would make it up, if they are the only ones."""
    certain = _at_stripe(links)
    expected = expected_at_stripe(certain)
    difference = EXACT.subtract(to_quantity(said), expected)
    detail = f"Stripe holds {to_quantity(said):f}, delivered {expected:f}"
    if difference < 0:
        found = _making_up([link for link in certain if link.effect is Effect.ADDS], -difference)
        refs = tuple(link.ref for link in found)
        remedy = Remedy.VOID if found else None
        if not found:
            detail += f" in {len(certain)} postings"
        return Finding(Cause.MISSING, -difference, detail, refs, hour_s, remedy)
    absent = [
        link
        for link in links
        if link.standing is not Standing.AT_STRIPE and link.standing is not Standing.REVERSAL
    ]
    found = _making_up(absent, difference)
    if found:
        detail += f"; {', '.join(sorted({link.state for link in found}))} here"
        return Finding(Cause.EXTRA, difference, detail, tuple(link.ref for link in found), hour_s)
    twice = _making_up(certain, difference)
    if twice:
        detail += "; as if these had been counted twice"
        return Finding(Cause.EXTRA, difference, detail, tuple(link.ref for link in twice), hour_s)
    return Finding(
        Cause.EXTRA, difference, f"{detail}; no posting of this ledger is of that size", (), hour_s
    )


def _making_up(links: Sequence[Link], quantity: Decimal) -> Sequence[Link]:
    """The one combination of few postings that adds up to `quantity`; nothing when there is none, or more than one."""
    if links and add_up(link.sent for link in links) == quantity:
        return links
    if len(links) > CHOICE_MAX:
        fitting = [(link,) for link in links if link.sent == quantity]
        return fitting[0] if len(fitting) == 1 else ()
    for size in range(1, TOGETHER_MAX + 1):
        found = [
            combination
            for combination in itertools.combinations(links, size)
            if add_up(link.sent for link in combination) == quantity
        ]
        if found:
            return found[0] if len(found) == 1 else ()
    return ()


def _combinations(links: Sequence[Link], size_max: int) -> Iterator[tuple[Link, ...]]:
    """Of none, then of one, two and so on: the simplest explanation comes first."""
    for size in range(size_max + 1):
        yield from itertools.combinations(links, size)
