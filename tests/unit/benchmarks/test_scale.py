"""The curve over partitions and workers: its table, and how flat it is."""

from __future__ import annotations

import pytest

from benchmarks.scale.__main__ import _parse
from benchmarks.scale.curve import HEADINGS, find_spread, render_curve
from benchmarks.scale.spread import Point


def point(partitions: int, workers: int, cpu_us: float, bare_us: float = 0.5) -> Point:
    return Point(
        partitions=partitions,
        workers=workers,
        events=1_000_000,
        seconds=4.0,
        cpu_us=cpu_us,
        bare_us=bare_us,
        shares=(500_000,) * workers,
        flushes=5,
        usage_rows=20_000,
        wal_bytes=40_000_000,
        seen_ram_bytes=11_000_000,
        seen_disk_bytes=8_400_000,
        seen_ids=1_000_000,
        usage_row_bytes=300,
        database_us=None,
    )


def test_flat_is_judged_by_workers_with_and_without_the_bare_limit() -> None:
    """A machine half as fast for one point shows in the first figure alone; other workers are another curve."""
    points = [point(8, 1, 2.0), point(24, 1, 4.0, bare_us=1.0), point(96, 1, 2.5), point(8, 2, 9.0)]
    assert find_spread(points) == {1: (2.0, 1.25), 2: (1.0, 1.0)}


def test_a_line_a_point_as_markdown() -> None:
    """Every point once, each cell in its column, costs also beside the first point's."""
    header, rule, first, second = render_curve([point(8, 1, 2.0), point(96, 2, 3.0)]).splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == list(HEADINGS)
    assert set(rule) == {"|", "-", ":"}
    assert [cell.strip() for cell in first.strip("|").split("|")] == [
        *("8", "1", "2.00", "1.00", "0.500", "4.0", "-", "250,000", "5", "20,000", "500,000")
    ]
    assert [cell.strip() for cell in second.strip("|").split("|")][:4] == ["96", "2", "3.00", "1.50"]


def test_a_point_as_json() -> None:
    """What arithmetic is done with is told by the unit: bytes a row and an id."""
    told = point(8, 1, 2.0).to_document()
    assert (told["wal_bytes_per_usage_row"], told["seen_ram_bytes_per_id"]) == (2000, 11.0)
    assert (told["seen_disk_bytes_per_id"], told["ratio_to_bare"]) == (8.4, 4.0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--partitions", "0,8"],
        ["--partitions", "1", "--workers", "2"],
        ["--events", "10"],
        ["--rounds", "0"],
        ["--workers", "a"],
    ],
)
def test_what_cannot_be_run_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before anything is started."""
    with pytest.raises(SystemExit) as refused:
        _parse(arguments)
    assert refused.value.code == 2
    assert "error" in capsys.readouterr().err
