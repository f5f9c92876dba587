"""A log in memory: partitions of records with offsets, deletable from the front, and able to be unreachable."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from services.meter.intake import LogRecord
from services.meter.log import LogBounds, LogUnavailable
from tollgate.metering.outcome import DeadEvents


@dataclass(slots=True)
class _Partition:
    start: int = 0
    records: list[LogRecord] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.start + len(self.records)


class MemoryLog:
    """One topic. Implements `services.meter.log.Log`."""

    def __init__(self, partitions: int) -> None:
        self._partitions = {partition: _Partition() for partition in range(partitions)}
        self.unreachable = False

    def append(self, partition: int, value: bytes, headers: Sequence[tuple[str, bytes]]) -> LogRecord:
        """Write a record at the end of `partition`."""
        held = self._partitions[partition]
        record = LogRecord(partition, held.end, value, tuple(headers))
        held.records.append(record)
        return record

    def records(self, partition: int, from_offset: int = 0) -> Sequence[LogRecord]:
        """What the partition holds from `from_offset` on."""
        held = self._partitions[partition]
        return held.records[max(0, from_offset - held.start) :]

    def delete_before(self, partition: int, offset: int) -> None:
        """What retention does."""
        held = self._partitions[partition]
        held.records = held.records[max(0, offset - held.start) :]
        held.start = max(held.start, offset)

    def recreate(self, partition: int) -> None:
        """What deleting and creating the topic does."""
        self._partitions[partition] = _Partition()

    def bounds_of(self, partition: int) -> LogBounds:
        held = self._partitions[partition]
        return LogBounds(held.start, held.end)

    async def bounds(self, partitions: Collection[int]) -> Mapping[int, LogBounds]:
        self._reach()
        return {partition: self.bounds_of(partition) for partition in partitions}

    async def read(self, partition: int, offset: int) -> bytes | None:
        self._reach()
        held = self._partitions[partition]
        return held.records[offset - held.start].value if held.start <= offset < held.end else None

    def _reach(self) -> None:
        if self.unreachable:
            raise LogUnavailable("the log in memory is unreachable")


class MemoryDeadLetters:
    """Dead letters in a list. Implements `services.meter.dead.DeadLetters`."""

    def __init__(self) -> None:
        self.letters: list[DeadEvents] = []
        self.unreachable = False

    async def bury(self, dead: Sequence[DeadEvents]) -> None:
        if self.unreachable:
            raise LogUnavailable("dead letters cannot be written")
        self.letters.extend(dead)
