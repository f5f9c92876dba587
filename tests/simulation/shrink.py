"""Shrinking: a failing plan made smaller, part by part, for as long as it still fails in the same way.

Owns what is left out and in which order. It refuses to know why a run fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from tests.simulation.plan import Plan

T = TypeVar("T")

RUNS_MAX = 400
"""Tries after which the smallest plan so far has to do."""


class _Spent(Exception):
    """No more tries."""


def shrink_plan(plan: Plan, fails: Callable[[Plan], bool], runs_max: int = RUNS_MAX) -> Plan:
    """The smallest plan found that still fails. `fails` runs one."""
    left, smallest = runs_max, plan

    def still_fails(candidate: Plan) -> bool:
        nonlocal left, smallest
        if left == 0:
            raise _Spent
        left -= 1
        if not fails(candidate):
            return False
        smallest = candidate
        return True

    before: Plan | None = None
    try:
        while smallest != before:
            before = smallest
            _calm(smallest, still_fails)
            for part in ("troubles", "steps"):
                _without(smallest, part, still_fails)
    except _Spent:
        pass
    return smallest


def _calm(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """Without what is spread over the whole run."""
    for quieter in (
        replace(plan, webhook_disorder=0.0),
        replace(plan, skew_ms=(0, 0)),
        replace(plan, late_customer=False),
        replace(plan, meters=1),
        replace(plan, syncs=min(plan.syncs, 1)),
    ):
        if quieter != plan and _names_fit(quieter) and fails(quieter):
            return _calm(quieter, fails)
    return plan


def _names_fit(plan: Plan) -> bool:
    """Whether every process a step names is there."""
    there = (
        {f"meter-{n}" for n in range(plan.meters)} | {f"sync-{n}" for n in range(plan.syncs)} | {"webhooks-0"}
    )
    named = {arg for step in plan.steps for arg in step.args if isinstance(arg, str) and arg[-2:-1] == "-"}
    return named <= there


def _without(plan: Plan, part: str, fails: Callable[[Plan], bool]) -> Plan:
    """Leave out ever smaller pieces of one part, down to single ones."""
    size = max(1, len(getattr(plan, part)) // 2)
    while True:
        plan = _pieces(plan, part, size, fails)
        if size == 1:
            return plan
        size //= 2


def _pieces(plan: Plan, part: str, size: int, fails: Callable[[Plan], bool]) -> Plan:
    place = 0
    while place < len(kept := getattr(plan, part)):
        cut = _cut(kept, place, size)
        smaller = replace(plan, steps=cut) if part == "steps" else replace(plan, troubles=cut)
        if fails(smaller):
            plan = smaller
        else:
            place += size
    return plan


def _cut(kept: Sequence[T], place: int, size: int) -> tuple[T, ...]:
    return (*kept[:place], *kept[place + size :])
