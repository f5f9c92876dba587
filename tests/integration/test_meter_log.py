"""A log that is not the one that was counted: the meter stops and says why, and counts nothing of it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import RecordsToDelete

from tests.integration.meter_rig import MeterRig, calls
from tests.parts.kafka import BrokerSettings
from tollgate.contracts.topics import GATEWAY_EVENTS
from tollgate.runtime.kafka import TopicSpec, admin_client, create_topics

pytestmark = pytest.mark.kafka


@pytest.fixture
async def rig(kafka_settings: BrokerSettings, sqlite_url: str, tmp_path: Path) -> AsyncIterator[MeterRig]:
    """On real Kafka and SQLite: what is tested is the log."""
    made = await MeterRig(kafka_settings, sqlite_url, tmp_path).prepare()
    yield made
    made.close()


async def _truncate(rig: MeterRig, partition: int, before_offset: int) -> None:
    topic = rig.settings.topic_name(GATEWAY_EVENTS.name)
    async with admin_client(rig.settings) as admin:
        await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before_offset)})


async def _delete(rig: MeterRig) -> None:
    topic = rig.settings.topic_name(GATEWAY_EVENTS.name)
    async with admin_client(rig.settings) as admin:
        await admin.delete_topics([topic])
        while topic in await admin.list_topics():  # noqa: ASYNC110 - the broker has no event for it
            await asyncio.sleep(0.05)


async def _recreate(rig: MeterRig) -> None:
    await _delete(rig)
    await create_topics(rig.settings, [TopicSpec(GATEWAY_EVENTS.name, rig.partitions)])


async def test_a_truncated_partition_is_stopped_and_the_others_counted(rig: MeterRig) -> None:
    """Records deleted before they were counted cannot be made up for: that partition waits for a person."""
    worker = rig.worker().start()
    await rig.produce(calls(300))
    await rig.until_all_folded()
    assert worker.stop() == 0
    counted = rig.progress()
    await rig.produce(calls(300, first=1000), rows=5)
    await _truncate(rig, 1, counted[1].next_offset + 3)
    worker.start()
    await rig.until(lambda: bool(worker.logged("partition.stopped")))
    line = worker.logged("partition.stopped")[0]
    assert (line["partition"], line["reason"]) == (1, "truncated")
    assert "3 records were deleted" in line["detail"]
    whole = rig.progress
    await rig.until(
        lambda: all(whole()[p].next_offset > counted[p].next_offset for p in (0, 2)), what="the others go on"
    )
    assert rig.progress()[1] == counted[1]
    status, body = worker.ask("/readyz")
    assert status == 503
    assert "truncated" in body
    assert 'tollgate_meter_stopped_partitions{reason="truncated"} 1.0' in worker.ask("/metrics")[1]
    assert worker.ask("/livez")[0] == 200
    assert worker.stop() == 0


async def test_a_log_truncated_while_it_is_read_is_stopped(rig: MeterRig) -> None:
    """Retention overtakes a reader that was held up: it notices without a restart, and counts nothing past the hole."""
    worker = rig.worker().start(GROUP__SESSION_TIMEOUT_SECONDS="30")
    await rig.produce(calls(60))
    await rig.until_all_folded()
    ends = {p: each.next_offset for p, each in rig.progress().items()}
    worker.signal(signal.SIGSTOP)
    # The fetch under way is answered with these; what comes after must be fetched again.
    await rig.produce(calls(30, first=1000), rows=10)
    await rig.produce(calls(300, first=2000), rows=5)
    for partition, end in ends.items():
        await _truncate(rig, partition, end + 8)
    worker.signal(signal.SIGCONT)
    assert worker.wait(15) == 1
    reasons = {line["partition"]: line["reason"] for line in worker.logged("partition.stopped")}
    assert reasons == dict.fromkeys(range(rig.partitions), "truncated")
    for partition, each in rig.progress().items():
        assert ends[partition] <= each.next_offset < ends[partition] + 8


async def test_a_recreated_topic_is_not_counted(rig: MeterRig) -> None:
    """Other records under the same offsets: every partition stops, and the process ends telling why."""
    worker = rig.worker().start()
    await rig.produce(calls(300))
    await rig.until_all_folded()
    assert worker.stop() == 0
    counted, usage = rig.progress(), rig.usage
    await _recreate(rig)
    await rig.produce(calls(900, first=5000))
    worker.start()
    assert worker.wait(20) == 1
    reasons = {line["partition"]: line["reason"] for line in worker.logged("partition.stopped")}
    assert reasons == dict.fromkeys(range(rig.partitions), "rewritten")
    assert rig.progress() == counted
    assert rig.usage == usage
    assert any("every assigned partition is stopped" in str(line) for line in worker.log())


async def test_a_topic_recreated_while_it_is_read_is_not_counted(rig: MeterRig) -> None:
    """The running worker meets a shorter log than it has counted."""
    worker = rig.worker().start()
    await rig.produce(calls(300), rows=5)
    await rig.until_all_folded()
    counted, usage = rig.progress(), rig.usage
    await _recreate(rig)
    await rig.produce(calls(30, first=5000))
    assert worker.wait(25) == 1
    assert {line["reason"] for line in worker.logged("partition.stopped")} <= {"too_short", "rewritten"}
    assert rig.progress() == counted
    assert rig.usage == usage


async def test_a_topic_that_was_away_is_met_again(rig: MeterRig) -> None:
    """The group meets while the topic is missing and assigns nothing; when it is back the worker looks, and stops."""
    worker = rig.worker().start()
    await rig.produce(calls(300), rows=5)
    await rig.until_all_folded()
    counted, usage = rig.progress(), rig.usage
    await _delete(rig)
    await rig.until(lambda: worker.logged("partitions.assigned")[-1]["counted"] == 0)
    await create_topics(rig.settings, [TopicSpec(GATEWAY_EVENTS.name, rig.partitions)])
    await rig.produce(calls(30, first=5000))
    assert worker.wait(25) == 1
    assert worker.logged("partition.stopped")
    assert rig.progress() == counted
    assert rig.usage == usage


async def test_another_cluster_or_topic_is_refused(rig: MeterRig) -> None:
    """The ledger's pins are checked before anything is read."""
    worker = rig.worker()
    other = rig.settings.model_copy(update={"topic_prefix": "other." + rig.settings.topic_prefix})
    await create_topics(other, [TopicSpec(GATEWAY_EVENTS.name, rig.partitions)])
    worker.start(KAFKA__TOPIC_PREFIX=other.topic_prefix)
    assert worker.wait(15) == 1
    assert "pinned" in str(worker.log()[-1])
