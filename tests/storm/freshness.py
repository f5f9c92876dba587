"""How fresh each stage is, looked at from outside twice a second: requests, the ledger, Stripe.

Owns the looking and the times of recovery that follow. It refuses to know what goes wrong meanwhile: who cannot be asked
is not fresh.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg
from aiokafka import AIOKafkaConsumer, TopicPartition

from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.runtime.kafka import new_consumer
from tollgate.runtime.settings import KafkaSettings

LOOK_SECONDS = 0.5
NEVER = float("inf")
_ASK_SECONDS = 2.0

_OLDEST_UNSETTLED = (
    "SELECT coalesce(min(planned_ms) FILTER (WHERE state IN ('planned', 'journalled', 'sending', 'unknown')), "
    "max(settled_ms)) FROM postings"
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What counts as fresh, in seconds."""

    requests: float = 2.0
    """The longest any request has been waiting for its 2xx."""
    ledger: float = 3.0
    """The age of the oldest record in the log that is not in the ledger."""
    stripe: float = 8.0
    """The age of the oldest posting whose outcome is not known; of the last settled one without such."""


@dataclass(frozen=True, slots=True)
class Look:
    """The ages at one moment."""

    at_seconds: float
    requests: float
    ledger: float
    stripe: float

    def is_fresh(self, limits: Limits) -> bool:
        """Whether every stage is."""
        return (
            self.requests <= limits.requests and self.ledger <= limits.ledger and self.stripe <= limits.stripe
        )


@dataclass(slots=True)
class Freshness:
    """A thread that looks. A context manager."""

    kafka: KafkaSettings
    """Of a door without a proxy."""
    ledger_url: str
    partitions: int
    waiting_seconds: Callable[[], float]
    started: float
    """On the monotonic clock: what looks' times count from."""
    looks: list[Look] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Freshness:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._look()), name="freshness")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        assert self._thread is not None
        self._thread.join()

    async def _look(self) -> None:
        log, ledger = _Log(self.kafka, self.partitions), _Ledger(self.ledger_url)
        try:
            while not self._over.is_set():
                began = time.monotonic()
                log_read = await log.read()
                next_offsets, settled_seconds = await asyncio.to_thread(ledger.read)
                counted = log.age(next_offsets) if log_read and next_offsets is not None else NEVER
                self.looks.append(
                    Look(
                        at_seconds=round(time.monotonic() - self.started, 2),
                        requests=self.waiting_seconds(),
                        ledger=counted,
                        stripe=settled_seconds,
                    )
                )
                await asyncio.sleep(max(0.0, LOOK_SECONDS - (time.monotonic() - began)))
        finally:
            await log.close()
            ledger.close()


class _Log:
    """How far each partition reached, and when that was first seen."""

    def __init__(self, settings: KafkaSettings, partitions: int) -> None:
        self._settings = settings
        topic = settings.topic_name(GATEWAY_EVENTS.name)
        self._partitions = [TopicPartition(topic, number) for number in range(partitions)]
        self._seen: dict[int, deque[tuple[float, int]]] = {n: deque() for n in range(partitions)}
        self._consumer: AIOKafkaConsumer | None = None

    async def read(self) -> bool:
        """Look at the log's ends; whether the brokers could be asked."""
        try:
            async with asyncio.timeout(_ASK_SECONDS):
                if self._consumer is None:
                    # Kept before it is started: one whose start fails has to be closed, too.
                    self._consumer = new_consumer(self._settings, client_id="storm", auto_offset_reset="none")
                    await self._consumer.start()
                ends = await self._consumer.end_offsets(self._partitions)
        except Exception:
            # Whatever the client makes of brokers that die: it is not fresh, and a new client asks next time.
            await self.close()
            return False
        now = time.monotonic()
        for partition, end in ends.items():
            seen = self._seen[partition.partition]
            if not seen or seen[-1][1] < end:
                seen.append((now, end))
        return True

    def age(self, next_offsets: dict[int, int]) -> float:
        """Seconds since the oldest record that is not in the ledger was first seen; 0 when all are in it."""
        oldest = now = time.monotonic()
        for partition, seen in self._seen.items():
            while seen and seen[0][1] <= next_offsets.get(partition, 0):
                # What this look saw is counted; the last one stays, so that an old end is no news.
                if len(seen) == 1:
                    break
                seen.popleft()
            if seen and seen[0][1] > next_offsets.get(partition, 0):
                oldest = min(oldest, seen[0][0])
        return now - oldest

    async def close(self) -> None:
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with suppress(Exception):
                async with asyncio.timeout(_ASK_SECONDS):
                    await consumer.stop()


class _Ledger:
    """Progress and postings, straight from the tables."""

    def __init__(self, url: str) -> None:
        self._url = url.replace("postgresql+psycopg", "postgresql", 1)
        self._connection: psycopg.Connection | None = None

    def read(self) -> tuple[dict[int, int] | None, float]:
        """Next offset by partition, and the age of what Stripe has; None and never when it cannot be asked."""
        try:
            if self._connection is None:
                self._connection = psycopg.connect(
                    self._url, autocommit=True, connect_timeout=2, options="-c statement_timeout=2000"
                )
            offsets: dict[int, int] = dict(
                self._connection.execute("SELECT partition, next_offset FROM progress").fetchall()
            )
            row = self._connection.execute(_OLDEST_UNSETTLED).fetchone()
        except psycopg.Error:
            self.close()
            return None, NEVER
        since_ms = row[0] if row else None
        # The services' clock is this machine's: an age between the two is one.
        return offsets, NEVER if since_ms is None else time.time() - int(since_ms) / 1000

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()


def recovery_seconds(
    looks: Sequence[Look], ended_seconds: float, next_began_seconds: float, limits: Limits
) -> float | None:
    """From a fault's end to the last look at which something is not fresh, 0 without such a look.

    Only looks before the next fault begins are judged: afterwards it would be two faults' recovery. None when there
    are none, or something is not fresh to the last of them. A worker that was killed goes stale only while its
    partitions wait for another: a fresh look right after the fault is no recovery yet.
    """
    judged = [look for look in looks if ended_seconds <= look.at_seconds < next_began_seconds]
    if not judged or not judged[-1].is_fresh(limits):
        return None
    stale = [look.at_seconds for look in judged if not look.is_fresh(limits)]
    return round(max(stale, default=ended_seconds) - ended_seconds, 2)
