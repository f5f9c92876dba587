"""The intake: offsets contiguous, bytes bounded."""

from __future__ import annotations

import pytest

from services.meter.intake import RECORD_OVERHEAD_BYTES, Arrival, Intake, LogRecord
from tollgate.contracts.events import record_fingerprint


def _record(offset: int, value: bytes = b"x", partition: int = 0) -> LogRecord:
    return LogRecord(partition, offset, value, ())


def _intake(held_bytes_max: int = 1_000_000, next_offset: int = 5, fingerprint: str = "") -> Intake:
    intake = Intake(held_bytes_max)
    intake.assign(0, next_offset, fingerprint)
    return intake


def test_takes_contiguous_records_in_order() -> None:
    """What follows on the last record waits for a flush, in order."""
    intake = _intake()
    assert [intake.append(_record(offset)) for offset in (5, 6, 7)] == [Arrival.TAKEN] * 3
    chunk = intake.take(10**9)[0]
    assert (chunk.from_offset, chunk.next_offset) == (5, 8)
    assert [record.offset for record in chunk.records] == [5, 6, 7]
    assert chunk.fingerprint == record_fingerprint(7, b"x")


def test_drops_replays_and_says_so() -> None:
    """A record below the next offset was had before, whether it waits, is being flushed or is committed."""
    intake = _intake()
    intake.append(_record(5))
    assert intake.append(_record(5)) is Arrival.REPLAY
    intake.take(10**9)
    assert intake.append(_record(5)) is Arrival.REPLAY
    assert intake.append(_record(3)) is Arrival.REPLAY
    assert intake.next_offset(0) == 6


def test_drops_what_lies_beyond_a_gap() -> None:
    """A record above the next offset is not taken: something is missing before it."""
    intake = _intake()
    assert intake.append(_record(6)) is Arrival.GAP
    assert intake.next_offset(0) == 5
    assert intake.pending_bytes == 0


def test_drops_records_of_unassigned_partitions() -> None:
    """Before an assignment and after a revocation nothing is taken."""
    intake = _intake()
    assert intake.append(_record(0, partition=1)) is Arrival.FOREIGN
    intake.append(_record(5))
    intake.revoke(0)
    assert intake.append(_record(6)) is Arrival.FOREIGN
    assert intake.pending_bytes == 0
    assert intake.take(10**9) == {}


def test_recognises_a_log_that_was_rewritten() -> None:
    """The record before the last flush, read again with other bytes, betrays another log."""
    intake = _intake(fingerprint=record_fingerprint(4, b"counted"))
    assert intake.append(_record(4, b"counted")) is Arrival.REPLAY
    assert intake.append(_record(4, b"other")) is Arrival.REWRITTEN
    intake.append(_record(5, b"new"))
    intake.take(10**9)
    assert intake.append(_record(5, b"other")) is Arrival.REWRITTEN
    assert intake.append(_record(5, b"new")) is Arrival.REPLAY


def test_holds_a_bounded_number_of_bytes() -> None:
    """Room ends at the bound, counting what flushes have taken, and comes back with their release."""
    size = 1 + RECORD_OVERHEAD_BYTES
    intake = _intake(held_bytes_max=3 * size)
    for offset in (5, 6, 7):
        assert intake.has_room
        intake.append(_record(offset))
    assert not intake.has_room
    chunks = intake.take(2 * size)
    assert intake.held_bytes == 3 * size
    assert not intake.has_room
    intake.release(list(chunks.values()))
    assert intake.held_bytes == size
    assert intake.has_room


def test_a_flush_takes_a_bounded_number_of_bytes() -> None:
    """A backlog is cut at the bound, and the rest follows on it."""
    size = 1 + RECORD_OVERHEAD_BYTES
    intake = _intake()
    for offset in range(5, 15):
        intake.append(_record(offset))
    first = intake.take(4 * size)[0]
    second = intake.take(10**9)[0]
    assert (first.from_offset, first.next_offset) == (5, 9)
    assert (second.from_offset, second.next_offset) == (9, 15)
    assert intake.pending_bytes == 0


def test_a_record_larger_than_the_bound_is_taken_alone() -> None:
    """No record is too large to be flushed: it would wait for ever."""
    intake = _intake()
    intake.append(_record(5, b"x" * 5000))
    intake.append(_record(6))
    assert intake.take(1)[0].next_offset == 6


def test_partitions_take_turns() -> None:
    """With room for one, each partition with a backlog comes first in turn."""
    intake = Intake(10**9)
    for partition in range(3):
        intake.assign(partition, 0, "")
        for offset in range(10):
            intake.append(_record(offset, partition=partition))
    assert sorted(partition for _ in range(3) for partition in intake.take(1)) == [0, 1, 2]


def test_assigning_again_drops_what_waits() -> None:
    """A new assignment begins where it says, with nothing of the old one."""
    intake = _intake()
    intake.append(_record(5))
    intake.assign(0, 2, "")
    assert intake.pending_bytes == 0
    assert intake.next_offset(0) == 2


def test_a_bound_of_nothing_is_refused() -> None:
    """An intake that may hold nothing would never read."""
    with pytest.raises(ValueError, match="positive"):
        Intake(0)
