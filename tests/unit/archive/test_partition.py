"""A partition being archived: where files are cut, and that nothing but the next record is ever taken."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from prometheus_client import CollectorRegistry

from services.archive.directory import Overtaken, PartitionDirectory
from services.archive.faults import FaultPoint
from services.archive.metrics import Closing, Metrics
from services.archive.partition import Gap, PartitionArchive, Stopped, StopReason
from services.archive.settings import FileSettings
from tests.fakes.logged import events_record, raw_record, tick_record
from tests.unit.metering.rows import row
from tollgate.contracts.archive import FACTS_KEY, HOUR_MS, FileFacts, FileName, decode_facts, order_files
from tollgate.contracts.archive_rows import RestoredRecord, properties_of, restore_records
from tollgate.contracts.events import decode_batch
from tollgate.runtime.clock import ManualClock
from tollgate.runtime.faults import Faults

BASE_MS = 500_000 * HOUR_MS


class Rig:
    """One archive of partition 0, its directory and its clock."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.root = root
        self.clock = ManualClock(BASE_MS + 100 * HOUR_MS)
        self.settings = FileSettings(**settings)
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry)
        self.archive = self.begun()

    def begun(self, log_start: int = 0, log_end: int = 10**6) -> PartitionArchive:
        """Another worker that begins now."""
        faults: Faults[FaultPoint] = Faults()
        made = PartitionArchive(
            0,
            PartitionDirectory(self.root, 0, faults),
            "archive_1",
            self.settings,
            self.clock,
            self.metrics,
            faults,
        )
        made.load()
        made.begin_at(log_start, log_end)
        return made

    @property
    def files(self) -> list[FileName]:
        return order_files(
            [name for path in self.root.rglob("*.parquet") if (name := FileName.parse(str(path))) is not None]
        )

    def ranges(self) -> list[tuple[int, int]]:
        return [(name.first_offset, name.last_offset) for name in self.files]

    def facts(self, number: int) -> FileFacts:
        path = self.files[number].path
        return decode_facts(pq.read_metadata(self.root / path).metadata[FACTS_KEY], path)

    def records(self) -> list[RestoredRecord]:
        return [
            record
            for name in self.files
            for record in restore_records(pq.ParquetFile(self.root / name.path).read())
        ]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """Files that are closed by the hour alone."""
    return Rig(tmp_path)


def ticks(first: int, count: int, at_ms: int = BASE_MS) -> list[RestoredRecord]:
    return [tick_record(offset, at_ms) for offset in range(first, first + count)]


def test_a_new_hour_closes_the_file_and_an_old_one_does_not(rig: Rig) -> None:
    """Records taken in by another instance before the hour stay in the file of the log's order; hours never go back."""
    rig.archive.append(ticks(0, 3) + ticks(3, 2, BASE_MS + HOUR_MS) + ticks(5, 2, BASE_MS + HOUR_MS - 1))
    rig.archive.append(ticks(7, 1, BASE_MS + 3 * HOUR_MS))
    rig.archive.append(ticks(8, 1, BASE_MS))
    rig.archive.close(Closing.HANDED_OVER)
    rig.archive.append(ticks(9, 1, BASE_MS))
    rig.archive.close(Closing.HANDED_OVER)
    assert rig.ranges() == [(0, 2), (3, 6), (7, 8), (9, 9)]
    assert [(name.hour_ms - BASE_MS) // HOUR_MS for name in rig.files] == [0, 1, 3, 3]
    assert rig.archive.archived_offset == 10
    assert [record.offset for record in rig.records()] == list(range(10))


def test_a_time_ahead_of_ours_is_taken_as_now(rig: Rig) -> None:
    """A header of the year 9999 must not drag every later file there."""
    rig.archive.append([raw_record(0, b"", ("ingest_ms", b"253402300799999"), timestamp_ms=BASE_MS)])
    rig.archive.append(ticks(1, 1, BASE_MS))
    rig.archive.close(Closing.HANDED_OVER)
    assert [name.hour_ms for name in rig.files] == [BASE_MS + 100 * HOUR_MS]


def test_size_and_age_close_a_file(tmp_path: Path) -> None:
    """Row groups are written as they fill; nothing is split within a record."""
    rig = Rig(tmp_path, row_group_bytes=2048, file_bytes_max=4096, file_seconds_max=60)
    for offset in range(40):
        rows = [row(offset * 10 + place, id=f"call-{offset}-{place}") for place in range(10)]
        rig.archive.append([events_record(offset, rows, ingest_ms=BASE_MS)])
        assert rig.archive.held_bytes < 2048
    assert len(rig.files) > 1
    before = rig.ranges()
    rig.archive.append(ticks(40, 1))
    rig.archive.close_if_old()
    assert rig.ranges() == before
    rig.clock.advance_ms(60_000)
    rig.archive.close_if_old()
    assert rig.ranges()[-1][1] == 40
    assert sum(rig.facts(number).events for number in range(len(rig.files))) == 400
    found = rig.records()
    assert [record.offset for record in found] == list(range(41))
    assert [decode_batch(record.value)["id"].to_pylist() for record in found[:40]] == [
        [f"call-{offset}-{place}" for place in range(10)] for offset in range(40)
    ]
    groups = pq.ParquetFile(rig.root / rig.files[0].path)
    assert groups.num_row_groups > 1


def test_a_property_the_file_has_no_column_for_begins_another(tmp_path: Path) -> None:
    """And two capture settings at once do not cut a file at every change between them."""
    rig = Rig(tmp_path, row_group_bytes=1024)
    properties = [["a"], ["b"], ["a"], ["b"], [], ["a", "b"], ["b"]]
    for offset, names in enumerate(properties):
        rows = [row(offset * 100 + n, properties=dict.fromkeys(names, "1")) for n in range(20)]
        rig.archive.append([events_record(offset, rows, names, ingest_ms=BASE_MS)])
    rig.archive.close(Closing.HANDED_OVER)
    assert rig.ranges() == [(0, 0), (1, 6)]
    columns = [properties_of(pq.read_schema(rig.root / name.path)) for name in rig.files]
    assert columns == [{"a"}, {"a", "b"}]


def test_only_the_next_record_is_taken(rig: Rig) -> None:
    """What was had before is dropped, what comes too early refused with everything after it."""
    rig.archive.append(ticks(0, 5))
    rig.archive.append(ticks(2, 4))
    assert rig.archive.next_offset == 6
    with pytest.raises(Gap, match="offset 7 came, 6 was expected"):
        rig.archive.append(ticks(7, 2))
    rig.archive.append(ticks(6, 1))
    rig.archive.close(Closing.HANDED_OVER)
    assert [record.offset for record in rig.records()] == list(range(7))


def test_the_last_archived_record_is_compared(rig: Rig) -> None:
    """It is asked for again; another one in its place, or none, stops everything before it is written."""
    rig.archive.append(ticks(0, 5))
    rig.archive.close(Closing.HANDED_OVER)
    heir = rig.begun()
    with pytest.raises(Gap, match="offset 5 came, 4 was expected"):
        heir.append(ticks(5, 1))
    with pytest.raises(Stopped, match="record 4 was") as stopped:
        heir.append([tick_record(4, BASE_MS, acknowledged=9), *ticks(5, 1)])
    assert stopped.value.reason is StopReason.REWRITTEN
    heir.append(ticks(4, 3))
    heir.close(Closing.HANDED_OVER)
    assert rig.ranges() == [(0, 4), (5, 6)]


@pytest.mark.parametrize(
    ("start", "end", "reason"), [(6, 9, StopReason.TRUNCATED), (0, 4, StopReason.TOO_SHORT)]
)
def test_a_log_that_cannot_be_gone_on_with_stops(rig: Rig, start: int, end: int, reason: StopReason) -> None:
    """Records that were deleted unarchived, and a log that ends before what it once had."""
    rig.archive.append(ticks(0, 5))
    rig.archive.close(Closing.HANDED_OVER)
    with pytest.raises(Stopped) as stopped:
        rig.begun(start, end)
    assert stopped.value.reason is reason


def test_where_reading_begins(rig: Rig) -> None:
    """A new archive where the log does; later one record back, unless retention has taken that one."""
    assert rig.begun(3, 9).next_offset == 3
    rig.archive.append(ticks(0, 5))
    rig.archive.close(Closing.HANDED_OVER)
    heir = rig.begun()
    assert heir.begin_at(0, 9) == 4
    assert heir.begin_at(5, 9) == 5
    heir.append(ticks(5, 1))


def test_whoever_is_second_writes_nothing(rig: Rig) -> None:
    """Two that hold the same records: one file, and the loser begins again behind it."""
    other = rig.begun()
    rig.archive.append(ticks(0, 5))
    other.append(ticks(0, 8))
    rig.archive.close(Closing.HANDED_OVER)
    with pytest.raises(Overtaken):
        other.close(Closing.HANDED_OVER)
    assert rig.ranges() == [(0, 4)]
    other.load()
    assert other.begin_at(0, 100) == 4
    other.append(ticks(4, 4))
    other.close(Closing.HANDED_OVER)
    assert rig.ranges() == [(0, 4), (5, 7)]


def test_what_is_discarded_leaves_nothing(tmp_path: Path) -> None:
    """A file half written is removed; the facts of the next one begin anew."""
    rig = Rig(tmp_path, row_group_bytes=1024)
    rig.archive.append([events_record(0, [row(n) for n in range(50)], ingest_ms=BASE_MS)])
    assert len([*tmp_path.rglob("*.part")]) == 1
    rig.archive.discard()
    assert not [*tmp_path.rglob("*.part")]
    heir = rig.begun()
    heir.append([events_record(0, [row(1)], ingest_ms=BASE_MS + 5), *ticks(1, 1, BASE_MS + 9)])
    heir.close(Closing.HANDED_OVER)
    facts = rig.facts(0)
    assert (facts.events, facts.kept, facts.taken_ms_min, facts.taken_ms_max) == (
        1,
        1,
        BASE_MS + 5,
        BASE_MS + 9,
    )


def sums(registry: CollectorRegistry, names: Sequence[str]) -> list[float | None]:
    return [registry.get_sample_value(f"tollgate_archive_{name}_total") for name in names]


def test_what_is_archived_is_counted(rig: Rig) -> None:
    """Records, events and bytes of files that are there; nothing of what is only held."""
    rig.archive.append([events_record(0, [row(1), row(2)], ingest_ms=BASE_MS), *ticks(1, 2)])
    assert sums(rig.registry, ["records", "events", "records_kept"]) == [0, 0, 0]
    rig.archive.close(Closing.AGE)
    assert sums(rig.registry, ["records", "events", "records_kept"]) == [3, 2, 2]
    assert rig.registry.get_sample_value("tollgate_archive_files_total", {"closing": "age"}) == 1
    size = (rig.root / rig.files[0].path).stat().st_size
    assert rig.registry.get_sample_value("tollgate_archive_bytes_total") == size
