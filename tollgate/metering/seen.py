"""Seen ids: which events of one partition were folded already.

Owns the in-memory set and its tail of what is not committed yet. It refuses to know where ids are stored and what an
event is.

An id is a uniformly distributed 64-bit hash. Ids are kept in segments by event day, which expire whole. A segment is a
blocked Bloom filter (one 64-bit word per id, so one memory access per probe) in front of sorted runs, which merge in
size tiers: each id is merged a logarithmic number of times. The filter may say yes wrongly; the runs decide.

The set is always `ledger at committed_offset` plus the staged tail. Rolling back is dropping the tail.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tollgate.metering.errors import InvariantViolated
from tollgate.metering.outcome import Ids, TimeRules
from tollgate.metering.window import DAY_MS, epoch_day

_IDS_PER_WORD = 5
"""At full load: 13 bits an id and about one false yes in a hundred. Just after growing, twice the bits."""

_WORDS_MIN = 1 << 8
_TIER_RATIO = 4
"""A run is merged into its neighbour when that is less than this many times larger."""

_MARGIN_DAYS = 1
"""Ingest instances' clocks differ, and a request may wait for the broker: a day covers both."""


def oldest_day(ingest_ms: int, rules: TimeRules) -> int:
    """The oldest event day whose ids must still be kept, given the highest ingest time folded so far."""
    return epoch_day(ingest_ms - rules.accept_age_ms) - _MARGIN_DAYS


def _masks(ids: Ids) -> Ids:
    """Four bits of a 64-bit word per id, from its low 24 bits; the word itself is chosen by the high ones."""
    one, low_six = np.uint64(1), np.uint64(63)
    masks = one << (ids & low_six)
    for shift in (6, 12, 18):
        masks |= one << ((ids >> np.uint64(shift)) & low_six)
    return masks


def _merge(left: Ids, right: Ids) -> Ids:
    merged = np.concatenate([left, right])
    merged.sort()
    return merged


def _in_sorted(run: Ids, ids: Ids) -> npt.NDArray[np.bool_]:
    at = np.searchsorted(run, ids)
    at[at == run.size] = 0
    found: npt.NDArray[np.bool_] = run[at] == ids
    return found


@dataclass(slots=True)
class _Segment:
    """The ids of one event day."""

    runs: list[Ids] = field(default_factory=list)
    tail: list[tuple[int, Ids]] = field(default_factory=list)
    words: Ids = field(default_factory=lambda: np.zeros(_WORDS_MIN, np.uint64))
    marked: int = 0
    """Ids marked in the filter: discarded ones stay marked until it grows."""

    def probe(self, ids: Ids, masks: Ids) -> npt.NDArray[np.bool_]:
        maybe = np.flatnonzero((self.words[self._word_of(ids)] & masks) == masks)
        found = np.zeros(ids.size, np.bool_)
        if maybe.size:
            asked = ids[maybe]
            hits = np.zeros(asked.size, np.bool_)
            for run in self._sorted_arrays():
                hits |= _in_sorted(run, asked)
            found[maybe] = hits
        return found

    def mark(self, ids: Ids) -> None:
        """Make the filter say yes to ids that are in a run or the tail already."""
        if self.marked + ids.size > self.words.size * _IDS_PER_WORD:
            self._grow()
            return
        self._set_bits(ids)
        self.marked += ids.size

    def push(self, ids: Ids) -> None:
        """Add a sorted run and merge what is of a size."""
        self.runs.append(ids)
        while len(self.runs) > 1 and self.runs[-2].size < _TIER_RATIO * self.runs[-1].size:
            last = self.runs.pop()
            self.runs[-1] = _merge(self.runs[-1], last)

    @property
    def count(self) -> int:
        return sum(array.size for array in self._sorted_arrays())

    @property
    def ram_bytes(self) -> int:
        return self.words.nbytes + sum(array.nbytes for array in self._sorted_arrays())

    def _sorted_arrays(self) -> list[Ids]:
        return [*self.runs, *(ids for _, ids in self.tail)]

    def _word_of(self, ids: Ids) -> Ids:
        return ids >> np.uint64(64 - (self.words.size.bit_length() - 1))

    def _set_bits(self, ids: Ids) -> None:
        # Sorted ids fall into ascending words: OR the masks of each word at once, then touch it once.
        word_of = self._word_of(ids)
        starts = np.flatnonzero(np.concatenate(([True], word_of[1:] != word_of[:-1])))
        self.words[word_of[starts]] |= np.bitwise_or.reduceat(_masks(ids), starts)

    def _grow(self) -> None:
        arrays = self._sorted_arrays()
        self.marked = sum(array.size for array in arrays)
        size = _WORDS_MIN
        while size * _IDS_PER_WORD < self.marked:
            size *= 2
        self.words = np.zeros(size, np.uint64)
        for array in arrays:
            if array.size:
                self._set_bits(array)


class SeenIds:
    """The ids of one partition up to `committed_offset`, and a staged tail.

    Not thread-safe: one flush at a time owns it.
    """

    def __init__(self, committed_offset: int = 0) -> None:
        self._segments: dict[int, _Segment] = {}
        self._staged_offset: int | None = None
        self._committed_offset = committed_offset

    @property
    def committed_offset(self) -> int:
        """The ledger's `next_offset` this set equals, its tail left out."""
        return self._committed_offset

    @property
    def staged_offset(self) -> int:
        """The offset the set equals with its tail."""
        return self._committed_offset if self._staged_offset is None else self._staged_offset

    @property
    def count(self) -> int:
        """Ids held, the tail included."""
        return sum(segment.count for segment in self._segments.values())

    @property
    def ram_bytes(self) -> int:
        """Bytes of the arrays held."""
        return sum(segment.ram_bytes for segment in self._segments.values())

    @property
    def days(self) -> tuple[int, ...]:
        """The event days there are segments of, ascending."""
        return tuple(sorted(self._segments))

    def probe(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Which of `ids` are in the set or its tail. Fastest when they are sorted."""
        found = np.zeros(ids.size, np.bool_)
        if ids.size and self._segments:
            masks = _masks(ids)
            for segment in self._segments.values():
                found |= segment.probe(ids, masks)
        return found

    def stage(self, to_offset: int, ids_by_day: Mapping[int, Ids]) -> None:
        """Add the ids of a flush that ends at `to_offset` to the tail: visible to `probe`, not committed.

        Each array is sorted and holds none of the set. Raises InvariantViolated when offsets do not ascend.
        """
        if to_offset < self.staged_offset:
            raise InvariantViolated(f"staged to {to_offset} after {self.staged_offset}")
        self._staged_offset = to_offset
        for day, ids in ids_by_day.items():
            if ids.size:
                segment = self._segments.setdefault(day, _Segment())
                segment.tail.append((to_offset, ids))
                segment.mark(ids)

    def commit(self, to_offset: int) -> None:
        """The ledger holds everything below `to_offset`: the tail up to there becomes part of the set.

        Raises InvariantViolated when that was never staged.
        """
        if not self._committed_offset <= to_offset <= self.staged_offset:
            raise InvariantViolated(
                f"commit to {to_offset}: committed {self._committed_offset}, staged {self.staged_offset}"
            )
        for segment in self._segments.values():
            while segment.tail and segment.tail[0][0] <= to_offset:
                segment.push(segment.tail.pop(0)[1])
        self._committed_offset = to_offset
        if self._staged_offset == to_offset:
            self._staged_offset = None

    def discard_tail(self) -> None:
        """Forget what is not committed (a rollback, a seek, a missed compare-and-set)."""
        for segment in self._segments.values():
            segment.tail.clear()
        self._segments = {day: segment for day, segment in self._segments.items() if segment.runs}
        self._staged_offset = None

    def expire(self, before_day: int) -> None:
        """Forget the committed ids of all days before `before_day`. A day with a tail is kept until it is committed."""
        self._segments = {
            day: segment for day, segment in self._segments.items() if day >= before_day or segment.tail
        }

    def copy(self) -> SeenIds:
        """Another set with the ids committed here, at offset 0 of another partition: what it begins with."""
        made = SeenIds()
        for day, segment in self._segments.items():
            for run in segment.runs:
                made.load(day, run)
        return made

    def load(self, day: int, ids: Ids) -> None:
        """Add sorted ids of the ledger to the set while rebuilding it. Raises InvariantViolated with a tail present."""
        if self._staged_offset is not None:
            raise InvariantViolated("seen ids are loaded before anything is staged")
        if ids.size:
            segment = self._segments.setdefault(day, _Segment())
            segment.push(ids)
            segment.mark(ids)


def day_of(time_ms: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`epoch_day` of many instants."""
    return time_ms // DAY_MS
