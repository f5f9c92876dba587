"""The intake: records as the log gave them, contiguous per partition, until a flush takes them.

Owns what happens to a record's offset on arrival (the next one, a replay, a gap) and how many bytes may wait. It
refuses to know what a record holds, who assigned the partition and what a flush does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from tollgate.contracts.events import record_fingerprint

RECORD_OVERHEAD_BYTES = 1024
"""What a waiting record costs beside its value (objects, headers), so that many tiny records are bounded too."""


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record of the log, not looked into."""

    partition: int
    offset: int
    value: bytes
    headers: tuple[tuple[str, bytes], ...]

    @property
    def size_bytes(self) -> int:
        """What holding it counts against the intake's bound."""
        return len(self.value) + RECORD_OVERHEAD_BYTES


class Arrival(Enum):
    """What became of a record on arrival."""

    TAKEN = auto()
    """It was the next one and waits for a flush."""
    REPLAY = auto()
    """Below the next offset: had it before; dropped."""
    GAP = auto()
    """Above the next offset: records are missing before it; dropped, the log must be read again from the next."""
    REWRITTEN = auto()
    """A replay of the record before the last flush, with other bytes: this is not the log that was counted."""
    FOREIGN = auto()
    """Of a partition that is not (or no longer) assigned; dropped."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Contiguous records of one partition, `[from_offset, next_offset)`, taken by one flush."""

    partition: int
    from_offset: int
    records: tuple[LogRecord, ...]
    fingerprint: str
    """Of the last record."""

    @property
    def next_offset(self) -> int:
        return self.from_offset + len(self.records)


@dataclass(slots=True)
class _Buffer:
    base_offset: int
    base_fingerprint: str
    """Of record `base_offset - 1`; '' when it is not known."""
    records: list[LogRecord] = field(default_factory=list)
    bytes: int = 0

    @property
    def next_offset(self) -> int:
        return self.base_offset + len(self.records)


class Intake:
    """Buffers of the assigned partitions. One thread; nothing here waits.

    `held_bytes` counts what waits plus what flushes have taken and not yet released, so the one bound
    `held_bytes_max` covers every copy of a record this process keeps. It is passed by at most one record.
    """

    def __init__(self, held_bytes_max: int) -> None:
        if held_bytes_max <= 0:
            raise ValueError(f"held_bytes_max must be positive, not {held_bytes_max}")
        self._held_bytes_max = held_bytes_max
        self._buffers: dict[int, _Buffer] = {}
        self._pending_bytes = 0
        self._taken_bytes = 0
        self._turn = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes waiting for a flush."""
        return self._pending_bytes

    @property
    def held_bytes(self) -> int:
        """Bytes waiting, and bytes of flushes that are not done with."""
        return self._pending_bytes + self._taken_bytes

    @property
    def has_room(self) -> bool:
        """Whether another record should be accepted: False is the back-pressure."""
        return self.held_bytes < self._held_bytes_max

    def assign(self, partition: int, next_offset: int, fingerprint: str) -> None:
        """Accept `partition` from `next_offset` on, whose predecessor has `fingerprint`. Drops what it held."""
        self.revoke(partition)
        self._buffers[partition] = _Buffer(next_offset, fingerprint)

    def revoke(self, partition: int) -> None:
        """Forget `partition` and what waits of it. Unknown partitions are ignored."""
        buffer = self._buffers.pop(partition, None)
        if buffer is not None:
            self._pending_bytes -= buffer.bytes

    def next_offset(self, partition: int) -> int | None:
        """The offset that would be accepted next; None when the partition is not assigned."""
        buffer = self._buffers.get(partition)
        return None if buffer is None else buffer.next_offset

    def append(self, record: LogRecord) -> Arrival:
        """Accept the next record of its partition, or say why it is dropped.

        Accepts beyond the bound: whoever calls asks `has_room` first, and a record in hand has nowhere else to go.
        """
        buffer = self._buffers.get(record.partition)
        if buffer is None:
            return Arrival.FOREIGN
        if record.offset == buffer.next_offset:
            buffer.records.append(record)
            buffer.bytes += record.size_bytes
            self._pending_bytes += record.size_bytes
            return Arrival.TAKEN
        if record.offset > buffer.next_offset:
            return Arrival.GAP
        if (
            record.offset == buffer.base_offset - 1
            and buffer.base_fingerprint
            and record_fingerprint(record.offset, record.value) != buffer.base_fingerprint
        ):
            return Arrival.REWRITTEN
        return Arrival.REPLAY

    def take(self, bytes_max: int) -> Mapping[int, Chunk]:
        """Take waiting records for a flush, up to `bytes_max` (and one record more), in order within a partition.

        Partitions take turns at being first, so that a backlog of one cannot starve the others. The caller gives
        the bytes back with `release`.
        """
        chunks: dict[int, Chunk] = {}
        waiting = sorted(partition for partition, buffer in self._buffers.items() if buffer.records)
        if not waiting:
            return chunks
        first = self._turn % len(waiting)
        self._turn += 1
        left = bytes_max
        for partition in waiting[first:] + waiting[:first]:
            if left <= 0:
                break
            chunk, size = _cut(partition, self._buffers[partition], left)
            chunks[partition] = chunk
            left -= size
            self._pending_bytes -= size
            self._taken_bytes += size
        return chunks

    def release(self, chunks: Sequence[Chunk]) -> None:
        """A flush is done with these, committed or dropped."""
        self._taken_bytes -= sum(record.size_bytes for chunk in chunks for record in chunk.records)


def _cut(partition: int, buffer: _Buffer, bytes_max: int) -> tuple[Chunk, int]:
    """The first records of `buffer`, at least one, and their size. Swaps the list when it is taken whole."""
    if buffer.bytes <= bytes_max:
        taken, buffer.records, size = buffer.records, [], buffer.bytes
    else:
        count = size = 0
        for record in buffer.records:
            count += 1
            size += record.size_bytes
            if size >= bytes_max:
                break
        taken, buffer.records = buffer.records[:count], buffer.records[count:]
    last = taken[-1]
    chunk = Chunk(partition, buffer.base_offset, tuple(taken), record_fingerprint(last.offset, last.value))
    buffer.bytes -= size
    buffer.base_offset = chunk.next_offset
    buffer.base_fingerprint = chunk.fingerprint
    return chunk, size
