"""`tollgate init`: topics, schema, roles and pins. Idempotent: run it again after every upgrade."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import click

from services.cli.gateway import StripeGateway, StripeUnreachable
from services.cli.ledger import open_book
from services.cli.log import reaching_broker
from services.cli.settings import CliSettings
from tollgate.contracts.events import derive_seed, seed_fingerprint
from tollgate.contracts.topics import GATEWAY_EVENTS, TOPICS
from tollgate.ledger.init import Pins, initialise
from tollgate.runtime.clock import SystemClock
from tollgate.runtime.kafka import (
    ClusterUnidentified,
    TopicCreationFailed,
    TopicMismatch,
    TopicSpec,
    cluster_id,
    create_topics,
    topic_partitions,
)
from tollgate.runtime.settings import load_settings

RECORD_BYTES_MAX = 8 * 1024 * 1024


def topic_specs(settings: CliSettings) -> list[TopicSpec]:
    """What `init` creates: the contracts' topics, sized as the settings say."""
    return [
        TopicSpec(
            name=topic.name,
            partitions=settings.topics.partitions,
            replication_factor=settings.topics.replication_factor,
            configs={
                "cleanup.policy": "delete",
                "retention.ms": str(topic.retention_ms),
                "max.message.bytes": str(RECORD_BYTES_MAX),
                "min.insync.replicas": str(settings.topics.min_insync_replicas),
            },
        )
        for topic in TOPICS
    ]


async def _prepare_kafka(settings: CliSettings) -> str:
    cluster = await cluster_id(settings.kafka)
    specs = []
    for spec in topic_specs(settings):
        # A cut-over grows the events' topic alone: what the others are keyed by does not depend on their count.
        count = (
            None if spec.name == GATEWAY_EVENTS.name else await topic_partitions(settings.kafka, spec.name)
        )
        specs.append(replace(spec, partitions=count or spec.partitions))
    await create_topics(settings.kafka, specs)
    return cluster


@click.command()
def init() -> None:
    """Create topics and schema, and pin what belongs together.

    A gateway.events that exists with another partition count, and a ledger that belongs to another cluster, topic, Stripe
    account or id seed, or counts by other rules of lateness, are refused. Nothing existing is changed or deleted; safe
    to run again.
    """
    settings = load_settings(CliSettings)
    if settings.id_seed is None:
        raise click.ClickException("set TOLLGATE_ID_SEED: the secret by which event ids are hashed")
    try:
        with StripeGateway(settings.stripe) as gateway:
            account = gateway.account()
    except StripeUnreachable as error:
        raise click.ClickException(f"Stripe: {error}") from None
    engine = open_book(settings, create=True)
    try:
        with reaching_broker(settings.kafka):
            cluster = asyncio.run(_prepare_kafka(settings))
    except (TopicMismatch, TopicCreationFailed, ClusterUnidentified) as error:
        raise click.ClickException(f"Kafka at {settings.kafka.bootstrap_servers}: {error}") from None
    pins = Pins(
        kafka_cluster_id=cluster,
        events_topic=settings.kafka.topic_name(GATEWAY_EVENTS.name),
        partitions=settings.topics.partitions,
        stripe_account=account.account,
        stripe_mode=account.mode,
        id_seed_fingerprint=seed_fingerprint(derive_seed(settings.id_seed.get_secret_value())),
        ledger_id="",
        accept_age_hours=settings.rules.accept_age_hours,
        future_seconds=settings.rules.future_seconds,
    )
    report = initialise(engine, pins, settings.topics.partitions, SystemClock().now_ms())
    click.echo(f"Kafka   cluster {cluster}, {len(TOPICS)} topics, {settings.topics.partitions} partitions")
    roles = report.roles_skipped or ("one role a service" if report.roles else "ready")
    click.echo(f"Ledger  {report.pins.ledger_id}, schema {report.schema_version}, {roles}")
    click.echo(
        f"Rules   events up to {report.pins.accept_age_hours} hours old, at most "
        f"{report.pins.future_seconds} seconds ahead"
    )
    click.echo(f"Stripe  account {account.account}, {account.mode} mode")
