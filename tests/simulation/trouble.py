"""Trouble: single faults, each armed at a moment and sprung by the first call that comes to its place afterwards.

Owns which are armed and which have struck. It refuses to know what a place does about one. Held as data (place, kind,
moment), so that a plan can be printed, replayed, and made smaller by leaving one out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from tests.simulation.scheduler import current_life
from tollgate.runtime.faults import P

T = TypeVar("T")

CRASH = "crash"
"""The process that comes to the place dies there."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """One fault."""

    at_ms: int
    """Virtual milliseconds from the beginning of the run."""
    place: str
    kind: str

    def __str__(self) -> str:
        return f"{self.at_ms:>7} ms  at {self.place}: {self.kind}"


class Troubles:
    """Those of one run. `now_ms` tells virtual milliseconds from its beginning."""

    def __init__(self, armed: tuple[Trouble, ...], now_ms: Callable[[], int]) -> None:
        self._waiting: dict[str, list[Trouble]] = {}
        for trouble in sorted(armed, key=lambda each: each.at_ms):
            self._waiting.setdefault(trouble.place, []).append(trouble)
        self._now_ms = now_ms
        self.over = False
        """Healed: nothing strikes any more."""
        self.struck: Counter[str] = Counter()
        self.passed: Counter[str] = Counter()

    def strikes(self, place: str) -> str | None:
        """The kind of fault that strikes whoever comes to `place` now, or None. `crash` kills at once."""
        self.passed[place] += 1
        waiting = self._waiting.get(place)
        if self.over or not waiting or waiting[0].at_ms > self._now_ms():
            return None
        kind = waiting.pop(0).kind
        self.struck[f"{place} {kind}"] += 1
        if kind == CRASH:
            life = current_life()
            if life is not None:
                life.die_here()
            return None
        return kind


class FaultPoints(Generic[P]):
    """A service's fault points as places: stands in for `tollgate.runtime.faults.Faults`."""

    def __init__(self, troubles: Troubles, service: str) -> None:
        self._troubles = troubles
        self._service = service

    def reach(self, point: P) -> None:
        self._troubles.strikes(f"{self._service}.{point}")
