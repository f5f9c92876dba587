"""The group's offset: a hint, never two at once."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from services.meter.group_commit import GroupCommit
from services.meter.partition import AssignedPartition, Partitions
from tollgate.metering.seen import SeenIds
from tollgate.runtime.clock import ManualClock
from tollgate.runtime.faults import Faults


class _Group:
    """Takes offsets when `gate` is open."""

    def __init__(self) -> None:
        self.taken: list[dict[int, int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.answer = True
        self.error: Exception | None = None

    async def commit(self, offsets: Mapping[int, int]) -> bool:
        self.taken.append(dict(offsets))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return self.answer


async def _turns() -> None:
    """Let everything that can run, run."""
    for _ in range(20):
        await asyncio.sleep(0)


def _made(group: _Group) -> tuple[GroupCommit, AssignedPartition]:
    partitions = Partitions()
    assigned = AssignedPartition(0, 5, SeenIds(5), 0)
    partitions.put(assigned)
    commit = GroupCommit(
        partitions=partitions, commit=group.commit, clock=ManualClock(), interval_seconds=5, faults=Faults()
    )
    return commit, assigned


async def test_writes_only_what_is_new() -> None:
    """An offset is written once, and again when the ledger has moved."""
    group = _Group()
    commit, assigned = _made(group)
    await commit.now(1)
    await commit.now(1)
    assigned.committed_offset = 9
    await commit.now(1)
    assert group.taken == [{0: 5}, {0: 9}]


async def test_never_two_at_once() -> None:
    """While an attempt hangs no second one begins, and nobody waits longer than asked."""
    group = _Group()
    group.gate.clear()
    commit, assigned = _made(group)
    await commit.now(0)
    assigned.committed_offset = 9
    await commit.now(0)
    assert group.taken == [{0: 5}]
    group.gate.set()
    await _turns()
    await commit.now(1)
    assert group.taken == [{0: 5}, {0: 9}]


async def test_a_refusal_is_tried_again() -> None:
    """Neither an exception nor a False counts as written."""
    group = _Group()
    commit, _ = _made(group)
    group.error = RuntimeError("no coordinator")
    await commit.now(1)
    group.error, group.answer = None, False
    await commit.now(1)
    group.answer = True
    await commit.now(1)
    await commit.now(1)
    assert group.taken == [{0: 5}] * 3


async def test_nothing_assigned_writes_nothing() -> None:
    """An empty commit would end Faust."""
    group = _Group()
    commit = GroupCommit(
        partitions=Partitions(), commit=group.commit, clock=ManualClock(), interval_seconds=5, faults=Faults()
    )
    await commit.now(1)
    assert group.taken == []


async def test_writes_every_interval() -> None:
    """The loop writes when its interval has passed, not before."""
    group = _Group()
    clock = ManualClock()
    partitions = Partitions()
    partitions.put(AssignedPartition(0, 5, SeenIds(5), 0))
    commit = GroupCommit(
        partitions=partitions, commit=group.commit, clock=clock, interval_seconds=5, faults=Faults()
    )
    running = asyncio.create_task(commit.run())
    await _turns()
    assert clock.sleepers == 1
    assert group.taken == []
    clock.advance_ms(5000)
    await _turns()
    assert group.taken == [{0: 5}]
    running.cancel()
