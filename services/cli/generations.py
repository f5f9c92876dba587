"""Generations of the log: which partition count was in force where, and what a recount has to read before what.

Owns working that out from the meter sets each offset was counted with. It refuses to know records and how they are
counted. A ledger that was never cut over has one generation.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tollgate.ledger.catalogue import load_layouts
from tollgate.ledger.cutover import find_parents
from tollgate.ledger.engine import Engine
from tollgate.ledger.progress import load_epochs


@dataclass(frozen=True, slots=True)
class Step:
    """What can be counted again in one go: each partition to `stop`. Then the new ones begin with their parents' ids."""

    stop: Mapping[int, int]
    parents: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class _Change:
    version: int
    """The first meter set of the new count."""
    before: int
    after: int


class Generations:
    """The partition counts of a log, by place."""

    def __init__(self, layouts: Mapping[int, int], epochs: Mapping[int, Sequence[tuple[int, int]]]) -> None:
        """`layouts`: partition count by version of the meter set, 0 where it is not known; `epochs`: by partition,
        (first offset, version) in order."""
        self._layouts = layouts
        self._epochs = epochs
        self._offsets = {partition: [first for first, _ in found] for partition, found in epochs.items()}
        said = [(version, count) for version, count in sorted(layouts.items()) if count]
        self._changes = [
            _Change(version, before, after)
            for (_, before), (version, after) in pairwise(said)
            if before != after
        ]

    def at(self, partition: int, offset: int) -> int:
        """The partition count in force at an offset; 0 where it is not known. Past what is counted: the last."""
        found = self._epochs.get(partition)
        if not found:
            return 0
        place = bisect_right(self._offsets[partition], offset) - 1
        return self._layouts.get(found[max(place, 0)][1], 0)

    def orphans(self, partitions: Collection[int]) -> list[int]:
        """Those of `partitions` that began with the ids of one that is not among them, or is an orphan itself."""
        parents = {child: parent for each in self._changes for child, parent in _parents(each).items()}
        there = set(partitions)
        for child in sorted(parents.keys() & there):
            # A parent's number is lower, so it has been judged.
            if parents[child] not in there:
                there.remove(child)
        return sorted(set(partitions) - there)

    def steps(self, stop: Mapping[int, int]) -> Iterator[Step]:
        """How to count again up to `stop` (first offset not counted, by partition)."""
        for change in self._changes:
            until = {
                partition: min(end, self._begin(partition, change, end))
                for partition, end in stop.items()
                if partition < change.before
            }
            yield Step(until, _parents(change))
        yield Step(dict(stop), {})

    def _begin(self, partition: int, change: _Change, end: int) -> int:
        """The first offset of `partition` that was counted after `change`; `end` where none was."""
        offsets = [first for first, version in self._epochs.get(partition, ()) if version >= change.version]
        return min(offsets, default=end)


def load_generations(engine: Engine, partitions: Collection[int]) -> Generations:
    """The generations of the log a ledger counts."""
    return Generations(
        load_layouts(engine), {partition: load_epochs(engine, partition) for partition in partitions}
    )


def _parents(change: _Change) -> dict[int, int]:
    return find_parents(change.before, change.after)
