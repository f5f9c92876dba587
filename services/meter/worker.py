"""The worker: Faust, used for membership, assignment and fetching, and for nothing else.

Owns the app, its settings and its one agent. It refuses to know what a record holds: the agent hands raw bytes on,
bundle by bundle (`transport`).
Faust's acks, commits, tables and `take()` are not used: each loses or doubles counts in some failure. That is why the
topic has `acks=False` and the agent never awaits between a record and the intake except for room.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import faust
import structlog
from aiokafka.errors import IllegalStateError
from faust.types import TP
from mode import CrashingSupervisor
from yarl import URL

from services.meter.assignment import Assignment
from services.meter.intake import Intake
from services.meter.pipeline import Pipeline
from services.meter.settings import MeterSettings
from services.meter.transport import Transport
from tollgate.runtime.settings import KafkaSettings

_log = structlog.stdlib.get_logger(__name__)

METADATA_AGE_MS = 5_000

BUFFER_BUNDLES = 8
"""Bundles Faust queues between fetching and the agent. Its default of 4096 would hold gigabytes."""


class _App(faust.App):
    """A Faust app without a directory: it keeps nothing on disk."""

    def _create_directories(self) -> None:
        return None


class Worker:
    """A member of the consumer group. `on_revoked` is awaited before partitions are handed over, `on_assigned` before
    the first of them is read. Belongs to the running event loop."""

    def __init__(
        self,
        settings: MeterSettings,
        topic: str,
        *,
        intake: Intake,
        pipeline: Pipeline,
        assignment: Assignment,
        on_revoked: Callable[[], Awaitable[None]],
        on_assigned: Callable[[Collection[int]], Awaitable[None]],
        transport: Callable[[list[URL], faust.App, asyncio.AbstractEventLoop], Any] = Transport,
        app: Callable[..., Any] = _App,
    ) -> None:
        """`topic` is the full name. `transport` is replaced by tests that have no broker, `app` by a simulation."""
        loop = asyncio.get_running_loop()
        self._topic = topic
        self._intake = intake
        self._pipeline = pipeline
        self._assignment = assignment
        self._on_revoked = on_revoked
        self._on_assigned = on_assigned
        self._joined = False
        self._app: Any = app(**_app_settings(settings), loop=loop)
        self._app.finalize()
        made = transport(self._app.conf.broker_consumer, self._app, loop)
        made.source = assignment
        made.fetch_bytes_max = settings.fetch.bytes_max
        self._app.transport = made
        channel = self._app.topic(
            topic,
            key_type=bytes,
            key_serializer="raw",
            value_type=bytes,
            value_serializer="raw",
            acks=False,
            allow_empty=True,
        )
        self._app.agent(channel, name="meter", concurrency=1, supervisor_strategy=CrashingSupervisor)(
            self._count
        )
        self._app.on_partitions_revoked.connect(self._revoked)
        self._app.on_rebalance_complete.connect(self._assigned)

    @property
    def joining(self) -> bool:
        """Whether the group has yet to say what this process counts."""
        return not self._joined or bool(self._app.rebalancing)

    async def run(self) -> None:
        """Join the group and read until `stop`. Raises what made Faust give up."""
        await self._app.start()
        await self._app.wait_until_stopped()
        if self._app.crashed:
            raise RuntimeError("the Kafka worker gave up") from self._app.crash_reason

    async def stop(self) -> None:
        """Leave the group."""
        await self._app.stop()

    # ---------------------------------------------------------------- what the assignment and the group commit use

    async def seek(self, partition: int, offset: int) -> None:
        """Continue `partition` at `offset`; nothing happens when it is no longer assigned."""
        try:
            await self._app.consumer.seek_wait({TP(self._topic, partition): offset})
        except (IllegalStateError, TimeoutError) as error:
            # A rebalance is on its way, and ends in a seek of its own; a lost seek shows as lag.
            _log.warning("seek.failed", partition=partition, offset=offset, detail=repr(error))

    def pause(self, partition: int) -> None:
        """Fetch nothing more of `partition` during this assignment."""
        self._app.consumer.pause_partitions({TP(self._topic, partition)})

    async def commit(self, offsets: Mapping[int, int]) -> bool:
        """Write the group's offsets. With nothing assigned Faust would crash, so then nothing is written."""
        consumer: Any = self._app.consumer  # `_commit` is private to Faust, hence its exact pin
        assigned = {tp.partition: tp for tp in consumer.assignment() if tp.topic == self._topic}
        wanted = {
            assigned[partition]: offset for partition, offset in offsets.items() if partition in assigned
        }
        return bool(wanted) and bool(await consumer._commit(wanted))

    # ---------------------------------------------------------------- what Faust calls

    async def _count(self, stream: Any) -> None:
        async for event in stream.events():
            for record in event.message.records:
                if not self._intake.has_room:
                    await self._pipeline.wait_for_room()
                self._assignment.arrived(record)

    async def _revoked(self, *_: Any, **__: Any) -> None:
        self._joined = False
        await self._on_revoked()

    async def _assigned(self, *_: Any, **__: Any) -> None:
        assigned = {tp.partition for tp in self._app.consumer.assignment() if tp.topic == self._topic}
        await self._on_assigned(assigned)
        self._joined = True


def _app_settings(settings: MeterSettings) -> dict[str, Any]:
    """Every Faust setting that matters, said out loud."""
    group = settings.group
    kafka = settings.kafka
    request_seconds = kafka.request_timeout_ms / 1000
    return {
        "id": kafka.group_name(group.name),
        "broker": [
            URL(f"kafka://{host.strip()}") for host in kafka.bootstrap_servers.split(",") if host.strip()
        ],
        "broker_client_id": "tollgate-meter",
        "broker_credentials": _credentials(kafka),
        # Faust refuses a session longer than a request.
        "broker_request_timeout": max(request_seconds, group.session_timeout_seconds),
        "broker_session_timeout": group.session_timeout_seconds,
        "broker_rebalance_timeout": group.session_timeout_seconds,
        "broker_heartbeat_interval": group.heartbeat_seconds,
        "broker_max_poll_records": settings.fetch.records_max,
        # With acks off there is nothing to commit; the less often Faust looks the better.
        "broker_commit_interval": 60.0,
        "consumer_max_fetch_size": settings.fetch.partition_bytes_max,
        "consumer_auto_offset_reset": "earliest",
        # A topic that was missing when the group met is assigned only after the next look; the default of five
        # minutes is five minutes of a process that is up and counts nothing.
        "consumer_metadata_max_age_ms": METADATA_AGE_MS,
        "consumer_group_instance_id": group.instance,
        "stream_buffer_maxsize": BUFFER_BUNDLES,
        "stream_wait_empty": True,
        # Any standby would switch to Faust's own assignor, which can leave a restarted worker with nothing.
        "table_standby_replicas": 0,
        "topic_disable_leader": True,
        "topic_allow_declare": False,
        "store": "memory://",
        "web_enabled": False,
        "worker_redirect_stdouts": False,
        "autodiscover": False,
    }


def _credentials(kafka: KafkaSettings) -> Any:
    """Faust's form of our credentials; None for a plain connection."""
    context = None
    if kafka.security_protocol in ("SSL", "SASL_SSL"):
        context = ssl.create_default_context(cafile=str(kafka.ssl_ca_file) if kafka.ssl_ca_file else None)
    if kafka.security_protocol.startswith("SASL_"):
        assert kafka.sasl_password is not None, "checked by KafkaSettings"
        return faust.SASLCredentials(
            username=kafka.sasl_username,
            password=kafka.sasl_password.get_secret_value(),
            mechanism=kafka.sasl_mechanism,
            ssl_context=context,
        )
    return None if context is None else faust.SSLCredentials(context=context)
