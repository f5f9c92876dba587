"""The directory's one step: a file joins the archive where it ends, or not at all."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest

from services.archive.directory import Overtaken, PartitionDirectory, PinsDiffer, open_archive
from services.archive.draft import Draft
from services.archive.faults import FaultPoint
from tests.fakes.logged import tick_record
from tollgate.contracts.archive import CONTRACT, FileFacts, FileName, NotAnArchive
from tollgate.contracts.archive_rows import join_rows, row_schema, tabulate
from tollgate.runtime.faults import Faults

HOUR_MS = 3_600_000


class Crashed(Exception):
    """What dying is in a test."""


def crash() -> None:
    raise Crashed


def directory(root: Path, armed: FaultPoint | None = None) -> PartitionDirectory:
    return PartitionDirectory(root, 3, Faults(armed, crash=crash))


def drafted(root: Path, first: int, last: int, hour: int = 0) -> tuple[Path, FileName]:
    """A complete file in the making, and the name it is to have."""
    name = FileName(3, first, last, hour * HOUR_MS)
    draft = Draft(directory(root).draft(first), row_schema(), 3)
    draft.write(
        join_rows(tabulate([tick_record(offset, partition=3) for offset in range(first, last + 1)]), [])
    )
    draft.close(FileFacts(CONTRACT, "archive_1", 3, first, last, 0, last - first + 1, 0, 0, f"{last}:x"))
    return draft.path, name


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An archive directory with the partition's own made."""
    assert directory(tmp_path).load() is None
    return tmp_path


def test_files_that_follow_each_other_are_archived(root: Path) -> None:
    """The last one is found again with what it says; drafts are gone."""
    for first, last, hour in ((7, 9, 0), (10, 10, 0), (11, 20, 5)):
        directory(root).archive(*drafted(root, first, last, hour))
    found = directory(root).load()
    assert found is not None
    assert found[0] == FileName(3, 11, 20, 5 * HOUR_MS)
    assert found[1].fingerprint == "20:x"
    assert not [*root.rglob("*.part")]


@pytest.mark.parametrize(("first", "last"), [(7, 9), (7, 12), (9, 12), (8, 8), (11, 12)])
def test_a_file_that_begins_elsewhere_is_refused(root: Path, first: int, last: int) -> None:
    """The same range, a longer one, a part of it, one with a gap before it: the directory stays as it was."""
    directory(root).archive(*drafted(root, 7, 9))
    before = sorted(root.rglob("*.parquet"))
    with pytest.raises(Overtaken):
        directory(root).archive(*drafted(root, first, last, 3))
    assert sorted(root.rglob("*.parquet")) == before


def test_of_two_that_begin_an_archive_one_is_refused(root: Path) -> None:
    """Nothing was there for either to follow: whoever is second must not begin it again."""
    one, other = drafted(root, 0, 5), drafted(root, 0, 9, 1)
    directory(root).archive(*one)
    with pytest.raises(Overtaken, match="6 is"):
        directory(root).archive(*other)


def test_a_draft_that_was_removed_is_overtaken(root: Path) -> None:
    """Whoever loads the partition removes what was in the making; its writer is told when it is done."""
    draft, name = drafted(root, 0, 5)
    directory(root).load()
    assert not draft.exists()
    with pytest.raises(Overtaken, match="another worker"):
        directory(root).archive(draft, name)


@pytest.mark.parametrize(
    ("point", "there"),
    [
        (FaultPoint.FILE_SYNCED, False),
        (FaultPoint.LOCKED, False),
        (FaultPoint.HOUR_MADE, False),
        (FaultPoint.FILE_RENAMED, True),
        (FaultPoint.FILE_ARCHIVED, True),
    ],
)
def test_a_death_leaves_the_file_or_nothing(root: Path, point: FaultPoint, there: bool) -> None:
    """And no lock: the next one goes on from what is there."""
    with pytest.raises(Crashed):
        directory(root, point).archive(*drafted(root, 0, 5))
    found = directory(root).load()
    assert (found is not None) is there
    directory(root).archive(*drafted(root, 6 if there else 0, 9, 1))


def test_damage_is_named(root: Path) -> None:
    """A file that was removed from between others, cut short, or renamed."""
    for first in (0, 10, 20):
        directory(root).archive(*drafted(root, first, first + 9))
    path = root / FileName(3, 10, 19, 0).path
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(NotAnArchive, match="nothing holds offsets 10 to 19"):
        directory(root).load()
    path.write_bytes(kept)
    last = root / FileName(3, 20, 29, 0).path
    last.write_bytes(last.read_bytes()[:-5])
    with pytest.raises(NotAnArchive, match="cannot be read"):
        directory(root).load()
    last.write_bytes(kept)
    with pytest.raises(NotAnArchive, match="holds 10 to 19"):
        directory(root).load()


def test_an_archive_goes_along_with_a_cut_over(tmp_path: Path) -> None:
    """More partitions, a multiple: the same archive, which knows where accounts were before. Fewer are another log."""
    wanted = {"kafka_cluster_id": "c", "events_topic": "t"}
    first = open_archive(tmp_path, partitions=4, **wanted)
    for count, before in ((12, (4,)), (12, (4,)), (24, (4, 12))):
        grown = open_archive(tmp_path, partitions=count, **wanted)
        assert (grown.archive_id, grown.partitions, grown.partitions_before) == (
            first.archive_id,
            count,
            before,
        )
    for count in (12, 36, 25):
        with pytest.raises(PinsDiffer):
            open_archive(tmp_path, partitions=count, **wanted)
    with pytest.raises(PinsDiffer):
        open_archive(tmp_path, partitions=48, kafka_cluster_id="c", events_topic="other")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["archive.json"]


def test_pins_are_written_once(tmp_path: Path) -> None:
    """The second opening finds the first one's; any other cluster, topic or partition count is refused."""
    root = tmp_path / "new" / "archive"
    wanted = {"kafka_cluster_id": "c", "events_topic": "t", "partitions": 3}
    pins = open_archive(root, kafka_cluster_id="c", events_topic="t", partitions=3)
    assert open_archive(root, kafka_cluster_id="c", events_topic="t", partitions=3) == pins
    assert [path.name for path in root.iterdir() if path.is_file()] == ["archive.json"]
    for name, value in (("kafka_cluster_id", "d"), ("events_topic", "u"), ("partitions", 4)):
        with pytest.raises(PinsDiffer, match=name):
            open_archive(root, **(wanted | {name: value}))  # type: ignore[arg-type]


def test_whoever_looks_waits_for_whoever_renames(root: Path) -> None:
    """Two that found the same end, one between looking and renaming: the other is refused when its turn comes."""
    one, other = drafted(root, 0, 5), drafted(root, 0, 9, 1)
    looked, go_on = threading.Event(), threading.Event()

    def pause() -> None:
        looked.set()
        assert go_on.wait(10)

    first = PartitionDirectory(root, 3, Faults(FaultPoint.LOCKED, crash=pause))
    with ThreadPoolExecutor(2) as pool:
        renaming = pool.submit(first.archive, *one)
        assert looked.wait(10)
        waiting = pool.submit(directory(root).archive, *other)
        early, _ = wait([waiting], timeout=0.2)
        go_on.set()
        renaming.result()
        with pytest.raises(Overtaken):
            waiting.result()
    assert not early
    assert len([*root.rglob("*.parquet")]) == 1
