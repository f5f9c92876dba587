"""Kafka: clients with every option said out loud, and the few questions asked of a cluster.

Owns how a producer, a consumer and an admin client are made from `KafkaSettings`, and the creation of topics. It
refuses to know what a topic holds. Functions taking settings and a topic take its bare name and put the settings'
prefix in front; the clients themselves (`send`, `assign`, `subscribe`) know only full names.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from tollgate.runtime.clock import Clock, SystemClock
from tollgate.runtime.settings import KafkaSettings

MAX_REQUEST_BYTES = 8 * 1024 * 1024
"""The largest record we write or read; the brokers' `message.max.bytes` must allow it (their default is 1 MB)."""

OffsetReset = Literal["earliest", "latest", "none"]


class TopicMismatch(Exception):
    """A topic exists with another partition count. Nothing was created."""


class TopicCreationFailed(Exception):
    """The broker refused to create a topic, or never showed it complete."""


class ClusterUnidentified(Exception):
    """The broker gives no cluster id, so nothing can be pinned to it."""


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic to be created: bare name, and broker-side settings by Kafka's own names (`retention.ms`)."""

    name: str
    partitions: int
    replication_factor: int = 1
    configs: Mapping[str, str] = field(default_factory=dict)


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """The options every aiokafka client takes: address, authentication, timeouts."""
    options: dict[str, Any] = {
        "bootstrap_servers": [part.strip() for part in settings.bootstrap_servers.split(",") if part.strip()],
        "security_protocol": settings.security_protocol,
        "request_timeout_ms": settings.request_timeout_ms,
        "retry_backoff_ms": 100,
        # Metadata is refetched on every leadership error; this bounds how long a new partition goes unseen.
        "metadata_max_age_ms": 60_000,
        # Below the brokers' own 10 minutes, so that it is never the broker that closes first.
        "connections_max_idle_ms": 540_000,
    }
    if settings.security_protocol in ("SSL", "SASL_SSL"):
        options["ssl_context"] = ssl.create_default_context(
            cafile=str(settings.ssl_ca_file) if settings.ssl_ca_file else None
        )
    if settings.security_protocol.startswith("SASL_"):
        assert settings.sasl_password is not None, "checked by KafkaSettings"
        options["sasl_mechanism"] = settings.sasl_mechanism
        options["sasl_plain_username"] = settings.sasl_username
        options["sasl_plain_password"] = settings.sasl_password.get_secret_value()
    return options


def new_producer(
    settings: KafkaSettings,
    *,
    idempotent: bool,
    client_id: str,
    ephemeral: bool = False,
    linger_ms: int = 2,
    max_batch_bytes: int = 1024 * 1024,
    max_request_bytes: int = MAX_REQUEST_BYTES,
) -> AIOKafkaProducer:
    """A producer of bytes, not started, on the running event loop. `acks=all`; no compression of its own.

    A non-idempotent one can write a record twice when an answer is lost, so it is only for brokers that forget
    anyway: ValueError unless `ephemeral`. `send` raises KafkaTimeoutError (or another KafkaError) after
    `settings.request_timeout_ms` without an acknowledgement: the record may or may not be in the log.
    """
    if not idempotent and not ephemeral:
        raise ValueError("a producer may be non-idempotent on an ephemeral broker only")
    return AIOKafkaProducer(
        **client_options(settings),
        client_id=client_id,
        acks="all",
        enable_idempotence=idempotent,
        compression_type=None,
        linger_ms=linger_ms,
        max_batch_size=max_batch_bytes,
        max_request_size=max_request_bytes,
    )


def new_consumer(
    settings: KafkaSettings,
    *,
    client_id: str,
    auto_offset_reset: OffsetReset,
    topics: Sequence[str] = (),
    group: str | None = None,
    session_timeout_ms: int = 10_000,
    fetch_max_bytes: int = 50 * 1024 * 1024,
    max_partition_fetch_bytes: int = MAX_REQUEST_BYTES,
    fetch_max_wait_ms: int = 500,
) -> AIOKafkaConsumer:
    """A consumer of bytes, not started, on the running event loop. Never commits by itself.

    `topics` (bare names) are subscribed to; leave them out and `assign` for a fixed position. `group` is a bare
    name. `auto_offset_reset` says what to do where there is no position or it is gone: "none" raises
    OffsetOutOfRangeError or NoOffsetForPartitionError, which is what exact work wants. Reads committed records
    only.
    """
    return AIOKafkaConsumer(
        *(settings.topic_name(topic) for topic in topics),
        **client_options(settings),
        client_id=client_id,
        group_id=None if group is None else settings.group_name(group),
        enable_auto_commit=False,
        auto_offset_reset=auto_offset_reset,
        isolation_level="read_committed",
        check_crcs=True,
        session_timeout_ms=session_timeout_ms,
        heartbeat_interval_ms=max(1, session_timeout_ms // 5),
        max_poll_interval_ms=300_000,
        fetch_max_bytes=fetch_max_bytes,
        max_partition_fetch_bytes=max_partition_fetch_bytes,
        fetch_max_wait_ms=fetch_max_wait_ms,
    )


@asynccontextmanager
async def admin_client(settings: KafkaSettings) -> AsyncIterator[AIOKafkaAdminClient]:
    """A started admin client. Raises KafkaConnectionError when no broker answers."""
    admin = AIOKafkaAdminClient(**client_options(settings), client_id="tollgate-admin")
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


async def cluster_id(settings: KafkaSettings) -> str:
    """The id a cluster is given when it is formatted: what a ledger is pinned to.

    Raises KafkaConnectionError when no broker answers, ClusterUnidentified when it names none.
    """
    async with admin_client(settings) as admin:
        identity = (await admin.describe_cluster()).get("cluster_id")
    if not identity:
        raise ClusterUnidentified(f"{settings.bootstrap_servers} gives no cluster id")
    return str(identity)


async def topic_partitions(settings: KafkaSettings, topic: str) -> int | None:
    """How many partitions the topic has; None when there is no such topic. Never creates it."""
    async with admin_client(settings) as admin:
        return (await _partition_counts(admin)).get(settings.topic_name(topic))


async def create_topics(
    settings: KafkaSettings,
    specs: Sequence[TopicSpec],
    *,
    timeout_seconds: float = 30.0,
    clock: Clock | None = None,
) -> tuple[str, ...]:
    """Create those of `specs` that do not exist, and wait until each partition has a leader.

    Safe to repeat and to run twice at once. Returns the bare names of the topics this call created. An existing
    topic's configs and replication are left alone. Raises TopicMismatch, before creating anything, when a topic
    exists with another partition count; TopicCreationFailed when the broker refuses or is not done in time.
    """
    clock = clock or SystemClock()
    deadline = clock.monotonic_seconds() + timeout_seconds
    wanted = {settings.topic_name(spec.name): spec for spec in specs}
    async with admin_client(settings) as admin:
        existing = await _partition_counts(admin)
        _refuse_mismatch(wanted, existing)
        missing = [name for name in wanted if name not in existing]
        created = await _create(admin, {name: wanted[name] for name in missing}, timeout_seconds)
        while True:
            existing = await _partition_counts(admin, led_only=True)
            if all(existing.get(name) == spec.partitions for name, spec in wanted.items()):
                return tuple(wanted[name].name for name in missing if name in created)
            # Another's creation may have won the race with another count.
            _refuse_mismatch(wanted, await _partition_counts(admin))
            if clock.monotonic_seconds() >= deadline:
                waiting = sorted(n for n, spec in wanted.items() if existing.get(n) != spec.partitions)
                raise TopicCreationFailed(
                    f"no leader for every partition after {timeout_seconds} s: {', '.join(waiting)}"
                )
            await clock.sleep_seconds(0.05)


async def grow_topic(
    settings: KafkaSettings,
    topic: str,
    partitions: int,
    *,
    timeout_seconds: float = 30.0,
    clock: Clock | None = None,
    dry_run: bool = False,
) -> bool:
    """Give `topic` (bare name) `partitions` partitions, and wait until each has a leader; False when it has them.

    With `dry_run` the broker says whether it would, and nothing is changed. Raises TopicMismatch when the topic has
    more or is not there, TopicCreationFailed when the broker refuses or is not done in time.
    """
    clock = clock or SystemClock()
    deadline = clock.monotonic_seconds() + timeout_seconds
    name = settings.topic_name(topic)
    async with admin_client(settings) as admin:
        existing = (await _partition_counts(admin)).get(name, 0)
        if existing > partitions or not existing:
            raise TopicMismatch(f"{name} has {existing} partitions, {partitions} are wanted")
        if existing < partitions:
            try:
                await admin.create_partitions(
                    {name: NewPartitions(partitions)},
                    timeout_ms=int(timeout_seconds * 1000),
                    validate_only=dry_run,
                )
            except KafkaError as error:
                # Another that grows it may have been quicker.
                if (await _partition_counts(admin)).get(name, 0) < partitions:
                    raise TopicCreationFailed(f"{name}: {error}") from error
            if dry_run:
                return True
        while (await _partition_counts(admin, led_only=True)).get(name, 0) < partitions:
            if clock.monotonic_seconds() >= deadline:
                raise TopicCreationFailed(f"no leader for every partition after {timeout_seconds} s: {name}")
            await clock.sleep_seconds(0.05)
    return existing < partitions


async def _create(
    admin: AIOKafkaAdminClient, specs: Mapping[str, TopicSpec], timeout_seconds: float
) -> set[str]:
    """Ask for the topics named; returns those that did not exist a moment before."""
    if not specs:
        return set()
    answer = await admin.create_topics(
        [
            NewTopic(
                name=name,
                num_partitions=spec.partitions,
                replication_factor=spec.replication_factor,
                topic_configs=dict(spec.configs),
            )
            for name, spec in specs.items()
        ],
        timeout_ms=int(timeout_seconds * 1000),
    )
    created = set()
    refused = []
    for name, code, *text in answer.topic_errors:
        error: type[KafkaError] = for_code(code)
        if code == 0:
            created.add(name)
        elif error is not TopicAlreadyExistsError:
            refused.append(f"{name}: {(text and text[0]) or error.__name__}")
    if refused:
        raise TopicCreationFailed("; ".join(refused))
    return created


async def _partition_counts(admin: AIOKafkaAdminClient, *, led_only: bool = False) -> dict[str, int]:
    """Partitions by full topic name; with `led_only`, those that have a leader.

    Asks for all topics: asking for one by name would create it on a broker that creates topics on demand.
    """
    return {
        topic["topic"]: sum(not led_only or partition["leader"] >= 0 for partition in topic["partitions"])
        for topic in await admin.describe_topics()
        if topic["error_code"] == 0
    }


def _refuse_mismatch(wanted: Mapping[str, TopicSpec], existing: Mapping[str, int]) -> None:
    differing = [
        f"{name} has {existing[name]} partitions, {spec.partitions} are wanted"
        for name, spec in wanted.items()
        if name in existing and existing[name] not in (0, spec.partitions)
    ]
    if differing:
        raise TopicMismatch("; ".join(differing))


async def topic_bounds(settings: KafkaSettings, topic: str) -> dict[int, tuple[int, int]]:
    """First offset kept and next offset to be written, of each partition of `topic` (bare name); empty without it."""
    count = await topic_partitions(settings, topic)
    if not count:
        return {}
    consumer = new_consumer(settings, client_id="tollgate-bounds", auto_offset_reset="none")
    await consumer.start()
    try:
        name = settings.topic_name(topic)
        partitions = [TopicPartition(name, number) for number in range(count)]
        begins = await consumer.beginning_offsets(partitions)
        ends = await consumer.end_offsets(partitions)
        return {tp.partition: (begins[tp], ends[tp]) for tp in partitions}
    finally:
        await consumer.stop()
