"""A row of the table: what one benchmark measured, what it had to reach, and the bare limit of the same run.

Owns the arithmetic and the document form. It refuses to know how anything is measured or printed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Measure(StrEnum):
    """What a row is judged by."""

    CPU = "cpu_us"
    """CPU microseconds a unit: less is better."""
    RATE = "rate"
    """Units a second: more is better."""
    FRESHNESS = "freshness_p99_seconds"
    """Age of an event at its ledger commit, in seconds: less is better."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What a row is to reach: `floor` or the row has failed its purpose, `target` is where it is to go."""

    measure: Measure
    floor: float | None
    target: float
    offered: float | None = None
    """Units a second that were offered: a row that did not take them reaches nothing, however good it looks."""


OFFERED_SHARE = 0.95
"""Of what is offered, taken: the rest is the time the last answers take after the offering has ended."""


class CountsDiffer(AssertionError):
    """A benchmark counted something else than was sent: its speed means nothing."""


@dataclass(frozen=True, slots=True)
class Row:
    """One benchmark's result."""

    name: str
    unit: str
    """event, request or record."""
    count: int
    """Units in the measured part."""
    seconds: float
    """Wall time of the measured part."""
    cpu_us: float
    """CPU microseconds of the measured process a unit."""
    bound: Bound
    bare: str
    """What the bare limit is, in words; empty without one."""
    bare_us: float | None
    """Its CPU microseconds a unit."""
    freshness_p99_seconds: float | None = None
    notes: dict[str, str | int | float] = field(default_factory=dict)
    """What else was seen."""

    @property
    def rate(self) -> float:
        """Units a second of wall time."""
        return self.count / self.seconds

    @property
    def ratio(self) -> float | None:
        """How many times the bare limit's cost."""
        return self.cpu_us / self.bare_us if self.bare_us else None

    @property
    def value(self) -> float:
        """What the row is judged by."""
        if self.bound.measure is Measure.CPU:
            return self.cpu_us
        if self.bound.measure is Measure.RATE:
            return self.rate
        assert self.freshness_p99_seconds is not None, "a row judged by freshness has one"
        return self.freshness_p99_seconds

    def reaches(self, limit: float) -> bool:
        """Whether `value` is as good as `limit`, at the load that was offered."""
        if self.bound.offered is not None and self.rate < OFFERED_SHARE * self.bound.offered:
            return False
        return self.value >= limit if self.bound.measure is Measure.RATE else self.value <= limit

    @property
    def verdict(self) -> str:
        """target, floor or below: the best of them that was reached."""
        if self.reaches(self.bound.target):
            return "target"
        return "floor" if self.bound.floor is not None and self.reaches(self.bound.floor) else "below"

    def to_document(self) -> dict[str, object]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "unit": self.unit,
            "count": self.count,
            "seconds": round(self.seconds, 3),
            "rate_per_second": round(self.rate, 1),
            "cpu_seconds_per_million": round(self.cpu_us, 3),
            "freshness_p99_seconds": self.freshness_p99_seconds,
            "judged_by": self.bound.measure.value,
            "offered_per_second": self.bound.offered,
            "floor": self.bound.floor,
            "target": self.bound.target,
            "verdict": self.verdict,
            "bare": self.bare or None,
            "bare_cpu_seconds_per_million": None if self.bare_us is None else round(self.bare_us, 3),
            "ratio_to_bare": None if self.ratio is None else round(self.ratio, 2),
            "notes": self.notes,
        }


def assert_counts(what: str, found: object, expected: object) -> None:
    """Raise CountsDiffer unless both are equal."""
    if found != expected:
        raise CountsDiffer(f"{what}: found {found}, expected {expected}")
