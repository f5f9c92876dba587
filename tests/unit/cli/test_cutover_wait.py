"""Waiting for a log that stands still and is counted, on a clock that only moves when told."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from services.cli.cutover_wait import Patience, StillWriting
from tollgate.ledger.cutover import NotDrained
from tollgate.runtime.clock import Clock


class _Clock(Clock):
    """Sleeping takes no time, and counts."""

    def __init__(self) -> None:
        self.at = 0.0

    def now_ms(self) -> int:
        return int(self.at * 1000)

    def monotonic_seconds(self) -> float:
        return self.at

    async def sleep_seconds(self, seconds: float) -> None:
        self.at += seconds


async def _wait(
    ends: list[Mapping[int, int]], counted: list[Mapping[int, int]], wait_seconds: float = 5
) -> tuple[Mapping[int, int], float]:
    """Looks at the log see `ends` one after the other, looks at the ledger `counted`; the last is seen for ever."""
    clock = _Clock()

    async def read_ends() -> Mapping[int, int]:
        return ends.pop(0) if len(ends) > 1 else ends[0]

    found = await Patience(25, wait_seconds, clock).until_drained(
        read_ends, lambda: counted.pop(0) if len(counted) > 1 else counted[0]
    )
    return found, clock.at


async def test_a_log_that_stands_still_and_is_counted() -> None:
    """The whole quiet time is waited, and not longer."""
    assert await _wait([{0: 5, 1: 0}], [{0: 5, 1: 0}]) == ({0: 5, 1: 0}, 25.0)


async def test_meters_get_time_to_count() -> None:
    """Three more looks until everything is counted."""
    assert await _wait([{0: 5}], [{0: 2}, {0: 3}, {0: 4}, {0: 5}]) == ({0: 5}, 26.5)


async def test_meters_that_are_not_there_are_not_waited_for_for_ever() -> None:
    """How far they are behind is said."""
    with pytest.raises(NotDrained) as refused:
        await _wait([{0: 5, 1: 7}], [{0: 2, 1: 7}])
    assert refused.value.behind == {0: 3}


async def test_a_log_that_grows_is_refused_though_it_is_counted() -> None:
    """Somebody writes: whoever it is, it has to stop first. The partitions are named."""
    with pytest.raises(StillWriting, match="partitions 1 grew"):
        await _wait([{0: 5, 1: 7}, {0: 5, 1: 8}], [{0: 5, 1: 7}])
