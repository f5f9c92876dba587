"""Seen ids behave as a set with an ordered tail, whatever is staged, committed, discarded, expired and probed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tollgate.metering.outcome import Ids
from tollgate.metering.seen import SeenIds

DAYS = (19_000, 19_001, 19_002)
UNIVERSE = [number * 0x9E3779B97F4A7C15 % 2**64 for number in range(300)] + [0, 2**64 - 1]

ids_by_day = st.dictionaries(
    st.sampled_from(DAYS), st.sets(st.sampled_from(UNIVERSE), max_size=60), max_size=3
)


def as_ids(found: set[int]) -> Ids:
    return np.array(sorted(found), np.uint64)


class SeenAgainstSet(RuleBasedStateMachine):
    """The model is one dict of sets for what is committed and a list for the tail."""

    @initialize()
    def start(self) -> None:
        self.seen = SeenIds(10)
        self.committed: dict[int, set[int]] = {}
        self.tail: list[tuple[int, dict[int, set[int]]]] = []
        self.offset = 10

    @rule(new=ids_by_day, step=st.integers(1, 5))
    def stage(self, new: dict[int, set[int]], step: int) -> None:
        held = self._everything()
        fresh: dict[int, set[int]] = {}
        for day, ids in new.items():
            fresh[day] = ids - held
            held |= ids
        self.offset = self.seen.staged_offset + step
        self.seen.stage(self.offset, {day: as_ids(ids) for day, ids in fresh.items()})
        self.tail.append((self.offset, fresh))

    @rule(count=st.integers(1, 3))
    def commit(self, count: int) -> None:
        taken, self.tail = self.tail[:count], self.tail[count:]
        for to_offset, fresh in taken:
            self.seen.commit(to_offset)
            for day, ids in fresh.items():
                self.committed.setdefault(day, set()).update(ids)
            assert self.seen.committed_offset == to_offset

    @rule()
    def discard(self) -> None:
        self.seen.discard_tail()
        self.tail.clear()
        assert self.seen.staged_offset == self.seen.committed_offset

    @rule(day=st.sampled_from(DAYS))
    def expire(self, day: int) -> None:
        if self.tail:
            return
        self.seen.expire(day)
        self.committed = {held: ids for held, ids in self.committed.items() if held >= day}

    @invariant()
    def it_holds_what_the_model_holds(self) -> None:
        if hasattr(self, "seen"):
            held = self._everything()
            found = self.seen.probe(np.array(sorted(UNIVERSE), np.uint64))
            assert found.tolist() == [number in held for number in sorted(UNIVERSE)]
            assert self.seen.count == len(held)

    def _everything(self) -> set[int]:
        parts = [*self.committed.values(), *(ids for _, fresh in self.tail for ids in fresh.values())]
        return set().union(*parts)


TestSeenAgainstSet = SeenAgainstSet.TestCase
TestSeenAgainstSet.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


@given(st.integers(0, 2**32), st.integers(1, 30_000), st.integers(1, 400))
@settings(max_examples=10)
def test_large_sets_lose_nothing_and_add_nothing(seed: int, count: int, flushes: int) -> None:
    """Through growth of the filter and merges of runs, every id is found and no other."""
    ids = np.unique(np.random.default_rng(seed).integers(0, 2**64, 2 * count, dtype=np.uint64))
    inside, outside = ids[::2], ids[1::2]
    seen = SeenIds()
    for place, part in enumerate(
        np.array_split(np.random.default_rng(seed).permutation(inside), flushes), start=1
    ):
        seen.stage(place, {DAYS[place % 3]: np.sort(part)})
        seen.commit(place)
    assert seen.probe(inside).all()
    assert not seen.probe(outside).any()
    assert seen.count == inside.size
