"""A partition in this process' hands: what is in memory for it, and whether the log is still the one that was counted.

Owns the judgement of a log against the ledger, and bringing a partition's state into memory. It refuses to know
Faust and when partitions come and go.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from services.meter.log import LogBounds
from tollgate.contracts.events import record_fingerprint
from tollgate.metering.seen import SeenIds


class StopReason(StrEnum):
    """Why a partition is not counted until an operator has looked."""

    TRUNCATED = "truncated"
    """The log begins after the next offset: records were deleted before they were counted."""
    TOO_SHORT = "too_short"
    """The log ends before the next offset: recreated, or its tail was lost."""
    REWRITTEN = "rewritten"
    """The record before the next offset is another one: recreated, swapped or restored."""
    GAP = "gap"
    """The log repeatedly skips the next offset though it says it has it."""
    UNKNOWN = "unknown"
    """The ledger has no progress for it: the topic has more partitions than the ledger was initialised for."""


@dataclass(frozen=True, slots=True)
class Stopped:
    """A partition that is not counted, and why, in words an operator can act on."""

    reason: StopReason
    detail: str


def needs_predecessor(next_offset: int, fingerprint: str, bounds: LogBounds) -> bool:
    """Whether the record before `next_offset` can be read and has something to be compared with."""
    return bool(fingerprint) and bounds.start < next_offset <= bounds.end


def judge_log(
    next_offset: int, fingerprint: str, bounds: LogBounds, predecessor: bytes | None
) -> Stopped | None:
    """Whether counting may go on at `next_offset` of this log; None when it may.

    `predecessor` is the value of record `next_offset - 1`, looked at only when `needs_predecessor`. When retention
    has deleted exactly everything before `next_offset`, nothing is missing and nothing can be compared.
    """
    if bounds.start > next_offset:
        return Stopped(
            StopReason.TRUNCATED,
            f"the next offset to count is {next_offset}, the log begins at {bounds.start}: "
            f"{bounds.start - next_offset} records were deleted before they were counted",
        )
    if bounds.end < next_offset:
        return Stopped(
            StopReason.TOO_SHORT,
            f"the next offset to count is {next_offset}, the log ends at {bounds.end}: "
            "the topic was recreated or lost its tail",
        )
    if not needs_predecessor(next_offset, fingerprint, bounds):
        return None
    found = None if predecessor is None else record_fingerprint(next_offset - 1, predecessor)
    if found != fingerprint:
        return Stopped(
            StopReason.REWRITTEN,
            f"record {next_offset - 1} was {fingerprint} when it was counted and is "
            f"{found or 'not in the log'} now: the topic was recreated, swapped or restored",
        )
    return None


@dataclass(slots=True, eq=False)
class AssignedPartition:
    """What is in memory for one assignment of one partition. A later assignment is another object, so that whatever
    still holds this one can tell that it no longer counts (`Partitions.holds`)."""

    partition: int
    committed_offset: int
    """The ledger's next offset, as far as we know."""
    seen: SeenIds
    """The ledger's ids at `committed_offset`, and a tail of what is staged. Touched on the folding thread only."""
    expired_before_day: int
    misses: int = 0
    """Compare-and-sets missed in a row, carried over from assignment to assignment."""
    flushes: int = 0
    """Committed since this assignment: how many rows of seen ids it has added, or nearly."""


class Partitions:
    """The partitions being counted right now."""

    def __init__(self) -> None:
        self._assigned: dict[int, AssignedPartition] = {}

    def __iter__(self) -> Iterator[AssignedPartition]:
        return iter(list(self._assigned.values()))

    def __len__(self) -> int:
        return len(self._assigned)

    def get(self, partition: int) -> AssignedPartition | None:
        return self._assigned.get(partition)

    def holds(self, assigned: AssignedPartition) -> bool:
        """Whether `assigned` is still the present assignment of its partition."""
        return self._assigned.get(assigned.partition) is assigned

    def put(self, assigned: AssignedPartition) -> None:
        self._assigned[assigned.partition] = assigned

    def remove(self, partition: int) -> AssignedPartition | None:
        return self._assigned.pop(partition, None)

    def committed_offsets(self) -> Mapping[int, int]:
        """The ledger's next offset of each."""
        return {partition: each.committed_offset for partition, each in self._assigned.items()}


def rebuild_seen(next_offset: int, blobs: Iterable[tuple[int, int, bytes]]) -> SeenIds:
    """The seen ids of a partition whose ledger stands at `next_offset`, from the ledger's blobs."""
    seen = SeenIds(committed_offset=next_offset)
    for day, _, ids in blobs:
        seen.load(day, np.frombuffer(ids, dtype="<u8"))
    return seen
