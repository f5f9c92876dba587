"""The judgement of a log against the ledger."""

from __future__ import annotations

import numpy as np
import pytest

from services.meter.log import LogBounds
from services.meter.partition import (
    AssignedPartition,
    Partitions,
    StopReason,
    judge_log,
    needs_predecessor,
    rebuild_seen,
)
from tollgate.contracts.events import record_fingerprint
from tollgate.metering.seen import SeenIds

COUNTED = record_fingerprint(9, b"counted")


@pytest.mark.parametrize(
    ("next_offset", "fingerprint", "bounds", "predecessor", "expected"),
    [
        (0, "", LogBounds(0, 0), None, None),
        (0, "", LogBounds(0, 50), None, None),
        (10, COUNTED, LogBounds(0, 10), b"counted", None),
        (10, COUNTED, LogBounds(9, 50), b"counted", None),
        (10, COUNTED, LogBounds(10, 50), None, None),
        (10, COUNTED, LogBounds(11, 50), None, StopReason.TRUNCATED),
        (10, COUNTED, LogBounds(0, 9), None, StopReason.TOO_SHORT),
        (10, COUNTED, LogBounds(0, 50), b"other", StopReason.REWRITTEN),
        (10, COUNTED, LogBounds(0, 50), None, StopReason.REWRITTEN),
        (10, record_fingerprint(8, b"counted"), LogBounds(0, 50), b"counted", StopReason.REWRITTEN),
    ],
)
def test_only_the_counted_log_is_counted_on(
    next_offset: int,
    fingerprint: str,
    bounds: LogBounds,
    predecessor: bytes | None,
    expected: StopReason | None,
) -> None:
    """The log must reach the next offset and hold, just before it, the record that was counted last."""
    stopped = judge_log(next_offset, fingerprint, bounds, predecessor)
    assert (stopped.reason if stopped else None) == expected


def test_a_stop_says_what_was_found() -> None:
    """The words name the offsets, so that an operator sees how much is gone."""
    stopped = judge_log(10, COUNTED, LogBounds(14, 50), None)
    assert stopped is not None
    assert "4 records were deleted" in stopped.detail


def test_the_predecessor_is_read_only_where_there_is_one() -> None:
    """Before the first record, and after retention took everything counted, there is nothing to compare."""
    assert not needs_predecessor(0, "", LogBounds(0, 5))
    assert not needs_predecessor(10, COUNTED, LogBounds(10, 20))
    assert needs_predecessor(10, COUNTED, LogBounds(9, 20))


def test_a_later_assignment_is_another_one() -> None:
    """Whoever holds the object of an earlier assignment can tell that it counts no more."""
    partitions = Partitions()
    first, second = (AssignedPartition(0, 5, SeenIds(5), 0) for _ in range(2))
    partitions.put(first)
    assert partitions.holds(first)
    partitions.put(second)
    assert not partitions.holds(first)
    assert partitions.holds(second)
    assert partitions.committed_offsets() == {0: 5}
    assert partitions.remove(0) is second
    assert not partitions.holds(second)


def test_seen_ids_are_rebuilt_from_the_ledgers_blobs() -> None:
    """Every id of every blob is recognised, no other, and the set is tagged with the ledger's offset."""
    blobs = [(1, 10, np.array([3, 7], "<u8").tobytes()), (1, 20, np.array([5], "<u8").tobytes())]
    seen = rebuild_seen(20, blobs)
    assert seen.probe(np.array([3, 4, 5, 6, 7], np.uint64)).tolist() == [True, False, True, False, True]
    assert seen.committed_offset == 20
