"""Names of archived files: what a path says, and what a partition's files must be together."""

from __future__ import annotations

import pytest

from tollgate.contracts.archive import (
    CONTRACT,
    ArchivePins,
    FileName,
    NotAnArchive,
    decode_facts,
    decode_pins,
    encode_pins,
    order_files,
)

HOUR_MS = 1_795_406_400_000
"""2026-11-23T04:00Z."""


def named(first: int, last: int, hour: int = 0) -> FileName:
    return FileName(3, first, last, HOUR_MS + hour * 3_600_000)


def test_a_path_says_all_and_is_read_again() -> None:
    """Partition, hour and both offsets, wherever the archive lies."""
    name = named(12345, 23456)
    path = "events/partition=03/hour=2026-11-23T04/00000000000000012345-00000000000000023456.parquet"
    assert name.path == path
    assert FileName.parse(path) == name
    assert FileName.parse(f"/data/archive/{path}") == name
    assert FileName.parse(FileName(1234, 0, 2**62, 0).path) == FileName(1234, 0, 2**62, 0)


@pytest.mark.parametrize(
    "path",
    [
        "events/partition=03/.writing/00000000000000012345-abc.part",
        "events/partition=03/hour=2026-11-23T04/notes.txt",
        "events/partition=03/hour=2026-11-23T04/12345-23456.parquet",
        "archive.json",
    ],
)
def test_any_other_file_is_none(path: str) -> None:
    """Files in the making, and what people put there."""
    assert FileName.parse(path) is None


def test_files_in_order_follow_each_other() -> None:
    """Whatever order a directory lists them in."""
    files = [named(0, 9), named(10, 10), named(11, 30, 2)]
    assert order_files([files[2], files[0], files[1]]) == files
    assert order_files([]) == []


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (named(11, 20), "nothing holds offsets 10 to 10"),
        (named(9, 20), "two files hold offsets 9 to 9"),
        (named(0, 20), "two files hold offsets 0 to 9"),
        (named(10, 20, -1), "of an earlier hour"),
        (named(10, 8), "ends before it begins"),
    ],
)
def test_a_gap_an_overlap_or_a_turned_hour_is_no_archive(second: FileName, words: str) -> None:
    """The offsets are named."""
    with pytest.raises(NotAnArchive, match=words):
        order_files([named(0, 9), second])


def test_pins_and_facts_are_read_or_refused() -> None:
    """Another contract, or anything else, is named with its path."""
    pins = ArchivePins(CONTRACT, "archive_1", "cluster", "gateway.events", 24)
    assert decode_pins(encode_pins(pins), "x") == pins
    with pytest.raises(NotAnArchive, match="x is of contract 'archive/2'"):
        decode_pins(encode_pins(pins).replace(b"archive/1", b"archive/2"), "x")
    for value in (None, b"", b"{}", b"\xff"):
        with pytest.raises(NotAnArchive, match="y does not say what it holds"):
            decode_facts(value, "y")
