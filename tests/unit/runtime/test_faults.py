"""Fault points: the armed one, at the chosen time, and no other."""

from __future__ import annotations

from enum import StrEnum

from tollgate.runtime.faults import Faults


class Step(StrEnum):
    READ = "read"
    WRITTEN = "written"


def test_dies_at_the_armed_point_at_its_chosen_time() -> None:
    """The third passing of the armed point, whatever else is passed."""
    deaths: list[int] = []
    faults = Faults(Step.WRITTEN, 3, crash=lambda: deaths.append(1))
    for _ in range(2):
        faults.reach(Step.READ)
        faults.reach(Step.WRITTEN)
    assert not deaths
    faults.reach(Step.WRITTEN)
    assert deaths == [1]


def test_unarmed_it_does_nothing() -> None:
    """Production: no point is armed."""
    deaths: list[int] = []
    faults: Faults[Step] = Faults(crash=lambda: deaths.append(1))
    for _ in range(10):
        faults.reach(Step.READ)
    assert not deaths
