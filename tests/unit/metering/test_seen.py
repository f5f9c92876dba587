from __future__ import annotations

import numpy as np
import pytest

from tests.unit.metering.rows import DAY_MS, NOW_MS
from tollgate.metering.errors import InvariantViolated
from tollgate.metering.outcome import Ids, TimeRules
from tollgate.metering.seen import SeenIds, oldest_day


def ids(*numbers: int) -> Ids:
    return np.array(sorted(numbers), np.uint64)


def test_the_tail_is_seen_and_can_be_discarded() -> None:
    """What is staged is probed at once; a rollback leaves no trace."""
    seen = SeenIds(5)
    seen.load(1, ids(1))
    seen.stage(6, {1: ids(2), 2: ids(3)})
    assert seen.probe(ids(1, 2, 3, 4)).tolist() == [True, True, True, False]
    assert (seen.committed_offset, seen.staged_offset) == (5, 6)
    seen.discard_tail()
    assert seen.probe(ids(1, 2, 3)).tolist() == [True, False, False]
    assert (seen.count, seen.days, seen.staged_offset) == (1, (1,), 5)


def test_commits_go_up_to_an_offset() -> None:
    """A flush in flight keeps its place in the tail."""
    seen = SeenIds()
    seen.stage(1, {1: ids(1)})
    seen.stage(2, {1: ids(2)})
    seen.commit(1)
    seen.discard_tail()
    assert seen.probe(ids(1, 2)).tolist() == [True, False]
    assert seen.committed_offset == 1


def test_days_expire_whole() -> None:
    """But never a day that has something uncommitted."""
    seen = SeenIds()
    seen.load(1, ids(1))
    seen.load(2, ids(2))
    seen.stage(1, {1: ids(3)})
    seen.expire(2)
    assert seen.days == (1, 2)
    seen.commit(1)
    seen.expire(2)
    assert seen.probe(ids(1, 2, 3)).tolist() == [False, True, False]


def test_offsets_only_ascend() -> None:
    """What cannot be is refused before it does harm."""
    seen = SeenIds(5)
    with pytest.raises(InvariantViolated):
        seen.stage(4, {})
    for offset in (4, 6):
        with pytest.raises(InvariantViolated):
            seen.commit(offset)
    seen.stage(6, {})
    with pytest.raises(InvariantViolated, match="before anything is staged"):
        seen.load(1, ids(1))


def test_memory_is_a_dozen_bytes_an_id() -> None:
    """Eight bytes exact, and two to four of filter."""
    seen = SeenIds()
    drawn = np.unique(np.random.default_rng(1).integers(0, 2**64, 400_000, dtype=np.uint64))
    for place, part in enumerate(np.array_split(np.random.default_rng(2).permutation(drawn), 40), start=1):
        seen.stage(place, {1: np.sort(part)})
        seen.commit(place)
    assert seen.count == drawn.size
    assert 9 < seen.ram_bytes / seen.count < 12


def test_what_may_expire_follows_from_the_log() -> None:
    """A day is kept while an event of it could still be accepted, and one more."""
    rules = TimeRules(accept_age_ms=72 * 3_600_000)
    midnight = NOW_MS // DAY_MS * DAY_MS
    assert oldest_day(midnight, rules) == midnight // DAY_MS - 4
    assert oldest_day(midnight - 1, rules) == midnight // DAY_MS - 5
