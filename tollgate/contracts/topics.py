"""The topics: name, key, value, the one service that writes each, and who reads it.

Owns the table below and nothing else. It refuses to know how a topic is created (`tollgate.runtime.kafka`)
or how a value is stored. Names are bare; `KafkaSettings.topic_prefix` is put in front at the edges.
"""

from __future__ import annotations

from dataclasses import dataclass

_DAY_MS = 24 * 60 * 60 * 1000

DEFAULT_PARTITIONS = 24
"""Divides evenly among 1, 2, 3, 4, 6, 8, 12 or 24 meter workers. Only a cut-over changes it once used."""


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic of the log. `keyed_by` and `value` say in words what a record holds."""

    name: str
    keyed_by: str
    value: str
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    retention_ms: int


GATEWAY_EVENTS = Topic(
    name="gateway.events",
    keyed_by="no key; partition = xxh3_64(account) mod partitions",
    value="an Arrow IPC stream holding one record batch of contract events/1, a tick/1, or an amendments/1",
    writers=("ingest", "operators (tollgate amend)"),
    readers=("meter", "archive", "operators (tollgate events, replay, verify)"),
    retention_ms=7 * _DAY_MS,
)
GATEWAY_DEAD = Topic(
    name="gateway.dead",
    keyed_by="source, or 'topic/partition/offset' of the record an event came from",
    value="dead/1: the original bytes, the reason and where it came from",
    writers=("ingest", "meter"),
    readers=("operators (tollgate dead)",),
    retention_ms=35 * _DAY_MS,
)
STRIPE_EVENTS = Topic(
    name="stripe.events",
    keyed_by="Stripe customer id, else the event id",
    value="a verified webhook event, as the raw JSON body Stripe sent",
    writers=("webhooks",),
    readers=("webhooks (projector)",),
    retention_ms=35 * _DAY_MS,
)
STRIPE_POSTINGS = Topic(
    name="stripe.postings",
    keyed_by="posting key",
    value="posting/1: one posting, journalled before it is sent",
    writers=("stripe_sync",),
    readers=("stripe_sync (after a restore of the ledger)",),
    retention_ms=90 * _DAY_MS,
)

TOPICS: tuple[Topic, ...] = (GATEWAY_EVENTS, GATEWAY_DEAD, STRIPE_EVENTS, STRIPE_POSTINGS)
