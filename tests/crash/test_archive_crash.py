"""The archive dies at each named step, as by SIGKILL; the next process goes on from the files that are there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.archive.faults import FaultPoint
from tests.integration.archive_rig import ArchiveRig, mixed_records
from tests.parts.kafka import BrokerSettings
from tollgate.contracts.archive import HOUR_MS
from tollgate.runtime.faults import EXIT_CRASHED


@pytest.fixture
async def rig(broker_settings: BrokerSettings, sqlite_url: str, tmp_path: Path) -> AsyncIterator[ArchiveRig]:
    """On Kafka (the embedded broker where there is none) and SQLite."""
    made = await ArchiveRig(broker_settings, sqlite_url, tmp_path).prepare()
    yield made
    made.close()


@pytest.mark.parametrize("point", [point for point in FaultPoint if point is not FaultPoint.REVOKED])
async def test_a_death_at_each_step_leaves_neither_gap_nor_double(rig: ArchiveRig, point: FaultPoint) -> None:
    """The file is there or it is not: either way the heir's files follow, and nothing half made stays behind."""
    await rig.produce(mixed_records(60, first=0, ingest_ms=rig.base_ms))
    # A partition is loaded and the group told seldom; the other steps come often.
    hits = {FaultPoint.PARTITION_LOADED: 2, FaultPoint.GROUP_COMMITTED: 1}.get(point, 3)
    archiver = rig.archiver().start(ARCHIVE_FAULT__POINT=point, ARCHIVE_FAULT__HITS=str(hits))
    await rig.produce(mixed_records(60, first=60, ingest_ms=rig.base_ms + HOUR_MS))
    await rig.produce(mixed_records(60, first=120, ingest_ms=rig.base_ms + 2 * HOUR_MS))
    assert archiver.wait(20) == EXIT_CRASHED
    await rig.produce(mixed_records(40, first=180, ingest_ms=rig.base_ms + 2 * HOUR_MS))
    archiver.start()
    await rig.until(rig.all_archived, what="the heir to archive all")
    assert archiver.stop() == 0
    rig.assert_exact()
    assert not [*rig.root.rglob("*.part")]


async def test_a_death_in_a_handover_leaves_neither_gap_nor_double(rig: ArchiveRig) -> None:
    """Partitions are being taken away, what is open is not closed: the other worker reads it again."""
    first, second = rig.archiver("first"), rig.archiver("second")
    first.start(
        ARCHIVE_FAULT__POINT=FaultPoint.REVOKED,
        ARCHIVE__FILE_SECONDS_MAX="600",
        ARCHIVE__FILE_BYTES_MAX="9000000",
    )
    await rig.produce(mixed_records(60, first=0, ingest_ms=rig.base_ms))
    await rig.until(lambda: len([*rig.root.rglob("*.part")]) == 2, what="files in the making")
    second.start()
    assert first.wait(20) == EXIT_CRASHED
    await rig.produce(mixed_records(60, first=60, ingest_ms=rig.base_ms))
    await rig.until(rig.all_archived, what="the heir to archive all")
    assert second.stop() == 0
    rig.assert_exact()
