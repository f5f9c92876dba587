"""Two small topics of a run: `stripe.events`, which the projector reads, and `stripe.postings`, the journal.

Owns their records and offsets. It refuses to know what is in them. Both outlive every process.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from aiokafka import TopicPartition

from services.stripe_sync.journal import JournalUnavailable, entry_from_posting
from tests.simulation.trouble import Troubles
from tollgate.contracts.journal import JournalEntry, decode_journal_entry, encode_journal_entry
from tollgate.ledger.posting_rows import Posting

PARTITIONS = 2


@dataclass(frozen=True, slots=True)
class TopicRecord:
    """What the projector's consumer reads of a record."""

    offset: int
    value: bytes


@dataclass(slots=True)
class FakeTopic:
    """`stripe.events`: records by partition, and the group's offsets."""

    records: dict[TopicPartition, list[TopicRecord]] = field(
        default_factory=lambda: {TopicPartition("stripe.events", n): [] for n in range(PARTITIONS)}
    )
    committed: dict[TopicPartition, int] = field(default_factory=dict)
    _waiting: list[asyncio.Future[None]] = field(default_factory=list)

    def append(self, key: str, body: bytes) -> None:
        """Write an event; those of one key stay in order."""
        partition = TopicPartition("stripe.events", sum(key.encode()) % PARTITIONS)
        records = self.records[partition]
        records.append(TopicRecord(len(records), body))
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
        self._waiting.clear()

    async def wait_for_more(self, seconds: float) -> None:
        """Return when something is written, or after a while."""
        more: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(more)
        await asyncio.wait({more}, timeout=seconds)

    @property
    def ends(self) -> dict[TopicPartition, int]:
        return {partition: len(records) for partition, records in self.records.items()}


class TopicHandle:
    """One projector's consumer of it: implements `services.webhooks.consumer.Log`."""

    def __init__(self, topic: FakeTopic, troubles: Troubles, rng: random.Random) -> None:
        self._topic = topic
        self._troubles = troubles
        self._rng = rng
        self._at = {partition: topic.committed.get(partition, 0) for partition in topic.records}
        self._paused: set[TopicPartition] = set()

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int = 0, max_records: int | None = None
    ) -> Mapping[TopicPartition, Sequence[TopicRecord]]:
        if self._troubles.strikes("webhooks.poll") == "replay":
            self._at = {partition: max(0, at - 3) for partition, at in self._at.items()}
        found: dict[TopicPartition, Sequence[TopicRecord]] = {}
        for partition, at in self._at.items():
            if partition not in self._paused:
                records = self._topic.records[partition][at : at + (max_records or 100)]
                if records:
                    found[partition] = records
                    self._at[partition] = at + len(records)
        if found:
            await asyncio.sleep(0.005)
        else:
            await self._topic.wait_for_more(timeout_ms / 1000)
        return found

    def assignment(self) -> frozenset[TopicPartition]:
        return frozenset(self._at)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._at[partition] = offset

    def pause(self, *partitions: TopicPartition) -> None:
        self._paused.update(partitions)

    def resume(self, *partitions: TopicPartition) -> None:
        self._paused.difference_update(partitions)

    def highwater(self, partition: TopicPartition) -> int | None:
        return len(self._topic.records[partition])

    async def commit(self, offsets: Mapping[TopicPartition, int] | None = None) -> None:
        if self._troubles.strikes("webhooks.offset") is None:
            self._topic.committed.update(offsets or {})


@dataclass(slots=True)
class FakeJournal:
    """`stripe.postings`."""

    records: dict[int, list[bytes]] = field(default_factory=lambda: {n: [] for n in range(PARTITIONS)})


class JournalHandle:
    """One stripe_sync's journal: implements `services.stripe_sync.journal.Journal`."""

    def __init__(self, journal: FakeJournal, troubles: Troubles, rng: random.Random) -> None:
        self._journal = journal
        self._troubles = troubles
        self._rng = rng

    async def append(self, postings: Sequence[Posting]) -> dict[int, int]:
        kind = self._troubles.strikes("sync.journal")
        await asyncio.sleep(self._rng.choice((0.001, 0.01)))
        if kind == "unavailable":
            raise JournalUnavailable("no broker")
        positions: dict[int, int] = {}
        for count, posting in enumerate(postings):
            if kind == "half" and count * 2 >= len(postings):
                break
            partition = sum(posting.posting_key.encode()) % PARTITIONS
            records = self._journal.records[partition]
            records.append(encode_journal_entry(entry_from_posting(posting)))
            positions[partition] = len(records)
        if kind in ("lost_ack", "half"):
            raise JournalUnavailable("the acknowledgement was lost")
        return positions

    async def read_from(self, positions: Mapping[int, int]) -> tuple[list[JournalEntry], dict[int, int]]:
        kind = self._troubles.strikes("sync.import")
        await asyncio.sleep(0.01)
        if kind is not None:
            raise JournalUnavailable("no broker")
        entries = [
            decode_journal_entry(record)
            for partition, records in self._journal.records.items()
            for record in records[positions.get(partition, 0) :]
        ]
        return entries, {partition: len(records) for partition, records in self._journal.records.items()}
