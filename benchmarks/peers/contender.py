"""A contender: one way of counting, run three times. What its runs show, and the arithmetic of its line in the table.

Owns the three runs: a few events (what starting and ending cost), all of them, and all of them with one SIGKILL on the
way. It refuses to know how anybody counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from benchmarks.installation import Sight, rate_between_commits
from benchmarks.peers.events import Span
from benchmarks.peers.outcome import Miscount

SMALL_EVENTS = 2_000


@dataclass(frozen=True, slots=True)
class Count:
    """One run without a kill."""

    events: int
    sights: Sequence[Sight]
    cpu_seconds: float
    """From start to an orderly end, of the process and its children."""
    elsewhere_cpu_seconds: float | None
    """Of broker and database meanwhile; None where somebody else runs them."""
    miscount: Miscount


@dataclass(frozen=True, slots=True)
class KilledCount:
    """One run with a SIGKILL."""

    events: int
    killed_at: int
    """Events it had reported by then."""
    miscount: Miscount


class Contender(Protocol):
    """One way of counting."""

    @property
    def name(self) -> str: ...

    @property
    def mode(self) -> str: ...

    def count(self, span: Span) -> Count:
        """Start, count everything, end in good order."""

    def count_killed(self, span: Span) -> KilledCount:
        """Start, SIGKILL at half of the events, start again, count to the end."""


@dataclass(frozen=True, slots=True)
class Line:
    """What one contender showed, or why it showed nothing."""

    name: str
    mode: str
    events: int = 0
    cpu_us: float = 0.0
    """CPU microseconds an event (seconds per million), what starting and ending cost taken off."""
    warm_cpu_us: float = 0.0
    """The same of the second half of the events, until the last was counted."""
    elsewhere_cpu_us: float | None = None
    rate: float = 0.0
    """Events a second of wall time, from the first progress seen to the last."""
    killed_at: int = 0
    after_kill: Miscount | None = None
    not_run: str = ""

    def to_document(self) -> dict[str, object]:
        """Plain JSON values."""
        if self.not_run:
            return {"name": self.name, "mode": self.mode, "not_run": self.not_run}
        assert self.after_kill is not None
        elsewhere = self.elsewhere_cpu_us
        return {
            "name": self.name,
            "mode": self.mode,
            "events": self.events,
            "cpu_seconds_per_million": round(self.cpu_us, 3),
            "second_half_cpu_seconds_per_million": round(self.warm_cpu_us, 3),
            "broker_and_database_cpu_seconds_per_million": None if elsewhere is None else round(elsewhere, 3),
            "rate_per_second": round(self.rate, 1),
            "killed_at": self.killed_at,
            "after_kill": self.after_kill.to_document(),
        }


def measure(contender: Contender, small: Span, span: Span) -> Line:
    """The three runs of one contender. Raises CountsDiffer when a count without a kill is off."""
    start = contender.count(small)
    full = contender.count(span)
    killed = contender.count_killed(span)
    return draw_line(contender.name, contender.mode, start, full, killed)


def draw_line(name: str, mode: str, start: Count, full: Count, killed: KilledCount) -> Line:
    """What the runs come to."""
    events = full.events - start.events
    counted, seconds = rate_between_commits(full.sights)
    elsewhere = None
    if full.elsewhere_cpu_seconds is not None and start.elsewhere_cpu_seconds is not None:
        elsewhere = (full.elsewhere_cpu_seconds - start.elsewhere_cpu_seconds) / events * 1e6
    return Line(
        name=name,
        mode=mode,
        events=full.events,
        cpu_us=(full.cpu_seconds - start.cpu_seconds) / events * 1e6,
        warm_cpu_us=warm_cpu_us(full.sights),
        elsewhere_cpu_us=elsewhere,
        rate=counted / seconds if seconds else 0.0,
        killed_at=killed.killed_at,
        after_kill=killed.miscount,
    )


def warm_cpu_us(sights: Sequence[Sight]) -> float:
    """CPU microseconds an event from the first sight past half of the events on: a virtual machine has warmed up by then.

    0 when there are no two sights from there on.
    """
    last = sights[-1]
    half = next(sight for sight in sights if sight.received >= last.received / 2)
    events = last.received - half.received
    return (last.cpu_seconds - half.cpu_seconds) / events * 1e6 if events else 0.0
