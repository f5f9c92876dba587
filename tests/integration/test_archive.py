"""The archive as a process on a real broker: each offset in one file, whatever happens to who writes it."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.integration.archive_rig import ArchiveRig, mixed_records
from tests.parts.kafka import BrokerSettings
from tollgate.contracts.archive import FACTS_KEY, HOUR_MS, decode_facts, decode_pins, encode_pins

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


@pytest.fixture
async def rig(kafka_settings: BrokerSettings, sqlite_url: str, tmp_path: Path) -> AsyncIterator[ArchiveRig]:
    """On Kafka, two partitions."""
    made = await ArchiveRig(kafka_settings, sqlite_url, tmp_path).prepare()
    yield made
    made.close()


async def test_everything_is_archived_while_it_is_produced(rig: ArchiveRig) -> None:
    """Three hours of records of every kind: files by the hour, each offset once, what is open closed at the end."""
    archiver = rig.archiver().start()
    for hour in range(3):
        await rig.produce(mixed_records(120, first=hour * 120, ingest_ms=rig.base_ms + hour * HOUR_MS))
    await rig.until(rig.all_archived, what="all to be archived")
    assert archiver.ready()["ready"] is True
    await rig.until(lambda: "tollgate_archive_lag_records 0.0" in archiver.ask("/metrics")[1], what="no lag")
    assert "tollgate_archive_assigned_partitions 2.0" in archiver.ask("/metrics")[1]
    await rig.produce(mixed_records(7, first=400, ingest_ms=rig.base_ms + 3 * HOUR_MS))
    assert archiver.stop() == 0
    await rig.until(rig.all_archived, 0.1, "what was open to be closed by the stop, or fetched later")
    rig.assert_exact()
    for partition in (0, 1):
        hours = {name.hour_ms for name in rig.files(partition)}
        assert hours >= {(rig.base_ms // HOUR_MS + hour) * HOUR_MS for hour in range(3)}
        last = rig.files(partition)[-1]
        facts = decode_facts(pq.read_metadata(rig.root / last.path).metadata[FACTS_KEY], last.path)
        assert (facts.first_offset, facts.last_offset) == (last.first_offset, last.last_offset)


async def test_two_archivers_share_the_work_and_one_is_killed(rig: ArchiveRig) -> None:
    """Joining, leaving and dying move partitions about; no range is written twice and none is left out."""
    first, second = rig.archiver("first"), rig.archiver("second")
    first.start()
    await rig.produce(mixed_records(100, first=0, ingest_ms=rig.base_ms))
    second.start()
    await rig.until(
        lambda: all(
            "tollgate_archive_assigned_partitions 1.0" in a.ask("/metrics")[1] for a in (first, second)
        ),
        what="each to have one partition",
    )
    await rig.produce(mixed_records(100, first=100, ingest_ms=rig.base_ms))
    first.signal(signal.SIGKILL)
    first.wait(5)
    await rig.produce(mixed_records(100, first=200, ingest_ms=rig.base_ms + HOUR_MS))
    await rig.until(rig.all_archived, what="the survivor to archive all")
    assert second.stop() == 0
    rig.assert_exact()


async def test_a_zombie_is_refused(rig: ArchiveRig) -> None:
    """Paused beyond its session with a file half written, it wakes up when another has archived that and more."""
    zombie, heir = rig.archiver("zombie"), rig.archiver("heir")
    zombie.start(ARCHIVE__FILE_SECONDS_MAX="600", ARCHIVE__FILE_BYTES_MAX="9000000")
    await rig.produce(mixed_records(60, first=0, ingest_ms=rig.base_ms))
    await rig.until(
        lambda: len([*rig.root.rglob("*.part")]) == 2 and "lag_records 60.0" in zombie.ask("/metrics")[1],
        what="a file in the making of each partition",
    )
    zombie.signal(signal.SIGSTOP)
    heir.start()
    await rig.produce(mixed_records(60, first=60, ingest_ms=rig.base_ms))
    await rig.until(rig.all_archived, what="the heir to archive all")
    zombie.signal(signal.SIGCONT)
    await rig.produce(mixed_records(60, first=120, ingest_ms=rig.base_ms + HOUR_MS))
    await rig.until(lambda: zombie.logged("partition.overtaken"), what="the zombie to be refused")
    # Its files are open for ten minutes: what it has fetched meanwhile is closed by its end, the rest left to the heir.
    assert zombie.stop() == 0
    await rig.until(rig.all_archived, what="the heir to archive the rest")
    assert heir.stop() == 0
    rig.assert_exact()


async def test_another_clusters_directory_is_refused(rig: ArchiveRig) -> None:
    """The pins name what differs; nothing is written."""
    archiver = rig.archiver().start()
    await rig.produce(mixed_records(10, first=0, ingest_ms=rig.base_ms))
    await rig.until(rig.all_archived)
    assert archiver.stop() == 0
    path = rig.root / "archive.json"
    pins = decode_pins(path.read_bytes(), "")
    path.write_bytes(encode_pins(pins).replace(b'"partitions": 2', b'"partitions": 3'))
    archiver.start()
    assert archiver.wait(15) == 1
    assert "partitions is 3, here it is 2: another installation's archive" in archiver.child.tail()


async def test_a_log_that_was_made_anew_stops_the_partition(rig: ArchiveRig) -> None:
    """The last archived record is compared: with another one in its place nothing is appended, and /readyz says so."""
    archiver = rig.archiver().start()
    await rig.produce(mixed_records(40, first=0, ingest_ms=rig.base_ms))
    await rig.until(rig.all_archived)
    assert archiver.stop() == 0
    last = rig.files(0)[-1]
    path = rig.root / last.path
    table = pq.read_table(path, partitioning=None)
    facts = json.loads(pq.read_metadata(path).metadata[FACTS_KEY])
    facts["fingerprint"] = "19:0000000000000000"
    writer = pq.ParquetWriter(path, table.schema)
    writer.write_table(table)
    writer.add_key_value_metadata({FACTS_KEY: json.dumps(facts).encode()})
    writer.close()
    before = rig.files(0)
    archiver.start()
    await rig.until(lambda: "rewritten" in json.dumps(archiver.ready()), what="the partition to stop")
    await rig.produce(mixed_records(40, first=40, ingest_ms=rig.base_ms))
    await rig.until(lambda: rig.archived(1) == len(rig.log[1]), what="the other partition to go on")
    assert archiver.stop() == 0
    assert rig.files(0) == before
