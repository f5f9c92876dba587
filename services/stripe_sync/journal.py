"""The journal: every posting in `stripe.postings`, acknowledged by all replicas, before it is sent.

Owns writing entries and reading those the ledger may lack. It refuses to know what an import does with them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from tollgate.contracts.journal import (
    JOURNAL_HEADERS,
    JournalEntry,
    decode_journal_entry,
    encode_journal_entry,
)
from tollgate.contracts.topics import STRIPE_POSTINGS
from tollgate.ledger.posting_rows import Posting
from tollgate.ledger.types import format_quantity
from tollgate.runtime.kafka import new_consumer, topic_partitions
from tollgate.runtime.settings import KafkaSettings

_log = structlog.get_logger(__name__)

_POLL_MS = 500


class JournalUnavailable(Exception):
    """The broker did not acknowledge or answer. Entries may be in the journal or not: journal them again."""


class Journal(Protocol):
    """Where postings are written before they are sent."""

    async def append(self, postings: Sequence[Posting]) -> dict[int, int]:
        """Write entries; returns each touched partition's next offset. Raises JournalUnavailable."""
        ...

    async def read_from(self, positions: Mapping[int, int]) -> tuple[list[JournalEntry], dict[int, int]]:
        """Every entry from `positions` (a missing partition: its beginning) to the end, and the next offsets."""
        ...


def entry_from_posting(posting: Posting) -> JournalEntry:
    """A posting as it is journalled."""
    return JournalEntry(
        posting_key=posting.posting_key,
        seq=posting.seq,
        quantity_from=format_quantity(posting.quantity_from),
        quantity_to=format_quantity(posting.quantity_to),
        identifier=posting.identifier,
        idempotency_key=posting.idempotency_key,
        customer=posting.customer_id,
        meter_id=posting.meter_id,
        window_start_ms=posting.window_start_ms,
        timestamp_s=posting.timestamp_s,
        mode=str(posting.mode),
        body=posting.body,
        planned_ms=posting.planned_ms,
        planned_from=dict(posting.planned_from),
        for_period_ms=posting.for_period_ms,
    )


class KafkaJournal:
    """The journal in Kafka. The producer is started and stopped by the caller."""

    def __init__(self, settings: KafkaSettings, producer: AIOKafkaProducer) -> None:
        self._settings = settings
        self._topic = settings.topic_name(STRIPE_POSTINGS.name)
        self._producer = producer

    async def append(self, postings: Sequence[Posting]) -> dict[int, int]:
        positions: dict[int, int] = {}
        try:
            acknowledgements = [
                await self._producer.send(
                    self._topic,
                    value=encode_journal_entry(entry_from_posting(posting)),
                    key=posting.posting_key.encode(),
                    headers=JOURNAL_HEADERS,
                )
                for posting in postings
            ]
            for record in await asyncio.gather(*acknowledgements):
                positions[record.partition] = max(positions.get(record.partition, 0), record.offset + 1)
        except (KafkaError, OSError) as error:
            raise JournalUnavailable(f"{type(error).__name__}: {error}") from error
        return positions

    async def read_from(self, positions: Mapping[int, int]) -> tuple[list[JournalEntry], dict[int, int]]:
        try:
            return await self._read_from(positions)
        except (KafkaError, OSError) as error:
            raise JournalUnavailable(f"{type(error).__name__}: {error}") from error

    async def _read_from(self, positions: Mapping[int, int]) -> tuple[list[JournalEntry], dict[int, int]]:
        count = await topic_partitions(self._settings, STRIPE_POSTINGS.name)
        if count is None:
            raise JournalUnavailable(f"there is no topic {self._topic}: run `tollgate init`")
        consumer = new_consumer(
            self._settings, client_id="tollgate-stripe-sync-import", auto_offset_reset="earliest"
        )
        entries: list[JournalEntry] = []
        reached: dict[int, int] = {}
        await consumer.start()
        try:
            partitions = [TopicPartition(self._topic, number) for number in range(count)]
            consumer.assign(partitions)
            begin = await consumer.beginning_offsets(partitions)
            end = await consumer.end_offsets(partitions)
            for partition in partitions:
                known = positions.get(partition.partition, 0)
                if known > end[partition]:
                    # The journal was cut or made anew. The ledger has all that was in it up to there.
                    _log.error(
                        "journal.shrunk", partition=partition.partition, known=known, end=end[partition]
                    )
                reached[partition.partition] = min(max(known, begin[partition]), end[partition])
                consumer.seek(partition, reached[partition.partition])
            while any(reached[p.partition] < end[p] for p in partitions):
                for partition, records in (await consumer.getmany(timeout_ms=_POLL_MS)).items():
                    entries.extend(decode_journal_entry(record.value) for record in records)
                    reached[partition.partition] = records[-1].offset + 1
        finally:
            await consumer.stop()
        return entries, reached
