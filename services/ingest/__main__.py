"""`python -m services.ingest`: wires the service, starts it, and ends it in good order.

Owns the wiring. The only file of this service that reads the environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import secrets
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import structlog
from aiokafka.errors import KafkaError

import tollgate
from services.ingest.admission import Admission
from services.ingest.body import BodyLimits
from services.ingest.capture import Capture, parse_capture
from services.ingest.decoded import Decoder
from services.ingest.door import Door, Gate
from services.ingest.gateways.cloudevents import CloudEventsDecoder
from services.ingest.gateways.kong import KongDecoder
from services.ingest.gateways.moesif import MoesifDecoder
from services.ingest.group_commit import GroupCommit
from services.ingest.http import ReplayDoor, create_app, entrances
from services.ingest.identity import KeyHasher
from services.ingest.ingest_time import IngestTime
from services.ingest.log import EventLog
from services.ingest.metrics import IngestMetrics
from services.ingest.packer import RECORD_BYTES_MAX, Packer
from services.ingest.redaction import Redactor
from services.ingest.replay import Replayer
from services.ingest.settings import IngestSettings
from services.ingest.tokens import Source, TokenBook
from tollgate.contracts.events import derive_seed, seed_fingerprint
from tollgate.contracts.topics import GATEWAY_DEAD, GATEWAY_EVENTS
from tollgate.ledger.engine import Engine, open_ledger
from tollgate.ledger.errors import CommitUnknown, LedgerNotReady, LedgerUnavailable, PinMismatch
from tollgate.ledger.init import check_pins
from tollgate.ledger.sources import load_sources
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock, SystemClock
from tollgate.runtime.health import Health
from tollgate.runtime.http import Application, operations_app, serve_app
from tollgate.runtime.kafka import ClusterUnidentified, cluster_id, new_producer, topic_partitions
from tollgate.runtime.logging import configure_logging
from tollgate.runtime.metrics import Registry, new_registry
from tollgate.runtime.settings import load_settings
from tollgate.runtime.shutdown import Shutdown, run_service

SERVICE = "ingest"
HEARTBEAT = "event_loop"
_STUCK_SECONDS = 60.0
_DRAIN_SHARE = 0.5
"""Of the time a shutdown may take: for requests in flight. The rest is for the last ticks and the producer."""

_ABANDON_SECONDS = 2.0
"""For a producer that has nothing to send."""

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class Book:
    """What this service reads from the ledger: that it is ours, and the tokens."""

    def __init__(self, engine: Engine, tokens: TokenBook, pins: dict[str, str | int]) -> None:
        self._engine = engine
        self._tokens = tokens
        self._pins = pins
        self._pins_checked = False

    async def read(self) -> bool:
        """Check the pins once, then read the tokens. False while the ledger is away.

        Raises PinMismatch and LedgerNotReady: this process must not go on.
        """
        try:
            if not self._pins_checked:
                await asyncio.to_thread(lambda: check_pins(self._engine, **self._pins))
                self._pins_checked = True
            found = await asyncio.to_thread(load_sources, self._engine)
        except (LedgerUnavailable, CommitUnknown) as error:
            _log.warning("tokens.not_read", error=str(error), age_seconds=round(self._tokens.age_seconds))
            return False
        self._tokens.replace(
            [Source(token.name, token.token_id, token.token_sha256, token.scopes) for token in found]
        )
        return True


class Service:
    """The parts of one process that has reached its broker."""

    def __init__(
        self, settings: IngestSettings, clock: Clock, health: Health, registry: Registry, partitions: int
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.health = health
        self.registry = registry
        self.metrics = IngestMetrics(registry)
        self.tokens = TokenBook(settings.snapshot_path, clock)
        capture = parse_capture(settings.capture)
        # Unique to this start: its counts begin at zero.
        instance = f"{settings.name}-{secrets.token_hex(6)}"
        self.admission = Admission(settings.unacknowledged_bytes_max)
        ingest_time = IngestTime(clock)
        self.log = EventLog(
            lambda: new_producer(
                settings.kafka,
                idempotent=not settings.ephemeral,
                ephemeral=settings.ephemeral,
                client_id=f"tollgate-{instance}",
                # Packing is done before: a record waits for nobody.
                linger_ms=0,
                max_batch_bytes=RECORD_BYTES_MAX + 1024 * 1024,
            ),
            events_topic=settings.kafka.topic_name(GATEWAY_EVENTS.name),
            dead_topic=settings.kafka.topic_name(GATEWAY_DEAD.name),
            partitions=partitions,
            instance=instance,
            admission=self.admission,
            clock=clock,
            ingest_time=ingest_time,
            health=health,
            metrics=self.metrics,
            backoff=_backoff(),
        )
        self.commit = GroupCommit(
            Packer(
                partitions=partitions,
                properties=capture.names,
                instance=instance,
                capture=capture.digest,
            ),
            self.log,
            clock,
            ingest_time,
            delay_seconds=settings.group_commit_ms / 1000,
            rows_max=settings.group_commit_rows,
            answer_timeout_seconds=settings.answer_timeout_seconds,
        )
        self.app = self._create_app(capture, ingest_time)

    def _create_app(self, capture: Capture, ingest_time: IngestTime) -> Application:
        settings = self.settings
        keys = KeyHasher(settings.key_seed.get_secret_value().encode())
        decoders = _new_decoders(settings, keys, capture)
        limits = BodyLimits(
            body_bytes_max=settings.body_bytes_max,
            inflated_bytes_max=settings.inflated_bytes_max,
            timeout_seconds=settings.body_timeout_seconds,
        )
        gate = Gate(self.tokens, self.admission)
        redactor = Redactor(keys, capture, settings.api_key_headers, settings.api_key_queries)
        doors = {
            path: Door(
                entrance,
                gate=gate,
                commit=self.commit,
                limits=limits,
                redactor=redactor,
                clock=self.clock,
                ingest_time=ingest_time,
                metrics=self.metrics,
                untrusted_id_sources=frozenset(settings.untrusted_id_sources),
            )
            for path, entrance in entrances(decoders).items()
        }
        replay = ReplayDoor(Replayer(self.commit, decoders), gate, limits, self.clock, self.metrics)
        return create_app(doors, replay, gate, operations_app(self.health, self.registry))


def _new_decoders(settings: IngestSettings, keys: KeyHasher, capture: Capture) -> dict[str, Decoder]:
    id_seed = derive_seed(settings.id_seed.get_secret_value())
    decoders: list[Decoder] = [
        KongDecoder(
            id_seed=id_seed,
            keys=keys,
            capture=capture,
            api_key_headers=settings.api_key_headers,
            api_key_queries=settings.api_key_queries,
        ),
        MoesifDecoder(
            id_seed=id_seed,
            keys=keys,
            capture=capture,
            api_key_headers=settings.api_key_headers,
            api_key_queries=settings.api_key_queries,
        ),
        CloudEventsDecoder(id_seed=id_seed, capture=capture),
    ]
    return {decoder.format: decoder for decoder in decoders}


async def run(settings: IngestSettings, shutdown: Shutdown) -> None:
    """Serve until `shutdown`.

    1. Find the broker and the topic. 2. Tokens: from the ledger, else from the last run's snapshot. 3. Serve.
    4. On the wish to end: no new work, answer what is in flight, say the final counts, close.
    """
    clock = SystemClock()
    health = Health(clock)
    registry = new_registry(SERVICE, tollgate.__version__)
    async with contextlib.AsyncExitStack() as stack:
        found = await _until_broker(lambda: _find_topic(settings), shutdown)
        if found is None:
            return
        partitions, pins = found
        service = Service(settings, clock, health, registry, partitions)
        stack.push_async_callback(service.log.stop, _ABANDON_SECONDS)
        if not await _until_broker(lambda: _start(service.log), shutdown):
            return
        engine = open_ledger(
            settings.ledger.url.get_secret_value(),
            pool_size=settings.ledger.pool_size,
            statement_timeout_ms=settings.ledger.statement_timeout_ms,
        )
        stack.callback(engine.dispose)
        service.tokens.load_snapshot()
        book = Book(engine, service.tokens, pins)
        try:
            await book.read()
        except (PinMismatch, LedgerNotReady) as error:
            raise SystemExit(str(error)) from None

        # A drained request still needs these: they end after the server.
        background = [
            asyncio.create_task(work, name=name)
            for name, work in (
                ("group_commit", service.commit.run()),
                ("deadlines", service.commit.watch_deadlines()),
                ("ticks", service.log.tick_forever()),
                ("producer", service.log.replace_broken_producers()),
                ("tokens", _refresh(service, book)),
                ("heartbeat", _beat(health, clock)),
            )
        ]
        stopping = asyncio.create_task(shutdown.event.wait(), name="shutdown")
        drain_seconds = settings.shutdown_seconds * _DRAIN_SHARE
        try:
            async with serve_app(
                service.app, settings.http.host, settings.http.port, drain_seconds=max(1, int(drain_seconds))
            ) as port:
                # What was made so far lives as long as the process: keep it out of every collection.
                gc.collect()
                gc.freeze()
                gc.set_threshold(50_000, 20, 50)
                health.mark_started()
                _log.info("service.started", host=settings.http.host, port=port, partitions=partitions)
                await asyncio.wait({stopping, *background}, return_when=asyncio.FIRST_COMPLETED)
                health.mark_draining()
                shutdown.request("a part of the service ended")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await service.commit.drain()
        finally:
            stopping.cancel()
            failed = [task for task in background if task.done() and not task.cancelled()]
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await service.log.finish(settings.shutdown_seconds * (1 - _DRAIN_SHARE) / 3)
        for task in failed:
            task.result()
        _log.info("service.stopped")


async def _start(log: EventLog) -> bool:
    await log.start()
    return True


async def _find_topic(settings: IngestSettings) -> tuple[int, dict[str, str | int]]:
    """The events topic's partition count, and what the ledger must be pinned to. Raises SystemExit without topics."""
    for topic in (GATEWAY_EVENTS.name, GATEWAY_DEAD.name):
        if not await topic_partitions(settings.kafka, topic):
            raise SystemExit(f"no topic {settings.kafka.topic_name(topic)!r}: run `tollgate init`")
    partitions = await topic_partitions(settings.kafka, GATEWAY_EVENTS.name)
    assert partitions is not None
    pins: dict[str, str | int] = {
        "events_topic": settings.kafka.topic_name(GATEWAY_EVENTS.name),
        "partitions": partitions,
        "id_seed_fingerprint": seed_fingerprint(derive_seed(settings.id_seed.get_secret_value())),
    }
    with contextlib.suppress(ClusterUnidentified):
        pins["kafka_cluster_id"] = await cluster_id(settings.kafka)
    return partitions, pins


async def _until_broker(attempt: Callable[[], Awaitable[T]], shutdown: Shutdown) -> T | None:
    """What `attempt` gives once a broker answers; None when the process is asked to end before."""
    backoff = _backoff()
    tries = 0
    while not shutdown.requested:
        try:
            return await attempt()
        except KafkaError as error:
            _log.warning("broker.not_reached", error=repr(error))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(backoff.delay_seconds(tries)):
                await shutdown.event.wait()
        tries += 1
    return None


async def _refresh(service: Service, book: Book) -> None:
    """Read the tokens every few seconds, until cancelled. Raises PinMismatch when the ledger is not ours."""
    while True:
        known = service.tokens.known
        service.health.set_ready("tokens", known, "known" if known else "never read from the ledger")
        service.metrics.tokens_age_seconds.set(service.tokens.age_seconds if known else 0)
        service.metrics.unacknowledged_bytes.set(service.admission.bytes_held)
        await service.clock.sleep_seconds(service.settings.tokens_refresh_seconds)
        await book.read()


async def _beat(health: Health, clock: Clock) -> None:
    """Show that the event loop turns."""
    health.watch(HEARTBEAT, _STUCK_SECONDS)
    while True:
        health.heartbeat(HEARTBEAT)
        await clock.sleep_seconds(1.0)


def _backoff() -> Backoff:
    return Backoff(0.2, 5.0, rng=random.Random())  # noqa: S311


def main() -> int:
    """Run until a signal; returns the exit code."""
    settings = load_settings(IngestSettings)
    configure_logging(SERVICE, settings.log)
    return run_service(partial(run, settings), settings.shutdown_seconds)


if __name__ == "__main__":
    sys.exit(main())
