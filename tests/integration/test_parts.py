"""The real parts: each starts, serves, dies and comes back with what it had promised to keep."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pytest
from aiokafka import TopicPartition
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaConnectionError

from sandbox.child import PartFailed
from sandbox.ports import free_port
from tests.parts.kafka import BrokerSettings, KafkaPart, delete_topics
from tests.parts.postgres import PostgresPart
from tollgate.runtime.kafka import (
    TopicMismatch,
    TopicSpec,
    admin_client,
    cluster_id,
    create_topics,
    new_consumer,
    new_producer,
    topic_partitions,
)
from tollgate.runtime.settings import KafkaSettings


async def produce(settings: BrokerSettings, topic: str, values: Sequence[bytes]) -> list[int]:
    """Send `values` to partition 0 and return their offsets, each acknowledged."""
    producer = new_producer(
        settings, idempotent=not settings.ephemeral, ephemeral=settings.ephemeral, client_id="test"
    )
    await producer.start()
    try:
        sent = [await producer.send(settings.topic_name(topic), value, partition=0) for value in values]
        return [record.offset for record in await asyncio.gather(*sent)]
    finally:
        await producer.stop()


async def consume(settings: BrokerSettings, topic: str, count: int) -> list[tuple[int, bytes]]:
    """The first `count` records of partition 0, and that there is nothing after them."""
    consumer = new_consumer(settings, client_id="test", auto_offset_reset="none")
    partition = TopicPartition(settings.topic_name(topic), 0)
    await consumer.start()
    try:
        consumer.assign([partition])
        consumer.seek(partition, 0)
        records = [await consumer.getone() for _ in range(count)]
        assert (await consumer.end_offsets([partition]))[partition] == count
        return [(record.offset, record.value) for record in records]
    finally:
        await consumer.stop()


async def assert_round_trip(settings: BrokerSettings) -> None:
    values = [f"value {number}".encode() for number in range(200)] + [b"x" * 8_000_000]
    assert await create_topics(settings, [TopicSpec("round", 1)]) == ("round",)
    assert await produce(settings, "round", values) == list(range(201))
    assert await consume(settings, "round", 201) == list(enumerate(values))


async def assert_idempotent_creation(settings: BrokerSettings) -> None:
    specs = [TopicSpec("one", 1), TopicSpec("many", 6, configs={"retention.ms": "3600000"})]
    assert await topic_partitions(settings, "many") is None
    assert await create_topics(settings, specs) == ("one", "many")
    assert await create_topics(settings, specs) == ()
    assert await topic_partitions(settings, "many") == 6
    with pytest.raises(TopicMismatch, match="many has 6 partitions, 7 are wanted"):
        await create_topics(settings, [TopicSpec("new", 1), TopicSpec("many", 7)])
    assert await topic_partitions(settings, "new") is None


async def test_broker_keeps_what_it_acknowledged(broker_settings: BrokerSettings) -> None:
    """What acks=all acknowledged is read back, in order and once, up to records of 8 MB."""
    await assert_round_trip(broker_settings)


async def test_topics_are_created_once(broker_settings: BrokerSettings) -> None:
    """Creating topics twice creates them once, and another partition count is refused before anything is made."""
    await assert_idempotent_creation(broker_settings)


async def test_embedded_broker_does_the_same(embedded_settings: BrokerSettings) -> None:
    """The embedded broker passes the round trip and the topic rules that Kafka passes."""
    assert embedded_settings.ephemeral
    await assert_round_trip(embedded_settings)
    await assert_idempotent_creation(embedded_settings)


async def test_two_creators_make_one_topic(broker_settings: BrokerSettings) -> None:
    """Of two programs that create a topic at once both succeed, and it exists with the count they agree on."""
    specs = [TopicSpec("raced", 3)]
    await asyncio.gather(create_topics(broker_settings, specs), create_topics(broker_settings, specs))
    assert await topic_partitions(broker_settings, "raced") == 3


async def test_absent_broker_is_an_error() -> None:
    """Asking a port where nobody listens raises instead of waiting."""
    with pytest.raises(KafkaConnectionError):
        await cluster_id(KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}"))


async def test_cluster_id_is_stable(kafka_settings: BrokerSettings) -> None:
    """Kafka's cluster id is the same each time it is asked for."""
    identity = await cluster_id(kafka_settings)
    assert identity
    assert await cluster_id(kafka_settings) == identity


async def test_topic_configs_reach_the_broker(kafka_settings: BrokerSettings) -> None:
    """A topic's settings are what Kafka says they are."""
    await create_topics(kafka_settings, [TopicSpec("kept", 1, configs={"retention.ms": "3600000"})])
    async with admin_client(kafka_settings) as admin:
        wanted = ConfigResource(
            ConfigResourceType.TOPIC, kafka_settings.topic_name("kept"), {"retention.ms": None}
        )
        (answer,) = await admin.describe_configs([wanted])
    (resource,) = answer.resources
    assert [entry[:2] for entry in resource[4]] == [("retention.ms", "3600000")]


async def test_deleted_topic_is_made_anew(kafka_settings: BrokerSettings) -> None:
    """A deleted topic can be made anew, empty."""
    await create_topics(kafka_settings, [TopicSpec("again", 1)])
    await produce(kafka_settings, "again", [b"old"])
    await delete_topics(kafka_settings, ["again"])
    assert await create_topics(kafka_settings, [TopicSpec("again", 1)]) == ("again",)
    assert await produce(kafka_settings, "again", [b"new"]) == [0]


@pytest.mark.slow
async def test_killed_kafka_keeps_its_log(own_kafka: KafkaPart) -> None:
    """After kill -9 and a start, Kafka has the same cluster id, the same records, and takes more."""
    settings = own_kafka.fresh()
    values = [f"before {number}".encode() for number in range(500)]
    await create_topics(settings, [TopicSpec("kept", 1)])
    await produce(settings, "kept", values)
    identity, address, pid = await cluster_id(settings), own_kafka.bootstrap, own_kafka.local.pid

    await asyncio.to_thread(own_kafka.local.kill)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    await asyncio.to_thread(own_kafka.local.start)

    assert own_kafka.bootstrap == address
    assert await cluster_id(settings) == identity
    assert await produce(settings, "kept", [b"after"]) == [500]
    assert await consume(settings, "kept", 501) == list(enumerate([*values, b"after"]))


@pytest.mark.postgres
def test_killed_postgres_keeps_what_was_committed(own_postgres: PostgresPart) -> None:
    """After kill -9 and a start, PostgreSQL has what was committed and not what was open."""
    plain = own_postgres.fresh().replace("+psycopg", "")
    open_transaction = psycopg.connect(plain)
    with psycopg.connect(plain) as connection:
        connection.execute("CREATE TABLE kept (number int)")
        connection.execute("INSERT INTO kept SELECT generate_series(1, 1000)")
    open_transaction.execute("INSERT INTO kept VALUES (-1)")
    pid = own_postgres.server.pid

    own_postgres.server.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    own_postgres.server.start()

    with pytest.raises(psycopg.OperationalError):
        open_transaction.execute("SELECT 1")
    open_transaction.close()
    with psycopg.connect(plain) as connection:
        assert connection.execute("SELECT count(*), min(number) FROM kept").fetchone() == (1000, 1)


@pytest.mark.postgres
def test_copied_database_is_its_own(postgres: PostgresPart) -> None:
    """A database copied from a template starts with its rows and changes alone; the template is built once."""
    built: list[str] = []

    def build(url: str) -> None:
        built.append(url)
        with psycopg.connect(url.replace("+psycopg", "")) as connection:
            connection.execute("CREATE TABLE copied AS SELECT 7 AS number")

    first = postgres.fresh(postgres.template("copied", build))
    with psycopg.connect(first.replace("+psycopg", "")) as connection:
        connection.execute("INSERT INTO copied VALUES (8)")
    second = postgres.fresh(postgres.template("copied", build))
    with psycopg.connect(second.replace("+psycopg", "")) as connection:
        assert connection.execute("SELECT number FROM copied").fetchall() == [(7,)]
    assert len(built) == 1
    postgres.drop(first)
    postgres.drop(second)


@pytest.mark.postgres
def test_running_server_is_not_started_twice(own_postgres: PostgresPart) -> None:
    """A server that was started does not start twice over itself."""
    with pytest.raises(PartFailed, match="running already"):
        own_postgres.server.start()
    os.kill(own_postgres.server.pid, 0)


def test_ledger_urls_name_both_databases(ledger_url: str) -> None:
    """`ledger_url` gives a fresh database of either kind."""
    assert ledger_url.startswith(("sqlite:///", "postgresql+psycopg://"))


@pytest.fixture
def checkout_without_kafka(tmp_path: Path) -> Path:
    """These tests in a checkout that lacks the recipe for Kafka's jars, so that no machine can run it there."""
    root = Path(__file__).resolve().parents[2]
    for part in ("tollgate/runtime", "tests/parts"):
        shutil.copytree(root / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    modules = [str(path.relative_to(root)) for path in (root / "sandbox").glob("*.py")]
    for part in (
        *("pyproject.toml", "tollgate/__init__.py", "tests/__init__.py", "tests/conftest.py"),
        *("tests/integration/__init__.py", "tests/integration/test_parts.py"),
        *modules,
    ):
        (tmp_path / part).parent.mkdir(exist_ok=True)
        shutil.copy(root / part, tmp_path / part)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("require_real", "code", "told"),
    [
        ("", 0, ["1 tests did NOT run:", "1 tests ran on the embedded broker instead:", "1 passed, "]),
        ("1", 1, ["Kafka is required and absent", "2 errors"]),
    ],
)
def test_absent_kafka_is_told_or_fails(
    checkout_without_kafka: Path, require_real: str, code: int, told: list[str]
) -> None:
    """Without Kafka, what cannot run is left out and listed; with REQUIRE_REAL=1 it fails, and nothing else runs."""
    environment = {name: text for name, text in os.environ.items() if name != "KAFKA_BOOTSTRAP_SERVERS"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-k", "cluster_id_is_stable or are_created_once"],
        cwd=checkout_without_kafka,
        env={**environment, "REQUIRE_REAL": require_real},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert [words for words in told if words not in done.stdout] == []
