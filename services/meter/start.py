"""The start: what the ledger and the broker are asked before anything is counted.

Owns waiting for both, and refusing any that are not the pinned ones. It refuses to know what is counted afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from aiokafka.errors import KafkaError

from services.meter.settings import MeterSettings
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.ledger.engine import Engine, LedgerUnavailable
from tollgate.ledger.init import check_pins, read_rules
from tollgate.ledger.migrations import check_schema
from tollgate.metering.outcome import TimeRules
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock
from tollgate.runtime.health import Health
from tollgate.runtime.kafka import ClusterUnidentified, cluster_id, topic_partitions

T = TypeVar("T")

_log = structlog.stdlib.get_logger(__name__)


async def check_start(
    settings: MeterSettings, engine: Engine, clock: Clock, backoff: Backoff, health: Health
) -> TimeRules:
    """Wait for ledger and broker, and return the rules by which this ledger counts.

    Raises PinMismatch when cluster, topic or partition count are not the pinned ones, LedgerNotReady, SystemExit with
    a sentence when the topic does not exist.
    """

    async def patiently(what: str, ask: Callable[[], Awaitable[T]]) -> T:
        attempt = 0
        while True:
            try:
                answer = await ask()
            except (LedgerUnavailable, KafkaError, ClusterUnidentified, OSError) as error:
                health.set_ready(what, False, str(error))
                _log.warning("start.waiting", on=what, detail=repr(error))
                await clock.sleep_seconds(backoff.delay_seconds(min(attempt, 60)))
                attempt += 1
            else:
                health.set_ready(what, True)
                health.heartbeat("event_loop")
                return answer

    topic = GATEWAY_EVENTS.name
    health.unwatch("event_loop")
    await patiently("ledger", lambda: asyncio.to_thread(check_schema, engine))
    cluster = await patiently("broker", lambda: cluster_id(settings.kafka))
    count = await patiently("broker", lambda: topic_partitions(settings.kafka, topic))
    if count is None:
        raise SystemExit(f"topic {settings.kafka.topic_name(topic)} does not exist: run `tollgate init`")
    await patiently(
        "ledger",
        lambda: asyncio.to_thread(
            check_pins,
            engine,
            kafka_cluster_id=cluster,
            events_topic=settings.kafka.topic_name(topic),
            partitions=count,
        ),
    )
    rules = await patiently("ledger", lambda: asyncio.to_thread(read_rules, engine))
    health.watch("event_loop", settings.watchdog.stuck_seconds)
    return rules
