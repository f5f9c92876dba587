"""The oracle: what must hold when a run has healed and drained.

Owns the verdict, in words. It refuses to know what was done to the run. The truth comes from the events that were
written and the model's own counting; of the ledger it reads tables, and never asks the product what they mean.
"""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import TYPE_CHECKING

from tests.simulation.billed import judge_billing
from tests.simulation.metered import HOUR_MS
from tests.simulation.model import Counted, count
from tests.simulation.warm import ACCEPT_AGE_HOURS, FUTURE_SECONDS
from tollgate.ledger.verify import verify_ledger

if TYPE_CHECKING:
    from tests.simulation.world import World

SHOWN = 6
"""Differences told of one kind: the first say enough."""


def judge(world: World) -> list[str]:
    """Everything that is wrong."""
    truth = count(
        {number: held.written for number, held in world.log.partitions.items()},
        world.rules,
        ACCEPT_AGE_HOURS * HOUR_MS,
        FUTURE_SECONDS * 1000,
    )
    left = world.director.left()
    return [
        *([f"not drained: {left}"] if left is not None else []),
        *_progress(world, truth),
        *_usage(world, truth),
        *_letters(world, truth),
        *judge_billing(world, truth),
        *(f"the law: {violation}" for violation in verify_ledger(world.warm.engine)),
    ]


def _progress(world: World, truth: Counted) -> list[str]:
    """Everything written was counted, once, and ended as it should have (O2, O4, O5, O6)."""
    found = []
    columns = ("received", "counted", "unmatched", "duplicate", "late", "dead")
    for partition, next_offset, *counts in world.ledger.query(
        f"SELECT partition, next_offset, {', '.join(columns)} FROM progress ORDER BY partition"
    ):
        end = world.log.ends[partition]
        if next_offset != end:
            found.append(f"partition {partition} was counted to {next_offset} of {end}: not drained")
            continue
        expected = [truth.outcomes[partition][column] for column in columns]
        if counts != expected:
            found.append(
                f"partition {partition}: {dict(zip(columns, counts, strict=True))} in the ledger, "
                f"{dict(zip(columns, expected, strict=True))} in truth"
            )
    return found


def _usage(world: World, truth: Counted) -> list[str]:
    rows = {
        tuple(key): (Decimal(quantity), events, latest)
        for *key, quantity, events, latest in world.ledger.query(
            "SELECT partition, meter_id, window_start_ms, account, quantity, events, latest_event_ms FROM usage"
        )
    }
    expected = {
        key: (Decimal(quantity), truth.events[key], truth.latest_ms[key])
        for key, quantity in truth.usage.items()
    }
    return _differences("usage", rows, expected)


def _letters(world: World, truth: Counted) -> list[str]:
    """Every late and every dead event is among the dead letters, once or more."""
    written = {(letter.partition, letter.offset, letter.reason): letter.rows for letter in world.log.letters}
    rows: Counter[int] = Counter()
    for (partition, _, _), count_of in written.items():
        rows[partition] += count_of
    expected = {p: outcomes["late"] + outcomes["dead"] for p, outcomes in truth.outcomes.items()}
    return _differences("rows in dead letters", dict(rows), {p: n for p, n in expected.items() if n})


def _differences(what: str, found: dict, expected: dict) -> list[str]:  # type: ignore[type-arg]
    wrong = [key for key in sorted({*found, *expected}, key=str) if found.get(key) != expected.get(key)]
    told = [f"{what} {key}: {found.get(key)} found, {expected.get(key)} in truth" for key in wrong[:SHOWN]]
    return told + ([f"{what}: {len(wrong) - SHOWN} more differ"] if len(wrong) > SHOWN else [])
