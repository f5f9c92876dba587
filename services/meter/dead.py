"""Dead letters: the copies of what could not be counted, put into `gateway.dead` before the ledger says it is dead.

Owns turning the fold's dead events into `dead/1` records and having them acknowledged. It refuses to know why an
event is dead. A flush that is repeated writes its letters again under the same key
(`topic/partition/offset`): readers see a letter at least once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from services.meter.log import LogUnavailable
from tollgate.contracts.dead import DEAD_HEADERS, DeadLetter, encode_dead_letter
from tollgate.metering.outcome import DeadEvents

LETTER_PAYLOAD_BYTES_MAX = 4 * 1024 * 1024
"""Half of the largest record the producer may write, so that envelope and key always fit beside the payload."""


class DeadLetters(Protocol):
    """Where dead events go."""

    async def bury(self, dead: Sequence[DeadEvents]) -> None:
        """Return once every letter is acknowledged by all replicas. Raises LogUnavailable: try all of them again."""
        ...


class KafkaDeadLetters:
    """Dead letters on Kafka. `topic` and `events_topic` are full names; the producer is started by the caller."""

    def __init__(
        self, producer: AIOKafkaProducer, topic: str, events_topic: str, timeout_seconds: float
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._events_topic = events_topic
        self._timeout_seconds = timeout_seconds

    async def bury(self, dead: Sequence[DeadEvents]) -> None:
        try:
            async with asyncio.timeout(self._timeout_seconds):
                acknowledgements = [
                    await self._producer.send(
                        self._topic,
                        value=encode_dead_letter(self._letter(each)),
                        key=f"{self._events_topic}/{each.partition}/{each.offset}".encode(),
                        headers=DEAD_HEADERS,
                    )
                    for each in dead
                ]
                await asyncio.gather(*acknowledgements)
        except (KafkaError, OSError, TimeoutError) as error:
            raise LogUnavailable(f"dead letters to {self._topic}: {error!r}") from error

    def _letter(self, dead: DeadEvents) -> DeadLetter:
        payload, detail = dead.payload, dead.detail
        if len(payload) > LETTER_PAYLOAD_BYTES_MAX:
            # The original stays in the log at the offset the letter names, for as long as the log is kept.
            detail = f"{detail} (cut from {len(payload)} bytes; the whole is at the offset named)"
            payload = payload[:LETTER_PAYLOAD_BYTES_MAX]
        return DeadLetter(
            reason=dead.reason,
            detail=detail,
            source=dead.source,
            rows=dead.rows,
            format=dead.format,
            payload=payload,
            ingest_ms=dead.ingest_ms,
            topic=self._events_topic,
            partition=dead.partition,
            offset=dead.offset,
            account=dead.account,
            time_ms=dead.time_ms,
        )
