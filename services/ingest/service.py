"""The parts of one process, put together.

Owns which part gets which other part and setting. It refuses to know when they start and end.
"""

from __future__ import annotations

import random
import secrets
from functools import partial

from services.ingest.admission import Admission
from services.ingest.body import BodyLimits
from services.ingest.capture import Capture, parse_capture
from services.ingest.decoder import Decoder
from services.ingest.door import Door, Gate
from services.ingest.gateways.cloudevents import CloudEventsDecoder
from services.ingest.gateways.kong import KongDecoder
from services.ingest.gateways.moesif import MoesifDecoder
from services.ingest.group_commit import GroupCommit, GroupRules
from services.ingest.http import ReplayDoor, create_app, entrances
from services.ingest.identity import KeyHasher
from services.ingest.ingest_time import IngestTime
from services.ingest.letters import write_letter
from services.ingest.log import EventLog
from services.ingest.metrics import IngestMetrics
from services.ingest.packer import RECORD_BYTES_MAX, Packer
from services.ingest.redaction import Redactor
from services.ingest.replay import Replayer
from services.ingest.settings import IngestSettings
from services.ingest.tokens import TokenBook
from tollgate.contracts.events import derive_seed, instance_name
from tollgate.contracts.topics import GATEWAY_DEAD, GATEWAY_EVENTS
from tollgate.runtime.backoff import Backoff
from tollgate.runtime.clock import Clock
from tollgate.runtime.health import Health
from tollgate.runtime.http import Application, operations_app
from tollgate.runtime.http_direct import DirectHandler
from tollgate.runtime.kafka import new_producer
from tollgate.runtime.metrics import Registry

_REQUESTS_A_PARTITION = 16
"""Nobody waits once so many requests a partition do: larger records gain little from here on, and their senders are
kept from going on."""

_WORTH_WAITING_SHARE = 8
"""A group stays open while half a delay brings an event for every eighth partition: by the longest delay each
partition then has one or two."""


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
        client = f"{settings.name}-{secrets.token_hex(6)}"
        instance = instance_name(client, partitions)
        self.admission = Admission(settings.unacknowledged_bytes_max)
        ingest_time = IngestTime(clock)
        self.log = EventLog(
            lambda: new_producer(
                settings.kafka,
                idempotent=not settings.ephemeral,
                ephemeral=settings.ephemeral,
                client_id=f"tollgate-{client}",
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
            backoff=new_backoff(),
        )
        keys = KeyHasher(settings.key_seed.get_secret_value().encode())
        redactor = Redactor(keys, capture, settings.api_key_headers, settings.api_key_queries)
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
            partial(write_letter, redactor),
            rules=GroupRules(
                delay_seconds=settings.group_commit_ms / 1000,
                delay_seconds_max=settings.group_commit_max_ms / 1000,
                rows_worth_waiting=max(1, partitions // _WORTH_WAITING_SHARE),
                rows_max=settings.group_commit_rows,
                requests_max=_REQUESTS_A_PARTITION * partitions,
            ),
            answer_timeout_seconds=settings.answer_timeout_seconds,
        )
        self.app, self.direct = self._create_app(keys, capture, ingest_time)

    def _create_app(
        self, keys: KeyHasher, capture: Capture, ingest_time: IngestTime
    ) -> tuple[Application, dict[str, DirectHandler]]:
        """The app, and by path what takes requests past it."""
        settings = self.settings
        decoders = _new_decoders(settings, keys, capture)
        limits = BodyLimits(
            body_bytes_max=settings.body_bytes_max,
            inflated_bytes_max=settings.inflated_bytes_max,
            timeout_seconds=settings.body_timeout_seconds,
        )
        gate = Gate(self.tokens, self.admission)
        doors = {
            path: Door(
                entrance,
                gate=gate,
                commit=self.commit,
                limits=limits,
                clock=self.clock,
                ingest_time=ingest_time,
                metrics=self.metrics,
                untrusted_id_sources=frozenset(settings.untrusted_id_sources),
            )
            for path, entrance in entrances(decoders).items()
        }
        replay = ReplayDoor(Replayer(self.commit, decoders), gate, limits, self.clock, self.metrics)
        app = create_app(doors, replay, gate, operations_app(self.health, self.registry))
        return app, dict(doors)


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


def new_backoff() -> Backoff:
    """For a broker that does not answer: 0.2 to 5 seconds."""
    return Backoff(0.2, 5.0, rng=random.Random())  # noqa: S311
