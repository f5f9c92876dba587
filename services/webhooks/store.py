"""The store: verified events, put into the topic `stripe.events` before anybody is told they arrived.

Owns the producing and the record's shape: the raw body under the customer's id, with headers. It refuses to know what
an event leads to.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from services.webhooks.event import StripeEvent

CONTRACT = "stripe-event/1"
"""The record's value is the JSON body as Stripe sent it (or, from a poll, as its list gave it)."""


class StoreUnavailable(Exception):
    """The broker did not acknowledge. The event may or may not be in the log; sending it again is harmless."""


class EventStore(Protocol):
    """Somewhere an event is safe."""

    async def put(self, event: StripeEvent, body: bytes, received_ms: int) -> None:
        """Return once the event would survive any crash. Raises StoreUnavailable."""
        ...


class KafkaEventStore:
    """The topic. `topic` is its full name; the producer is started and closed by the caller."""

    def __init__(self, producer: AIOKafkaProducer, topic: str, timeout_seconds: float) -> None:
        self._producer = producer
        self._topic = topic
        self._timeout_seconds = timeout_seconds

    async def put(self, event: StripeEvent, body: bytes, received_ms: int) -> None:
        headers = [
            ("contract", CONTRACT.encode()),
            ("event_id", event.event_id.encode()),
            ("type", event.type.encode()),
            ("received_ms", str(received_ms).encode()),
        ]
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._producer.send_and_wait(
                    self._topic, value=body, key=event.key.encode(), headers=headers
                )
        except (KafkaError, TimeoutError) as error:
            raise StoreUnavailable(type(error).__name__) from error
